"""Lines of JSON over TCP: they are complete and the newest, and no client affects another."""

import contextlib
import json
import socket

import pytest

from convnextpose.errors import SinkError
from pipeline.formats.records import read_poses
from pipeline.views.base import Endpoint
from pipeline.views.lines import LineView
from tests.pipeline.views.client import WAIT_S, frame, status_of


@contextlib.contextmanager
def lines(port=0):
    view = LineView(Endpoint("127.0.0.1", port), status_of("walk.mp4"))
    try:
        yield view
    finally:
        view.close()


def connected(view):
    return socket.create_connection(("127.0.0.1", int(view.address.rpartition(":")[2])), WAIT_S)


def test_a_client_gets_what_a_file_of_poses_holds(tmp_path):
    with lines() as view, connected(view) as connection:
        reader = connection.makefile("rb")
        received = b""
        for index in range(6):
            view.show(frame(index))
            received += b"" if received else reader.readline()
            received += reader.readline()
        (tmp_path / "poses.ndjson").write_bytes(received)
        read = read_poses(tmp_path / "poses.ndjson")
        assert read.header.source == "walk.mp4" and [f.index for f in read.frames] == list(range(6))
        assert all(len(f.poses) == 1 for f in read.frames)
        view.close()
        assert reader.read() == b"", "the end of the run is the end of the lines"


def test_a_late_client_gets_the_newest_frame_at_once():
    with lines() as view:
        for index in range(9):
            view.show(frame(index))
        with connected(view) as connection:
            reader = connection.makefile("rb")
            reader.readline()
            assert json.loads(reader.readline())["index"] == 8


def test_a_client_that_never_reads_and_one_that_leaves_harm_nobody():
    with lines() as view, connected(view) as deaf, connected(view) as other:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connected(view).close()
        reader = other.makefile("rb")
        crowd = frame(0).poses * 400
        for index in range(20):
            view.show(frame(index, poses=crowd))
            assert index or json.loads(reader.readline())["type"] == "header"
            assert json.loads(reader.readline())["index"] == index


def test_a_place_that_is_taken_is_refused():
    with lines() as view:
        port = int(view.address.rpartition(":")[2])
        with pytest.raises(SinkError, match="expected a free port"), lines(port):
            pass
