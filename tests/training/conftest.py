"""What the tests of training share: one thread, so that sums have one order, and a small renderer."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def renderer():
    pytest.importorskip("torch")
    from training.dataset import Renderer

    return Renderer("cpu", size=128)


@pytest.fixture(scope="session")
def crops(renderer):
    """Sixteen hard crops."""
    return renderer.batch(16, 0.85, renderer.generator(3))
