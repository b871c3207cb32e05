"""A calibration set is what was saved, byte for byte, or an error; useless sets are refused."""

import json
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convnextpose.errors import CalibrationError, GeometryError, OutputExistsError, SinkError
from engines.calibration import MAX_CROPS, MIN_CROPS, CalibrationSet, hash_crops
from engines.parity import noise_crops


@pytest.fixture(scope="module")
def crops():
    return noise_crops(2 * MIN_CROPS)[MIN_CROPS // 2 :]


@pytest.fixture(scope="module")
def saved(crops, tmp_path_factory):
    path = tmp_path_factory.mktemp("set") / "people.npz"
    CalibrationSet(crops, ("a clip.mp4", "photos")).save(path)
    return path


def test_round_trip(crops, saved):
    found = CalibrationSet.load(saved)
    assert np.array_equal(found.crops, crops)
    assert found.sources == ("a clip.mp4", "photos")
    assert found.sha256 == hash_crops(crops)
    assert len(found) == len(crops)
    assert [path.name for path in saved.parent.iterdir()] == ["people.npz"]


def test_the_hash_tells_every_pixel_and_the_order(crops):
    changed = crops.copy()
    changed[3, 100, 7, 1] ^= 1
    assert len({hash_crops(c) for c in (crops, changed, crops[::-1], crops[:-1])}) == 4


@pytest.mark.parametrize("count", [0, 1, MIN_CROPS - 1])
def test_too_few_crops_are_refused(count, crops):
    with pytest.raises(CalibrationError, match=f"received {count} "):
        CalibrationSet(crops[:count])


def test_one_crop_many_times_is_one_crop(crops):
    with pytest.raises(CalibrationError, match=r"received 1 \(of 100\)"):
        CalibrationSet(crops[:1].repeat(100, axis=0))


def test_black_sets_are_refused(crops):
    with pytest.raises(CalibrationError, match="expected 8 different"):
        CalibrationSet(np.zeros_like(crops))
    with pytest.raises(CalibrationError, match=rf"{len(crops) - 10} of {len(crops)} are of a single colour"):
        CalibrationSet(np.concatenate([crops[:10], np.zeros_like(crops[10:])]))


@pytest.mark.parametrize("wrong", [(8, 256, 256), (8, 128, 128, 3)])
def test_other_arrays_are_refused(wrong):
    with pytest.raises(GeometryError, match="expected crops uint8"):
        CalibrationSet(np.zeros(wrong, np.uint8))


@given(data=st.data())
def test_damage_is_found(data, crops, saved, tmp_path_factory):
    """With a changed byte or a missing end, the result is what was saved, or one of our errors."""
    whole = saved.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1) | st.integers(len(whole) - 400, len(whole) - 1) | st.integers(0, 400))
    changed = bytearray(whole)
    changed[place] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("damaged") / "people.npz"
    path.write_bytes(whole[:place] if data.draw(st.booleans()) else changed)
    try:
        found = CalibrationSet.load(path)
    except CalibrationError as error:
        assert str(path) in str(error)
    else:
        assert np.array_equal(found.crops, crops)


def test_what_is_no_set_is_refused(crops, saved, tmp_path):
    def refused(name, match, **arrays):
        path = tmp_path / name
        np.savez_compressed(path, **arrays)
        with pytest.raises(CalibrationError, match=match):
            CalibrationSet.load(path)

    with np.load(saved) as arrays:
        header = json.loads(str(arrays["header"]))
    edited = crops.copy()
    edited[0, 0, 0, 0] ^= 1
    refused("other.npz", "damaged or something else", poses=crops)
    refused("format.npz", "its format is 'poses'", header=json.dumps(header | {"format": "poses"}), crops=crops)
    refused("newer.npz", "of version 1", header=json.dumps(header | {"version": 2}), crops=crops)
    refused("edited.npz", "their hash differs", header=json.dumps(header), crops=edited)
    refused("small.npz", "expected crops uint8", header=json.dumps(header), crops=crops[:, :8])
    with pytest.raises(CalibrationError, match="there is no such file"):
        CalibrationSet.load(tmp_path / "missing.npz")
    (tmp_path / "text.npz").write_text("no arrays")
    with pytest.raises(CalibrationError, match=r"text\.npz is damaged"):
        CalibrationSet.load(tmp_path / "text.npz")


def test_a_set_that_unpacks_to_gigabytes_is_refused_before_it_does(crops, tmp_path):
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("header.npy", "w") as file:
            np.save(file, np.array(json.dumps({"format": "convnextpose.calibration"})))
        with archive.open("crops.npy", "w", force_zip64=True) as file:
            shape = (20 * MAX_CROPS, 256, 256, 3)
            np.lib.format.write_array_header_1_0(file, {"shape": shape, "fortran_order": False, "descr": "|u1"})
            for _ in range(20):
                file.write(bytes(256 * 256 * 3 * 100))
    tracemalloc.start()
    try:
        with pytest.raises(CalibrationError, match=r"expected crops\.npy of at most 201\.3 MB, received 393\.2 MB"):
            CalibrationSet.load(path)
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()
    with pytest.raises(CalibrationError, match="expected at most 1024 crops"):
        CalibrationSet(np.broadcast_to(crops[:1], (MAX_CROPS + 1, 256, 256, 3)))


@pytest.mark.parametrize("path", ["/dev/zero", "."])
def test_what_is_no_file_is_refused(path):
    with pytest.raises(CalibrationError, match="expected a calibration set"):
        CalibrationSet.load(Path(path))


def test_what_is_there_is_kept_unless_overwriting_is_allowed(crops, tmp_path):
    path = tmp_path / "people.npz"
    path.write_text("mine")
    with pytest.raises(OutputExistsError):
        CalibrationSet(crops).save(path)
    assert path.read_text() == "mine"
    CalibrationSet(crops).save(path, overwrite=True)
    assert CalibrationSet.load(path).sha256 == hash_crops(crops)


def test_a_place_that_cannot_be_written_is_refused(crops, tmp_path):
    with pytest.raises(SinkError, match="folder that exists"):
        CalibrationSet(crops).save(tmp_path / "missing" / "people.npz")
    with pytest.raises(SinkError, match="cannot write"):
        CalibrationSet(crops).save(tmp_path / ("n" * 252 + ".npz"))
    assert list(tmp_path.iterdir()) == []
