"""Files for other programs: they contain the poses, in the world, at a constant rate; gaps stay gaps.

Each file is read back by this project's reader, and by another project's if that is installed.
"""

import csv
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convnextpose.errors import OutputExistsError, SinkError
from convnextpose.skeleton import HUMAN36M, JOINT_SETS, MUCO
from convnextpose.world import World, WorldOrigin, up_of
from pipeline.formats import c3d as c3d_module
from pipeline.formats.bvh import euler_degrees, read_bvh, turns_of
from pipeline.formats.c3d import read_c3d
from pipeline.formats.figure import Figure
from pipeline.formats.glb import matrices, read_glb
from pipeline.formats.motion import Export, Track, at_constant_rate, rate_of
from pipeline.formats.names import NAMES, bone_names, joint_names
from pipeline.formats.table import FORMATS
from pipeline.formats.trc import read_trc
from pipeline.rig import BONES, joint_indices, quaternion
from pipeline.types import TrackEvent, TrackEventKind
from tests.pipeline.formats.samples import HEADER, names, pose, posed

WORLD = World.of(up_of(20, 3), 2400.0, WorldOrigin.GIVEN, WorldOrigin.GIVEN)
STANDING = np.array(
    [(0, 950, 0), (-100, 950, 0), (-110, 500, 10), (-110, 60, 0), (100, 950, 0), (110, 500, 10), (110, 60, 0), (0, 1200, 0),
     (0, 1480, 0), (0, 1560, 90), (0, 1700, 0), (170, 1440, 0), (220, 1180, 0), (240, 950, 40), (-170, 1440, 0),
     (-220, 1180, 0), (-240, 950, 40), (0, 1440, 0)], np.float64
)  # fmt: skip
"""[18, 3] mm: a standing person who looks along z."""


def person(index, track_id=1):
    """A person who walks and waves in the world, as a pose in camera space."""
    joints = STANDING + np.array([40 * index * track_id, 0, -5000 - 300 * track_id])
    joints[12] += (0, 0, 60 * np.sin(index / 3))
    joints[13] += (0, 30 * np.sin(index / 4), 90 * np.sin(index / 3))
    return replace(pose(), joints_mm=WORLD.to_camera(joints), track_id=track_id), joints


def recorded(tmp_path, name, frames, *, header=HEADER, **options):
    """Write frames, given as (index, time s, track ids), in a format; returns the recorder."""
    recorder = FORMATS[name].open(tmp_path / FORMATS[name].file_name, header, **options)
    for index, time_s, ids in frames:
        people = tuple(person(index, track_id)[0] for track_id in ids)
        recorder.write(replace(posed(index, time_s, people), world=WORLD))
    recorder.close()
    return recorder


STEADY = [(i, i / 25, (1, 2) if i < 20 else (1,)) for i in range(30)]
GAP = [(i, i / 25, (1,)) for i in range(30) if not 10 <= i < 16]


def true(track_id, indices):
    return np.array([person(i, track_id)[1] for i in indices])


def test_trc_and_c3d_hold_the_joints(tmp_path):
    recorder = recorded(tmp_path, "trc", STEADY)
    recorded(tmp_path, "c3d", STEADY)
    assert names(tmp_path) == ["poses-1.c3d", "poses-1.trc", "poses-2.c3d", "poses-2.trc"]
    assert [file.path.name for file in recorder.files] == ["poses-1.trc", "poses-2.trc"] and recorder.written == 30
    for track_id, count in ((1, 30), (2, 20)):
        markers, times, joints = read_trc(tmp_path / f"poses-{track_id}.trc")
        assert markers == joint_names(HUMAN36M, "opensim") and np.allclose(times, np.arange(count) / 25)
        labels, rate, points = read_c3d(tmp_path / f"poses-{track_id}.c3d")
        assert labels == markers and rate == 25
        for places in (joints, points):
            assert np.abs(places - true(track_id, range(count))).max() < 0.1


def assert_markers(places):
    """Check positions [T, J, 3], mm, that another reader found in GAP's file."""
    expected = true(1, range(30))
    expected[10:16] = np.nan
    assert np.array_equal(np.isnan(places), np.isnan(expected)) and np.nanmax(np.abs(places - expected)) < 0.1


def test_opensim_finds_the_same_markers(tmp_path):
    opensim = pytest.importorskip("opensim")
    recorded(tmp_path, "trc", GAP)
    table = opensim.TimeSeriesTableVec3(str(tmp_path / "poses-1.trc"))
    assert list(table.getColumnLabels()) == joint_names(HUMAN36M, "opensim") and table.getTableMetaDataString("Units") == "mm"
    rows = [[[table.getRowAtIndex(k)[j][a] for a in range(3)] for j in range(18)] for k in range(table.getNumRows())]
    assert_markers(np.array(rows))


def test_ezc3d_finds_the_same_markers(tmp_path):
    ezc3d = pytest.importorskip("ezc3d")
    recorded(tmp_path, "c3d", GAP)
    read = ezc3d.c3d(str(tmp_path / "poses-1.c3d"))
    assert read["parameters"]["POINT"]["LABELS"]["value"] == joint_names(HUMAN36M, "opensim")
    assert read["parameters"]["POINT"]["RATE"]["value"][0] == 25 and read["parameters"]["POINT"]["UNITS"]["value"] == ["mm"]
    assert_markers(read["data"]["points"][:3].transpose(2, 1, 0))


def test_tables_hold_the_joints_at_their_own_times(tmp_path):
    frames = [(0, 0.0, (1,)), (3, 0.13, (1, 2)), (9, 0.31, (2,))]
    with recorded(tmp_path, "csv", frames).path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 18 and {row["time_s"] for row in rows} == {"0.000000", "0.130000", "0.310000"}
    places = np.array([[float(row[axis]) for axis in ("x_mm", "y_mm", "z_mm")] for row in rows if row["track_id"] == "2"])
    assert np.abs(places.reshape(-1, 18, 3) - true(2, (3, 9))).max() < 0.1
    assert [row["joint"] for row in rows[:18]] == list(HUMAN36M.joints)


def test_another_reader_finds_the_same_table(tmp_path):
    polars = pytest.importorskip("polars")
    pytest.importorskip("pyarrow")
    frames = [(0, 0.0, (1,)), (3, 0.13, (1, 2))]
    text = polars.read_csv(recorded(tmp_path, "csv", frames).path)
    table = polars.read_parquet(recorded(tmp_path, "parquet", frames).path)
    assert table.columns == text.columns and len(table) == len(text) == 3 * 18
    for column in ("x_mm", "y_mm", "z_mm"):
        assert np.abs(table[column].to_numpy() - text[column].to_numpy()).max() < 0.1
    assert table["track_id"].to_list() == text["track_id"].to_list() and table["joint"].to_list() == text["joint"].to_list()


def at(places, joint_set=HUMAN36M):
    """[T, B, 3] positions of the joints at which bones begin."""
    index = joint_indices(joint_set)
    return places[:, [index[facts.at] for facts in BONES.values()]]


def test_bvh_turns_bones_that_keep_their_lengths(tmp_path):
    recorded(tmp_path, "bvh", STEADY)
    found, frame_time_s, offsets, root, local = read_bvh(tmp_path / "poses-1.bvh")
    assert set(found) == set(BONES) and frame_time_s == pytest.approx(0.04)
    figure = Figure(dict(zip(found, offsets, strict=True)), root, {name: turn for name, turn in zip(found, local, strict=True)})
    places = np.stack([figure.places_mm()[bone] for bone in BONES], axis=1)
    off = np.linalg.norm(places - at(true(1, range(30))), axis=2)
    assert np.delete(off, [list(BONES).index(f"Left{b}") for b in ("LowerArm", "Hand")], axis=1).max() < 1
    assert off.mean() < 10, "only the waving arm changes its length"


def test_another_reader_places_the_bones_of_a_bvh_there(tmp_path):
    bvhsdk = pytest.importorskip("bvhsdk")
    path = tmp_path / "poses-1.bvh"
    recorded(tmp_path, "bvh", STEADY)
    found, _, offsets, root, local = read_bvh(path)
    ours = Figure(dict(zip(found, offsets, strict=True)), root, dict(zip(found, local, strict=True))).places_mm()
    theirs = bvhsdk.ReadFile(str(path))
    assert theirs.frames == 30
    joints = {joint.name: joint for joint in theirs.getlistofjoints()}
    assert set(found) <= set(joints)
    for name in found:
        for frame in (0, 7, 29):
            assert np.abs(10 * np.array(joints[name].getPosition(frame))[:3] - ours[name][frame]).max() < 0.1


def test_glb_moves_the_same_figure_and_hides_who_is_not_seen(tmp_path):
    path = recorded(tmp_path, "glb", GAP).path
    document, data = read_glb(path)
    assert [skin["name"] for skin in document["skins"]] == ["person-1"]
    (scale,) = (c for c in document["animations"][0]["channels"] if c["target"]["path"] == "scale")
    sampler = document["animations"][0]["samplers"][scale["sampler"]]
    assert sampler["interpolation"] == "STEP"

    def values(number):
        accessor = document["accessors"][number]
        view = document["bufferViews"][accessor["bufferView"]]
        return np.frombuffer(data, "<f4", view["byteLength"] // 4, view["byteOffset"]).reshape(accessor["count"], -1)

    assert np.allclose(values(sampler["input"])[:, 0], [0, 10 / 25, 16 / 25, 30 / 25])
    assert values(sampler["output"])[:, 0].tolist() == [1, 0, 1, 0]


def test_another_reader_places_the_bones_of_a_glb_where_those_of_the_bvh_are(tmp_path):
    pygltflib = pytest.importorskip("pygltflib")
    recorded(tmp_path, "bvh", STEADY)
    found, _, offsets, root, local = read_bvh(tmp_path / "poses-1.bvh")
    expected = Figure(dict(zip(found, offsets, strict=True)), root, dict(zip(found, local, strict=True))).places_mm()
    theirs = pygltflib.GLTF2().load(str(recorded(tmp_path, "glb", STEADY).path))
    data, widths = theirs.binary_blob(), {"SCALAR": 1, "VEC3": 3, "VEC4": 4}

    def values(number):
        accessor = theirs.accessors[number]
        start = theirs.bufferViews[accessor.bufferView].byteOffset + (accessor.byteOffset or 0)
        width = widths[accessor.type]
        return np.frombuffer(data, "<f4", accessor.count * width, start).reshape(-1, width)

    moved, times = {}, set()
    for channel in theirs.animations[0].channels:
        sampler = theirs.animations[0].samplers[channel.sampler]
        moved[channel.target.node, channel.target.path] = values(sampler.output)
        times.add(sampler.input)
    assert any(len(values(number)) == 30 and np.allclose(values(number)[:, 0], np.arange(30) / 25) for number in times)

    def turned(quaternion, vectors):
        xyz, w = quaternion[:, :3], quaternion[:, 3:]
        return vectors + 2 * np.cross(xyz, np.cross(xyz, vectors) + w * vectors)

    parents = {child: number for number, node in enumerate(theirs.nodes) for child in node.children or ()}

    def place(number):
        """[30, 3] m, in the world."""
        node = theirs.nodes[number]
        there = moved.get((number, "translation"), np.tile(node.translation or (0.0, 0.0, 0.0), (30, 1)))[:30]
        while (number := parents.get(number, -1)) >= 0:
            node = theirs.nodes[number]
            turn = moved.get((number, "rotation"), np.tile(node.rotation or (0.0, 0.0, 0.0, 1.0), (30, 1)))[:30]
            shift = moved.get((number, "translation"), np.tile(node.translation or (0.0, 0.0, 0.0), (30, 1)))[:30]
            there = turned(turn, there) + shift
        return there

    joints = {theirs.nodes[number].name: number for number in theirs.skins[0].joints}
    assert set(joints) == set(found) and theirs.skins[0].name == "person-1"
    for name, number in joints.items():
        assert np.abs(1000 * place(number) - expected[name]).max() < 0.1, name


def test_gaps_stay_gaps_unless_they_are_to_be_filled(tmp_path):
    for fill_s, gaps in ((0.0, 6), (0.1, 6), (0.24, 0), (5.0, 0)):
        folder = tmp_path / str(fill_s)
        folder.mkdir()
        recorded(folder, "trc", GAP, export=Export(fill_s=fill_s))
        recorded(folder, "bvh", GAP, export=Export(fill_s=fill_s))
        _, times, joints = read_trc(folder / "poses-1.trc")
        assert len(times) == 30 and np.isnan(joints[:, 0, 0]).sum() == gaps
        assert len(list(folder.glob("*.bvh"))) == (2 if gaps else 1), "a format that cannot have gaps has a file for each part"
        assert np.nanmax(np.abs(joints[:, 0] - true(1, range(30))[:, 0])) < 0.1


@settings(deadline=None)
@given(st.lists(st.floats(0.005, 0.5), min_size=1, max_size=20), st.sampled_from([10.0, 25.0, 30.0]), st.floats(0, 0.4))
def test_resampling_keeps_straight_lines_and_invents_nothing(steps, rate, fill_s):
    times = np.concatenate([[0.0], np.cumsum(steps)]) + 1.0
    joints = np.repeat((100 * times)[:, None, None], 3, axis=2).repeat(2, axis=1)
    track = Track(1, np.arange(len(times)), times, joints, joints[..., :2], np.ones((len(times), 2)))
    motion = at_constant_rate(track, rate, 0.5, fill_s)
    grid = 0.5 + (motion.first + np.arange(len(motion.joints_mm))) / rate
    seen = motion.seen
    assert np.abs(motion.joints_mm[seen, 0, 0] - 100 * grid[seen]).max(initial=0) <= 100 * 0.51 / rate
    longest = max(1.5 / rate, fill_s + 1.2 / rate if fill_s else 0)
    for moment in grid[~seen]:
        before, after = times[times <= moment], times[times >= moment]
        assert len(before) and len(after) and after[0] - before[-1] > min(1.5 / rate, longest) - 1e-9
    for moment in grid[seen]:
        after = times[np.searchsorted(times, moment + 0.2 / rate) - 1 :]
        assert len(after) < 2 or np.abs(times - moment).min() <= 0.51 / rate or after[1] - after[0] <= longest + 1e-9


def test_a_rate_is_the_nominal_one_where_the_times_have_it():
    assert rate_of(HEADER, np.arange(50) / 25) == 25.0
    assert rate_of(replace(HEADER, frame_rate=90.0), np.arange(50) / 15) == 15.0
    assert rate_of(replace(HEADER, frame_rate=None), np.arange(50) / 12.5) == 12.5


def test_smoothed_poses_go_out_where_the_run_smooths(tmp_path):
    for smooth in (False, True):
        recorder = FORMATS["trc"].open(tmp_path / f"{smooth}.trc", replace(HEADER, smooth=smooth))
        made, joints = person(0)
        recorder.write(replace(posed(0, poses=(replace(made, smoothed_mm=WORLD.to_camera(joints + 50)),)), world=WORLD))
        recorder.close()
        _, _, read = read_trc(tmp_path / f"{smooth}-1.trc")
        assert np.abs(read[0] - joints - 50 * smooth).max() < 0.1


def test_each_take_stands_in_its_own_world(tmp_path):
    other = World.of(up_of(0, 0), 1000.0, WorldOrigin.GIVEN, WorldOrigin.GIVEN)
    recorder = FORMATS["csv"].open(tmp_path / "poses.csv", HEADER)
    recorder.write(replace(posed(0, poses=(person(0, 1)[0],)), world=World.level()))
    recorder.write(replace(posed(1, poses=(person(1, 1)[0],)), world=WORLD))
    cut = TrackEvent(TrackEventKind.CUT, 0.08, None, "a hard cut")
    late = replace(person(2, 2)[0], joints_mm=other.to_camera(STANDING - (0, 0, 4000)))
    recorder.write(replace(posed(2, poses=(late,)), world=other, events=(cut,)))
    recorder.close()
    with recorder.path.open(newline="") as file:
        heights = [float(row["y_mm"]) for row in csv.DictReader(file) if row["joint"] == "Pelvis"]
    assert np.allclose(heights, 950, atol=0.1), "a take's last known world holds for all of it"


def test_a_recording_too_long_for_a_c3d_file_goes_on_in_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(c3d_module, "MAX_FRAMES", 12)
    recorded(tmp_path, "c3d", STEADY)
    parts = [read_c3d(tmp_path / f"poses-1{tail}.c3d")[2] for tail in ("", "-2", "-3")]
    assert [len(part) for part in parts] == [12, 12, 6]
    assert np.abs(np.concatenate(parts) - true(1, range(30))).max() < 0.1


@pytest.mark.parametrize("name", ["trc", "c3d", "bvh"])
def test_files_of_people_replace_nothing_without_permission(tmp_path, name):
    kind = FORMATS[name]
    path = tmp_path / f"poses-7.{name}"
    path.write_text("yesterday's")
    with pytest.raises(OutputExistsError, match="--overwrite"):
        kind.open(tmp_path / kind.file_name, HEADER)
    recorded(tmp_path, name, STEADY, overwrite=True)
    assert names(tmp_path) == [f"poses-1.{name}", f"poses-2.{name}"], "no file of another run's person remains"


@pytest.mark.parametrize("name", ["trc", "c3d", "bvh", "glb", "csv"])
def test_what_does_not_come_back_is_not_put_in_place(tmp_path, name, monkeypatch):
    def broken(self, part, content):
        raise ValueError("expected positions, mm, within 0.001, received 7 off")

    monkeypatch.setattr(FORMATS[name].recorder, "_check_part", broken)
    with pytest.raises(SinkError, match="is not what was written: expected positions"):
        recorded(tmp_path, name, STEADY)
    assert names(tmp_path) == []


@given(st.tuples(*[st.floats(-89.9, 89.9)] * 3))
def test_angles_and_quaternions_come_back(angles):
    turn = turns_of(np.array([angles]))
    assert np.allclose(turns_of(euler_degrees(turn)), turn, atol=1e-9)
    assert np.allclose(matrices(np.array([quaternion(turn[0])])), turn, atol=1e-6)


def test_every_scheme_names_each_joint_and_bone_once():
    for scheme in NAMES:
        for joint_set in JOINT_SETS.values():
            found = joint_names(joint_set, scheme)
            assert len(set(found)) == len(joint_set)
        assert len(set(bone_names(scheme).values())) == len(BONES)
    assert joint_names(HUMAN36M, "opensim")[:4] == ["Hip", "RHip", "RKnee", "RAnkle"]
    assert joint_names(MUCO, "opensim")[19] == "RBigToe"
    assert bone_names("blender")["RightUpperLeg"] == "thigh.R" and bone_names("mixamo")["LeftHand"] == "mixamorig:LeftHand"
    with pytest.raises(ValueError, match="expected names of"):
        Export(names="maya")
