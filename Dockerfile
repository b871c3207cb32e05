# convnextpose for desktop and data-centre GPUs (x86-64); docs/tensorrt.md says how to run it. Never built so far.
#
#   RTX desktop:        docker build -t convnextpose .
#   data-centre GPU:    docker build -t convnextpose --build-arg EXTRA=tensorrt .
#
# It runs video and builds engines from bundles. To build them from checkpoints, too: --build-arg EXTRA=build,tensorrt
ARG BASE=nvidia/cuda:13.0.1-base-ubuntu24.04
FROM ${BASE}

SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# DL3008: the base's repositories have one version of each package.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3-venv \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home --uid 10001 poses

ENV PATH="/opt/convnextpose/bin:${PATH}" PIP_NO_CACHE_DIR=1 NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility,video

WORKDIR /src
COPY LICENSE README.md constraints.txt pyproject.toml ./
COPY convnextpose convnextpose/
COPY engines engines/
COPY pipeline pipeline/
COPY tools tools/

# OpenCV's ordinary wheel needs libGL, which the base lacks: the headless wheel of the same version replaces it.
ARG EXTRA=tensorrt-rtx
RUN python3 -m venv /opt/convnextpose \
 && pip install -c constraints.txt ".[${EXTRA}]" \
 && pip uninstall -y opencv-python \
 && pip install -c constraints.txt opencv-python-headless \
 && python -c 'import av, cv2, numpy, cuda.bindings' \
 && install -d -o poses /work

USER 10001
WORKDIR /work
HEALTHCHECK --interval=10m --timeout=2m --start-period=1m CMD ["convnextpose", "doctor"]
ENTRYPOINT ["convnextpose"]
CMD ["--help"]
