"""Typed graphs have the requested types and agree with the reference within their limits, or an error says so."""

from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import pytest

from convnextpose import weights
from convnextpose.checkpoint import verify, verify_state
from convnextpose.errors import CalibrationError, ExportError, ModelError, ParityError
from convnextpose.network import random_state
from convnextpose.variants import Variant
from engines import precision
from engines.calibration import CalibrationSet, hash_crops
from engines.graph import fold_casts, layer_name, pose_graph
from engines.metadata import read_metadata
from engines.opening import open_pose_model
from engines.parity import FP32_LIMITS, LIMITS, compare
from engines.precision import (
    INT8_SCHEMES,
    int8_within_limits,
    leave_in_fp16,
    measure,
    quantisable_layers,
    residual_ranges,
    to_fp16,
    to_int8,
)
from engines.typed_graph import LAST, STEM
from tests.cases import fast_first

pytest.importorskip("onnxruntime", reason="it quantises")
T = onnx.TensorProto


class Graph:
    """A typed graph's nodes and the types of all its values."""

    def __init__(self, data):
        model = onnx.shape_inference.infer_shapes(onnx.load_from_string(data), strict_mode=True)
        onnx.checker.check_model(model, full_check=True)
        self.graph = model.graph
        self.tensors = {tensor.name: tensor for tensor in self.graph.initializer}
        self.maker = {output: node for node in self.graph.node for output in node.output}
        self.types = {tensor.name: tensor.data_type for tensor in self.graph.initializer}
        for value in (*self.graph.input, *self.graph.value_info, *self.graph.output):
            self.types[value.name] = value.type.tensor_type.elem_type
        self.layers = {}
        for node in self.graph.node:
            if node.op_type == "Conv":
                weight = node.input[1]
                self.layers[layer_name(self.maker[weight].input[0] if weight in self.maker else weight)] = node

    def array(self, name):
        return onnx.numpy_helper.to_array(self.tensors[name])

    def quantised(self):
        """The layers whose weight is INT8."""
        return {layer for layer, node in self.layers.items() if node.input[1] in self.maker}

    def assert_contract(self):
        """Check: uint8 in, cast first, as TensorRT requires; FP32 out and everywhere after the last convolution."""
        assert self.types["crops"] == T.UINT8
        assert [node.op_type for node in self.graph.node if "crops" in node.input] == ["Cast"]
        assert self.types["joints"] == self.types["scores"] == T.FLOAT
        after, floats = {self.layers[LAST].output[0]}, set()
        for node in self.graph.node:
            if after & set(node.input):
                after |= set(node.output)
                floats |= {self.types[name] for name in node.output}
                assert node.op_type not in ("QuantizeLinear", "DequantizeLinear")
        assert floats == {T.FLOAT}
        assert {"joints", "scores"} <= after


@pytest.fixture(scope="module")
def shipped():
    return weights.load("xs")


@pytest.fixture(scope="module")
def people():
    """The package's own crops, with which a build calibrates and proves: they do not depend on the weights."""
    split = CalibrationSet.load(weights.CALIBRATION).split()
    return split.calibration, split.proof


@pytest.fixture(scope="module")
def fp32(shipped):
    return shipped.onnx.read_bytes()


@pytest.fixture(scope="module")
def int8(fp32, people):
    return to_int8(fp32, people[0])


@pytest.fixture(scope="module")
def reference(shipped):
    with open_pose_model(verify(shipped.safetensors), "torch", name="xs") as runtime:
        yield runtime


@pytest.mark.parametrize(
    ("variant", "joint_count"),
    fast_first([(Variant.XS, 18), (Variant.XS, 21), (Variant.S, 18), (Variant.M, 18), (Variant.L, 18)]),
    ids=str,
)
def test_every_variant_in_fp16(variant, joint_count, people):
    checkpoint = verify_state(random_state(variant, joint_count), source="random")
    exported = pose_graph(checkpoint, name="any", random=True)
    data = to_fp16(exported)
    graph = Graph(data)
    graph.assert_contract()
    assert {*quantisable_layers(exported), STEM} <= graph.layers.keys()
    for node in graph.layers.values():
        assert {graph.types[name] for name in (*node.input, *node.output)} == {T.FLOAT16}
    body = [node for node in graph.graph.node if node.op_type in ("Relu", "Resize")]
    assert {graph.types[node.output[0]] for node in body} == {T.FLOAT16}
    with open_pose_model(checkpoint, "torch", name="any") as torch:
        report = measure(data, torch, people[1][:2])
        report.check()
        assert report.candidate.precision == "fp16"
        assert report.limits == LIMITS["fp16"]
        assert report.mm.max > FP32_LIMITS.mean_mm / 100  # it is not the FP32 graph


@pytest.mark.slow
@pytest.mark.parametrize("scheme", INT8_SCHEMES, ids=lambda scheme: scheme.name)
def test_a_scheme_has_its_own_layers_and_additions_in_int8(scheme, fp32, people):
    """Q/DQ is before exactly its convolutions and, if the scheme says so, before both inputs of the additions after them."""
    wanted = set(scheme.layers(fp32))
    assert {"head.final_layer", "backbone.stages.3.1.pwconv2"} <= wanted <= set(quantisable_layers(fp32))
    quantised = precision.quantise(fp32, people[0][:8])
    residuals = residual_ranges(fp32, people[0][:8]) if scheme.residuals else {}
    rest = [layer for layer in quantisable_layers(fp32) if layer not in wanted]
    graph = Graph(leave_in_fp16(fp32, quantised, rest, residuals))
    graph.assert_contract()
    maker = {output: node for node in graph.graph.node for output in node.output}

    def is_quantised(name):
        return name in maker and maker[name].op_type == "DequantizeLinear"

    assert {layer for layer, node in graph.layers.items() if is_quantised(node.input[0])} == wanted
    by_result = {node.output[0]: layer for layer, node in graph.layers.items()}
    additions = set()
    for node in graph.graph.node:
        if node.op_type == "Add" and any(map(is_quantised, node.input)):
            assert all(map(is_quantised, node.input))
            sources = [maker[maker[name].input[0]].input[0] for name in node.input]
            (branch,) = [by_result[name] for name in sources if by_result.get(name, "").endswith("pwconv2")]
            additions.add(branch)
    assert additions == ({layer for layer in wanted if layer.endswith("pwconv2")} if scheme.residuals else set())


def test_the_proof_itself_is_exact(fp32, reference, people):
    """Computed in FP32, the graph equals the reference: any other error comes from FP16 and INT8."""
    Graph(fp32).assert_contract()
    measure(fp32, reference, people[1][:3]).check()


@pytest.mark.parametrize(
    ("name", "precision"),
    fast_first(
        [
            ("openvino", "int8"),
            ("onnxruntime", "fp16"),
            ("openvino", "fp32"),
            ("openvino", "fp16"),
            ("onnxruntime", "fp32"),
            ("onnxruntime", "int8"),
        ],
        fast=2,
    ),
)
def test_cpu_runtimes_run_typed_graphs(name, precision, fp32, int8, reference, people):
    pytest.importorskip(name)
    data = {"fp32": fp32, "fp16": to_fp16(fp32), "int8": int8}[precision]
    with open_pose_model(data, name, precision="int8" if precision == "int8" else "fp32", threads=1) as runtime:
        assert runtime.info.precision == precision
        if name == "openvino":
            assert runtime.describe().precision == ("int8+fp32" if precision == "int8" else "fp32")
        compare(reference, runtime, people[1][:4], LIMITS[precision]).check()


def test_int8_is_what_tensorrt_takes(int8, fp32):
    graph = Graph(int8)
    graph.assert_contract()
    assert graph.quantised() == set(quantisable_layers(fp32))
    for layer, node in graph.layers.items():
        depthwise = "dwconv" in layer
        assert (layer in graph.quantised()) == (not depthwise and layer != STEM)
        assert graph.types[node.output[0]] == T.FLOAT16
        assert all(name in graph.tensors and graph.types[name] == T.FLOAT16 for name in node.input[2:])  # no bias in int32
    quantisers = [node for node in graph.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    for node in quantisers:
        scale, zero = graph.array(node.input[1]), graph.array(node.input[2])
        assert scale.dtype == np.float16
        assert (scale > 0).all()
        assert zero.dtype == np.int8
        assert not zero.any()
        weight = graph.tensors.get(node.input[0])
        assert scale.shape == (() if weight is None else (weight.dims[0],))
    for layer in graph.quantised():
        node = graph.layers[layer]
        assert [graph.maker[name].op_type for name in node.input[:2]] == ["DequantizeLinear"] * 2
        assert graph.maker[graph.maker[node.input[0]].input[0]].op_type == "QuantizeLinear"
        assert graph.types[graph.maker[node.input[1]].input[0]] == T.INT8
    readers = Counter(name for node in graph.graph.node for name in node.input)
    assert all(readers[tensor] for tensor in graph.tensors)  # no unused FP32 weights are left


def test_int8_within_its_limits(int8, fp32, reference, people):
    report = measure(int8, reference, people[1])
    report.check()
    assert report.limits == LIMITS["int8"]
    assert report.mm.mean > 10 * measure(to_fp16(fp32), reference, people[1]).mm.mean
    assert len(int8) < 0.6 * len(fp32), "whose weights are stored in FP16"


def test_excluded_layers_stay_in_fp16(fp32, people):
    excluded = (LAST, "backbone.stages.0.1.pwconv1", "backbone.stages.3.1.pwconv2")
    data = to_int8(fp32, people[0], exclude=excluded)
    graph = Graph(data)
    graph.assert_contract()
    assert graph.quantised() == set(quantisable_layers(fp32)) - set(excluded)
    plain = Graph(to_fp16(fp32))
    for layer in excluded:
        found, expected = graph.layers[layer], plain.layers[layer]
        assert np.array_equal(graph.array(found.input[1]), plain.array(expected.input[1]))
        assert graph.maker[found.input[0]].op_type == plain.maker[expected.input[0]].op_type
    with pytest.raises(ExportError, match=r"received head\.last"):
        to_int8(fp32, people[0], exclude=["head.last"])


@pytest.mark.slow
def test_the_search_leaves_harmful_layers_in_fp16(int8, fp32, reference, people):
    crops = people[1][:1]
    strayed = measure(int8, reference, crops)
    limits = replace(LIMITS["int8"], mean_mm=0.6 * strayed.mm.mean, mean_px=0.6 * strayed.px.mean)
    found = int8_within_limits(fp32, people[0], reference, crops, limits)
    assert found.parity.passed
    assert found.parity == measure(found.onnx, reference, crops, limits)
    names = [harm.layer for harm in found.excluded]
    assert 0 < len(names) < len(quantisable_layers(fp32))
    assert Graph(found.onnx).quantised() == set(quantisable_layers(fp32)) - set(names)
    sensitivities = [max(harm.mean_px / limits.mean_px, harm.mean_mm / limits.mean_mm) for harm in found.excluded]
    assert sensitivities == sorted(sensitivities, reverse=True)


def test_the_search_stops_at_once_where_the_limits_hold(int8, fp32, reference, people):
    found = int8_within_limits(fp32, people[0], reference, people[1][:2])
    assert found.excluded == ()
    assert found.onnx == int8


def test_limits_that_no_int8_graph_holds(fp32, reference, people):
    limits = replace(LIMITS["int8"], mean_mm=1e-4)
    with pytest.raises(ParityError, match=r"even with every layer in FP16, .*worst joints: .*; build it in FP16"):
        int8_within_limits(fp32, people[0], reference, people[1][:1], limits)


def test_a_graph_past_its_limits_names_the_worst_joints(fp32, reference, people):
    model = onnx.load_from_string(to_fp16(fp32))
    joint, depth = 5, Variant.XS.spec.depth_bins
    for tensor in model.graph.initializer:
        if LAST in tensor.name:
            array = onnx.numpy_helper.to_array(tensor).copy()
            array[joint * depth : (joint + 1) * depth] = np.roll(array[joint * depth : (joint + 1) * depth], 1, axis=0)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    name = reference.info.joint_set.joints[joint]
    with pytest.raises(ParityError, match=f"onnx .fp16. disagrees with torch on 2 crops.*worst joints: {name}"):
        measure(model.SerializeToString(), reference, people[1][:2]).check()


def test_values_beyond_fp16_are_found(fp32, reference, people):
    """CPU runtimes compute such a graph in FP32 and would not notice."""
    model = onnx.load_from_string(fp32)
    fold_casts(model)
    block = "backbone.stages.1.0"  # its inner values become a million times larger, its results stay the same
    for tensor in model.graph.initializer:
        factor = {"pwconv1.weight": 1e6, "pwconv1.bias": 1e6, "pwconv2.weight": 1e-6}.get(tensor.name.partition(f"{block}.")[2])
        if factor:
            scaled = onnx.numpy_helper.to_array(tensor) * np.float32(factor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(scaled, tensor.name))
    large = model.SerializeToString()
    measure(large, reference, people[1][:1], LIMITS["fp16"]).check()
    with pytest.raises(ParityError, match=r"range of float16.*backbone\.stages\.1\.0\.pwconv1 .*keep this model in FP32"):
        measure(to_fp16(large), reference, people[1][:1])


def test_what_a_graph_says_about_itself(fp32, int8, people):
    plain = read_metadata(fp32, "shipped")
    assert (plain.precision, plain.calibration_sha256) == ("fp32", None)
    assert read_metadata(to_fp16(fp32), "fp16") == replace(plain, precision="fp16")
    calibrated = replace(plain, precision="int8", calibration_sha256=hash_crops(people[0]))
    assert read_metadata(int8, "int8") == calibrated
    with pytest.raises(ModelError, match="unknown value for 'fp64'"):
        read_metadata(to_fp16(fp32).replace(b"fp16", b"fp64"), "edited")


def test_the_same_bytes_each_time(fp32):
    assert to_fp16(fp32) == to_fp16(fp32)


def test_only_whole_fp32_models_are_typed(fp32, int8, people):
    for data in (to_fp16(fp32), int8):
        with pytest.raises(ModelError, match="expected an exported model in FP32"):
            to_fp16(data)
    with pytest.raises(ModelError):
        to_fp16(fp32[: len(fp32) // 2])
    foreign = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], []))
    with pytest.raises(ModelError, match="exported by this project"):
        to_int8(foreign.SerializeToString(), people[0])


@pytest.mark.parametrize("count", [1, 12])
def test_useless_crops_are_refused(count, fp32):
    with pytest.raises(CalibrationError, match="different crops"):
        to_int8(fp32, np.zeros((count, 256, 256, 3), np.uint8))
