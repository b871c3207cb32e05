"""`convnextpose calibrate` from a clip to a set of crops and its preview sheet."""

from functools import cache

import cv2
import numpy as np
import pytest

import tools.calibrate
from convnextpose import weights
from engines.calibration import CalibrationSet


@pytest.fixture(scope="module")
def opened():
    """The functions that open models; each opens a model only once, and the command leaves them open."""
    return cache(tools.calibrate.open_model), cache(tools.calibrate.open_detector)


@pytest.fixture
def cli(cli, opened, monkeypatch):
    for name, function in zip(("open_model", "open_detector"), opened, strict=True):
        monkeypatch.setattr(tools.calibrate, name, function)
    return lambda *arguments: cli("calibrate", *arguments)


@pytest.fixture
def photos(tmp_path):
    """Three pictures of the demo clip's person."""
    folder = tmp_path / "photos"
    folder.mkdir()
    clip = cv2.VideoCapture(str(weights.DEMO_CLIP))
    for index in range(3):
        cv2.imwrite(str(folder / f"{index}.png"), clip.read()[1])
    clip.release()
    return folder


def test_a_clip_becomes_a_set_with_a_preview(cli, tmp_path):
    out = tmp_path / "people.npz"
    code, text, _ = cli(weights.DEMO_CLIP, "--out", out, "--count", 12)
    assert code == 0
    found = CalibrationSet.load(out)
    count = len(found)
    assert 8 <= count <= 12
    assert ("of 12: nobody was found in the other frames" in text) == (count < 12)
    assert found.sources == (weights.DEMO_CLIP.name,)
    assert found.sha256 in text
    assert len({crop.tobytes() for crop in found.crops}) == count
    sheet = cv2.imread(str(out.with_suffix(".png")))
    assert sheet.shape == (96, count * 96, 3)
    for index in (0, count - 1):
        tile = sheet[:, 96 * index : 96 * (index + 1)].astype(int)
        assert np.abs(tile - cv2.resize(found.crops[index], (96, 96), interpolation=cv2.INTER_AREA)).max() == 0


def test_sources_share_the_count_and_later_ones_make_up_for_earlier_ones(cli, photos, tmp_path):
    out = tmp_path / "people.npz"
    code, text, _ = cli(photos, weights.DEMO_CLIP, "--out", out, "--count", 16)
    assert code == 0
    found = CalibrationSet.load(out)
    assert len(found) == 16
    assert found.sources == ("photos", weights.DEMO_CLIP.name)
    assert "crops    16\n" in text  # eight were requested from three photos


def test_nobody_is_told(cli, photos, tmp_path):
    nothing, out = tmp_path / "nothing.png", tmp_path / "people.npz"
    cv2.imwrite(str(nothing), np.zeros((64, 64, 3), np.uint8))
    code, _, error = cli(nothing, "--out", out)
    assert code == 1
    assert "nobody was found" in error
    code, _, error = cli(photos / "0.png", "--out", out)
    assert code == 1
    assert "received 1 (of 1)" in error
    assert not out.exists()
    assert not out.with_suffix(".png").exists()


@pytest.fixture
def collected(monkeypatch):
    """The search finds eight of the package's crops: for tests of the files."""
    found = CalibrationSet(CalibrationSet.load(weights.CALIBRATION).crops[:8], ("clip",))
    monkeypatch.setattr(tools.calibrate, "collect_crops", lambda *_: found)


@pytest.mark.parametrize("name", ["people.npz", "people.png"])
def test_what_appears_meanwhile_is_kept(cli, tmp_path, name, monkeypatch, collected):
    original = tools.calibrate.draw_preview
    monkeypatch.setattr(tools.calibrate, "draw_preview", lambda crops: (tmp_path / name).write_text("mine") and original(crops))
    code, text, error = cli(weights.DEMO_CLIP, "--out", tmp_path / "people.npz", "--count", 8)
    assert code == 1
    assert name in error and "wrote" not in text
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "mine")]


@pytest.mark.parametrize("name", ["people.npz", "people.png"])
def test_what_is_there_is_kept(cli, tmp_path, name, collected):
    (tmp_path / name).write_text("mine")
    code, _, error = cli(weights.DEMO_CLIP, "--out", tmp_path / "people.npz", "--count", 8)
    assert code == 1
    assert name in error
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"
    code, _, _ = cli(weights.DEMO_CLIP, "--out", tmp_path / "people.npz", "--count", 8, "--overwrite")
    assert code == 0
    assert len(CalibrationSet.load(tmp_path / "people.npz")) == 8


def test_a_missing_clip_is_one_sentence(cli, tmp_path):
    code, _, error = cli(tmp_path / "none.mp4", "--out", tmp_path / "people.npz")
    assert code == 1
    assert "none.mp4" in error
    assert "Traceback" not in error


@pytest.mark.parametrize("arguments", [["a.mp4"], ["a.mp4", "--out", "b.txt"], ["a.mp4", "--out", "b.npz", "--count", "1"]])
def test_wrong_use_is_exit_code_2(cli, arguments):
    assert cli(*arguments)[0] == 2


def test_a_wrong_source_is_refused_before_a_network_is_opened(cli, monkeypatch, tmp_path):
    def opened(*_):
        raise AssertionError("a network was opened")

    monkeypatch.setattr(tools.calibrate, "open_model", opened)
    code, _, error = cli(tmp_path / "missing.mp4", "--out", tmp_path / "set.npz")
    assert code == 1 and "missing.mp4" in error and error.count("\n") == 1
