"""The page's protocol: one unacknowledged message, newest frames only, any number of clients of any speed and behaviour."""

import json
import os
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed

from convnextpose.errors import SinkError
from pipeline.views.messages import MAX_SIDE_PX, FrameMessage
from pipeline.views.serving import MAX_CONNECTIONS
from tests.pipeline.formats.samples import noise
from tests.pipeline.views.client import Client, ask, frame, index_in, port_of, status_of, web


def with_image(index, image):
    made = frame(index)
    return replace(made, frame=replace(made.frame, image=image))


def newest_only(indices):
    return indices == sorted(set(indices))


def test_frigate_13058_the_next_message_waits_for_the_acknowledgement_of_the_last_and_is_then_the_newest():
    with web() as view, Client(view) as client:
        view.show(frame(0))
        assert [f["index"] for f in client.frames()] == [0]
        for index in range(1, 6):
            view.show(frame(index))
        assert client.hears_nothing()
        client.say("ack")
        assert [f["index"] for f in client.frames()] == [5]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["show", "acknowledge"]), max_size=12))
def test_whatever_comes_when_no_client_ever_sees_an_old_frame(actions):
    with web() as view, Client(view) as client:
        view.show(frame(0))
        seen, posted = [client.frames()[0]["index"]], 0
        for action in actions:
            if action == "show":
                posted += 1
                view.show(frame(posted))
            elif posted > seen[-1]:
                client.say("ack")
                seen.append(client.frames()[0]["index"])
                assert seen[-1] == posted
        assert newest_only(seen)


def test_a_picture_and_its_poses_come_together():
    with web() as view, Client(view) as client:
        for index in range(8):
            view.show(frame(index))
            head, pictures = client.receive()
            while not head["frames"]:
                client.say("ack")
                head, pictures = client.receive()
            record = head["frames"][0]
            assert abs(float(pictures[0].mean()) - index_in(record["index"])) < 2
            assert np.allclose(record["poses"][0]["joints_px"], frame(record["index"]).poses[0].joints_px, atol=1e-3)
            assert (record["width"], record["height"]) == (96, 64)
            client.say("ack")


def test_poses_that_are_smoothed_are_shown_so_and_the_lines_keep_the_raw_ones():
    made = frame(0)
    smoothed = np.abs(made.poses[0].joints_mm) + 500
    made = replace(made, poses=(replace(made.poses[0], smoothed_mm=smoothed),))
    with web() as view, Client(view) as client:
        view.show(made)
        (pose,) = client.frames()[0]["poses"]
        assert np.allclose(pose["joints_mm"], smoothed, atol=0.01)
        assert np.allclose(pose["joints_px"], made.camera.project(smoothed)[:, :2], atol=0.01)
    line = json.loads(FrameMessage(made, status_of("walk.mp4").headers["walk.mp4"]).line())
    assert np.allclose(line["poses"][0]["joints_mm"], made.poses[0].joints_mm, atol=0.01)


def test_frames_of_several_sources_share_a_message():
    with web(sources=("a", "b", "c")) as view:
        for source in "abc":
            view.show(frame(1, source))
        with Client(view) as client:
            assert [record["source"]["name"] for record in client.hello["sources"]] == ["a", "b", "c"]
            assert sorted(f["source"] for f in client.frames()) == ["a", "b", "c"]
            view.show(frame(2, "b"))
            client.say("ack")
            assert [(f["source"], f["index"]) for f in client.frames()] == [("b", 2)]


def test_ten_clients_of_different_speed_see_the_newest_each_and_all_the_last():
    last, seen = 60, [[] for _ in range(10)]
    with web() as view:

        def watch(number):
            with Client(view) as client:
                while not seen[number] or seen[number][-1] != last:
                    seen[number] += [f["index"] for f in client.frames()]
                    time.sleep(0.02 * number)
                    client.say("ack")

        threads = [threading.Thread(target=watch, args=(number,)) for number in range(10)]
        for thread in threads:
            thread.start()
        for index in range(last + 1):
            view.show(frame(index))
            time.sleep(0.01)
        for thread in threads:
            thread.join(30)
        assert all(newest_only(indices) and indices[-1] == last for indices in seen)


def test_a_client_that_never_acknowledges_gets_one_message_and_harms_nobody():
    with web() as view, Client(view) as mute, Client(view) as other:
        view.show(frame(0))
        assert len(mute.frames()) == 1
        for index in range(5):
            view.show(frame(index + 1))
            assert other.frames()[0]["index"] in range(index + 2)
            other.say("ack")
        assert mute.hears_nothing()


def test_rerun_10717_pictures_that_nobody_takes_are_not_kept():
    def memory_mib():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    with web() as view, Client(view) as mute:
        sizes = []
        for index in range(400):
            view.show(frame(index, size=(1280, 720)))
            if index in (99, 399):
                sizes.append(memory_mib())
        assert mute.frames()
    assert sizes[1] - sizes[0] < 100, "keeping 300 more pictures would take 800 MiB"


def test_a_client_that_never_reads_harms_nobody_and_is_let_go_at_the_end():
    with web() as view:
        deaf = socket.create_connection(("127.0.0.1", port_of(view)))
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        handshake = ["GET /socket HTTP/1.1", "Host: localhost", "Connection: Upgrade", "Upgrade: websocket"]
        handshake += ["Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==", "", ""]
        deaf.sendall("\r\n".join(handshake).encode())
        with Client(view) as other:
            for index in range(4):
                view.show(with_image(index, noise(index, 1280, 1280).picture))
                other.frames()
                other.say("ack")
    deaf.close()


def test_a_client_that_goes_away_in_the_middle_is_forgotten():
    with web() as view:
        for index in range(5):
            view.show(frame(index))
            client = Client(view)
            client.frames()
            client.vanish()
        with Client(view) as other:
            assert other.frames()[0]["index"] == 4


def test_a_paused_client_hears_the_status_alone_and_goes_on_with_the_newest():
    with web() as view, Client(view) as client:
        client.say("pause")
        head, _ = client.receive()  # the first message may have been in transit
        client.say("ack")
        for index in range(5):
            view.show(frame(index))
        head, _ = client.receive()
        assert head["frames"] == [] and [source["name"] for source in head["status"]["sources"]] == ["walk.mp4"]
        client.say("ack")
        client.say("resume")
        assert [f["index"] for f in client.frames()] == [4]


@pytest.mark.parametrize("said", ["", "nonsense", "ack" * 100, b"\x00\xff"])
def test_what_no_page_would_say_is_ignored(said):
    with web() as view, Client(view) as client:
        view.show(frame(0))
        client.frames()
        client.say(said)
        view.show(frame(1))
        client.say("ack")
        assert client.frames()[0]["index"] == 1


def test_a_message_that_is_too_long_ends_its_own_connection_only():
    with web() as view, Client(view) as rude, Client(view) as other:
        view.show(frame(0))
        rude.say("x" * 100_000)
        with pytest.raises(ConnectionClosed):
            while True:
                rude.socket.recv(10)
        assert other.frames()[0]["index"] == 0


def test_a_large_picture_is_made_smaller_and_joints_keep_their_pixels():
    with web() as view, Client(view) as client:
        view.show(with_image(0, np.zeros((3000, 2000, 3), np.uint8)))
        head, pictures = client.receive()
        while not head["frames"]:
            client.say("ack")
            head, pictures = client.receive()
        record = head["frames"][0]
        assert max(pictures[0].shape) == MAX_SIDE_PX and (record["width"], record["height"]) == (2000, 3000)


def test_the_same_port_serves_again_at_once_after_a_restart():
    with web() as view, Client(view) as client:
        port = port_of(view)
        view.show(frame(0))
        client.frames()
    with web(port=port) as view, Client(view) as client:
        view.show(frame(7))
        assert client.frames()[0]["index"] == 7


def test_a_place_that_is_taken_is_refused_in_one_sentence():
    with web() as view:
        said = f"expected a free port .* 127.0.0.1:{port_of(view)}: .*; name another"
        with pytest.raises(SinkError, match=said), web(port=port_of(view)):
            pass
    with pytest.raises(SinkError, match="expected a free port of this machine"), web(host="host.invalid"):
        pass


def answers_soon(view, status):
    deadline = time.monotonic() + 20
    while (answer := ask(view)[0]) != status:
        assert time.monotonic() < deadline, answer


def test_one_connection_too_many_is_told_to_come_back():
    with web() as view:
        held = [socket.create_connection(("127.0.0.1", port_of(view))) for _ in range(MAX_CONNECTIONS)]
        answers_soon(view, 503)
        for connection in held:
            connection.close()
        answers_soon(view, 200)


def test_lines_of_poses_are_the_newest_of_each_source():
    with web(sources=("a", "b")) as view, socket.create_connection(("127.0.0.1", port_of(view))) as connection:
        connection.sendall(b"GET /poses HTTP/1.1\r\nHost: localhost\r\n\r\n")
        lines = connection.makefile("rb")
        while lines.readline().strip():
            pass
        heads = []
        for index in range(4):
            for source in "ab":
                view.show(frame(index, source))
            records = [json.loads(lines.readline()) for _ in range(2 if heads else 4)]
            heads += [record for record in records if record["type"] == "header"]
            records = [record for record in records if record not in heads]
            assert sorted((r["source"], r["index"]) for r in records) == [("a", index), ("b", index)]
            assert all(r["type"] == "frame" and len(r["poses"]) == 1 for r in records)
        assert sorted(head["source"]["name"] for head in heads) == ["a", "b"]


def test_status_is_json_and_head_sends_no_body():
    with web() as view:
        status, headers, body = ask(view, "/status")
        assert status == 200 and headers["content-type"].startswith("application/json")
        assert json.loads(body)["format"] == "convnextpose-status-1"
        status, headers, body = ask(view, method="HEAD")
        assert status == 200 and int(headers["content-length"]) > 500 and body == b""
        assert ask(view, method="DELETE")[0] == 501
