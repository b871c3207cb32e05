"""Network cameras, as real servers on loopback: each fault that a camera can have, and that it recovers from it."""

import io
import itertools
import signal
import socket
import ssl
import subprocess
import threading
import time

import av
import numpy as np
import pytest

from convnextpose.errors import SourceError
from pipeline.sources import Timeouts, open_source
from tests.cases import fast_first
from tests.pipeline.live.servers import (
    Mjpeg,
    MuteServer,
    RtspServer,
    Watcher,
    WebServer,
    encoded,
    free_port,
    jpeg,
    open_files,
    send_udp,
    until_closed,
)


def watch(uri, timeouts):
    return Watcher(open_source(uri, timeouts=timeouts))


# RTSP.


def test_rtsp_gives_frames_by_the_senders_clock(rtsp, timeouts):
    with RtspServer() as server, watch(server.uri, timeouts) as watcher:
        watcher.until(lambda w: any(f.clock == "sender" for f in w.frames))
    frames = watcher.frames
    assert {f.image.shape for f in frames} == {(120, 160, 3)}
    assert frames[0].clock == "arrival", "the sender reports its time only after some seconds"
    by_sender = [f for f in frames if f.clock == "sender"]
    assert all(abs(f.captured_ns - time.time_ns()) < 60e9 for f in by_sender)
    steps = np.diff([f.time_s for f in frames[5:]])
    assert np.median(steps) == pytest.approx(0.05, abs=0.002), "by the stream's clock"


def test_jetson_utils_148_savant_859_a_server_that_is_killed_and_comes_back_at_another_size_and_codec(rtsp, timeouts):
    with RtspServer() as server, watch(server.uri, timeouts) as watcher:
        watcher.until_frames(5)
        server.kill()
        watcher.until_state("lost")
        watcher.until_state("lost", "refused")
        with RtspServer(server.port, size="320x240", codec="jpeg"):
            watcher.until_state("live", "320x240, mjpeg")
            watcher.until_frames(5)
    assert [s.state for s in watcher.states][:2] == ["connecting", "live"]
    assert watcher.frames[-1].image.shape == (240, 320, 3)


def test_a_frozen_server_is_stalled_then_lost_then_live_again(rtsp, timeouts):
    with RtspServer() as server, watch(server.uri, timeouts) as watcher:
        watcher.until_frames(5)
        server.signal(signal.SIGSTOP)
        watcher.until_state("stalled")
        watcher.until_state("lost", "frozen")
        server.signal(signal.SIGCONT)
        watcher.until_state("live", count=2)


def test_a_camera_that_is_absent_at_the_start_is_waited_for(rtsp, timeouts):
    port = free_port()
    with watch(f"rtsp://127.0.0.1:{port}/live", timeouts) as watcher:
        watcher.until_state("lost", "refused: nothing listens")
        with RtspServer(port):
            watcher.until_frames(3)


def test_frigate_1431_the_password_is_in_no_state_name_or_error(rtsp, timeouts):
    secret = "p@ss:w#rd"
    with RtspServer(user="admin", password=secret) as server:
        where = server.uri.removeprefix("rtsp://")
        with watch(f"rtsp://admin:{secret}@{where}", timeouts) as watcher:
            watcher.until_frames(3)
        with watch(f"rtsp://admin:wr%3Dng-{secret[:4]}@{where}", timeouts) as wrong:
            wrong.until_state("lost", "wrong password")
        with watch(server.uri, timeouts) as without:
            without.until_state("lost", "wrong password")
    for each in (watcher, wrong, without):
        told = repr(each.states) + repr(each.source.info) + repr([f.source_id for f in each.frames])
        assert "p@ss" not in told and "admin" not in told and "wr" not in told.replace("wrong password", "")


def test_frigate_5798_a_hint_holds_no_password():
    with pytest.raises(SourceError, match="did you mean rtsp") as caught:
        open_source("rtspp://admin:hunter2@127.0.0.1/live")
    assert "hunter2" not in str(caught.value)
    with pytest.raises(SourceError, match="did you mean transport") as caught:
        open_source("rtsp://admin:hunter2@127.0.0.1/live#transprt=tcp")
    assert "hunter2" not in str(caught.value) and caught.value.__cause__ is None


def test_a_path_that_the_server_does_not_know_is_told(rtsp, timeouts):
    with RtspServer() as server, watch(server.uri + "/other", timeouts) as watcher:
        watcher.until_state("lost", "not found (404)")


def test_pyav_584_a_server_that_accepts_and_sends_nothing():
    timeouts = Timeouts(open_s=0.5)
    for scheme in ("rtsp", "http"):
        with MuteServer() as server, watch(f"{scheme}://127.0.0.1:{server.port}/live", timeouts) as watcher:
            watcher.until_state("lost", "mute")


@pytest.mark.parametrize("scheme", fast_first(["rtsp", "udp", "http", "rtp"], 2))
def test_inference_685_closing_takes_no_time_whatever_a_camera_does(scheme):
    """The worker ends later, at the library's timeout."""
    timeouts = Timeouts(open_s=2.5, read_s=2.5)
    with MuteServer() as server:
        port = free_port(socket.SOCK_DGRAM) if scheme in ("udp", "rtp") else server.port
        with watch(f"{scheme}://127.0.0.1:{port}", timeouts) as watcher:
            watcher.closing_s = 1.5
            watcher.until_state("connecting")
            time.sleep(0.2)


def test_a_name_that_nobody_knows_is_told(timeouts):
    with watch("rtsp://camera.invalid/live", timeouts) as watcher:
        watcher.until_state("lost", "its name is unknown")


@pytest.mark.slow
def test_jetson_utils_161_two_cameras_at_once(rtsp, timeouts):
    with RtspServer() as one, RtspServer() as two, watch(one.uri, timeouts) as a, watch(two.uri, timeouts) as b:
        a.until_frames(10)
        b.until_frames(10)
        one.kill()
        a.until_state("lost")
        b.until_frames(10)
    assert "lost" not in [s.state for s in b.states], "the other camera is still read"


# HTTP.


def test_mjpeg_is_by_arrival_as_its_stamps_are_invented(timeouts):
    camera = Mjpeg(rate=10)
    with WebServer(camera) as server, watch(server.uri, timeouts) as watcher:
        watcher.until_frames(12)
        camera.stop.set()
    assert {f.clock for f in watcher.frames} == {"arrival"}
    assert np.median(np.diff([f.time_s for f in watcher.frames])) > 0.08, "ten arrive each second, although 25 are declared"


def test_mjpeg_that_is_mute_cut_in_a_frame_and_of_another_size(timeouts):
    camera = Mjpeg()
    with WebServer(camera) as server, watch(server.uri, timeouts) as watcher:
        watcher.until_frames(5)
        camera.mute.set()
        watcher.until_state("stalled")
        watcher.until_state("lost", "frozen")
        camera.mute.clear()
        watcher.until_state("live", count=2)
        camera.cut_at = 3
        camera.stop.set()
        watcher.until_state("lost", "closed")
        camera.stop.clear()
        watcher.until(lambda w: camera.connections >= 5)
        camera.cut_at, camera.picture = None, lambda index: jpeg(index, 320, 240)
        watcher.until_state("live", "320x240")  # the last connection was cut at its third picture, like those before it
        watcher.until_frames(3)
        camera.stop.set()
    assert watcher.frames[-1].image.shape == (240, 320, 3)


def test_half_a_jpeg_is_no_picture_and_is_counted(timeouts):
    camera = Mjpeg(rate=50, half_every=4)
    with WebServer(camera) as server, watch(server.uri, timeouts) as watcher:
        watcher.until_frames(30)
        camera.stop.set()
    assert {lost.reason for lost in watcher.unreadable} == {"its data is damaged"}
    assert len(watcher.unreadable) >= 5
    assert [state.state for state in watcher.states][:2] == ["connecting", "live"]


def test_lost_packets_cost_frames_that_are_counted_and_no_frame_is_guessed():
    """Every picture depends on the one before it, except for one in ten."""
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 255, (120, 160, 3)).astype(np.uint8) for _ in range(50)]
    data = encoded(50, pictures=noise)
    with av.open(io.BytesIO(data)) as intact:
        whole = [frame.to_ndarray(format="bgr24").astype(int) for frame in intact.decode(video=0)]
    packets = [data[at : at + 188] for at in range(0, len(data), 188)]
    lossy = b"".join(packet for number, packet in enumerate(packets) if number < 40 or number % 400)
    port, stop = free_port(socket.SOCK_DGRAM), threading.Event()
    sender = threading.Thread(target=send_udp, args=(port, stop, lossy, 25, 50), daemon=True)
    sender.start()
    with watch(f"udp://127.0.0.1:{port}", Timeouts(open_s=2, read_s=2)) as watcher:
        watcher.until(lambda w: len(w.frames) > 10 and len(w.unreadable) > 10, within_s=30)
    stop.set()
    sender.join()
    for frame in watcher.frames:
        assert min(np.abs(frame.image - picture).max() for picture in whole) <= 2, "it is one of the pictures, complete"


def test_a_camera_that_breaks_again_and_again_leaves_no_file_open():
    timeouts = Timeouts(first_wait_s=0.01, longest_wait_s=0.02)
    files = open_files()
    camera = Mjpeg(rate=200, cut_at=3)
    with WebServer(camera) as server, watch(server.uri, timeouts) as watcher:
        watcher.until(lambda _: camera.connections > 40, within_s=30)
    assert len(watcher.frames) > 40
    until_closed(files)


@pytest.mark.parametrize(
    ("status", "told"),
    [(401, "wrong password"), (403, "wrong password"), (404, "not found (404)"), (503, "fault of its own (5xx)")],
)
def test_what_a_server_answers_is_told(timeouts, status, told):
    with WebServer(lambda request: request.send_error(status)) as server, watch(server.uri, timeouts) as watcher:
        watcher.until_state("lost", told)


def test_a_page_is_no_video(timeouts):
    def page(request):
        request.send_response(200)
        request.end_headers()
        request.wfile.write(b"<html>" + b"hello " * 1000)

    with WebServer(page) as server, watch(server.uri, timeouts) as watcher:
        watcher.until_state("lost", "no video that can be read here")


def test_sound_is_no_video(timeouts, tmp_path):
    import wave

    path = tmp_path / "a.wav"
    with wave.open(str(path), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(16000))

    def send(request):
        request.send_response(200)
        request.end_headers()
        request.wfile.write(path.read_bytes())

    with WebServer(send) as server, watch(server.uri, timeouts) as watcher:
        watcher.until_state("lost", "it sends no video")


def test_a_playlist_cannot_name_a_file_of_this_computer(timeouts, tmp_path):
    (tmp_path / "a.ts").write_bytes(encoded(25))

    def answer(request):
        request.send_response(200)
        request.end_headers()
        entry = f"file://{tmp_path}/a.ts"
        request.wfile.write(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{entry}\n#EXT-X-ENDLIST\n".encode())

    with WebServer(answer) as server, watch(server.uri + "/a.m3u8", timeouts) as watcher:
        watcher.until_state("lost")
    assert watcher.frames == []


@pytest.mark.slow
def test_hls_whose_server_goes_and_comes_back(timeouts):
    timeouts = Timeouts(open_s=3, read_s=3, stalled_s=1, first_wait_s=0.05, longest_wait_s=0.2)
    answer = Hls(30)
    with WebServer(answer) as server:
        watcher = watch(server.uri + "/live.m3u8", timeouts)
        watcher.__enter__()
        watcher.until_frames(10)
    try:
        watcher.until_state("lost", within_s=30)
        with WebServer(answer, server.port):
            watcher.until_state("live", count=2)
            watcher.until_frames(5)
    finally:
        watcher.__exit__()


class Hls:
    """The answers of a live HLS stream: segments of one second, the newest three in the playlist."""

    def __init__(self, count):
        self.segments = [encoded(25, first=25 * number) for number in range(count)]
        self.begin = time.monotonic()

    def __call__(self, request):
        name = request.path.strip("/")
        if name.endswith(".ts"):
            body = self.segments[int(name[:-3])]
        else:
            now = min(len(self.segments), 3 + int(time.monotonic() - self.begin))
            lines = ["#EXTM3U", "#EXT-X-VERSION:3", "#EXT-X-TARGETDURATION:1", f"#EXT-X-MEDIA-SEQUENCE:{now - 3}"]
            for number in range(now - 3, now):
                lines += ["#EXTINF:1.0,", f"{number}.ts"]
            body = "\n".join(lines).encode() + b"\n"
        request.send_response(200)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)


def test_inference_1160_hls_is_paced_and_no_frame_is_skipped(timeouts):
    timeouts = Timeouts(open_s=5, read_s=5, stalled_s=3)
    with WebServer(Hls(12)) as server, watch(server.uri + "/live.m3u8", timeouts) as watcher:
        watcher.until_frames(40)
    frames = watcher.frames
    assert frames[39].time_s - frames[0].time_s == pytest.approx(39 / 25, abs=0.05)
    assert (frames[39].captured_ns - frames[0].captured_ns) / 1e9 > 1.2, "each burst of 25 is spread over a second"
    shades = [int(f.image[60, 20, 0]) for f in frames[:40]]
    numbers = [round((shade - 8) / 14) % 16 for shade in shades]
    assert all((b - a) % 16 == 1 for a, b in itertools.pairwise(numbers)), "one after another"


def test_a_file_behind_a_server_plays_once(timeouts):
    data = encoded(20, container="matroska")

    def send(request):
        request.send_response(200)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)

    with WebServer(send) as server:
        items = list(open_source(server.uri + "/a.mkv", timeouts=timeouts))
    assert len([item for item in items if hasattr(item, "image")]) == 20


# TLS.


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A self-signed certificate: (certificate, key)."""
    folder = tmp_path_factory.mktemp("tls")
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        "key.pem",
        "-out",
        "cert.pem",
        "-days",
        "2",
    ]
    try:
        subject = ["-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
        subprocess.run([*command, *subject], cwd=folder, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs openssl to make a certificate")
    return folder / "cert.pem", folder / "key.pem"


def test_a_certificate_that_nobody_vouches_for(timeouts, certificate):
    camera = Mjpeg()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with WebServer(camera) as server:
        server._server.socket = context.wrap_socket(server._server.socket, server_side=True)
        uri = f"https://127.0.0.1:{server.port}/live"
        with watch(uri, timeouts) as strict:
            strict.until_state("lost", "TLS: its certificate is not trusted")
        for option in ("verify=no", f"ca={certificate[0]}"):
            with watch(f"{uri}#{option}", timeouts) as watcher:
                watcher.until_frames(2)
        camera.stop.set()


@pytest.mark.slow
def test_an_rtsps_server_that_nobody_vouches_for(rtsp, timeouts, certificate, tmp_path):
    both = tmp_path / "both.pem"
    both.write_bytes(certificate[0].read_bytes() + certificate[1].read_bytes())
    try:
        server = RtspServer(certificate=both).__enter__()
    except OSError:
        pytest.skip("needs Debian's glib-networking")
    try:
        uri = server.uri.replace("rtsp://", "rtsps://")
        with watch(uri, timeouts) as strict:
            strict.until_state("lost", "TLS: its certificate is not trusted")
        for option in ("verify=no", f"ca={certificate[0]}"):
            with watch(f"{uri}#{option}", timeouts) as watcher:
                watcher.until_frames(2)
        assert strict.frames == []
    finally:
        server.__exit__()


def test_a_server_without_tls(timeouts):
    with WebServer(Mjpeg()) as server, watch(f"https://127.0.0.1:{server.port}/", timeouts) as watcher:
        watcher.until_state("lost", "TLS: no encrypted connection")


# UDP and RTP.


def test_pyav_325_udp_comes_stops_and_comes_back_at_another_size():
    timeouts = Timeouts(open_s=1, read_s=0.8, stalled_s=0.4, first_wait_s=0.05, longest_wait_s=0.1)
    port, stop = free_port(socket.SOCK_DGRAM), threading.Event()
    with watch(f"udp://127.0.0.1:{port}", timeouts) as watcher:
        watcher.until_state("lost", "mute: nothing has come")
        for width, height in ((160, 120), (320, 240)):
            stop.clear()
            sender = threading.Thread(target=send_udp, args=(port, stop, encoded(25, width, height)), daemon=True)
            sender.start()
            watcher.until_state("live", f"{width}x{height}")
            watcher.until_frames(5)
            stop.set()
            sender.join()
            watcher.until(lambda w: w.states[-1].state == "lost")
    assert watcher.frames[-1].image.shape == (240, 320, 3)


def test_rtp_without_a_description(timeouts):
    port = free_port(socket.SOCK_DGRAM)
    port -= port % 2  # RTP has even ports
    stop = threading.Event()

    def send():
        from tests.pipeline.live.servers import picture

        with av.open(f"rtp://127.0.0.1:{port}", "w", format="rtp") as target:
            options = {"preset": "ultrafast", "tune": "zerolatency", "g": "10", "x264-params": "repeat-headers=1"}
            stream = target.add_stream("libx264", rate=25, options=options)
            stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
            index = 0
            while not stop.wait(0.04):
                frame = av.VideoFrame.from_ndarray(picture(index), format="bgr24")
                frame.pts = index
                target.mux(stream.encode(frame))
                index += 1

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    with watch(f"rtp://127.0.0.1:{port}#codec=h264", timeouts) as watcher:
        watcher.until_frames(5)
    stop.set()
    sender.join(5)
