"""Every example runs and prints what it demonstrates."""

import re
import runpy
import socket
from pathlib import Path

import av
import numpy as np
import pytest

from convnextpose import weights
from engines.sessions.registry import RUNTIMES

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """The first half second of the demo clip."""
    path = tmp_path_factory.mktemp("clips") / "begin.mp4"
    with av.open(weights.DEMO_CLIP) as source, av.open(str(path), "w") as target:
        stream = source.streams.video[0]
        out = target.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.dts is not None and packet.pts * stream.time_base < 0.5:
                packet.stream = out
                target.mux(packet)
    return str(path)


@pytest.fixture
def example():
    """A function that returns an example's `main`."""
    return lambda name: runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]


def test_each_example_begins_with_how_to_run_it_and_has_a_test():
    tested = set(re.findall(r'example\("(\w+)"\)', Path(__file__).read_text(encoding="utf-8")))
    for path in EXAMPLES.glob("*.py"):
        assert f"python examples/{path.name} " in path.read_text(encoding="utf-8").split('"""')[1]
    assert tested == {path.stem for path in EXAMPLES.glob("*.py")}


def test_the_python_of_the_readme_is_ten_lines_at_most_and_runs(clip, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (EXAMPLES.parent / "README.md").read_text(encoding="utf-8"), re.S)
    assert len(code.splitlines()) <= 10 and '"clip.mp4"' in code
    exec(code.replace('"clip.mp4"', repr(clip)), {})  # as a newcomer types it
    told = capsys.readouterr().out
    assert re.match(r"0\.0 0 \[\[", told) and "\n0.4" in told


def test_poses_tells_where_the_person_is(example, clip, capsys):
    example("poses")(clip)
    told = capsys.readouterr().out
    assert re.search(r"^0\.\d+ s  person 0  pelvis at \[.+\] mm$", told, re.M)
    assert "received" in told


def test_count_people_finds_the_one_of_the_demo_clip(example, clip, capsys):
    example("count_people")(clip)
    assert re.match(r"people: 1\nperson 0: too short for a speed, seen from 0\.\d to 0\.\d s\n", capsys.readouterr().out)


def test_count_people_measures_speed_though_places_stray_from_frame_to_frame():
    speed = runpy.run_path(str(EXAMPLES / "count_people.py"))["speed"]
    times = np.arange(0.3, 8, 0.1)
    stray_mm = np.random.default_rng(0).normal(0, 150, (len(times), 3))
    for metres_per_s in (0.0, 1.4):
        places = np.outer(times, (0, 600 * metres_per_s, 800 * metres_per_s)) + stray_mm
        assert speed([(t, *place) for t, place in zip(times, places, strict=True)]) == pytest.approx(metres_per_s, abs=0.15)


def test_many_cameras_gives_every_camera_its_part(example, capsys):
    example("many_cameras")(["door=test://", "yard=test://"], seconds=0.3)
    told = capsys.readouterr().out
    assert re.search(r"^door 0\.\d\d s: people", told, re.M)
    assert re.search(r"^yard .*received", told, re.M)


def test_stream_to_blender_sends_bones_that_a_vmc_receiver_reads(example, clip):
    osc_packet = pytest.importorskip("pythonosc.osc_packet")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(60)
        example("stream_to_blender")(clip, f"127.0.0.1:{receiver.getsockname()[1]}")
        addresses = set()
        while "/VMC/Ext/Bone/Pos" not in addresses:
            addresses |= {message.message.address for message in osc_packet.OscPacket(receiver.recv(65536)).messages}


def test_walk_to_opensim_writes_the_markers_of_whoever_walks(example, clip, tmp_path, capsys):
    example("walk_to_opensim")(clip, str(tmp_path / "out"), "620,620,319.5,239.5")
    assert re.match(r".+poses-0\.trc: .*RKnee", capsys.readouterr().out)
    assert (tmp_path / "out/poses-0.trc").read_text(encoding="utf-8").startswith("PathFileType\t4")


def test_own_detector_has_a_pose_where_somebody_is_and_none_in_the_empty_place(example, clip, capsys):
    example("own_detector")(clip, "135,125,90,190", "400,100,80,200")
    told = capsys.readouterr().out
    assert "people [0]" in told
    assert "1" not in re.sub(r"^\S+ s: ", "", told, flags=re.M)


def test_own_runtime_runs_the_clip(example, clip, capsys):
    pytest.importorskip("onnxruntime")
    example("own_runtime")(clip)
    try:
        assert re.match(r"[1-9]\d* poses in any-device \S+ \(fp32 on CPUExecutionProvider", capsys.readouterr().out)
    finally:
        RUNTIMES.pop("any-device")
