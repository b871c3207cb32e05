"""TensorRT 8 through torch2trt: everything that can be tested without either. No engine is built here."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convnextpose.errors import CalibrationError, EngineError, RuntimeUnavailableError
from engines import torch2trt
from engines.folding import contract_network
from engines.manifest import BatchRange
from engines.precision import quantisable_layers
from engines.tensorrt.builder import BuildOptions
from engines.tensorrt.module import Library, load_library

CONVERTED = {
    "torch.Tensor.__add__", "torch.Tensor.__mul__", "torch.Tensor.__sub__", "torch.Tensor.__truediv__", "torch.Tensor.permute",
    "torch.Tensor.reshape", "torch.Tensor.sum", "torch.cat", "torch.exp", "torch.nn.functional.conv2d",
    "torch.nn.functional.interpolate", "torch.nn.functional.relu",
}  # fmt: skip
"""The converters of torch2trt (native_converters.py at its commit 4e820ae) that our network needs."""


@pytest.fixture(scope="module")
def network(checkpoint):
    return contract_network(checkpoint)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """A function that installs a package of that name: enough for all checks before its use."""

    def write(text=""):
        (tmp_path / "torch2trt.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)

    yield write
    sys.modules.pop("torch2trt", None)


@pytest.fixture
def installed(install):
    install()


def a_library(version="8.6.2", **names):
    """A TensorRT with only the parts that are checked before its use."""
    return Library("tensorrt", version, SimpleNamespace(BuilderFlag=SimpleNamespace(FP16=0), **names))


def operator_name(function):
    """`torch.Tensor.__truediv__` and `torch.Tensor.div` are the same function, called by an operator or by name."""
    module, _, name = function.rpartition(".")
    return f"{module}.{name.strip('_').replace('truediv', 'div')}"


def test_every_function_that_the_network_calls_has_a_converter(network):
    # torch2trt treats the result of any other function as a constant, so the engine would return one pose for every crop.
    import torch
    from torch.overrides import TorchFunctionMode, resolve_name

    called = set()

    class Record(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            called.add(resolve_name(function))
            return function(*args, **(kwargs or {}))

    example = torch.zeros(1, 256, 256, 3)
    with torch.inference_mode(), Record():
        network(example)
        assert example.float() is example  # so the cast needs no converter: the tensor keeps its TensorRT counterpart
    added = []
    torch2trt._add_converters(SimpleNamespace(tensorrt_converter=lambda name: added.append(name) or (lambda f: f)), None)
    assert {"torch.nn.functional.conv2d", "torch.softmax"} <= called
    known = {operator_name(name) for name in CONVERTED | set(added)}
    assert {operator_name(name) for name in called} - known == {"torch.Tensor.float"}


def test_the_converters_that_are_added_name_functions_of_torch():
    import torch

    names = []
    torch2trt._add_converters(SimpleNamespace(tensorrt_converter=lambda name: names.append(name) or (lambda f: f)), None)
    for name in names:
        found = torch
        for part in name.split(".")[1:]:
            found = getattr(found, part)
        assert callable(found)


def test_without_torch2trt_it_says_where_to_get_it(checkpoint):
    pytest.importorskip("torch")
    with pytest.raises(
        RuntimeUnavailableError, match=r"not on PyPI; get it from GitHub: pip install .*NVIDIA-AI-IOT/torch2trt$"
    ):
        torch2trt.build_engine(checkpoint, a_library(uint8=0))


def test_a_library_without_flags_for_precision_is_refused(checkpoint, installed):
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(EngineError, match=r"flags for the precision \(8 or 10\), but tensorrt_rtx .* has none: build without"):
        torch2trt.build_engine(checkpoint, load_library("tensorrt_rtx"))


def test_a_library_without_uint8_is_refused(checkpoint, installed):
    with pytest.raises(EngineError, match=r"expected TensorRT 8\.5 or later.*received 8\.4\.1"):
        torch2trt.build_engine(checkpoint, a_library("8.4.1"))


@pytest.mark.parametrize(
    "asked",
    [{"version_compatible": True}, {"hardware_compatible": "ampere_plus"}, {"dla_core": 0}],
    ids=lambda asked: next(iter(asked)),
)
def test_options_of_typed_graphs_are_refused(checkpoint, installed, asked):
    with pytest.raises(EngineError, match=next(iter(asked))):
        torch2trt.build_engine(checkpoint, a_library(uint8=0), options=BuildOptions(BatchRange(), **asked))


def test_a_torch2trt_that_does_not_load_is_told(checkpoint, install):
    install("import packaging_that_is_missing\n")
    with pytest.raises(
        RuntimeUnavailableError, match=r"installed but does not load: .*packaging_that_is_missing.*install it again"
    ):
        torch2trt.build_engine(checkpoint, a_library(uint8=0))


def test_int8_needs_crops_and_a_known_precision_is_asked_for(checkpoint):
    with pytest.raises(CalibrationError, match="received none; collect some"):
        torch2trt.build_engine(checkpoint, a_library(uint8=0), precision="int8")
    with pytest.raises(EngineError, match="expected precision fp32, fp16, int8, received 'fp8'"):
        torch2trt.build_engine(checkpoint, a_library(uint8=0), precision="fp8")


@pytest.fixture(scope="module")
def many_crops():
    from engines.parity import noise_crops

    return noise_crops(11, seed=5)


def test_the_ranges_are_those_of_the_layers_that_typed_graphs_quantise(network, many_crops, onnx_bytes):
    ranges = torch2trt.convolution_ranges(network, many_crops)
    assert list(ranges) == list(quantisable_layers(onnx_bytes))
    assert all(np.isfinite([r.reads, r.gives]).all() and min(r.reads, r.gives) > 0 for r in ranges.values())


@pytest.mark.slow
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(st.integers(0, 10), min_size=8))
def test_more_crops_never_narrow_a_range(network, many_crops, chosen):
    everything = torch2trt.convolution_ranges(network, many_crops)
    some = torch2trt.convolution_ranges(network, many_crops[sorted(chosen)])
    for name, found in some.items():
        # With another batch size sums may differ in their last bits.
        assert found.reads <= everything[name].reads * (1 + 1e-5)
        assert found.gives <= everything[name].gives * (1 + 1e-5)


def test_measuring_leaves_the_network_as_it_was(network, many_crops):
    torch2trt.convolution_ranges(network, many_crops)
    assert not any(module._forward_hooks for module in network.modules())


def test_crops_of_no_use_are_refused(network, many_crops):
    with pytest.raises(CalibrationError, match="different crops"):
        torch2trt.convolution_ranges(network, np.repeat(many_crops[:1], 20, axis=0))
