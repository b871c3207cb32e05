"""The exported graph equals the network up to rounding, and nothing foreign is in the file."""

import hashlib
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import engines.folding
from convnextpose import weights
from convnextpose.checkpoint import build_network, verify, verify_state
from convnextpose.crop import decode_bins, normalise
from convnextpose.errors import OutputExistsError, ParityError, SinkError
from convnextpose.network import joint_scores, random_state, soft_argmax
from convnextpose.variants import Variant
from engines.export import export
from engines.folding import contract_network
from engines.graph import fold_casts, pose_graph, store_in_fp16
from engines.opening import open_pose_model
from engines.pose import CROPS, predicts
from engines.session import ArraySpec
from tests.cases import fast_first
from tests.once import graph_once

PX, MM, SCORE = 1e-3, 1e-2, 1e-5


def truth(checkpoint, crops):
    """The checkpoint's results: the official preprocessing and the network with its batch norms, all in FP64."""
    with torch.inference_mode():
        logits = build_network(checkpoint).double().logits(torch.from_numpy(normalise(crops)).double())
        return decode_bins(soft_argmax(logits).numpy(), checkpoint.variant), joint_scores(logits).numpy()


def assert_agree(predicted, expected):
    joints, scores = predicted
    difference = np.abs(joints - expected[0])
    assert difference[..., :2].max() < PX
    assert difference[..., 2].max() < MM
    assert np.abs(scores - expected[1]).max() < SCORE


def assert_varied(joints):
    """Check that poses differ by far more than the tolerance, so that agreement means something."""
    assert joints.std(axis=0)[..., :2].mean() > 1000 * PX
    assert joints.std(axis=0)[..., 2].mean() > 1000 * MM


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "joint_count"), [(Variant.XS, 21), (Variant.S, 18), (Variant.M, 18), (Variant.L, 18)], ids=str
)
def test_the_graph_equals_the_unfolded_network(variant, joint_count, crops):
    checkpoint = verify_state(random_state(variant, joint_count), source="random")
    expected = truth(checkpoint, crops[:2])
    assert_varied(expected[0])
    data = pose_graph(checkpoint, name="any")
    assert not any(node.op_type == "BatchNormalization" for node in onnx.load_from_string(data).graph.node)
    for name in ("onnxruntime", "openvino"):
        pytest.importorskip(name)
        with open_pose_model(data, name, threads=1) as runtime:
            found = runtime.run(crops[:2])
            assert runtime.info.variant is variant
        assert_agree((found.joints, found.scores), expected)


def test_every_runtime_equals_the_unfolded_network(runtime, checkpoint, crops):
    expected = truth(checkpoint, crops)
    assert_varied(expected[0])
    found = runtime.run(crops)
    assert_agree((found.joints, found.scores), expected)


@pytest.mark.parametrize("scale", fast_first([0.0, 1e-30, -1e-6]))
def test_folding_holds_for_any_scale_of_the_last_norm(scale, checkpoint, crops):
    """The last norm cannot be divided out of the graph if some of its channels have almost no scale."""
    state = {name: torch.tensor(array) for name, array in checkpoint.state.items()}
    state["backbone.norm.weight"][::3] = scale
    changed = verify_state(state, source="scaled")
    with torch.inference_mode():
        joints, scores = contract_network(changed)(torch.from_numpy(crops[:2]))
    assert_agree((joints.numpy(), scores.numpy()), truth(changed, crops[:2]))


def test_the_graph_is_plain(onnx_bytes, exported):
    graph = onnx.load_from_string(onnx_bytes).graph
    kinds = {node.op_type for node in graph.node}
    assert "BatchNormalization" not in kinds
    assert {"Conv", "Resize", "Softmax"} <= kinds
    assert {node.domain for node in graph.node} == {""}
    assert not any(tensor.external_data for tensor in graph.initializer)
    # One addition for each residual block (2+2+6+2), one for the last norm's shift, one for the variance.
    assert sum(node.op_type == "Add" for node in graph.node) == 12 + 1 + 1
    assert exported.node_count == len(graph.node)


def test_weights_that_are_fp16_numbers_are_stored_as_such_and_nothing_is_rounded(checkpoint, crops):
    plain = pose_graph(verify(weights.load("xs").safetensors), name="xs")  # whose weights are FP16 numbers
    stored = store_in_fp16(plain)
    assert len(stored) < 0.6 * len(plain)
    assert len(store_in_fp16(pose_graph(checkpoint, name="tiny", random=True))) > 0.98 * len(plain), "FP32 numbers stay"
    proto = onnx.load_from_string(stored)
    fold_casts(proto)
    numbers = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    for tensor in onnx.load_from_string(plain).graph.initializer:
        np.testing.assert_array_equal(numbers[tensor.name], onnx.numpy_helper.to_array(tensor))
    assert [node.name for node in proto.graph.node] == [node.name for node in onnx.load_from_string(plain).graph.node]
    for name in ("onnxruntime", "openvino"):
        pytest.importorskip(name)
        with open_pose_model(plain, name, threads=1, precision="fp32") as one:
            expected = one.run(crops[:2])
        with open_pose_model(stored, name, threads=1, precision="fp32") as other:
            found = other.run(crops[:2])
        np.testing.assert_allclose(found.joints, expected.joints, atol=1e-4)


def test_the_file_holds_nothing_of_the_machine(onnx_bytes):
    home = [str(Path(module.__file__).parent.parent) for module in (torch, onnx, engines.folding)]
    for text in [*home, str(Path.home()), tempfile.gettempdir(), "site-packages", ".py"]:
        assert text.encode() not in onnx_bytes


def test_the_report_tells_what_was_made(exported, onnx_bytes):
    assert len(onnx_bytes) == exported.size_bytes
    assert hashlib.sha256(onnx_bytes).hexdigest() == exported.sha256
    assert exported.parity.passed
    assert exported.parity.reference.name == "torch"
    assert exported.parity.candidate.precision == "fp32"


def test_an_existing_file_is_kept_unless_overwriting_is_allowed(checkpoint, tmp_path, onnx_bytes):
    out = tmp_path / "model.onnx"
    out.write_text("mine")
    with pytest.raises(OutputExistsError, match=r"model\.onnx"):
        export(checkpoint, out, name="tiny", random=True)
    assert out.read_text() == "mine"
    export(checkpoint, out, name="tiny", random=True, overwrite=True)
    assert out.read_bytes() == onnx_bytes
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


class Small(torch.nn.Module):
    """A network of one convolution."""

    def __init__(self, seed):
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, 4, 3)
        for parameter in self.parameters():
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(seed))

    def forward(self, images):
        return self.convolution(images).relu()


@pytest.mark.parametrize("size", fast_first(["small", "whole"]))
def test_weights_put_into_a_graph_give_what_the_exporter_gives(size, checkpoint, tmp_path, made_once):
    """Tests export each kind of network once. This also shows that the exporter returns the same bytes each time."""
    if size == "small":
        first, second = Small(1).eval(), Small(2).eval()
        inputs, outputs = [ArraySpec("images", "float32", (None, 3, 8, 8))], [ArraySpec("maps", "float32", (None, 4, 6, 6))]
    else:
        joints = len(checkpoint.joint_set)
        first, second = (contract_network(c) for c in (verify_state(random_state(Variant.XS, seed=5), source="x"), checkpoint))
        inputs, outputs = [CROPS], list(predicts(joints))
    once = graph_once(made_once, tmp_path)
    once(first, inputs, outputs)
    assert once(second, inputs, outputs) == made_once(second, inputs, outputs)
    assert len([path for path in tmp_path.iterdir() if path.suffix == ""]) == 1


def test_a_place_that_cannot_be_written_is_refused(checkpoint, tmp_path):
    with pytest.raises(SinkError, match="folder that exists"):
        export(checkpoint, tmp_path / "missing" / "model.onnx", name="x")
    with pytest.raises(SinkError, match="expected a file"):
        export(checkpoint, tmp_path, name="x", overwrite=True)


def test_a_graph_that_strays_leaves_no_file(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(engines.folding, "RGB_MEAN", (0.485, 0.456, 0.5))  # one number is wrong when it is folded
    out = tmp_path / "model.onnx"
    out.write_text("earlier")
    with pytest.raises(ParityError, match="worst joints"):
        export(checkpoint, out, name="x", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert out.read_text() == "earlier"


def test_a_write_that_fails_leaves_nothing(checkpoint, tmp_path):
    with pytest.raises(SinkError, match="cannot write"):
        export(checkpoint, tmp_path / ("n" * 252 + ".onnx"), name="x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_file_that_appears_during_the_export_stays(checkpoint, tmp_path, monkeypatch):
    out = tmp_path / "model.onnx"

    def compare(*runtimes):
        out.write_text("another program's")
        return original(*runtimes)

    original = engines.export.compare
    monkeypatch.setattr(engines.export, "compare", compare)
    with pytest.raises(OutputExistsError, match=r"model\.onnx exists"):
        export(checkpoint, out, name="x")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("model.onnx", "another program's")]
