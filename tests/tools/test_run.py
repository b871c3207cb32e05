"""`convnextpose run` and `doctor` as a user runs them, on the demo clip that the package ships."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
import webbrowser
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from benchmarks.accuracy import score
from convnextpose import weights
from engines.sessions.openvino import cpu_precisions
from pipeline.models import Models, open_models
from pipeline.timeline import STAGES
from tests.cases import fast_first
from tools.run import _open_browser

ROOT = Path(__file__).parent.parent.parent
CAMERA = "620,620,319.5,239.5"
SHORT = 14


def convnextpose(*arguments, **options):
    command = [sys.executable, "-m", "tools.main", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=240, **options)


class Kept(Models):
    """Networks that stay open for the next run."""

    def close(self):
        pass


@pytest.fixture(scope="module")
def opened():
    """Opens the networks of a run, only once for the same options."""
    kept = {}

    def open_kept(*arguments, **options):
        key = (arguments, *sorted(options.items()))
        if key not in kept:
            kept[key] = open_models(*arguments, **options)
        return Kept(kept[key].pose, kept[key].people)

    yield open_kept
    for models in kept.values():
        models.close()


@pytest.fixture
def inside(cli, opened, monkeypatch):
    """As `convnextpose`, but in this process, which has loaded the libraries: for tests that need no separate process."""
    monkeypatch.setattr("pipeline.run.open_models", opened)
    monkeypatch.chdir(ROOT)
    return lambda *arguments: subprocess.CompletedProcess(arguments, *cli(*arguments))


def one_sentence(result, exit_code=1):
    assert result.returncode == exit_code, result.stderr
    assert "Traceback" not in result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    return lines[0]


def frames_of(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [float(frame.pts * stream.time_base) for frame in container.decode(stream)]


@pytest.fixture(scope="module")
def short_clip(tmp_path_factory):
    """The first SHORT frames of the demo clip."""
    path = tmp_path_factory.mktemp("clip") / "short.mp4"
    with av.open(str(weights.DEMO_CLIP)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 640, 480, "yuv420p"
        for index, frame in enumerate(source.decode(video=0)):
            if index == SHORT:
                break
            target.mux(stream.encode(frame.reformat(format="yuv420p")))
        target.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "not" / "there"
    trace = out / "trace.json"
    return out, convnextpose("run", weights.DEMO_CLIP, "--out", out, "--camera", CAMERA, "--trace", trace)


def test_the_demo_clip_becomes_poses(demo_run):
    out, result = demo_run
    assert result.returncode == 0, result.stderr
    assert result.stderr == "", "no progress bar where nobody watches"
    assert "received 250 = posed 250 + dropped 0 + failed 0" in result.stdout
    assert "experimental" in result.stdout and "openvino" in result.stdout
    for stage in STAGES:
        assert stage in result.stdout
    for name in ("poses.mp4", "poses.ndjson", "poses.npz", "summary.json"):
        assert str(out / name) in result.stdout and (out / name).stat().st_size > 1000


def test_a_terminal_has_a_line_for_each_source_that_goes_away_at_the_end(short_clip):
    pty = pytest.importorskip("pty", reason="terminals are tried where there is a pty")
    terminal, of_child = pty.openpty()
    command = [sys.executable, "-m", "tools.main", "run", short_clip, short_clip, "--view", "127.0.0.1:0"]
    process = subprocess.Popen(command, stderr=of_child, stdout=subprocess.PIPE, cwd=ROOT, text=True)
    os.close(of_child)
    shown = b""
    with contextlib.suppress(OSError):  # the terminal was closed
        while part := os.read(terminal, 4096):
            shown += part
    out, _ = process.communicate(timeout=240)
    os.close(terminal)
    assert process.returncode == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert re.search(rf"short\.mp4 +(open|running|ended) .* \d+/{SHORT} +[\d.]+ fps", text) and "short.mp4 (2)" in text
    assert re.search(r"view +http://127\.0\.0\.1:\d+/ \(page\)", out)
    assert f"/{SHORT}" not in out


def test_a_run_without_results_is_shown_over_and_over_and_writes_nothing(short_clip, tmp_path):
    command = [sys.executable, "-m", "tools.main", "run", short_clip, "--threads", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path, text=True, env=environment
    )
    head = []
    while not (head and head[-1].startswith("watch ")):
        head.append(process.stdout.readline())
        assert head[-1], process.stderr.read()
    address = re.search(r"open (http://127\.0\.0\.1:\d+/) in a browser; nothing is written", head[-1])[1]
    with urllib.request.urlopen(address, timeout=60) as page:
        assert b"<html" in page.read()
    received = 0
    while received <= SHORT:  # more frames than the clip has
        time.sleep(0.2)
        with urllib.request.urlopen(f"{address}status", timeout=60) as status:
            received = json.load(status)["sources"][0]["ledger"]["received"]
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 130 and "stopped by Ctrl-C" in out and err == ""
    assert list(tmp_path.iterdir()) == []


def test_the_browser_is_opened_only_where_there_is_a_display(monkeypatch):
    opened = []

    class Browser:
        def open(self, address):
            opened.append(address)

    monkeypatch.setattr(webbrowser, "get", Browser)
    _open_browser("http://127.0.0.1:1/")
    monkeypatch.setattr(webbrowser, "get", lambda: webbrowser.GenericBrowser("lynx"))
    monkeypatch.setattr(subprocess, "Popen", None)
    _open_browser("http://127.0.0.1:2/")

    def none():
        raise webbrowser.Error("no browser")

    monkeypatch.setattr(webbrowser, "get", none)
    _open_browser("http://127.0.0.1:3/")
    assert opened == ["http://127.0.0.1:1/"]


@pytest.mark.parametrize("endpoint", ["nowhere", "1:2:3", "70000"])
def test_a_view_without_a_port_is_wrong_use(inside, short_clip, endpoint):
    result = inside("run", short_clip, "--view", endpoint)
    assert result.returncode == 2 and "expected a" in result.stderr


def test_its_video_has_the_clips_times(demo_run):
    times, clip = frames_of(demo_run[0] / "poses.mp4"), frames_of(weights.DEMO_CLIP)
    assert len(times) == 250
    assert np.allclose(times, clip, atol=1e-3)


def test_its_results_agree_with_each_other(demo_run):
    lines = [json.loads(line) for line in (demo_run[0] / "poses.ndjson").read_text().splitlines()]
    header, frames = lines[0], lines[1:]
    assert header["model"]["name"] == "xs" and header["root_depth_source"] == "intrinsics"
    assert [f["index"] for f in frames] == list(range(250))
    with np.load(demo_run[0] / "poses.npz") as arrays:
        poses = [pose for frame in frames for pose in frame["poses"]]
        assert np.allclose(arrays["joints_mm"], [p["joints_mm"] for p in poses], atol=0.006)
        assert np.allclose(arrays["joints_px"], [p["joints_px"] for p in poses], atol=0.0006)


def test_its_poses_are_near_the_true_ones(demo_run):
    """With boxes that the pipeline found itself; the model card has the figures."""
    figures = score(demo_run[0] / "poses.npz", weights.DEMO_TRUTH)
    assert figures["frames with a pose"] == "250 of 250"
    assert figures["MPJPE with the true root depth, mm"] < 85
    assert figures["left-right swaps, %"] < 5


def test_its_trace_holds_every_frame(demo_run):
    events = json.loads((demo_run[0] / "trace.json").read_text())
    spans = [e for e in events if e["ph"] == "X"]
    assert {event["cat"] for event in spans} == set(STAGES)
    for stage in ("capture", "infer", "lift", "render"):
        assert len({event["args"]["frame"] for event in spans if event["cat"] == stage}) == 250


def test_its_summary_says_what_the_console_says(demo_run):
    out, result = demo_run
    (source,) = json.loads((out / "summary.json").read_text())["sources"]
    assert source["name"] == weights.DEMO_CLIP.name and source["error"] is None
    ledger = source["ledger"]
    assert (ledger["received"], ledger["posed"], ledger["dropped"], ledger["failed"]) == (250, 250, 0, 0)
    assert [row["stage"] for row in source["stages"]] == list(STAGES)
    assert sum(row["share"] for row in source["stages"]) == pytest.approx(1, abs=0.01)
    assert f"speed    {source['frames_per_second']:.1f} frames a second" in result.stdout
    assert [state["state"] for state in source["states"]] == ["open", "running", "ended"]
    assert {file["path"]: file["frames"] for file in source["files"]} == dict.fromkeys(
        ("poses.mp4", "poses.ndjson", "poses.npz"), 250
    )
    assert all((out / file["path"]).stat().st_size == file["bytes"] for file in source["files"])


def test_results_are_not_overwritten_unless_allowed(inside, demo_run, short_clip):
    out = demo_run[0]
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    message = one_sentence(inside("run", short_clip, "--out", out))
    assert "--overwrite" in message
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_a_clip_that_is_cut_short_keeps_what_came_before(inside, tmp_path):
    clip, out = tmp_path / "cut.mp4", tmp_path / "out"
    data = weights.DEMO_CLIP.read_bytes()
    clip.write_bytes(data[: len(data) // 6])
    result = inside("run", clip, "--out", out)
    message = one_sentence(result)
    kept = len((out / "poses.ndjson").read_text().splitlines()) - 1
    assert 10 < kept < 100
    assert f"broke at frame {kept} of 250" in message
    assert f"received {kept} = posed {kept} + dropped 0 + failed 0" in result.stdout
    assert f"a pose in {kept} of {kept} frames" in result.stdout
    assert len(frames_of(out / "poses.mp4")) == kept


def test_the_example_runs(short_clip):
    command = [sys.executable, "examples/poses.py", str(short_clip)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=240, env=environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("pelvis at") == SHORT
    assert f"received {SHORT} = posed {SHORT}" in result.stdout


def test_an_earlier_result_serves_as_boxes(inside, demo_run, short_clip, tmp_path):
    boxes = demo_run[0] / "poses.ndjson"
    result = inside("run", short_clip, "--out", tmp_path / "again", "--boxes", boxes, "--camera", CAMERA)
    assert result.returncode == 0, result.stderr
    assert f"a pose in {SHORT} of {SHORT} frames" in result.stdout


def test_random_weights_stamp_every_output(inside, short_clip, tmp_path):
    out = tmp_path / "out"
    result = inside("run", short_clip, "--out", out, "--weights", "random")
    assert result.returncode == 0, result.stderr
    assert "random weights: these poses mean nothing" in result.stdout
    lines = [json.loads(line) for line in (out / "poses.ndjson").read_text().splitlines()]
    assert lines[0]["model"]["random"] is True
    assert all(line["random_weights"] is True for line in lines[1:])
    with np.load(out / "poses.npz") as arrays:
        assert json.loads(str(arrays["header"]))["model"]["random"] is True


@pytest.mark.parametrize("runtime", fast_first(["onnxruntime", "torch"]))
def test_every_runtime_gives_the_same_poses(inside, demo_run, short_clip, tmp_path, runtime):
    out = tmp_path / "out"
    boxes = demo_run[0] / "poses.ndjson"
    results = []
    for name in ("openvino", runtime):
        arguments = ("run", short_clip, "--out", out / name, "--boxes", boxes, "--runtime", name, "--precision", "fp32")
        result = inside(*arguments)
        assert result.returncode == 0, result.stderr
        assert f"runtime  {name}" in result.stdout
        with np.load(out / name / "poses.npz") as arrays:
            results.append(arrays["joints_px"])
    assert np.abs(results[0] - results[1]).max() < 0.01


@pytest.mark.parametrize("precision", fast_first(["auto", "bf16", "int8"]))
def test_every_precision_gives_about_the_same_poses(inside, demo_run, short_clip, tmp_path, precision):
    pytest.importorskip("openvino")
    if precision == "bf16" and precision not in cpu_precisions():
        pytest.skip("this CPU has no BF16")
    boxes, joints = demo_run[0] / "poses.ndjson", []
    for name in ("fp32", precision):
        out = tmp_path / name
        result = inside("run", short_clip, "--out", out, "--boxes", boxes, "--precision", name, "--runtime", "openvino")
        assert result.returncode == 0, result.stderr
        with np.load(out / "poses.npz") as arrays:
            header = json.loads(str(arrays["header"]))
            joints.append(arrays["joints_px"])
    assert ("chosen because" in result.stdout) == (precision == "auto")
    runs_in = {"int8": ["int8+fp32"], "bf16": ["bf16"], "auto": ["bf16", "fp32"]}[precision]
    assert header["runtime"]["precision"] in runs_in
    assert f"({header['runtime']['precision']} on CPU" in result.stdout
    assert np.linalg.norm(joints[1] - joints[0], axis=-1).mean() < 1.0  # px of the picture


def test_a_precision_that_nothing_has_is_one_sentence(inside, tmp_path):
    out = tmp_path / "out"
    message = one_sentence(inside("run", weights.DEMO_CLIP, "--out", out, "--precision", "int4"))
    assert "expected precision auto, fp32, bf16, fp16, int8, received 'int4'" in message
    assert not out.exists()


def test_an_empty_room_gives_no_pose(inside, tmp_path):
    clip = tmp_path / "room.mp4"
    with av.open(str(clip), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        wall = np.random.default_rng(0).integers(100, 140, (240, 320, 3), np.uint8)
        for _ in range(6):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(wall, format="bgr24")))
        container.mux(stream.encode())
    result = inside("run", clip, "--out", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert "a pose in 0 of 6 frames" in result.stdout and "--min-score" in result.stdout
    lines = (tmp_path / "out" / "poses.ndjson").read_text().splitlines()
    assert all(json.loads(line)["poses"] == [] for line in lines[1:])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("run", "missing.mp4", "--out", "OUT"), "missing.mp4"),
        (("run", "pyproject.toml", "--out", "OUT"), "pyproject.toml"),
        (("run", "CLIP", "--out", "OUT", "--model", "nothing"), "'nothing'"),
        (("run", "CLIP", "--out", "OUT", "--model", "pyproject.toml"), "pyproject.toml"),
        (("run", "CLIP", "--out", "OUT", "--model", "README.md.onnx"), "README.md.onnx"),
        (("run", "CLIP", "--out", "OUT", "--detector", "nothing.onnx"), "'nothing.onnx'"),
        (("run", "CLIP", "--out", "OUT", "--detector", "pyproject.toml"), "an .onnx or an .engine file"),
        (("run", "CLIP", "--out", "OUT", "--runtime", "magic"), "'magic'"),
        (("run", "CLIP", "--out", "OUT", "--boxes", "pyproject.toml"), "boxes"),
        (("run", "CLIP", "--out", "OUT", "--trace", "pyproject.toml/trace.json"), "trace"),
        (("run", "CLIP", "--out", "OUT", "--trace", "CLIP", "--overwrite"), "in another place than the sources"),
        (("run", "CLIP", "--out", "OUT", "--trace", "OUT/poses.npz"), "other than the results"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(inside, tmp_path, arguments, told):
    places = {"CLIP": str(weights.DEMO_CLIP), "OUT": str(tmp_path / "out")}
    message = one_sentence(inside(*(places.get(a, a).replace("OUT/", places["OUT"] + "/") for a in arguments)))
    assert told in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("run",),
        ("run", "CLIP", "--out", "OUT", "--camera", "1,2,3"),
        ("run", "CLIP", "--out", "OUT", "--min-score", "2"),
        ("run", "CLIP", "--out", "OUT", "--weights", "other"),
        ("run", "CLIP", "--out", "OUT", "--threads", "0"),
        ("run", "CLIP", "--out", "OUT", "--formats", "vhs"),
        ("run", "CLIP", "CLIP", "--out", "OUT", "--boxes", "boxes.csv"),
        ("run", "CLIP", "--out", "OUT", "--boxes", "boxes.csv", "--detector", "people.onnx"),
        ("fly",),
    ],
)
def test_wrong_use_is_exit_code_2(inside, tmp_path, arguments):
    result = inside(*(str(tmp_path / a) if a in ("CLIP", "OUT") else a for a in arguments))
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "OUT").exists()


@pytest.mark.parametrize(
    ("number", "told"),
    fast_first([(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C"), (signal.SIGHUP, "SIGHUP")]),
)
def test_a_signal_keeps_what_was_finished(tmp_path, number, told):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "tools.main", "run", str(weights.DEMO_CLIP), "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    deadline = time.monotonic() + 240
    lines = out / "poses.ndjson"
    while not (lines.exists() and lines.read_bytes().count(b"\n") > 5):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == 128 + number, stderr
    assert "Traceback" not in stderr
    assert f"stopped by {told}" in stdout
    finished = len(lines.read_text().splitlines()) - 1
    assert 5 <= finished < 250
    assert f"received {finished} = posed {finished} + dropped 0 + failed 0" in stdout
    assert len(frames_of(out / "poses.mp4")) == finished
    with np.load(out / "poses.npz") as arrays:
        assert len(arrays["frame_index"]) == finished
    (source,) = json.loads((out / "summary.json").read_text())["sources"]
    assert source["ledger"]["posed"] == finished and source["states"][-1]["state"] == "stopped"


def test_several_sources_give_what_each_gives_alone(inside, short_clip, tmp_path):
    """Two clips with the same name and a folder of pictures in one run: each gets a folder with a separate run's results."""
    twin, pictures = tmp_path / "other" / short_clip.name, tmp_path / "pictures"
    twin.parent.mkdir()
    twin.write_bytes(short_clip.read_bytes())
    pictures.mkdir()
    with av.open(str(short_clip)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index % 10 == 0:
                cv2.imwrite(str(pictures / f"{index}.png"), frame.to_ndarray(format="bgr24"))
    together = tmp_path / "together"
    result = inside("run", short_clip, twin, pictures, "--out", together, "--formats", "ndjson")
    assert result.returncode == 0, result.stderr
    assert sorted(p.name for p in together.iterdir()) == ["pictures", "short", "short-2", "summary.json"]
    for source, alone in ((short_clip, tmp_path / "short"), (pictures, tmp_path / "some")):
        assert inside("run", source, "--out", alone, "--formats", "ndjson").returncode == 0
        assert sorted(p.name for p in alone.iterdir()) == ["poses.ndjson", "summary.json"]
    for alone, name in (("short", "short"), ("short", "short-2"), ("some", "pictures")):
        alone = tmp_path / alone
        texts = [(folder / "poses.ndjson").read_text() for folder in (together / name, alone)]
        mine, its = ([json.loads(line) for line in text.splitlines()] for text in texts)
        assert len(mine) == len(its)
        for a, b in zip(mine[1:], its[1:], strict=True):
            assert [p["track_id"] for p in a["poses"]] == [p["track_id"] for p in b["poses"]]
            for one, other in zip(a["poses"], b["poses"], strict=True):
                assert np.allclose(one["joints_px"], other["joints_px"], atol=0.05)


def test_a_damaged_source_costs_the_others_nothing(inside, short_clip, tmp_path):
    cut = tmp_path / "cut.mp4"
    data = weights.DEMO_CLIP.read_bytes()
    cut.write_bytes(data[: len(data) // 10])
    result = inside("run", cut, short_clip, "--out", tmp_path / "out", "--formats", "ndjson")
    assert "broke at frame" in one_sentence(result)
    assert f"received {SHORT} = posed {SHORT} + dropped 0 + failed 0" in result.stdout
    assert len((tmp_path / "out" / "short" / "poses.ndjson").read_text().splitlines()) == SHORT + 1


@pytest.mark.parametrize("command", ["run", "verify", "export", "doctor"])
def test_help_says_what_it_does_and_its_exit_codes(inside, command):
    result = inside(command, "--help")
    assert result.returncode == 0
    assert "Exit codes" in result.stdout


def test_doctor_tells_what_is_there_and_what_mends_the_rest(inside, monkeypatch):
    result = inside("doctor", "--json")
    assert result.returncode == 0, result.stderr
    findings = {f["what"]: f for f in json.loads(result.stdout)}
    assert findings["weights xs"]["state"] == "ok"
    assert findings["runtime openvino"]["state"] == "ok"
    assert all(f["mend"] for f in findings.values() if f["state"] != "ok")
    assert sum("what auto takes" in f["found"] for f in findings.values()) == 1
    assert "ms a crop" in findings["speed fp32"]["found"]
    monkeypatch.setattr("engines.cpu_precision.measure_precisions", tuple)
    people = inside("doctor")
    assert people.returncode == 0 and "openvino" in people.stdout


def test_weights_that_were_changed_are_refused(tmp_path, monkeypatch):
    for name in ("xs.json", "xs.onnx", "xs.int8.onnx", "xs.safetensors"):
        (tmp_path / name).write_bytes((weights.FOLDER / name).read_bytes())
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    assert weights.load("xs").variant.name == "XS"
    data = bytearray((tmp_path / "xs.onnx").read_bytes())
    data[10_000] ^= 1
    (tmp_path / "xs.onnx").write_bytes(data)
    with pytest.raises(ValueError, match="was changed"):
        weights.load("xs")
