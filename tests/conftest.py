"""Fixtures for the tests of all packages; torch is imported only by the fixtures that need it."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from convnextpose.variants import Variant


def pytest_addoption(parser):
    parser.addoption("--fuzz-cases", type=int, help="cases of each kind of input that tests/fuzz spoils")
    parser.addoption("--fuzz-seed", type=int, default=1, help="what the chance in tests/fuzz begins with (1)")


MOST_WORKERS = 4
"""Each worker uses up to 3 GB."""

LONGEST = ("tests/tools/test_run.py", "tests/fuzz/", "tests/tools/", "tests/engines/", "tests/training/", "tests/pipeline/")
"""The longest files and folders, in this order. The first starts without an export: meanwhile another process makes the export
that many tests wait for."""


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the same options
def pytest_cmdline_main(config):
    """Test folders with one process for each core and one more, since tests also wait. Each runs one file at a time.

    Single files and GPU tests run only in this process.

    `-n 0` asks for one process; without pytest-xdist there is only one.
    """
    if hasattr(config, "workerinput") or not config.pluginmanager.hasplugin("xdist"):
        return
    option = config.option
    one_process = option.dist != "no" or option.usepdb or option.collectonly or not _are_folders(config.args)
    if option.numprocesses is not None or one_process:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    option.numprocesses = 0 if cores < 2 else min(cores + 1, MOST_WORKERS)
    if option.numprocesses:
        option.dist, option.loadscopereorder = "loadfile", False
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # for workers and their processes
            os.environ.setdefault(name, "1")
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # otherwise all of them would compile the same files


def pytest_collection_modifyitems(config, items):
    """If several processes share the files, run the longest first, so that none has a long one left at the end."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: ([not item.nodeid.startswith(start) for start in LONGEST], str(item.path)))


def _are_folders(arguments):
    """Whether whole folders of tests are run: not single files or tests, and not the GPU tests."""
    return all(Path(argument).is_dir() and Path(argument).name != "gpu" for argument in arguments)


def _from_a_place_of_its_own(folders, worker):
    """The test files in some folders, starting at a different file for each worker.

    After a change or in a new clone pytest compiles them, and keeps the result for processes that load the file later.
    """
    files = [str(path) for folder in folders for path in sorted(Path(folder).rglob("test_*.py"))]
    begin = len(files) * int(worker["workerid"].removeprefix("gw")) // worker["workercount"]
    return files[begin:] + files[:begin]


def pytest_configure(config):
    """Fewer examples of each law in `make test` than with the slow cases. A busy machine makes no example fail."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs tests in the background has it ignored
    if hasattr(config, "workerinput") and _are_folders(config.args):
        config.args = _from_a_place_of_its_own(config.args, config.workerinput)
    thorough = "not slow" not in config.getoption("markexpr")
    settings.register_profile(
        "convnextpose", max_examples=100 if thorough else 20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("convnextpose")


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory):
    """A folder that exists during this test run, shared by all its processes."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session", autouse=True)
def made_once(shared_folder):
    """Torch's exporter and the ranges of INT8 graphs take seconds, so they run only once: for each kind of network, and for
    each model with its crops.

    Returns the exporter's own conversion, for tests that need it again.
    """
    if sys.platform == "win32" or importlib.util.find_spec("torch") is None:
        yield None
        return
    from engines import graph, precision
    from tests.once import crops_key, graph_once, once

    convert = graph._convert
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "_convert", graph_once(convert, shared_folder))
        patch.setattr(precision, "quantise", once(precision.quantise, crops_key, shared_folder))
        yield convert


@pytest.fixture(scope="module")
def engines_once():
    """The library builds an engine from the same graph and options only once, for tests of what happens afterwards."""
    from engines import build_job

    kept, build_engine = {}, build_job.build_engine

    def once(onnx, library, *rest):
        key = (onnx, library.name, *rest)
        if key not in kept:
            kept[key] = build_engine(onnx, library, *rest)
        return kept[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_job, "build_engine", once)
        yield


@pytest.fixture(scope="session")
def xs_state():
    """A state dict of random weights: XS, 18 joints, canonical names. Copy it before changing it."""
    from convnextpose.network import random_state

    return dict(random_state(Variant.XS))


@pytest.fixture(scope="session")
def xs_checkpoint(xs_state):
    """The same, verified."""
    from convnextpose.checkpoint import verify_state

    return verify_state(xs_state, source="random")


@pytest.fixture(scope="session")
def as_published():
    """A function from a state dict to the contents of a published file: `network`, `epoch` and Adam's `optimizer`."""

    def build(state, *, numbered=False, module=True, optimizer=True):
        import torch

        network = {}
        for name, tensor in state.items():
            if numbered:
                for index, part in enumerate(("dwconv", "norm", "pwconv")):
                    name = re.sub(rf"^(head\.deconv_layers_\d)\.{part}\.", rf"\1.{index}.", name)
            network[("module." if module else "") + name] = tensor
        tree = {"epoch": 68, "network": network, "optimizer": {"state": {}, "param_groups": []}}
        if optimizer:
            trained = [tensor for tensor in state.values() if tensor.is_floating_point()]
            moments = {i: {"step": 9, "exp_avg": t * 0.1, "exp_avg_sq": torch.square(t)} for i, t in enumerate(trained)}
            group = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "amsgrad": False, "params": list(moments)}
            tree["optimizer"] = {"state": moments, "param_groups": [group]}
        return tree

    return build


@pytest.fixture(scope="session")
def published(as_published):
    """A function that writes a state dict to a file in the format of the published ones."""

    def write(path: Path, state, *, legacy=False, **options) -> Path:
        import torch

        torch.save(as_published(state, **options), path, _use_new_zipfile_serialization=not legacy)
        return path

    return write


@pytest.fixture
def cli(monkeypatch, capsys):
    """A function that runs the command line with some arguments: returns the exit code, stdout and stderr."""
    pytest.importorskip("av", reason="the command line needs av")
    from tools.main import main

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["convnextpose", *map(str, arguments)])
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with pytest.raises(SystemExit) as stop:
                main()
        finally:  # a command leaves its own, as its process ends with it
            for number, handler in handlers.items():
                signal.signal(number, handler)
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture
def no_gpu():
    """Skips the test if there is a GPU."""
    from convnextpose.errors import RuntimeUnavailableError
    from engines.tensorrt.gpu import open_device

    try:
        open_device()
    except RuntimeUnavailableError:
        return
    pytest.skip("this machine has a GPU: tests/gpu runs real engines there")
