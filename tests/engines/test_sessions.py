"""Every session follows one contract, whatever runs in it; so does a pose model in any of them."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from convnextpose.errors import GeometryError, ModelError, RuntimeUnavailableError
from engines.opening import open_pose_model
from engines.parity import FP32_LIMITS, compare
from engines.session import ArraySpec
from engines.sessions.onnxruntime import OnnxRuntimeSession
from engines.sessions.openvino import OpenVinoSession, cpu_precisions
from engines.sessions.torch import TorchNetwork, TorchSession
from engines.sessions.typed import TypedSession


def assert_same(found, expected):
    assert_allclose(found.joints[..., :2], expected.joints[..., :2], rtol=0, atol=1e-3)  # px
    assert_allclose(found.joints[..., 2], expected.joints[..., 2], rtol=0, atol=1e-2)  # mm
    assert_allclose(found.scores, expected.scores, rtol=0, atol=1e-5)


def test_a_crop_has_one_result_alone_and_in_any_batch(runtime, crops):
    together = runtime.run(crops)
    for count in range(1, len(crops) + 1):
        part = runtime.run(crops[:count])
        assert part.joints.shape == (count, 18, 3)
        assert part.joints.dtype == part.scores.dtype == np.float32
        assert_same(part, type(together)(together.joints[:count], together.scores[:count]))
    for index in range(len(crops)):
        alone = runtime.run(crops[index : index + 1])
        assert_same(alone, type(together)(together.joints[index : index + 1], together.scores[index : index + 1]))


def test_predictions_stay_as_they_are(runtime, crops):
    """A result is not a view of memory that the next run overwrites."""
    for batch in (1, 2):
        first = runtime.run(crops[:batch])
        kept = first.joints.copy(), first.scores.copy()
        runtime.run(crops[2 : 2 + batch])
        assert np.array_equal(first.joints, kept[0])
        assert np.array_equal(first.scores, kept[1])


def test_joints_and_scores_are_in_range(runtime, crops):
    found = runtime.run(crops)
    assert ((found.joints[..., :2] >= 0) & (found.joints[..., :2] <= 256)).all()
    assert (np.abs(found.joints[..., 2]) <= 1000).all()
    assert ((found.scores >= 0) & (found.scores <= 1)).all()


def test_no_crops_give_no_predictions(runtime, crops):
    found = runtime.run(crops[:0])
    assert found.joints.shape == (0, 18, 3)
    assert found.scores.shape == (0, 18)


def test_views_and_read_only_crops_are_fine(runtime, crops):
    mirrored = crops[:2, :, ::-1]
    assert_same(runtime.run(mirrored), runtime.run(mirrored.copy()))
    locked = crops[:1].copy()
    locked.flags.writeable = False
    assert_same(runtime.run(locked), runtime.run(crops[:1]))


@pytest.mark.parametrize(
    "crops",
    [
        np.zeros((1, 256, 256, 3), np.float32),
        np.zeros((256, 256, 3), np.uint8),
        np.zeros((1, 3, 256, 256), np.uint8),
        np.zeros((1, 128, 256, 3), np.uint8),
        np.zeros((0, 256, 256, 4), np.uint8),
    ],
    ids=["float", "one picture", "NCHW", "half", "BGRA"],
)
def test_other_crops_are_refused(runtime, crops):
    with pytest.raises(GeometryError, match="expected crops uint8"):
        runtime.run(crops)


def test_any_thread_may_run(runtime, crops):
    expected = [runtime.run(crops[index : index + 1]) for index in range(4)]
    found = [None] * 4
    start = threading.Barrier(4)

    def work(index):
        start.wait()
        for _ in range(3):
            found[index] = runtime.run(crops[index : index + 1])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    for got, wanted in zip(found, expected, strict=True):
        assert_same(got, wanted)


def test_it_tells_what_it_runs(runtime, checkpoint):
    description = runtime.describe()
    assert description.name in ("torch", "onnxruntime", "openvino")
    assert (description.precision, description.device, description.threads) == ("fp32", "CPU", 1)
    assert description.version[0].isdigit()
    assert runtime.info.checkpoint_sha256 == checkpoint.sha256
    assert (runtime.info.variant, runtime.info.joint_set) == (checkpoint.variant, checkpoint.joint_set)


@pytest.mark.parametrize("name", ["torch", "onnxruntime", "openvino"])
def test_closing_is_final_and_may_be_repeated(name, checkpoint, onnx_bytes, crops):
    pytest.importorskip(name)
    with open_pose_model(checkpoint if name == "torch" else onnx_bytes, name) as runtime:
        assert runtime.describe().threads >= 1
    runtime.close()
    with pytest.raises(RuntimeUnavailableError, match="closed"):
        runtime.run(crops[:1])


def tampered(data, change):
    onnx = pytest.importorskip("onnx")
    model = onnx.load_from_string(data)
    change(model)
    return model.SerializeToString()


def rename_input(model):
    model.graph.input[0].name = "images"
    for node in model.graph.node:
        node.input[:] = ["images" if name == "crops" else name for name in node.input]


def rename_output(model):
    model.graph.output[0].name = "poses"
    for node in model.graph.node:
        node.output[:] = ["poses" if name == "joints" else name for name in node.output]


def claim_other_joints(model):
    for entry in model.metadata_props:
        if entry.key == "joint_set":
            entry.value = "muco"


def lose_a_tensor(model):
    del model.graph.initializer[3]


def unknown_operation(model):
    model.graph.node[5].op_type = "Foo"


def not_a_number(model):
    for tensor in model.graph.initializer:
        if tensor.name.endswith("final_layer.bias"):
            tensor.raw_data = b"\xff" * len(tensor.raw_data)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (rename_input, "with input crops, but the model in memory has images"),
        (rename_output, "with output joints, scores, but the model in memory has poses, scores"),
        (claim_other_joints, "model tiny"),
        (lose_a_tensor, "model tiny"),
        (unknown_operation, r"operators that no such model has \(Foo\)"),
        (not_a_number, "model tiny"),
    ],
)
def test_a_model_that_breaks_the_contract_is_refused(name, change, sentence, onnx_bytes):
    pytest.importorskip(name)
    with pytest.raises(ModelError, match=sentence):
        open_pose_model(tampered(onnx_bytes, change), name)


def test_openvino_computes_in_the_precision_that_it_was_asked_for(checkpoint, onnx_bytes, crops):
    openvino = pytest.importorskip("openvino")
    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    with open_pose_model(checkpoint, "torch") as reference:
        for precision in ("bf16", "fp16"):
            if precision.upper() not in capabilities:
                with pytest.raises(RuntimeUnavailableError, match=rf"fp32.*'{precision}'"):
                    open_pose_model(onnx_bytes, "openvino", precision=precision)
                continue
            with open_pose_model(onnx_bytes, "openvino", precision=precision) as runtime:
                assert runtime.describe().precision == precision
                report = compare(reference, runtime, crops)
            assert not report.passed  # with FP32's limits: it really rounds
            assert report.px.max < 5
            assert report.mm.max < 50
        with open_pose_model(onnx_bytes, "openvino") as runtime:
            assert compare(reference, runtime, crops, FP32_LIMITS).passed


def test_signals_are_handled_after_models_are_closed_in_the_order_they_were_opened():
    """In a process of its own, which would end with a segmentation fault on a CPU with AMX if each model had its own core."""
    pytest.importorskip("openvino")
    script = """
import signal
from convnextpose import weights
from engines.opening import open_people_detector, open_pose_model
opened = [open_pose_model(weights.load("xs").onnx, "openvino"), open_people_detector(weights.detector(), "openvino")]
for model in opened:
    model.close()
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
signal.raise_signal(signal.SIGTERM)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stdout) == (0, "handled\n"), result.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_has_a_core_of_its_own():
    """Forked before its parent has run a model; afterwards OpenVINO allows no fork."""
    pytest.importorskip("openvino")
    script = """
import os
from convnextpose import weights
from engines.opening import open_pose_model
from engines.parity import noise_crops
from engines.sessions.openvino import cpu_precisions
cpu_precisions()
child = os.fork()
with open_pose_model(weights.load("xs").onnx, "openvino") as model:
    assert model.run(noise_crops(1)).joints.shape == (1, 18, 3)
if child:
    print("both" if os.wait()[1] == 0 else "one")
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stdout) == (0, "both\n"), result.stderr


# Sessions know nothing about poses: a network with two inputs of other types, whose items are independent.


def other_network():
    onnx = pytest.importorskip("onnx")
    helper, kinds = onnx.helper, onnx.TensorProto
    nodes = [
        helper.make_node("Mul", ["left", "left"], ["squares"]),
        helper.make_node("Cast", ["right"], ["floats"], to=kinds.FLOAT),
        helper.make_node("Add", ["squares", "floats"], ["sum"]),
        helper.make_node("Identity", ["right"], ["same"]),
    ]
    graph = helper.make_graph(
        nodes,
        "other",
        [
            helper.make_tensor_value_info("left", kinds.FLOAT, ["N", 2, 3]),
            helper.make_tensor_value_info("right", kinds.INT64, ["N", 2, 3]),
        ],
        [
            helper.make_tensor_value_info("sum", kinds.FLOAT, ["N", 2, 3]),
            helper.make_tensor_value_info("same", kinds.INT64, ["N", 2, 3]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return model.SerializeToString()


OTHER_INPUTS = (ArraySpec("left", "float32", (None, 2, 3)), ArraySpec("right", "int64", (None, 2, 3)))
OTHER_OUTPUTS = (ArraySpec("sum", "float32", (None, 2, 3)), ArraySpec("same", "int64", (None, 2, 3)))


@pytest.fixture(params=["openvino", "onnxruntime", "typed", "torch"])
def session(request):
    pytest.importorskip({"typed": "onnx"}.get(request.param, request.param))
    if request.param == "openvino":
        return OpenVinoSession(other_network(), "it", threads=1)
    if request.param == "onnxruntime":
        return OnnxRuntimeSession(other_network(), "it", threads=1)
    if request.param == "typed":
        return TypedSession(other_network(), "it", precision="fp32")
    import torch

    class Other(torch.nn.Module):
        def forward(self, left, right):
            return left * left + right.float(), right.clone()

    return TorchSession(TorchNetwork(Other(), OTHER_INPUTS, OTHER_OUTPUTS), "it", threads=1)


def other_arrays(count, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "left": rng.normal(size=(count, 2, 3)).astype(np.float32),
        "right": rng.integers(-9, 9, (count, 2, 3), np.int64),
    }


def test_any_network_runs_in_any_session(session):
    assert (session.inputs, session.outputs) == (OTHER_INPUTS, OTHER_OUTPUTS)
    kept = []
    for count in (1, 3, 1, 6):
        arrays = other_arrays(count, seed=count)
        found = session.run(arrays)
        kept.append((arrays, found))
        turned = {name: array[::-1] for name, array in arrays.items()}  # items are independent, and views are allowed
        for name, array in session.run(turned).items():
            np.testing.assert_array_equal(array, found[name][::-1])
    for arrays, found in kept:  # no later run has changed them
        assert found.keys() == {"sum", "same"}
        np.testing.assert_allclose(found["sum"], arrays["left"] ** 2 + arrays["right"], rtol=1e-6)
        np.testing.assert_array_equal(found["same"], arrays["right"])
        assert found["same"].dtype == np.int64
    session.close()
    session.close()
    with pytest.raises(RuntimeUnavailableError, match="the session of it is closed"):
        session.run(other_arrays(1))


def test_a_session_refuses_other_arrays_in_a_sentence(session):
    right = other_arrays(2)
    for wrong, told in (
        ({}, "expected arrays named left, right, received none"),
        ({"left": right["left"]}, "received left"),
        ({**right, "more": right["left"]}, "received left, right, more"),
        ({**right, "left": right["left"][:1]}, "as many in each array, received 1, 2"),
        ({name: array[:0] for name, array in right.items()}, "one item or more"),
        (
            {**right, "left": right["left"].astype(np.float64)},
            r"expected left float32 \[N, 2, 3\], received float64 \[2, 2, 3\]",
        ),
        ({**right, "left": right["left"][..., :2]}, r"received float32 \[2, 2, 2\]"),
        ({**right, "left": right["left"][0]}, r"received float32 \[2, 3\]"),
    ):
        with pytest.raises(GeometryError, match=told):
            session.run(wrong)
    assert len(session.run(right)["sum"]) == 2


def test_what_a_session_computes_in_is_told_by_the_library(onnx_bytes):
    pytest.importorskip("openvino")
    assert OpenVinoSession(other_network(), "it").describe().precision == "fp32"  # no convolutions: the requested one
    for precision in cpu_precisions():
        assert OpenVinoSession(onnx_bytes, "it", precision=precision).describe().precision == precision


shapes = st.lists(st.none() | st.integers(1, 9), min_size=1, max_size=4).map(tuple)
specs = st.builds(ArraySpec, st.sampled_from(["a", "b"]), st.sampled_from(["uint8", "float32"]), shapes)


@given(specs, specs)
def test_specs_fit_where_one_array_can_follow_both(one, other):
    assert one.fits(one) and one.fits(other) == other.fits(one)
    lengths = [b if a is None else a for a, b in zip(one.shape, other.shape, strict=False)]
    array = np.zeros([2 if length is None else length for length in lengths], one.dtype)

    def takes(spec):
        try:
            spec.check(array)
        except GeometryError as error:
            assert str(error).startswith(f"expected {spec}, received {array.dtype}")
            return False
        return True

    alike = one.name == other.name and one.dtype == other.dtype and len(one.shape) == len(other.shape)
    assert one.fits(other) == (alike and takes(one) and takes(other))
