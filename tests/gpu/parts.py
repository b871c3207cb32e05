"""Shared code of the parts of `tests/gpu/check.py`. A part is a function of the device (`cuda` or `cpu`) that adds figures."""

import json
from contextlib import contextmanager

import numpy as np

BATCHES = (1, 2, 4, 8, 16)


class LeftOutError(Exception):
    """A part cannot run on this machine; the message is the reason."""


class Figures(dict):
    """A part's figures. Each is in the file as soon as it is known, so that a time limit only loses the following ones."""

    def __init__(self, path):
        super().__init__()
        self.path, self.error, self.left_out = path, None, None

    def __setitem__(self, name, value):
        super().__setitem__(name, value)
        print(f"{name}: {value}", flush=True)
        self.save()

    def save(self):
        self.path.write_text(json.dumps({"figures": self, "error": self.error, "left_out": self.left_out}, default=float))


def expect(holds, what):
    """Raise an error unless `holds` is true, even with `python -O`, which ignores `assert`."""
    if not holds:
        raise AssertionError(what)


def choose_device(wanted):
    if wanted != "auto":
        return wanted
    from engines.tensorrt.gpu import find_gpu

    return "cuda" if find_gpu() is not None else "cpu"


@contextmanager
def opened_device(device):
    """A `CudaDevice`, made current: the GPU, or a simulated one in memory."""
    if device == "cuda":
        from engines.tensorrt.gpu import open_device

        found = open_device("cuda-python")
    else:
        from tests.engines.cpu_kernels import cpu_device

        found = cpu_device()
    with found.current():
        yield found


def quantiles(milliseconds):
    return {f"p{q}": round(float(np.percentile(milliseconds, q)), 4) for q in (50, 95, 99)}
