"""Human3.6M's protocols on a miniature in 3DMPPE's layout, with a model whose errors are exactly known."""

import json

import numpy as np
import pytest

from convnextpose.errors import ModelError, SourceError
from convnextpose.skeleton import MUCO
from convnextpose.variants import Variant
from pipeline.human36m import evaluate, read_test_set, true_region
from tests.cases import fast_first
from tests.pipeline.miniature import HEIGHT, WIDTH, StandIn, build


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("h36m")
    return folder, build(folder)


def score(small, change, *, flip=True, variant=Variant.XS, protocol=2, action=None):
    folder, truths = small
    frames = read_test_set(folder, (9, 11))
    model = StandIn(truths, frames, change, variant)
    scores = evaluate(model, frames, flip=flip)
    assert model.mirrored == (len(frames) if flip else 0)
    return scores.of(protocol, action)


def turned(degrees):
    """A rotation about the vertical axis of the picture."""
    a = np.radians(degrees)
    return np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])


def horn(moved, truth):
    """Points aligned with others without scaling, by Horn's quaternions (1987): independent of the code's singular values."""
    a, b = moved - moved.mean(0), truth - truth.mean(0)
    s = a.T @ b
    lower = np.array([s[1, 2] - s[2, 1], s[2, 0] - s[0, 2], s[0, 1] - s[1, 0]])
    matrix = np.block([[np.trace(s), lower], [lower[:, None], s + s.T - np.trace(s) * np.eye(3)]])
    w, x, y, z = np.linalg.eigh(matrix)[1][:, -1]
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return a @ (np.eye(3) + 2 * w * cross + 2 * cross @ cross).T + truth.mean(0)


def test_what_counts(small):
    folder, truths = small
    frames = read_test_set(folder, (9, 11))
    assert len(frames) == len(truths) == 2 * 2 * 2 * 2, "2 subjects, 2 actions, frames 0 and 64 of 3, 2 cameras"
    assert {frame.action for frame in frames} == {0, 12}, "Directions and Walking"
    assert len(read_test_set(folder, (11,))) == len(frames) / 2
    for frame, truth in zip(frames, truths, strict=True):
        assert np.allclose(frame.joints_mm, truth["joints"], atol=1e-6)
        assert frame.root_depth_mm == pytest.approx(truth["joints"][0, 2])


@pytest.mark.parametrize("variant", fast_first(Variant))
@pytest.mark.parametrize("flip", [True, False])
def test_the_truth_scores_nothing(small, flip, variant):
    for protocol in (1, 2):
        assert score(small, lambda j: j, flip=flip, variant=variant, protocol=protocol) == pytest.approx(0, abs=0.01)


def test_mpjpe_as_computed_by_hand(small):
    def one_wrist_by_170(joints):
        return joints + 170 * np.eye(18)[:, [13]] * [0.6, 0, 0.8]

    def all_but_the_pelvis_by_34(joints):
        return joints + 34 * (np.arange(18) > 0)[:, None] * [0, 1, 0]

    def all_together(joints):
        return joints + np.array([200, -100, 300])

    def thorax_alone(joints):
        return joints + 500 * np.eye(18)[:, [17]]

    assert score(small, one_wrist_by_170) == pytest.approx(170 / 17, abs=0.01)
    assert score(small, all_but_the_pelvis_by_34) == pytest.approx(34 * 16 / 17, abs=0.01)
    assert score(small, all_together) == pytest.approx(0, abs=0.01)
    assert score(small, thorax_alone) == pytest.approx(0, abs=0.01), "Thorax does not count"


def test_pa_mpjpe_as_computed_by_hand(small):
    def turned_about_the_pelvis(joints):
        return (joints - joints[0]) @ turned(30).T + joints[0]

    def larger(joints):
        return 1.1 * (joints - joints[0]) + joints[0]

    def thorax_alone(joints):
        return joints + 500 * np.eye(18)[:, [17]] * [1, 0, 0]

    assert score(small, turned_about_the_pelvis, protocol=1) == pytest.approx(0, abs=0.01)
    assert score(small, turned_about_the_pelvis, protocol=2) > 50
    of_11 = [truth["joints"] for truth in small[1] if truth["id"] >= 110_000]
    spread = np.mean([np.linalg.norm(j - j.mean(0), axis=1)[:17].mean() for j in of_11])
    assert score(small, larger, protocol=1) == pytest.approx(0.1 * spread, abs=0.01), "it does not scale"
    expected = [np.linalg.norm(horn(thorax_alone(j), j) - j, axis=1)[:17].mean() for j in of_11]
    assert score(small, thorax_alone, protocol=1) == pytest.approx(np.mean(expected), abs=0.01), "Thorax is aligned, too"


def test_an_error_of_one_action_is_told_for_that_action(small):
    folder, truths = small
    frames = read_test_set(folder, (9, 11))
    walking = {id(truth["joints"]) for truth, frame in zip(truths, frames, strict=True) if frame.action == 12}

    def change(joints):
        return joints + (17 * np.eye(18)[:, [3]] if id(joints) in walking else 0)

    scores = evaluate(StandIn(truths, frames, change), frames)
    assert scores.of(2, 12) == pytest.approx(np.sqrt(3), abs=0.01)
    assert scores.of(2, 0) == pytest.approx(0, abs=0.01)
    assert scores.of(2) == pytest.approx(np.sqrt(3) / 2, abs=0.01) and scores.of(2, 5) is None


def test_older_files_whose_t_is_the_camera_s_place_give_the_same_frames(small, tmp_path):
    build(tmp_path, old=True)
    for old, new in zip(read_test_set(tmp_path, (9, 11)), read_test_set(small[0], (9, 11)), strict=True):
        assert np.allclose(old.joints_mm, new.joints_mm, atol=1e-6)


def test_boxes_and_root_depths_of_rootnet(small, tmp_path):
    folder, truths = small
    rows = [
        {"image_id": truth["id"], "bbox": [10.0, 20.0, 700.0, 700.0], "root_cam": [0, 0, 4321.0], "score": 1.0}
        for truth in truths
    ]
    (tmp_path / "boxes.json").write_text(json.dumps(rows))
    frames = read_test_set(folder, (9, 11), tmp_path / "boxes.json")
    assert {(f.region.x, f.region.y, f.region.width, f.root_depth_mm) for f in frames} == {(10.0, 20.0, 700.0, 4321.0)}
    (tmp_path / "boxes.json").write_text(json.dumps(rows[1:]))
    with pytest.raises(SourceError, match="it lacks"):
        read_test_set(folder, (9, 11), tmp_path / "boxes.json")


def test_the_authors_region():
    assert true_region([100, 200, 101, 51], WIDTH, HEIGHT).width == 125, "a box of 101 px spans 100 from pixel to pixel"
    at_the_edge = true_region([-50, 900, 201, 300], WIDTH, HEIGHT)
    assert at_the_edge.center == ((0 + 200) / 2, (900 + 1001) / 2) and at_the_edge.width == 250
    assert true_region([WIDTH + 5, 0, 10, 10], WIDTH, HEIGHT) is None and true_region([0, 0, 0, 10], WIDTH, HEIGHT) is None


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda f: (f / "annotations" / "Human36M_subject9_camera.json").unlink(), "there is no .*subject9_camera"),
        (lambda f: (f / "annotations" / "Human36M_subject9_data.json").write_text("{"), "cannot be read"),
        (lambda f: (f / "annotations" / "Human36M_subject9_data.json").write_text("[]"), "has something else"),
        (lambda f: (f / "annotations" / "Human36M_subject9_joint_3d.json").write_text('{"2": {}}'), "it lacks '1'"),
        (
            lambda f: (f / "annotations" / "Human36M_subject9_camera.json").write_text(
                json.dumps({"1": {"R": np.eye(3).tolist(), "t": [0, 0, 9000], "f": [1000, 1000], "c": [5000, 500]}})
            ),
            "does not put the joints",
        ),
    ],
)
def test_what_is_not_that_layout_is_told_in_a_sentence(tmp_path, damage, told):
    build(tmp_path, subjects=(9,), actions=(2,), frames=(0,), cameras=(1,))
    damage(tmp_path)
    with pytest.raises(SourceError, match=told):
        read_test_set(tmp_path, (9,))


def test_other_joints_and_missing_pictures_are_refused(small, tmp_path):
    truths = build(tmp_path, subjects=(9,), actions=(2,), frames=(0,), cameras=(1,))
    frames = read_test_set(tmp_path, (9,))
    with pytest.raises(ModelError, match="18 joints, received stand-in with those of muco"):
        evaluate(StandIn(truths, frames, lambda j: j, joint_set=MUCO), frames)
    frames[0].path.unlink()
    with pytest.raises(SourceError, match="expected the picture"):
        evaluate(StandIn(truths, frames, lambda j: j), frames)


def test_the_command_prints_the_table_beside_the_paper_s_figure(tmp_path, cli):
    build(tmp_path / "data", actions=(2,), frames=(0,), cameras=(1,))
    code, out, _ = cli(
        "evaluate", "human36m", tmp_path / "data", "--model", "xs", "--threads", "1", "--json", tmp_path / "a.json"
    )
    assert code == 0, out
    found = json.loads((tmp_path / "a.json").read_text())
    mean = found["protocols"]["2"]["mean_mm"]
    assert found["frames"] == 2 and found["protocols"]["2"]["paper_mm"] == 56.61 and found["flip"]
    lines = {line.split("  ")[0]: line.split() for line in out.splitlines()}
    assert lines["Directions"][1] == lines["all frames"][2] == f"{mean:.2f}"
    assert lines["the paper's XS"][-1] == "56.61" and lines["difference"][-1] == f"{mean - 56.61:+.2f}"
    code, _, err = cli("evaluate", "human36m", tmp_path / "nowhere", "--model", "xs")
    assert code == 1 and err.count("\n") == 1 and "annotations" in err
