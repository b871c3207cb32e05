"""Before a library opens an ONNX file, anything unsafe, against the contract or far too large in memory is refused by name."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convnextpose import weights
from convnextpose.errors import ModelError
from engines.onnx_file import POSE, read_onnx
from engines.onnx_parser import parse_onnx
from engines.onnx_shapes import Shapes
from engines.opening import open_people_detector, open_pose_model

onnx = pytest.importorskip("onnx")
helper, numpy_helper, types = onnx.helper, onnx.numpy_helper, onnx.TensorProto

XS = weights.load("xs").onnx


@pytest.fixture(scope="module")
def model():
    return onnx.load(XS)


@pytest.fixture
def changed(model):
    """A copy of the default model, for changes."""
    return copy.deepcopy(model)


def refused(proto, contract=POSE):
    """The sentence of a refusal, which must use little memory."""
    data = proto if isinstance(proto, bytes) else proto.SerializeToString()
    tracemalloc.start()
    try:
        with pytest.raises(ModelError) as error:
            read_onnx(data, contract)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()
    assert str(error.value).isprintable()
    return str(error.value)


def node(operator, inputs, outputs, **attributes):
    return helper.make_node(operator, inputs.split(" ") if inputs else [], outputs.split(), **attributes)


def small(nodes, constants=(), joints=(None, 18, 3), scores=(None, 18), kind=types.FLOAT, crops=(None, 256, 256, 3)):
    """A model with the contract's inputs and outputs and the caller's operators."""
    sizes = [["N" if size is None else size for size in shape] for shape in (crops, joints, scores)]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("crops", types.UINT8, sizes[0])],
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in zip(("joints", "scores"), sizes[1:], strict=True)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    texts = {"convnextpose.contract": "1", "variant": "XS", "joint_set": "human36m", "checkpoint_sha256": "0", "name": "x"}
    helper.set_model_props(proto, {**texts, "random": "0"})
    return proto


# Accepted files


def test_our_models_are_read_as_they_are(onnx_bytes):
    assert read_onnx(XS, POSE) == XS.read_bytes()
    assert read_onnx(onnx_bytes, POSE) == onnx_bytes
    assert read_onnx(weights.detector(), None) == weights.detector().read_bytes()


def test_typed_graphs_are_read(onnx_bytes):
    pytest.importorskip("onnxruntime")
    from engines.calibration import CalibrationSet
    from engines.precision import to_fp16, to_int8

    assert read_onnx(to_fp16(onnx_bytes), POSE)
    assert read_onnx(to_int8(onnx_bytes, CalibrationSet.load(weights.CALIBRATION).crops[:12]), POSE)


@pytest.mark.slow
def test_the_largest_variant_and_the_other_joints_are_read():
    from convnextpose.checkpoint import verify_state
    from convnextpose.network import random_state
    from convnextpose.variants import Variant
    from engines.graph import pose_graph

    checkpoint = verify_state(random_state(Variant.L, joint_count=21), source="random")
    assert read_onnx(pose_graph(checkpoint, name="any"), POSE)


def test_what_is_read_is_what_onnx_reads(model):
    found = parse_onnx(XS.read_bytes(), "xs")
    assert [(n.operator, list(n.inputs), list(n.outputs)) for n in found.nodes] == [
        (n.op_type, list(n.input), list(n.output)) for n in model.graph.node
    ]
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert {name: constant.shape for name, constant in found.constants.items()} == {n: a.shape for n, a in constants.items()}
    for name, constant in found.constants.items():
        assert constant.stored_bytes == constants[name].nbytes
        if constant.values is not None:
            assert list(constant.values) == constants[name].ravel().tolist()
    assert found.metadata == {entry.key: entry.value for entry in model.metadata_props}
    for mine, its in zip(found.nodes, model.graph.node, strict=True):
        for attribute in its.attribute:
            value = helper.get_attribute_value(attribute)
            assert mine.attributes[attribute.name] == (tuple(value) if isinstance(value, list) else value)


kinds = st.sampled_from(
    ["float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "bool"]
)


@given(kind=kinds, shape=st.lists(st.integers(0, 5), max_size=3), raw=st.booleans(), seed=st.integers(0, 99))
def test_constants_of_every_type_and_form(kind, shape, raw, seed):
    array = np.random.default_rng(seed).integers(-100, 100, shape).astype(kind)
    tensor = numpy_helper.from_array(array, "t")
    if not raw:
        values = array.view(np.uint16) if kind == "float16" else array
        tensor = helper.make_tensor(
            "t", tensor.data_type, shape, values.ravel().tolist() if kind != "float16" else array.ravel()
        )
    proto = small([])
    proto.graph.initializer.append(tensor)
    (found,) = parse_onnx(proto.SerializeToString(), "it").tensors
    assert found.shape == array.shape
    assert found.declared_bytes == found.stored_bytes == array.nbytes
    if found.values is not None:
        assert list(found.values) == array.ravel().tolist()


def shapes_of(path, free):
    """The shapes of all results, with the sizes `free` for the input's variable axes."""
    model = parse_onnx(path.read_bytes(), "it")
    shapes = Shapes(
        {
            name: tuple(free[axis] if size is None else size for axis, size in enumerate(kind.shape))
            for name, kind in model.inputs.items()
        },
        {name: (constant.shape, constant.values) for name, constant in model.constants.items()},
    )
    for one in model.nodes:
        shapes.run(one.operator, one.inputs, one.outputs, one.attributes)
    return {name: shapes.of(name) for one in model.nodes for name in one.outputs}


@pytest.mark.parametrize("path", [XS, weights.detector()], ids=["poses", "people"])
@pytest.mark.parametrize("batch", [1, 3])
def test_sizes_are_those_that_onnx_infers(path, batch):
    proto, free = onnx.load(path), (batch, 384, 288)
    for value in proto.graph.output:
        value.type.tensor_type.shape.dim[0].dim_value = batch
    for axis, dim in enumerate(proto.graph.input[0].type.tensor_type.shape.dim):
        if not dim.dim_value:
            dim.dim_value = free[axis]
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
    known = {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in (*inferred.graph.value_info, *inferred.graph.output)
        if all(dim.HasField("dim_value") for dim in value.type.tensor_type.shape.dim)
    }
    found = {name: shape for name, shape in shapes_of(path, free).items() if shape is not None}
    both = found.keys() & known.keys()
    assert {name: found[name] for name in both} == {name: known[name] for name in both}
    # Results from the detector's grid, which depends on the frame's sides, may have an unknown size.
    assert len(both) > 0.75 * len(known) if path == weights.detector() else found.keys() == known.keys()


# References to other files and addresses


def external(tensor, location="weights.bin"):
    tensor.ClearField("raw_data")
    tensor.data_location = types.EXTERNAL
    for key, value in (("location", location), ("offset", "4096"), ("length", "4")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return tensor


def a_tensor(kind=np.float32):
    return numpy_helper.from_array(np.ones(1, kind), "t")


def in_an_initializer(proto):
    external(proto.graph.initializer[3], "*/_ORT_MEM_ADDR_/*")


def without_its_mark(proto):
    external(proto.graph.initializer[3]).ClearField("data_location")


def with_nothing_but_its_mark(proto):
    proto.graph.initializer[3].data_location = types.EXTERNAL


def in_an_attribute(proto):
    proto.graph.node.append(node("Constant", "", "unused", value=external(a_tensor())))


def in_a_list_of_tensors(proto):
    attribute = proto.graph.node[0].attribute.add()
    attribute.name, attribute.type = "more", onnx.AttributeProto.TENSORS
    attribute.tensors.append(external(a_tensor()))


def in_a_graph_inside(proto):
    inside = helper.make_graph([], "inside", [], [], [external(a_tensor())])
    proto.graph.node.append(node("If", "condition", "unused", then_branch=inside, else_branch=inside))


def in_a_function(proto):
    constant = node("Constant", "", "y", value=external(a_tensor()))
    proto.functions.append(helper.make_function("own", "F", [], ["y"], [constant], [helper.make_opsetid("", 18)]))


def in_a_sparse_one(proto):
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(external(a_tensor()), a_tensor(np.int64), [5]))


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        (in_an_initializer, "lies in another file"),
        (without_its_mark, "lies in another file"),
        (with_nothing_but_its_mark, "lies in another file"),
        (in_an_attribute, "lies in another file"),
        (in_a_list_of_tensors, "lies in another file"),
        (in_a_graph_inside, "lies in another file"),
        (in_a_function, "functions of its own"),
        (in_a_sparse_one, "sparse constants"),
    ],
)
@pytest.mark.parametrize("contract", [POSE, None], ids=["ours", "foreign"])
def test_numbers_that_lie_elsewhere(place, sentence, contract, changed):
    place(changed)
    assert sentence in refused(changed, contract)


ADDRESS = """
import sys
from pathlib import Path
from convnextpose.errors import ModelError
from engines.opening import open_pose_model
try:
    open_pose_model(Path(sys.argv[1]), sys.argv[2])
except ModelError as error:
    assert "lies in another file" in str(error)
    sys.exit(3)
"""


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_an_address_in_a_file_is_not_followed(runtime, changed, tmp_path):
    """In a separate process: a library that followed it would end the process."""
    pytest.importorskip(runtime)
    in_an_initializer(changed)
    (tmp_path / "m.onnx").write_bytes(changed.SerializeToString())
    run = subprocess.run([sys.executable, "-c", ADDRESS, str(tmp_path / "m.onnx"), runtime], check=False)
    assert run.returncode == 3


# Other inputs, outputs and operators


def constant_outputs(**other):
    """A graph that returns the same numbers for any crop."""
    nodes = [
        node("Shape", "crops", "s", start=0, end=1),
        node("Concat", "s t1", "sj", axis=0),
        node("Concat", "s t2", "ss", axis=0),
        node("Expand", "jv sj", "joints"),
        node("Expand", "sv ss", "scores"),
    ]
    constants = [("t1", [18, 3]), ("t2", [18]), ("jv", np.float32(100)), ("sv", np.float32(0.9))]
    return small(nodes, constants, **other)


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"kind": types.STRING}, "expected inputs and outputs of numbers, .* has joints: string"),
        ({"crops": (None, 3, 256, 256)}, r"crops: uint8 \[N, 256, 256, 3\], .* has uint8 \[N, 3, 256, 256\]"),
        ({"crops": (1, 256, 256, 3)}, r"has uint8 \[1, 256, 256, 3\]"),
        ({"joints": (None, 18, 2)}, r"joints: float32 \[N, J, 3\], .* has float32 \[N, 18, 2\]"),
        ({"joints": (None, None, 3)}, r"has float32 \[N, N, 3\]"),
        ({"kind": types.DOUBLE}, "has float64"),
        ({}, "has operators that no such model has .*Expand, Shape"),
    ],
)
def test_what_breaks_the_contract(other, sentence):
    assert re.search(sentence, refused(constant_outputs(**other)))


def test_other_names(changed):
    changed.graph.input[0].name = "frames"
    assert "with input crops, but the model in memory has frames" in refused(changed)


def test_outputs_of_another_size_than_the_file_says(changed):
    for output in changed.graph.output:
        output.type.tensor_type.shape.dim[1].dim_value = 21
    assert "expected output joints: float32 [N, 21, 3]" in refused(changed)


def test_a_graph_that_takes_one_crop_only_although_it_says_otherwise(changed):
    for one in changed.graph.node:
        for index, output in enumerate(one.output):
            if output == "joints":
                one.output[index] = "before"
    changed.graph.initializer.append(numpy_helper.from_array(np.array([0]), "first"))
    changed.graph.node.append(node("ReduceMax", "before first", "joints"))
    assert "received [1, 18, 3] for 2 pictures" in refused(changed)


# Memory


def cast(*nodes, constants=()):
    return small([node("Cast", "crops", "c", to=types.FLOAT), *nodes], constants)


TO_PLANES = node("Transpose", "c", "p", perm=[0, 3, 1, 2])
BOMBS = {
    "ConstantOfShape": lambda: small([node("ConstantOfShape", "s", "joints")], [("s", [100_000, 100_000])]),
    "Range": lambda: small([node("Range", "a b d", "joints")], [("a", 0), ("b", 10**12), ("d", 1)]),
    "Tile": lambda: small([node("Tile", "crops t", "joints")], [("t", [1, 1000, 1000, 1000])]),
    "Expand": lambda: small([node("Expand", "a t", "joints")], [("a", np.float32(0)), ("t", [100_000, 100_000])]),
    "Pad": lambda: small([node("Pad", "crops p", "joints")], [("p", [0, 0, 0, 0, 0, 10**6, 10**6, 0])]),
    "Resize": lambda: cast(node("Resize", "c  f", "joints"), constants=[("f", np.float32([1, 1000, 1000, 1]))]),
    "Concat": lambda: cast(*(node("Concat", f"c{'x' * i} c{'x' * i}", f"c{'x' * (i + 1)}", axis=1) for i in range(30))),
    "Conv": lambda: cast(TO_PLANES, node("Conv", "p w", "joints"), constants=[("w", np.ones((100_000, 3, 1, 1), np.float32))]),
    "wide borders": lambda: cast(
        TO_PLANES, node("Conv", "p w", "joints", pads=[10**6] * 4), constants=[("w", np.ones((1, 3, 1, 1), np.float32))]
    ),
    "Add": lambda: small(
        [node("Add", "a b", "joints")], [("a", np.ones((50_000, 1), np.float32)), ("b", np.ones((1, 50_000), np.float32))]
    ),
}


@pytest.mark.parametrize("make", BOMBS.values(), ids=BOMBS.keys())
@pytest.mark.parametrize("contract", [POSE, None], ids=["ours", "foreign"])
def test_operators_that_make_gigabytes_of_nothing(make, contract):
    allowed = ("results of at most", "operators that no such model has") if contract else ("results of at most",)
    assert any(sentence in refused(make(), contract) for sentence in allowed)


def test_a_constant_that_claims_more_than_it_has(changed):
    changed.graph.initializer[0].dims[0] = 2**40
    assert "expected a whole ONNX model, but constant" in refused(changed)


def test_a_loop(changed):
    inside = helper.make_graph([], "inside", [], [])
    changed.graph.node.append(node("Loop", "a b", "c", body=inside))
    assert "nested graphs" in refused(changed, None)


@pytest.mark.parametrize("version", [0, -1, 2**53])
def test_operators_of_a_version_that_there_never_will_be(version, changed):
    changed.opset_import[0].version = version  # readers that count down from it to a known one never return
    assert f"has version {version} of ai.onnx" in refused(changed, None)


def test_operators_of_others(changed):
    changed.graph.node.append(node("Gelu", "crops", "unused", domain="com.microsoft"))
    assert "has Gelu of com.microsoft" in refused(changed, None)


@pytest.mark.slow
def test_a_file_of_millions_of_fields():
    assert "more than 1,000,000 fields" in refused(b"\x08\x08" * 1_200_000)


def test_graphs_inside_graphs_without_end():
    inside = helper.make_graph([], "inside", [], [])
    for _ in range(20):
        inside = helper.make_graph([node("If", "c", "d", then_branch=inside)], "inside", [], [])
    assert "nested too deeply" in refused(helper.make_model(inside), None)


# Damage


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda data: data.replace(b"human36m", b"human36\xff"), "text that is not UTF-8"),
        (lambda data: data.replace(b"node_", b"n\xffde_"), "text that is not UTF-8"),
        (lambda data: data + b"\x3a\x00", "damaged"),  # a second graph
        (lambda data: data + b"\x82\x80\x80\x80\x80\x01\x00", "damaged"),  # a field's number beyond 32 bits
        (lambda data: b"", "damaged"),
        (lambda data: b"<!DOCTYPE html>", "damaged"),
    ],
)
def test_bytes_that_two_readers_could_understand_differently(change, sentence):
    assert sentence in refused(change(XS.read_bytes()))


@given(data=st.data())
def test_damaged_bytes_are_read_or_refused_in_one_sentence(data):
    damaged = bytearray(constant_outputs().SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        damaged = damaged[: data.draw(st.integers(0, len(damaged)))]
    for contract in (POSE, None):
        try:
            read_onnx(bytes(damaged), contract)
        except ModelError as error:
            assert str(error).isprintable()


@pytest.mark.parametrize("path", ["/dev/zero", ".", "nothing.onnx"])
@pytest.mark.parametrize("opened", [open_pose_model, open_people_detector])
def test_what_is_no_file(path, opened):
    with pytest.raises(ModelError, match="expected an ONNX model"):
        opened(Path(path))


@pytest.mark.parametrize(("name", "factor"), [("scores", -5.0), ("scores", 1e30), ("joints", 1e30), ("joints", -3.0)])
def test_scores_and_joints_that_no_person_has(name, factor, onnx_bytes):
    """A model that follows the contract, but whose scores are no probabilities or whose joints are far outside the crop."""
    proto = onnx.load_from_string(onnx_bytes)
    for one in proto.graph.node:
        for index, output in enumerate(one.output):
            if output == name:
                one.output[index] = "before"
    proto.graph.initializer.append(numpy_helper.from_array(np.float32(factor), "factor"))
    proto.graph.node.append(node("Mul", "before factor", name))
    with pytest.raises(ModelError, match=f"expected ({name} in 0..1|{name} within the crop)"):
        open_pose_model(proto.SerializeToString())
