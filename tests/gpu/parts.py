"""What the parts of `tests/gpu/check.py` share. A part is a function of the device (`cuda` or `cpu`) that fills in figures."""

import json
from contextlib import contextmanager

import numpy as np

BATCHES = (1, 2, 4, 8, 16)


class LeftOutError(Exception):
    """A part cannot run on this machine; the message is the reason."""


class Figures(dict):
    """What a part found; each figure is in the file as soon as it is known, so that a time limit costs only what follows."""

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
    """Raise unless it holds: with `python -O` an `assert` would not."""
    if not holds:
        raise AssertionError(what)


def choose_device(wanted):
    if wanted != "auto":
        return wanted
    from engines.tensorrt.gpu import find_gpu

    return "cuda" if find_gpu() is not None else "cpu"


@contextmanager
def opened_device(device):
    """A `CudaDevice`, made current: the GPU, or one in memory."""
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
