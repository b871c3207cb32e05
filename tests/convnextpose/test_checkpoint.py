"""The shapes decide what a checkpoint is; every difference is refused by name, and nothing unverified gets through."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from convnextpose.checkpoint import VerifiedCheckpoint, build_network, verify, verify_state
from convnextpose.errors import CheckpointError, RuntimeUnavailableError
from convnextpose.report import describe
from convnextpose.skeleton import HUMAN36M, MUCO
from convnextpose.variants import Variant

torch = pytest.importorskip("torch")
from convnextpose.network import expected_shapes, random_state  # noqa: E402 (it needs torch)
from tests.cases import fast_first  # noqa: E402

FINAL = "head.final_layer.weight"
PUBLISHED = [
    ("ConvNeXtPose_XS.tar", Variant.XS, False),
    ("ConvNeXtPose_S.tar", Variant.S, False),
    ("ConvNeXtPose_M (1).tar", Variant.M, True),
    ("ConvNeXtPose_L (1).tar", Variant.L, True),
]


def assert_holds(checkpoint, state):
    assert checkpoint.state.keys() == state.keys()
    assert all(np.array_equal(checkpoint.state[name], tensor.numpy()) for name, tensor in state.items())


# Accepted checkpoints


@pytest.mark.parametrize(("name", "variant", "numbered"), fast_first(PUBLISHED), ids=[v.name for _, v, _ in PUBLISHED])
def test_the_published_files(name, variant, numbered, published, tmp_path):
    state = random_state(variant, seed=3)
    path = published(tmp_path / name, state, numbered=numbered)
    checkpoint = verify(path)
    assert (checkpoint.variant, checkpoint.joint_set, checkpoint.name_claims) == (variant, HUMAN36M, None)
    assert checkpoint.head_format == ("numbered" if numbered else "named")
    assert checkpoint.source == str(path)
    assert checkpoint.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert_holds(checkpoint, state)


def unpacked(file):
    with zipfile.ZipFile(file) as archive:
        archive.extractall(file.parent / "unpacked")
    return file.parent / "unpacked"


def zipped_again(file):
    folder = unpacked(file)
    with zipfile.ZipFile(file.parent / "again.zip", "w") as archive:
        for part in folder.rglob("*"):
            archive.write(part, part.relative_to(folder))
    return file.parent / "again.zip"


def in_a_tar(file):
    with tarfile.open(file.parent / "real.tar", "w") as archive:
        archive.add(file, "snapshot_68.pth")
    return file.parent / "real.tar"


@pytest.mark.parametrize("wrap", [lambda file: file, unpacked, zipped_again, in_a_tar], ids=["zip", "folder", "re-zip", "tar"])
@pytest.mark.parametrize(("numbered", "module"), fast_first([(True, True), (False, True), (True, False), (False, False)]))
def test_every_container_and_key_format_is_the_same_checkpoint(wrap, numbered, module, xs_state, published, tmp_path):
    path = wrap(published(tmp_path / "m.pth", xs_state, numbered=numbered, module=module, optimizer=False))
    checkpoint = verify(path)
    assert (checkpoint.variant, checkpoint.head_format) == (Variant.XS, "numbered" if numbered else "named")
    assert_holds(checkpoint, xs_state)


@pytest.mark.parametrize("numbered", [False, True])
def test_the_legacy_format(numbered, xs_state, published, tmp_path):
    assert_holds(verify(published(tmp_path / "m.pth", xs_state, legacy=True, numbered=numbered)), xs_state)


@pytest.mark.parametrize("variant", fast_first(Variant))
def test_21_joints(variant, published, tmp_path):
    state = random_state(variant, joint_count=21)
    checkpoint = verify_state(state, source="random")
    assert (checkpoint.variant, checkpoint.joint_set) == (variant, MUCO)
    assert describe(checkpoint).paper_mpjpe_mm is None, "the paper's table is about other joints"
    if variant is Variant.XS:
        assert_holds(verify(published(tmp_path / "m.pth", state)), state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_types_become_float32(dtype, xs_state):
    state = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in xs_state.items()}
    checkpoint = verify_state(state, source="random")
    assert {array.dtype for array in checkpoint.state.values()} == {np.dtype(np.float32), np.dtype(np.int64)}
    assert_holds(checkpoint, {n: t.float() if t.is_floating_point() else t for n, t in state.items()})


def test_safetensors_in_fp16(xs_state, tmp_path):
    from safetensors.torch import save_file

    state = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in xs_state.items()}
    save_file(state, tmp_path / "convnextpose-xs.safetensors")
    checkpoint = verify(tmp_path / "convnextpose-xs.safetensors", Variant.XS)
    assert_holds(checkpoint, {n: t.float() if t.is_floating_point() else t for n, t in state.items()})


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"model": s, "epoch": 1}])
def test_where_the_state_dict_stands(wrap, xs_state, tmp_path):
    torch.save(wrap(xs_state), tmp_path / "m.pth")
    assert_holds(verify(tmp_path / "m.pth"), xs_state)


def test_a_state_of_arrays(xs_state):
    arrays = {name: tensor.numpy() for name, tensor in xs_state.items()}
    assert_holds(verify_state(arrays, source="random"), xs_state)


def test_parameters_that_require_a_gradient(xs_state):
    network = loaded(xs_state)
    state = {name: torch.nn.Parameter(t) if t.is_floating_point() else t for name, t in network.state_dict().items()}
    assert_holds(verify_state(state, source="training"), xs_state)


def test_zero_biases_means_and_a_dead_channel_are_sound(xs_state):
    state = {
        name: tensor * 0 if name.endswith(("bias", "running_mean")) else tensor.clone() for name, tensor in xs_state.items()
    }
    state["backbone.norm.running_var"][5] = 0
    assert_holds(verify_state(state, source="random"), state)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module.module.", "module._orig_mod.", "network.pose."])
def test_any_prefix_before_every_name(prefix, xs_state):
    checkpoint = verify_state({prefix + name: tensor for name, tensor in xs_state.items()}, source="random")
    assert checkpoint.key_prefix == describe(checkpoint).key_prefix == prefix
    assert_holds(checkpoint, xs_state)


def test_a_backbone_that_was_compiled_by_itself(xs_state):
    state = {name.replace("backbone.", "backbone._orig_mod."): tensor for name, tensor in xs_state.items()}
    assert_holds(verify_state(state, source="random"), xs_state)


@pytest.mark.parametrize(
    "wrap",
    [lambda s: {"model_state_dict": s}, lambda s: {"state_dict_ema": s, "arch": "xs"}, lambda s: {"ema": {"module": s}},
     lambda s: {"model_ema": {"state_dict": s}}],
)  # fmt: skip
def test_what_wrappers_save(wrap, xs_state, tmp_path):
    torch.save(wrap(xs_state), tmp_path / "m.pth")
    assert_holds(verify(tmp_path / "m.pth"), xs_state)


def test_an_averaged_model(xs_state):
    network = torch.optim.swa_utils.AveragedModel(loaded(xs_state))
    assert_holds(verify_state(network.state_dict(), source="swa"), xs_state)


def loaded(state):
    from convnextpose.network import PoseNetwork

    network = PoseNetwork(Variant.XS)
    network.load_state_dict(state)
    return network


def test_a_running_mean_is_taken_only_where_there_are_no_other_weights(xs_state, tmp_path):
    mean = {name: tensor * 2 for name, tensor in xs_state.items()}
    torch.save({"state_dict_ema": mean, "state_dict": xs_state}, tmp_path / "m.pth")
    assert_holds(verify(tmp_path / "m.pth"), xs_state)


def test_numpy_scalars_beside_and_in_a_state(xs_state, tmp_path):
    counters = {name: np.int64(tensor) if name.endswith("tracked") else tensor for name, tensor in xs_state.items()}
    torch.save({"network": counters, "best_mpjpe": np.float64(60.6), "epoch": np.int64(3)}, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match="num_batches_tracked, a int"):
        verify(tmp_path / "m.pth")
    torch.save({"network": xs_state, "best_mpjpe": np.float64(60.6), "epoch": np.int64(3)}, tmp_path / "m.pth")
    assert_holds(verify(tmp_path / "m.pth"), xs_state)
    assert_holds(verify_state(counters, source="random"), xs_state)


def test_two_networks_in_one_state(xs_state):
    state = {prefix + name: tensor for prefix in ("model.", "ema.") for name, tensor in xs_state.items()}
    count = len(xs_state)
    assert f"received `model.` before {count} and `ema.` before {count} of {2 * count} names" in refused(state)


def test_a_nested_tensor_in_memory(xs_state):
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    assert "as a plain tensor" in refused({**xs_state, "backbone.norm.bias": nested})


@pytest.mark.parametrize(
    ("layout", "sentence"),
    fast_first(
        [
            (torch.strided, "expected dense tensors, received others for backbone.norm.bias"),
            (torch.jagged, "asks for torch.*: refused"),
        ]
    ),
    ids=["nested", "jagged"],
)
def test_a_nested_tensor_in_a_file(layout, sentence, xs_state, tmp_path):
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=layout)
    torch.save({"network": {**xs_state, "backbone.norm.bias": nested}}, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=sentence):
        verify(tmp_path / "m.pth")


# Results


def test_only_verify_makes_a_verified_checkpoint(xs_checkpoint):
    values = {field.name: getattr(xs_checkpoint, field.name) for field in dataclasses.fields(xs_checkpoint)}
    with pytest.raises(CheckpointError, match="come from verify"):
        VerifiedCheckpoint(**values)
    with pytest.raises(CheckpointError, match="come from verify"):
        VerifiedCheckpoint(**values, token=object())
    with pytest.raises(CheckpointError, match="come from verify"):
        dataclasses.replace(xs_checkpoint, variant=Variant.S)


def test_a_verified_state_cannot_be_changed(xs_state):
    given = {name: tensor.clone() for name, tensor in xs_state.items()}
    checkpoint = verify_state(given, source="random")
    for tensor in given.values():
        tensor.zero_()
    assert_holds(checkpoint, xs_state)
    with pytest.raises(TypeError):
        checkpoint.state["extra"] = np.zeros(1)
    for array in checkpoint.state.values():
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.flags.writeable = True


def test_the_network_of_a_checkpoint_has_its_tensors(xs_checkpoint, xs_state):
    network = build_network(xs_checkpoint)
    assert not network.training
    assert all(torch.equal(tensor, xs_state[name]) for name, tensor in network.state_dict().items())


def test_the_hash_of_a_state_is_of_its_tensors_whatever_their_names_format(xs_state, as_published):
    first = verify_state(xs_state, source="a").sha256
    assert verify_state(as_published(xs_state, numbered=True)["network"], source="b").sha256 == first
    changed = dict(xs_state)
    changed[FINAL] = xs_state[FINAL] + 1e-3
    assert verify_state(changed, source="a").sha256 != first
    assert verify_state(xs_state, source="a", sha256="ab" * 32).sha256 == "ab" * 32


@pytest.mark.parametrize("variant", fast_first(Variant))
def test_the_report_counts_what_the_tensors_show(variant):
    spec = variant.spec
    state = dict(random_state(variant))
    state["head.deconv_layers_2.pwconv.weight"][: spec.head_channels // 2] = 0
    report = describe(verify_state(state, source="random"))
    assert (report.variant, report.backbone, report.paper_mpjpe_mm) == (variant.name, spec.backbone, spec.paper_mpjpe_mm)
    assert (report.blocks, report.channels, report.backbone_kernel) == (spec.depths, spec.channels, 7)
    assert [layer.kernel for layer in report.head] == [3, 3, 3]
    assert [layer.channels for layer in report.head] == [spec.head_channels] * 3
    assert [layer.upsamples for layer in report.head] == [True, True, spec.upsampling_layers == 3]
    assert report.head[0].active_percent == report.head[2].active_percent == 100
    assert 50 < report.head[1].active_percent < 55  # half the pointwise and all the depthwise weights
    assert (report.heatmap_size, report.depth_bins) == (spec.heatmap_size, spec.depth_bins)
    assert (report.joints, report.joint_set) == (18, "human36m")
    assert report.state_numbers == sum(tensor.numel() for tensor in state.values())
    assert report.to_json()["head"][2]["upsamples"] == (spec.upsampling_layers == 3)


# Refusals


def refused(state, **options):
    with pytest.raises(CheckpointError) as error:
        verify_state(state, source="m.pth", **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_missing_tensors(xs_state):
    state = {name: tensor for name, tensor in xs_state.items() if not name.startswith("backbone.stages.1.1.")}
    message = refused(state)
    assert "nearest (XS with 18 joints)" in message
    count = len(xs_state) - len(state)
    assert f"missing tensors ({count}): backbone.stages.1.1.dwconv.weight (expected [80, 1, 7, 7], received nothing)" in message
    assert f"and {count - 3} more" in message


def test_extra_tensors(xs_state):
    message = refused({**xs_state, "head.deconv_layers_4.dwconv.weight": torch.ones(128, 1, 3, 3)})
    assert "extra tensors (1): head.deconv_layers_4.dwconv.weight (expected nothing, received [128, 1, 3, 3])" in message


@pytest.mark.parametrize(
    ("name", "kernel"), [("backbone.stages.0.1.dwconv.weight", 5), ("head.deconv_layers_2.dwconv.weight", 1)]
)
def test_wrong_kernels(name, kernel, xs_state):
    channels, _, side, _ = xs_state[name].shape
    message = refused({**xs_state, name: torch.ones(channels, 1, kernel, kernel)})
    assert f"wrong kernels (1): {name} (expected [{channels}, 1, {side}, {side}], " in message
    assert f"received [{channels}, 1, {kernel}, {kernel}])" in message


def test_wrong_shapes(xs_state):
    message = refused({**xs_state, "backbone.norm.bias": torch.ones(384)})
    assert "wrong shapes (1): backbone.norm.bias (expected [320], received [384])" in message


@pytest.mark.parametrize("variant", Variant)
@pytest.mark.parametrize("joints", [17, 19])
def test_wrong_joint_counts(variant, joints):
    state = {name: torch.ones(shape) for name, shape in expected_shapes(variant, joints).items()}
    message = refused(state)
    bins = variant.spec.depth_bins
    assert f"received {joints * bins} outputs" in message
    assert f"{18 * bins} ({variant.name}, 18 joints)" in message
    assert f"{21 * bins} ({variant.name}, 21 joints)" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite(value, xs_state):
    state = {**xs_state, FINAL: xs_state[FINAL].clone()}
    state[FINAL][3, 4] = value
    assert f"expected finite numbers, received NaN or infinity in 1 tensors: {FINAL}" in refused(state)


def test_numbers_that_float32_cannot_hold(xs_state):
    state = {**xs_state, FINAL: torch.full(xs_state[FINAL].shape, 1e300, dtype=torch.float64)}
    assert "expected finite numbers" in refused(state)


@pytest.mark.parametrize("name", [FINAL, "backbone.norm.weight", "backbone.norm.running_var"])
def test_tensors_of_zeros(name, xs_state):
    assert f"received only zeros in 1 tensors: {name}" in refused({**xs_state, name: xs_state[name] * 0})


def test_a_checkpoint_of_zeros(xs_state):
    assert "received only zeros" in refused({name: tensor * 0 for name, tensor in xs_state.items()})


def test_negative_variances(xs_state):
    name = "backbone.norm.running_var"
    assert f"received some in 1 tensors: {name}" in refused({**xs_state, name: -xs_state[name]})


@pytest.mark.parametrize(
    ("tensor", "sentence"),
    [
        (torch.ones(320, dtype=torch.int64), "in floating-point numbers, received int64"),
        (torch.ones(320, dtype=torch.complex64), "in floating-point numbers, received complex64"),
        (torch.ones(320, dtype=torch.bool), "in floating-point numbers, received bool"),
        (np.ones(320, np.int32), "in floating-point numbers, received int32"),
        (torch.ones(320).to_sparse(), "as a plain tensor"),
        (torch.ones(320, device="meta"), "as a plain tensor"),
        ([1.0] * 320, "expected tensors by name, received backbone.norm.bias, a list"),
    ],
    ids=["int", "complex", "bool", "int array", "sparse", "meta", "list"],
)
def test_tensors_that_are_no_plain_numbers(tensor, sentence, xs_state):
    assert sentence in refused({**xs_state, "backbone.norm.bias": tensor})


def test_counters_of_another_type(xs_state):
    name = "backbone.norm.num_batches_tracked"
    assert "in whole numbers, received float32" in refused({**xs_state, name: torch.tensor(1.0)})


def test_a_tensor_that_claims_to_be_enormous_is_never_made(xs_state):
    enormous = torch.ones(1).expand(2**50)
    assert f"received [{2**50}]" in refused({**xs_state, "backbone.norm.bias": enormous})


def test_mixed_names(xs_state, as_published):
    numbered = as_published(xs_state, numbered=True, module=False)["network"]
    assert "received both in one file" in refused({**xs_state, **numbered})
    wrapped = dict(xs_state)
    wrapped["module." + FINAL] = wrapped.pop(FINAL)
    message = refused(wrapped)
    assert f"received none before {len(xs_state) - 1} and `module.` before 1 of {len(xs_state)} names" in message


@pytest.mark.parametrize(
    ("tree", "received"),
    [
        (7, "a int"),
        ([torch.ones(1)], "a list"),
        ({}, "a dictionary of nothing"),
        ({"epoch": 1, "optimizer": {}}, "a dictionary of epoch, optimizer"),
        ({"epoch": 1, 2: torch.ones(1)}, "received 2, a tensor"),
        ({"network": {}}, "received something else"),
        ({"network": {"a\x1b[2J" + "b" * 200: torch.ones(1)}}, "received something else"),
    ],
)
def test_files_that_hold_something_else(tree, received, tmp_path):
    torch.save(tree, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=received) as error:
        verify(tmp_path / "m.pth")
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 2000


@given(fraction=st.floats(0, 1, exclude_max=True), legacy=st.booleans())
@example(fraction=0.999999999, legacy=True)
@example(fraction=0.999999999, legacy=False)
def test_a_checkpoint_cut_anywhere_is_refused(fraction, legacy, cut_files, tmp_path_factory):
    path = Path(tmp_path_factory.getbasetemp(), "cut.pth")
    data = cut_files[legacy]
    path.write_bytes(data[: int(fraction * len(data))])
    with pytest.raises(CheckpointError):
        verify(path)


@pytest.fixture(scope="module")
def cut_files(xs_state, published, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "m.pth"
    return [published(path, xs_state, legacy=legacy, optimizer=False).read_bytes() for legacy in (False, True)]


# The base install


def test_the_module_needs_no_torch_until_it_reads(xs_state, monkeypatch):
    code = "import sys, convnextpose.checkpoint; assert not {'torch', 'safetensors'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(RuntimeUnavailableError, match=r"pip install '\.\[build\]'"):
        verify_state(xs_state, source="random")
