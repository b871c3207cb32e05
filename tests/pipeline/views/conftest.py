"""Every test of a view leaves no thread behind."""

import threading

import pytest

from tests.pipeline.views.client import no_new_threads

pytest.importorskip("websockets", reason="the page needs websockets")


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert no_new_threads(before)
