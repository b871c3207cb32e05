# `make demo` and `make test` go from a fresh checkout to a result; everything lands in .venv and demo-output.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
DEMO = convnextpose/weights/demo.mp4

.PHONY: demo docs test test-all test-gpu gpu-check check bench clean

$(VENV)/base: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	@# OpenCV's ordinary wheel needs libGL, which a bare server lacks: there the headless wheel of the same version replaces it.
	$(BIN)/python -c 'import cv2' 2>/dev/null || { $(BIN)/python -m pip uninstall -q -y opencv-python && \
	  $(BIN)/python -m pip install -q -c constraints.txt opencv-python-headless; }
	touch $@

$(VENV)/dev: $(VENV)/base
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[build,dev]'
	touch $@

demo: $(VENV)/base
	$(BIN)/convnextpose run $(DEMO) --out demo-output --camera 620,620,319.5,239.5 --trace demo-output/trace.json --overwrite
	$(BIN)/python benchmarks/accuracy.py demo-output/poses.npz convnextpose/weights/demo_truth.json

$(VENV)/docs: $(VENV)/base
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[docs]'
	touch $@

# The documentation as a site in site/; every link and anchor within it must have a target.
docs: $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

test: $(VENV)/dev
	$(BIN)/python -m pytest

$(VENV)/test-all: $(VENV)/dev
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[test-all]'
	touch $@

# The server has its own environment, as it needs NumPy 1; it exists for Linux on x86-64.
$(VENV)/triton: $(VENV)/dev
	$(BIN)/python -m pip install -q --no-deps --target $@ nvidia-pytriton==0.7.0 numpy==1.26.4 && touch $@ || \
	  echo "no Triton for this machine: its tests are skipped"

# Also the slow cases: more cases of laws that one fast case shows. Other programs' readers, Ray and Triton go into .venv.
test-all: $(VENV)/test-all $(VENV)/triton
	$(BIN)/python -m pytest -m ""

# Fails, and does not skip, without a GPU.
test-gpu: $(VENV)/dev
	$(BIN)/python -m pytest tests/gpu -m gpu --require-gpu

# Installs nothing: for a GPU machine without a package registry. Figures and log go to gpu-check/.
gpu-check:
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m tests.gpu.check --out gpu-check

check: $(VENV)/dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_layers.py

bench: $(VENV)/dev
	$(BIN)/python benchmarks/pipeline_speed.py
	$(BIN)/python benchmarks/host_work.py

clean:
	rm -rf $(VENV) demo-output site build *.egg-info
