"""Real engines of every variant, built without a GPU, compute in the requested types; modules are asked for their features."""

import _thread
import enum
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convnextpose import weights
from convnextpose.checkpoint import verify_state
from convnextpose.errors import EngineError, RuntimeUnavailableError
from convnextpose.network import random_state
from convnextpose.variants import Variant
from engines.calibration import MIN_CROPS, CalibrationSet
from engines.graph import pose_graph
from engines.manifest import BatchRange
from engines.precision import quantisable_layers, to_fp16, to_int8
from engines.tensorrt import builder as building
from engines.tensorrt.builder import BuildOptions, build_engine, convolution_types, read_layers, split_batch
from engines.tensorrt.device import Gpu
from engines.tensorrt.module import Library, load_library
from engines.typed_graph import STEM
from tests.cases import fast_first
from tests.engines.test_precision import Graph

pytest.importorskip("onnxruntime", reason="it quantises")

ROOT = Path(__file__).parents[2]
DESKTOP = ("8.6", "8.9", "12.0")


@pytest.fixture(scope="module")
def rtx():
    pytest.importorskip("tensorrt_rtx")
    return load_library("tensorrt_rtx")


@pytest.fixture(scope="module")
def people():
    return CalibrationSet.load(weights.CALIBRATION).crops[: 2 * MIN_CROPS : 2]


@pytest.fixture(scope="module")
def small():
    """A typed graph of the smallest variant."""
    return to_fp16(weights.load("xs").onnx.read_bytes())


@pytest.fixture
def full(rtx, monkeypatch):
    """The real module disguised as the full TensorRT: it takes no compute capability, and builds for the local GPU."""
    hidden = ("set_compute_capability", "num_compute_capabilities")
    config = type("IBuilderConfig", (), {n: None for n in dir(rtx.module.IBuilderConfig) if n[0] != "_" and n not in hidden})
    module = SimpleNamespace(**{**vars(rtx.module), "IBuilderConfig": config})
    monkeypatch.setattr(building, "find_gpu", lambda: Gpu("NVIDIA A100", "8.0", "CUDA 13.0"))
    return Library("tensorrt", "10.13.3", module)


# Real engines


@pytest.mark.parametrize(
    ("variant", "capabilities"), fast_first([(Variant.XS, DESKTOP[1:2]), *((variant, DESKTOP) for variant in Variant)]), ids=str
)
def test_every_variant_computes_in_what_was_asked_for(variant, capabilities, rtx, people):
    """FP16 and INT8 for desktop targets, with the type of every convolution from the library's own log."""
    exported = pose_graph(verify_state(random_state(variant), source="random"), name="any", random=True)
    quantised = set(quantisable_layers(exported))
    convolutions = Graph(exported).layers.keys()
    for precision, onnx in (("fp16", to_fp16(exported)), ("int8", to_int8(exported, people))):
        for capability in capabilities:
            engine = build_engine(onnx, rtx, capability)
            found = convolution_types(engine.layers, onnx)
            assert found.keys() == convolutions
            for layer, types in found.items():
                expected = "Int8" if precision == "int8" and layer in quantised else "Half"
                assert types == (expected, expected), layer
            last = [layer for layer in engine.layers if {"joints", "scores"} & set(layer.name.split())] or engine.layers[-1:]
            assert {tensor.type for layer in last for tensor in layer.outputs} == {"Float"}
            assert engine.compute_capabilities == (capability,)
            assert (engine.library, engine.library_version, engine.gpu_name) == (rtx.name, rtx.version, None)
            assert len(engine.data) < len(exported)


def test_an_engine_may_end_at_its_logits(rtx, small):
    """For the tail kernel: its last layer returns FP16 logits, and no layer that computes joints is left."""
    engine = build_engine(small, rtx, "8.9", BuildOptions(tail_kernel=True))
    whole = build_engine(small, rtx, "8.9")
    assert engine.options["tail_kernel"] is True
    assert len(engine.layers) < len(whole.layers)
    (logits,) = engine.layers[-1].outputs
    assert (logits.type, logits.dimensions[1:]) == ("Half", (18 * 32, 32, 32))
    assert convolution_types(engine.layers, small) == convolution_types(whole.layers, small)
    with pytest.raises(EngineError, match="to end at its logits, received one in fp32"):
        build_engine(weights.load("xs").onnx.read_bytes(), rtx, "8.9", BuildOptions(tail_kernel=True))


def test_fp32_computes_in_fp32(rtx):
    onnx = weights.load("xs").onnx.read_bytes()
    found = convolution_types(build_engine(onnx, rtx, "8.9").layers, onnx)
    assert set(found.values()) == {("Float", "Float")}
    assert STEM in found


@pytest.mark.slow
def test_turing_computes_int8_graphs_in_fp16(rtx, people):
    """A known limit of TensorRT for RTX, so `engines.build` refuses it. If this test fails, the limit is gone."""
    onnx = to_int8(weights.load("xs").onnx.read_bytes(), people)
    assert set(convolution_types(build_engine(onnx, rtx, "7.5").layers, onnx).values()) == {("Half", "Half")}


def test_the_batch_is_what_was_asked_for(rtx, small, monkeypatch):
    told = []
    original = building._Log.add
    monkeypatch.setattr(building._Log, "add", lambda log, kind, text: (told.append(text), original(log, kind, text)))
    engine = build_engine(small, rtx, "8.9", BuildOptions(BatchRange(2, 3, 5)))
    assert engine.batch == BatchRange(2, 3, 5)
    profile = "MinShape: [2,256,256,3], OptShape: [3,256,256,3], MaxShape: [5,256,256,3]"
    assert any(profile in text for text in told)


@pytest.mark.parametrize("bad", [b"", b"no graph", "half"])
def test_a_graph_that_is_none_is_refused_in_the_librarys_words(bad, rtx, small):
    with pytest.raises(EngineError, match=r"tensorrt_rtx .* (does not take the graph|could not build the engine): \w+"):
        build_engine(small[: len(small) // 2] if bad == "half" else bad, rtx, "8.9")


def test_a_target_that_the_library_does_not_know(rtx, small):
    with pytest.raises(EngineError, match=r"8\.9, 12\.0.*received 8\.7"):
        build_engine(small, rtx, "8.7")


def test_an_option_that_fails_says_why(rtx, small):
    """TensorRT for RTX has the flag, but not the library that it needs."""
    with pytest.raises(EngineError, match=r"could not build the engine: .*libnvinfer_lean"):
        build_engine(small, rtx, "8.9", BuildOptions(version_compatible=True))
    with pytest.raises(EngineError, match="name targets"):
        build_engine(small, rtx, "8.9", BuildOptions(hardware_compatible="ampere_plus"))
    with pytest.raises(EngineError, match="one of 0 DLA cores"):
        build_engine(small, rtx, "8.9", BuildOptions(dla_core=0))


@pytest.mark.parametrize("core", [None, 0])
def test_only_for_a_dla_the_graph_is_read_for_it(rtx, small, core):
    flags = []

    class Parser(rtx.module.OnnxParser):
        def parse(self, data):
            flags.append(self.get_flag(rtx.module.OnnxParserFlag.ADJUST_FOR_DLA))
            return False  # the data do not matter here

    library = Library(rtx.name, rtx.version, SimpleNamespace(**{**vars(rtx.module), "OnnxParser": Parser}))
    with pytest.raises(EngineError, match="does not take the graph"):
        build_engine(small, library, "8.9", BuildOptions(dla_core=core))
    assert flags == [core is not None]


def test_ctrl_c_ends_a_build(rtx, small, monkeypatch):
    """The main thread is interrupted while the library builds, and the library stops."""
    told, original = [], building._Log.add
    monkeypatch.setattr(building._Log, "add", lambda log, kind, text: (told.append(text), original(log, kind, text)))

    def builds():
        return any(thread.name == "tensorrt-build" for thread in threading.enumerate())

    ended = threading.Event()

    def interrupt():
        while not ended.wait(0.001):
            if builds():
                _thread.interrupt_main()
                return

    assert not builds()
    interrupter = threading.Thread(target=interrupt)
    with pytest.raises(KeyboardInterrupt):
        interrupter.start()
        try:
            build_engine(small, rtx, "8.9")
        finally:  # a failed build must not leave an interrupt for a later test
            ended.set()
            interrupter.join()
    end = time.monotonic() + 60
    while builds():
        assert time.monotonic() < end
        time.sleep(0.01)
    assert any("BuildCanceled" in text for text in told), "the library is told to stop"


def in_a_process(script, *words):
    """The output of a separate Python whose main thread may be interrupted: pytest would take a late Ctrl-C for its own."""
    before = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell may have it set to ignore
    done = subprocess.run(
        [sys.executable, "-c", before + script, *map(str, words)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr


READING = """
import _thread, sys
from pathlib import Path
from engines.tensorrt import builder
from engines.tensorrt.module import load_library

sent, original = [], builder._Log.add

def add(log, kind, text):
    if not sent:
        sent.append(text)
        _thread.interrupt_main()
    original(log, kind, text)

builder._Log.add = add
try:
    builder.build_engine(Path(sys.argv[1]).read_bytes(), load_library("tensorrt_rtx"), "8.9")
except KeyboardInterrupt:
    print("ended" if sent else "nothing was logged")
"""


def test_ctrl_c_while_the_library_reads_the_graph(rtx, small, tmp_path):
    """The library swallows errors raised in its logger, so the interrupt must not be raised there; the reader logs first."""
    graph = tmp_path / "small.onnx"
    graph.write_bytes(small)
    assert in_a_process(READING, graph)[0] == ["ended"]


STUBBORN = """
import os, sys, threading
from types import SimpleNamespace
from engines.tensorrt import builder
from engines.tensorrt.module import Library

builder.CANCEL_WAIT_S, builder.CANCEL_LIMIT_S = map(float, sys.argv[1:3])

def ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)

def work(cancelled):
    ctrl_c()
    if sys.argv[3] == "twice":
        cancelled.wait()
        ctrl_c()
    threading.Event().wait()

try:
    builder.interruptible(Library("tensorrt", "10.0", SimpleNamespace(IProgressMonitor=object)), work)
except KeyboardInterrupt:
    print("left")
"""
"""A build by a library that has a monitor and ignores it."""


def test_a_build_that_does_not_end_is_told_of_and_left_in_the_end():
    told, warned = in_a_process(STUBBORN, 0.05, 0.1, "once")
    assert told == ["left"]
    assert "stopping: tensorrt can be stopped only between two steps of a build; Ctrl-C again ends at once" in warned


def test_a_second_ctrl_c_does_not_wait():
    told, warned = in_a_process(STUBBORN, 10_000, 10_000, "twice")
    assert told == ["left"] and "stopping" not in warned


def test_what_the_library_raises_comes_out_of_its_thread():
    def work(_):
        raise EngineError("of the library")

    with pytest.raises(EngineError, match="of the library"):
        building.interruptible(Library("tensorrt", "10.0", SimpleNamespace()), work)


# The full TensorRT's path, in the real module


def test_the_gpu_at_hand(full, small):
    options = BuildOptions(workspace_mib=256, hardware_compatible="same_compute_capability")
    with pytest.warns(DeprecationWarning, match="no-ops"):
        engine = build_engine(small, full, None, options)
    assert (engine.gpu_name, engine.driver, engine.compute_capabilities) == ("NVIDIA A100", "CUDA 13.0", ("8.0",))
    assert options.named().items() <= engine.options.items()
    assert engine.options["profiles"] == "1-1-1,2-4-4,5-8-8"
    assert engine.options["workspace_mib"] == 256
    assert isinstance(engine.timing_cache, bytes)


@given(st.integers(1, 40), st.integers(0, 40), st.integers(0, 40))
def test_profiles_cover_the_batch_without_overlap_and_keep_what_is_typical(fewest, more, most):
    batch = BatchRange(fewest, fewest + more, fewest + more + most)
    parts = split_batch(batch)
    covered = [size for part in parts for size in range(part.min, part.max + 1)]
    assert covered == list(range(batch.min, batch.max + 1))
    assert batch.typical in {part.typical for part in parts}
    assert not {2, 5, 9} & {size for part in parts for size in range(part.min + 1, part.max + 1)}  # these start ranges


def test_no_gpu_at_hand(full, small, monkeypatch):
    monkeypatch.setattr(building, "find_gpu", lambda: None)
    with pytest.raises(RuntimeUnavailableError, match=r"tensorrt 10\.13\.3 builds for the local GPU, but there is none"):
        build_engine(small, full)


# Features of modules


def module(version="10.0", flags=("STRONGLY_TYPED",), config=("create_timing_cache",), builder_flags=(), **more):
    """A module with the given names, in the same places and with the same values as in TensorRT's versions."""
    names = {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1} if "EXPLICIT_BATCH" in flags else {"STRONGLY_TYPED": 0}
    creation = enum.IntEnum("NetworkDefinitionCreationFlag", {n: v for n, v in names.items() if n in flags})
    return SimpleNamespace(
        __version__=version,
        NetworkDefinitionCreationFlag=creation,
        BuilderFlag=enum.IntEnum("BuilderFlag", list(builder_flags)),
        IBuilderConfig=type("IBuilderConfig", (), dict.fromkeys(config)),
        **more,
    )


@pytest.mark.parametrize(
    ("flags", "expected"), [(("EXPLICIT_BATCH", "STRONGLY_TYPED"), 0b10), (("STRONGLY_TYPED",), 0b1)], ids=["10", "11"]
)
def test_flags_are_those_that_the_module_has(flags, expected):
    assert Library("tensorrt", "any", module(flags=flags)).network_flags() == expected


def test_without_strong_typing_there_is_another_way():
    with pytest.raises(EngineError, match="build with --via torch2trt"):
        Library("tensorrt", "8.6.2", module(flags=("EXPLICIT_BATCH",))).network_flags()


def test_only_some_modules_build_for_absent_gpus(rtx):
    plain = Library("tensorrt", "10.13", module())
    assert not plain.builds_for_absent_gpus
    assert plain.compute_capabilities == ()
    assert plain.keeps_timings
    assert rtx.builds_for_absent_gpus
    assert not rtx.keeps_timings
    assert {"7.5", *DESKTOP} <= set(rtx.compute_capabilities)
    capability = enum.IntEnum("ComputeCapability", {"NONE": 0, "CURRENT": 1, "SM89": 89, "SM121": 121})
    other = Library("tensorrt_rtx", "1.0", module(config=("set_compute_capability",), ComputeCapability=capability))
    assert other.compute_capabilities == ("8.9", "12.1")
    assert other.compute_capability("12.1") is capability.SM121
    assert not other.keeps_timings


def test_options_that_a_module_lacks_are_refused():
    library = Library("tensorrt", "10.0", module(builder_flags=("GPU_FALLBACK", "TF32")))
    assert library.builder_flag("GPU_FALLBACK").name == "GPU_FALLBACK"
    with pytest.raises(EngineError, match=r"but it has no BuilderFlag VERSION_COMPATIBLE \(only GPU_FALLBACK, TF32\)"):
        library.builder_flag("VERSION_COMPATIBLE")
    with pytest.raises(EngineError, match="no HardwareCompatibilityLevel AMPERE_PLUS"):
        library.hardware_compatibility("ampere_plus")


def test_hardware_compatibility_in_any_case(rtx):
    assert rtx.hardware_compatibility("ampere_plus") == rtx.module.HardwareCompatibilityLevel.AMPERE_PLUS


def test_loading(rtx):
    assert rtx.version == rtx.module.__version__
    with pytest.raises(RuntimeUnavailableError, match="expected tensorrt or tensorrt_rtx, received 'tensorflow'"):
        load_library("tensorflow")


def test_a_library_that_is_missing_or_broken(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(RuntimeUnavailableError, match=r"tensorrt is not installed; pip install '\.\[tensorrt\]'"):
        load_library("tensorrt")
    monkeypatch.delitem(sys.modules, "tensorrt")
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.10: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RuntimeUnavailableError, match=r"tensorrt is installed but does not load: libnvinfer"):
        load_library("tensorrt")


# The log


def test_a_log_without_layers_tells_nothing():
    assert read_layers("") == ()
    assert read_layers("Layers:\nName: a, LayerType: ") == ()
    assert convolution_types((), to_fp16(weights.load("xs").onnx.read_bytes())) == {}


def test_layers_in_a_log():
    tensor = "{{ Name: {}, Dimensions: [{}], Strides: [4,1], StrideOrder: [1,0], Datatype: {}, Format: (NHWC) Channel major }}"
    line = (
        f"Name: node_conv2d_1, LayerType: correlation, Inputs: [ {tensor.format('x', '-1,3,4,4', 'Half')}, "
        f"{tensor.format('y', '', 'Float')}], Constants: [ {tensor.format('w', '8,3,1,1', 'Int8')}], "
        f"Outputs: [], TacticName: any, StreamId: 0, Metadata: [ONNX Layer: node_a]\x1f[ONNX Layer: node_b]"
    )
    plain = "Name: move, LayerType: kgen, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, Metadata: "
    first, second = read_layers(f"Layers:\n{line}\n{plain}\n\nI/O Tensors:\n Name: crops, IOMode: Input")
    assert (first.name, first.kind, first.onnx_nodes) == ("node_conv2d_1", "correlation", ("node_a", "node_b"))
    assert [(t.type, t.dimensions) for t in first.inputs] == [("Half", (-1, 3, 4, 4)), ("Float", ())]
    assert [(t.type, t.dimensions) for t in first.constants] == [("Int8", (8, 3, 1, 1))]
    assert first.outputs == second.inputs == second.onnx_nodes == ()
