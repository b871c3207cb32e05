"""Pickles: whatever torch.save writes is read as it was saved; attacks on the reader give a one-sentence error."""

from __future__ import annotations

import json
import tracemalloc
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convnextpose.containers import read_container
from convnextpose.errors import CheckpointError
from convnextpose.pickles import OddTensor

torch = pytest.importorskip("torch")
from tests.convnextpose.test_containers import TREE, _no_temporary_files, save, tensors_of, unpack, zip_of  # noqa: E402, F401

# What torch.save writes


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("legacy", [False, True])
def test_every_protocol_of_pickles(protocol, legacy, tmp_path):
    torch.save(TREE, tmp_path / "m.pth", pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    tree = read_container(tmp_path / "m.pth").tree
    assert tree["epoch"] == 68
    assert np.array_equal(tree["network"]["a.weight"].numpy(), TREE["network"]["a.weight"].numpy())


@pytest.mark.parametrize("protocol", [2, 4])
def test_what_stands_beside_a_network(protocol, tmp_path):
    beside = {
        "best": np.float64(2.5), "step": np.int32(-3), "better": np.bool_(True), "size": torch.Size([1, 2]), "name": "é",
        "milestones": Counter({17: 1}), "ordered": OrderedDict(a=1), "bytes": b"\xff", "none": None, "tuple": (1, [2.5], {}),
        "long": 2**70, "device": torch.device("cpu"), "set": {1},
    }  # fmt: skip
    torch.save(beside, tmp_path / "m.pth", pickle_protocol=protocol)
    tree = read_container(tmp_path / "m.pth").tree
    unlike = {"size": (1, 2), "device": tree["device"], "set": [1]}
    assert tree == {**beside, **unlike}


tensors = st.tuples(
    st.sampled_from(["float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]),
    st.lists(st.integers(0, 4), max_size=4),
    st.randoms(use_true_random=False),
)


@given(drawn=tensors, legacy=st.booleans(), transposed=st.booleans(), sliced=st.booleans(), parameter=st.booleans())
def test_any_tensor_is_read_as_it_was_saved(drawn, legacy, transposed, sliced, parameter, tmp_path_factory):
    dtype, shape, random = drawn
    tensor = (torch.rand(shape, generator=torch.Generator().manual_seed(random.randrange(2**31))) * 200 - 90).to(
        getattr(torch, dtype)
    )
    tensor = tensor.transpose(0, -1) if transposed and shape else tensor
    tensor = tensor[1:] if sliced and shape else tensor
    tensor = torch.nn.Parameter(tensor) if parameter and tensor.is_floating_point() else tensor
    path = save(Path(tmp_path_factory.getbasetemp(), "any.pth"), {"a": tensor, "b": tensor}, legacy)
    for found in read_container(path).tree.values():
        assert found.shape == tuple(tensor.shape)
        assert np.array_equal(found.numpy(), (tensor.detach().float() if dtype == "bfloat16" else tensor.detach()).numpy())


def test_tensors_that_are_no_plain_numbers_are_told_by_their_kind(tmp_path):
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    for tensor, kind in ((torch.eye(2).to_sparse(), "sparse_tensor"), (nested, "nested_tensor")):
        assert read_container(save(tmp_path / "m.pth", {"a": tensor})).tree == {"a": OddTensor(kind)}


# Pickles made to break their reader


def zip_with(path, pickled, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("x/data.pkl", pickled)
    return path


def attribute_of_a_dictionary(name):
    """An OrderedDict whose method of that name is hidden by a number."""
    return b"\x80\x02ccollections\nOrderedDict\n)R}X" + len(name).to_bytes(4, "little") + name.encode() + b"K\x01sb."


@pytest.mark.parametrize("name", ["get", "items", "values", "__len__"])
def test_a_pickle_hides_no_method_of_a_dictionary(name, tmp_path):
    assert read_container(zip_with(tmp_path / "m.pth", attribute_of_a_dictionary(name))).tree == {}


def refused(path):
    """The sentence of the refusal, which must use little memory."""
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError) as error:
            for tensor in tensors_of(read_container(path).tree):
                tensor.numpy()
        assert tracemalloc.get_traced_memory()[1] < 300e6
    finally:
        tracemalloc.stop()
    assert str(error.value).isprintable()
    return str(error.value)


GET, TUPLE_OF_IT = b"h\x00", b"\x85"
A_LONG_LIST = b"\x80\x02](" + b"K\x01" * 100_000 + b"eq\x00"
BOMBS = {
    "a tuple as a key": (b"\x80\x02})" + b"\x85" * 2000 + b"K\x01s.", "a dictionary whose key is a tuple"),
    "lists": (b"\x80\x02" + b"]" * 1_000_000 + b".", "a pickle of over 200,000 operations"),
    "marks": (b"\x80\x02" + b"(" * 1_000_000 + b".", "a pickle of over 200,000 operations"),
    "zeros": (b"\x80\x02" + b"\0" * 1_000_000, "cut short or damaged"),
    "100 MB of lists": (b"\x80\x02" + b"]" * 100_000_000, "expected at most 67.1 MB unpacked"),
    "60 MB of lists": (b"\x80\x02" + b"]" * 60_000_000, "expected a pickle of at most 1.0 MB"),
    "text that claims 2**60 bytes": (b"\x80\x04\x8d" + (2**60).to_bytes(8, "little") + b"a.", "cut short or damaged"),
    "a high place to keep something": (b"\x80\x02Nr" + b"\xff\xff\xff\x7f" + b"0.", "cut short or damaged"),
    "a list copied over and over": (
        A_LONG_LIST + b"ctorch\nSize\nq\x01" + b"h\x01h\x00\x85R" * 20_000 + b".",
        "200,000 operations",
    ),
    "a bytearray of any size": (b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\0\0\0\0\x10\x85R.", "asks for builtins.bytearray"),
    "a tensor of any size": (b"\x80\x02ctorch\nTensor\n\x8a\x05\0\0\0\0\x10\x85R.", "asks for torch.Tensor"),
}


@pytest.mark.parametrize(("pickled", "sentence"), BOMBS.values(), ids=BOMBS.keys())
def test_a_small_file_that_wants_much_is_refused(pickled, sentence, tmp_path):
    assert sentence in refused(zip_with(tmp_path / "bomb.pth", pickled))


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compression_that_unpacks_all_at_once_is_refused(compression, tmp_path):
    path = zip_with(tmp_path / "bomb.pth", b"\0" * 50_000_000, compression)
    assert "expected a ZIP with deflate compression or none" in refused(path)


def test_a_storage_of_zeros_that_shrank_to_nothing_is_refused(tmp_path):
    tree = {"network": {"a": torch.zeros(25_000_000)}}
    packed = zip_of(unpack(save(tmp_path / "m.pth", tree), tmp_path / "unpacked"), tmp_path / "again.zip")
    assert packed.stat().st_size < 200_000
    assert "expected at most 67.1 MB unpacked, received an archive of 99 kB" in refused(packed)


def test_archives_inside_each_other_do_not_multiply_what_they_may_unpack_to(tmp_path):
    inner = zip_with(tmp_path / "inner.zip", b"\0" * 60_000_000)
    with zipfile.ZipFile(tmp_path / "padded.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(inner, "m.pth")
        archive.writestr("padding", b"\0" * 60_000_000)
        archive.writestr("more", b"\0" * 60_000_000)
    assert "expected at most 67.1 MB unpacked" in refused(tmp_path / "padded.zip")


def test_a_safetensors_header_of_many_lists(tmp_path):
    header = b'{"a":[' + b"[]," * 500_000 + b"[]]}"
    (tmp_path / "bomb").write_bytes(len(header).to_bytes(8, "little") + header)
    assert "starts with b'" in refused(tmp_path / "bomb")


def test_a_safetensors_header_too_deep(tmp_path):
    header = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    (tmp_path / "deep").write_bytes(len(header).to_bytes(8, "little") + header)
    assert "nested too deeply" in refused(tmp_path / "deep")


@given(operations=st.binary(max_size=60))
def test_any_operations_give_a_tree_or_one_sentence(operations, tmp_path_factory):
    path = zip_with(Path(tmp_path_factory.getbasetemp(), "any.zip"), b"\x80\x04" + operations + b".")
    try:
        read_container(path)
    except CheckpointError as error:
        assert str(error).isprintable()


@pytest.mark.parametrize(
    ("shape", "offsets"),
    [
        ([160, 640, "9" * 5000], [0, 8]),
        ([1] * 300_000, [0, 4]),
        ([2, 2.0], [0, 16]),
        ([True], [0, 4]),
        ([-1, -1], [0, 4]),
        ([1], [0, "4"]),
    ],
    ids=["a text", "300,000 dimensions", "a fraction", "a truth value", "negative", "an offset as text"],
)
def test_a_safetensors_shape_that_is_none(shape, offsets, tmp_path):
    header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}).encode()
    (tmp_path / "bad").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    assert "not a few whole numbers" in refused(tmp_path / "bad")
