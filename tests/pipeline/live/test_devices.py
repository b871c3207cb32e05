"""Cameras of this computer: a simulated USB camera between program and kernel, and a CSI camera's GStreamer process."""

import os
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from convnextpose.errors import SourceError
from pipeline.sources import Timeouts, open_source
from pipeline.sources.csi import GSTREAMER, GstreamerCamera, csi_source
from pipeline.sources.live import LiveSource
from pipeline.sources.options import read_options
from pipeline.sources.v4l2 import device_of, list_devices
from tests.pipeline.live.servers import Watcher, open_files, until_closed

HERE = Path(__file__).parent
ROOT = HERE.parent.parent.parent


@pytest.fixture(scope="session")
def false_camera(tmp_path_factory):
    """Runs Python code with a simulated camera at /dev/video42; the code sets the camera's behaviour by `fares(word)`."""
    if sys.platform != "linux" or shutil.which("gcc") is None:
        pytest.skip("a false camera needs Linux and gcc")
    folder = tmp_path_factory.mktemp("camera")
    library, state = folder / "false_camera.so", folder / "fares"
    done = subprocess.run(
        ["gcc", "-shared", "-fPIC", "-O1", "-o", library, HERE / "false_camera.c", "-ldl"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"gcc cannot build the false camera: {done.stderr[:200]}")

    def run(code, fares="run"):
        state.write_text(fares)
        prelude = f"""
            from pathlib import Path
            from pipeline.sources import Timeouts, open_source
            from tests.pipeline.live.servers import Watcher
            def fares(word):
                Path({str(state) + ".new"!r}).write_text(word)
                Path({str(state) + ".new"!r}).replace({str(state)!r})  # in one step: the camera reads it at any moment
            timeouts = Timeouts(open_s=2, read_s=1, stalled_s=0.3, first_wait_s=0.05, longest_wait_s=0.2)
        """
        environment = {**os.environ, "LD_PRELOAD": str(library), "FALSE_CAMERA": str(state)}
        command = [sys.executable, "-c", textwrap.dedent(prelude) + textwrap.dedent(code)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_usb_frames_are_by_the_kernels_clock(false_camera):
    code = """
        import time
        with Watcher(open_source("/dev/video42?size=320x240&rate=30", timeouts=timeouts)) as watcher:
            watcher.until_frames(20)
        print({f.clock for f in watcher.frames}, {f.image.shape for f in watcher.frames})
        print(watcher.states[1].state, watcher.states[1].cause)
        ages = [time.time_ns() - f.captured_ns for f in watcher.frames]
        assert all(0 < age < 60e9 for age in ages)
        steps = sorted(b.time_s - a.time_s for a, b in zip(watcher.frames, watcher.frames[1:]))
        print(round(steps[len(steps) // 2] * 30))
    """
    assert false_camera(code).splitlines() == ["{'kernel'} {(240, 320, 3)}", "live 320x240, rawvideo", "1"]


def test_a_camera_that_is_unplugged_absent_busy_and_back_at_another_size(false_camera):
    code = """
        with Watcher(open_source("v4l2:///dev/video42", timeouts=timeouts)) as watcher:
            watcher.until_state("lost", "unplugged: there is no /dev/video42")
            fares("busy")
            watcher.until_state("lost", "busy: another program has /dev/video42 open")
            fares("run")
            watcher.until_state("live", "640x480")
            watcher.until_frames(5)
            fares("unplugged")
            watcher.until_state("lost", "unplugged: the device has gone")
            fares("run")
            watcher.until_state("live", count=2)
            watcher.until_frames(5)
        print("done")
    """
    assert false_camera(code, fares="absent") == "done\n"


@pytest.mark.slow
def test_a_driver_that_hangs_holds_nobody_up(false_camera):
    """A V4L2 read has no timeout; the device is free again when the driver's call returns."""
    code = """
        import pipeline.sources.live
        pipeline.sources.live.HANG_GRACE_S = 0.2
        with Watcher(open_source("/dev/video42", timeouts=timeouts)) as watcher:
            watcher.until_frames(5)
            fares("mute")
            watcher.until_state("stalled")
            watcher.until_state("lost", "reading it hangs")
            fares("run")
            watcher.until_state("live", count=2)
            watcher.until_frames(5)
        print("done")
    """
    assert false_camera(code) == "done\n"


def test_the_modes_of_a_camera_are_listed(false_camera, tmp_path):
    folder = tmp_path / "video4linux"
    (folder / "video42").mkdir(parents=True)
    (folder / "video42" / "name").write_text("False camera\n")
    (folder / "video43").mkdir()
    code = f"""
        from pipeline.sources.v4l2 import list_devices
        for device in list_devices(Path({str(folder)!r})):
            print(device.path, device.name, device.problem)
            for mode in device.modes:
                print(mode.format, mode.width, mode.height, mode.rates)
    """
    assert false_camera(code).splitlines() == [
        "/dev/video42 False camera ",
        "YUYV 640 480 (30.0, 15.0)",
        "YUYV 320 240 (30.0, 15.0)",
        "/dev/video43 unknown /dev/video43 cannot be opened: No such file or directory",
    ]


def test_a_computer_without_cameras_has_none(tmp_path):
    assert list_devices(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "uri"),
    [
        ("0", "v4l2:///dev/video0"),
        ("usb:12", "v4l2:///dev/video12"),
        ("/dev/video3", "v4l2:///dev/video3"),
        ("0?size=640x480", "v4l2:///dev/video0?size=640x480"),
        ("/dev/video3?rate=15", "v4l2:///dev/video3?rate=15"),
        ("clip.mp4", None),
        ("00000001.png", None),
        ("/dev/video", None),
        ("usb:", None),
    ],
)
def test_short_names_of_cameras(text, uri):
    assert device_of(text) == uri


# Options.


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("0?siez=640x480", "did you mean size?"),
        ("0?size=large", "expected the option size of /dev/video0 as 1280x720"),
        ("0?rate=-5", "as frames a second"),
        ("0?flip=45", "as one of none, horizontal"),
        ("csi://front", "csi://0 with the camera's number"),
        ("test://?size=1x1", "without options"),
        ("rtsp:///live", "received no host"),
        ("rtsp://camera:port/live", "[user:password@]host[:port]"),
        ("udp://camera", "name the port"),
        ("http://camera/#speed=2", "among flip, ca, verify"),
    ],
)
def test_what_has_no_meaning_is_told_at_once(uri, told):
    with pytest.raises(SourceError) as caught:
        open_source(uri)
    assert told in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "options", "told"),
    [
        ("0", {"size": "large"}, "expected the option size of /dev/video0 as 1280x720"),
        (
            "rtsp://user:secret@camera/live",
            {"size": "640x480"},
            "rtsp://camera/live among transport, latency, flip, ca, verify",
        ),
        ("test://", {"rate": "9"}, "expected no options of test://, received rate"),
        ("clip.mp4", {"rate": "5"}, "expected no options of clip.mp4, received rate"),
    ],
)
def test_what_is_asked_of_every_source_must_have_a_meaning_for_it(uri, options, told):
    with pytest.raises(SourceError) as caught:
        open_source(uri, options=tuple(options.items()))
    assert told in str(caught.value) and "secret" not in str(caught.value)


def test_what_stands_in_an_address_counts_more_than_what_is_asked_of_all():
    asked = (("size", "640x480"), ("rate", "15"))
    options = read_options("size=1280x720", ("size", "rate"), "a camera", asked)
    assert (options.size, options.rate) == ((1280, 720), 15)


@pytest.mark.parametrize("flip", ["none", "horizontal", "vertical", "90", "180", "270"])
def test_flips_are_clockwise(flip):
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    expected = {
        "none": image, "horizontal": image[:, ::-1], "vertical": image[::-1],
        "90": np.rot90(image, -1), "180": np.rot90(image, 2), "270": np.rot90(image, 1),
    }[flip]  # fmt: skip
    turned = read_options(f"flip={flip}", ("flip",), "a camera").flip.apply(image)
    assert np.array_equal(turned, expected)


# CSI, with a test picture instead of the camera.

VIDEOTEST = ["videotestsrc", "is-live=true", "!", "video/x-raw,format=I420,width=160,height=120,framerate=25/1"]
TIMEOUTS = Timeouts(open_s=3, read_s=2, stalled_s=0.5, first_wait_s=0.05, longest_wait_s=0.2)


@pytest.fixture
def gstreamer():
    if shutil.which(GSTREAMER) is None:
        pytest.skip("needs Debian's gstreamer1.0-tools and gstreamer1.0-plugins-good")


def children():
    """Child processes that this process has not waited for yet."""
    found = subprocess.run(["ps", "--ppid", str(os.getpid()), "-o", "pid=,comm="], capture_output=True, text=True, check=False)
    return [int(line.split()[0]) for line in found.stdout.splitlines() if "gst-launch" in line]


def test_csi_pictures_come_through_a_pipe_and_a_process_that_dies_is_started_again(gstreamer):
    files = open_files()
    with Watcher(LiveSource("csi://0", GstreamerCamera("csi://0", VIDEOTEST).connect, timeouts=TIMEOUTS)) as watcher:
        watcher.until_frames(5)
        (process,) = children()
        os.kill(process, 9)
        watcher.until_state("lost")
        watcher.until_state("live", count=2)
        watcher.until_frames(5)
        (process,) = children()
        os.kill(process, 19)  # SIGSTOP: like a camera service that hangs
        watcher.until_state("stalled")
    assert {f.image.shape for f in watcher.frames} == {(120, 160, 3)}
    assert np.median(np.diff([f.time_s for f in watcher.frames[:5]])) == pytest.approx(0.04, abs=0.005)
    end = time.monotonic() + 60
    while children():
        assert time.monotonic() < end, "no process is left"
        time.sleep(0.02)
    until_closed(files)


def test_jetson_inference_1884_what_gstreamer_says_is_told_with_what_to_do(gstreamer):
    source = LiveSource(
        "csi://0", GstreamerCamera("csi://0", csi_source(0, read_options("", (), ""))).connect, timeouts=TIMEOUTS
    )
    with Watcher(source) as watcher:
        watcher.until_state("lost", "GStreamer says `")
    assert "nvargus-daemon" in watcher.states[-1].cause


def test_a_jetsons_pipeline_is_as_nvidia_documents_it():
    options = read_options("size=1920x1080&rate=30&flip=180", ("size", "rate", "flip"), "csi://1")
    assert " ".join(csi_source(1, options)) == (
        "nvarguscamerasrc sensor-id=1 ! video/x-raw(memory:NVMM),width=1920,height=1080,framerate=30000/1000 ! "
        "nvvidconv flip-method=2 ! video/x-raw,format=I420"
    )
