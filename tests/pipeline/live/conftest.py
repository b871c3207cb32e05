"""Fixtures of the tests of live sources."""

import threading
import time

import pytest

from pipeline.sources import Timeouts
from tests.pipeline.live.servers import rtsp_missing


@pytest.fixture
def timeouts():
    """Short waits: a camera that returns is found within a fraction of a second."""
    return Timeouts(open_s=2.0, read_s=1.5, stalled_s=0.5, first_wait_s=0.05, longest_wait_s=0.2)


@pytest.fixture(autouse=True)
def no_thread_is_left():
    """A worker inside a library call ends at its timeout; no thread is left after that."""
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 60
    while (left := ours(before)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left


def ours(before):
    """New threads, without the one that importing OpenVINO starts."""
    return {thread for thread in threading.enumerate() if thread not in before and "ThreadPool" not in thread.name}


@pytest.fixture(scope="session")
def rtsp():
    """Skips the test if no RTSP server can be started."""
    if missing := rtsp_missing():
        pytest.skip(missing)
