"""`convnextpose run`, `cameras` and `doctor --camera` with live sources, as a user runs them."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.formats.records import read_poses
from tests.cases import fast_first
from tests.pipeline.live.servers import Mjpeg, MuteServer, WebServer

ROOT = Path(__file__).parent.parent.parent


def start(*arguments):
    command = [sys.executable, "-m", "tools.main", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_head(process):
    """Wait until the run has started."""
    lines = []
    while not lines or not lines[-1].startswith("depth"):
        lines.append(process.stdout.readline())
        assert lines[-1], process.stderr.read()
    return lines


@pytest.mark.parametrize(("number", "told"), fast_first([(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")]))
def test_a_signal_ends_a_run_at_once_whatever_its_cameras_do(tmp_path, number, told):
    """One is absent, one is mute, one is live: giving up the mute one alone would take 10 s."""
    camera = Mjpeg(rate=5)
    with WebServer(camera) as server, MuteServer() as mute:
        uris = ["rtsp://admin:hunter2@127.0.0.1:9/live", f"rtsp://127.0.0.1:{mute.port}/live", server.uri]
        process = start("run", *uris, "--out", tmp_path / "out", "--formats", "ndjson")
        wait_for_head(process)
        while camera.sent < 5:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        out, err = process.communicate(timeout=9)
        camera.stop.set()
    assert process.returncode == 128 + number, err
    assert f"stopped by {told}" in out and "Traceback" not in err
    assert "lost: refused: nothing listens at port 9" in out and "hunter2" not in out + err
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert "hunter2" not in json.dumps(summary) and "admin" not in json.dumps(summary)
    for source in summary["sources"]:
        ledger = source["ledger"]
        assert ledger["received"] == ledger["posed"] + ledger["dropped"] + ledger["failed"]
    states = [[state["state"] for state in source["states"]] for source in summary["sources"]]
    assert states[0][:3] == ["open", "connecting", "lost"] and states[1][:2] == ["open", "connecting"]
    assert states[2][:3] == ["open", "connecting", "live"]


def test_a_run_of_some_seconds_in_segments_from_a_file_of_sources(tmp_path):
    sources = tmp_path / "cameras.txt"
    sources.write_text("hall test:// 620,620,319.5,239.5\n")
    out = tmp_path / "out"
    process = start("run", "--sources", sources, "--out", out, "--seconds", "3", "--segment", "1s", "--formats", "ndjson")
    told, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    files = sorted(out.rglob("poses.ndjson"))
    assert len(files) >= 2 and f"wrote    {files[0]}" in told
    frames = [frame for file in files for frame in read_poses(file).frames]
    assert [f.index for f in frames] == sorted({f.index for f in frames}) and all(frame.utc for frame in frames)
    assert {read_poses(file).header.camera.fx for file in files} == {620}
    assert read_poses(files[0]).header.source == "hall"


def test_wrong_use_is_told(tmp_path, cli):
    assert cli("run", "--out", tmp_path)[0] == 2
    code, _, err = cli("run", "test://", "--out", tmp_path, "--segment", "soon")
    assert code == 2 and "30s, 10m or 1h" in " ".join(err.replace("│", "").split())
    code, _, err = cli("run", "rtsp://u:hunter2@h/x#speed=9", "--out", tmp_path)
    assert code == 1 and "among transport, latency" in err and "hunter2" not in err


def test_cameras_says_that_there_is_none(cli, monkeypatch):
    monkeypatch.setattr("tools.cameras.list_devices", lambda: [])
    code, out, _ = cli("cameras")
    assert code == 0 and out.startswith("no camera")
    assert json.loads(cli("cameras", "--json")[1]) == []


def test_doctor_looks_at_a_camera(cli):
    code, out, _ = cli("doctor", "--camera", "test://", "--seconds", "1", "--json")
    report = json.loads(out)
    assert code == 0 and report["frames"] > 5 and report["clock"] == "arrival" and report["offset_ms"] is None
    code, out, _ = cli("doctor", "--camera", "rtsp://127.0.0.1:9/live", "--seconds", "1")
    assert code == 1 and "refused" in out and "none came" in out
