"""Engines that TensorRT builds and runs on this GPU: parity, batches, graphs, memory, threads, and the commands."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from convnextpose import weights
from convnextpose.errors import EngineError
from convnextpose.variants import Variant
from engines import manifest as manifests
from engines.calibration import CalibrationSet
from engines.opening import open_pose_model
from engines.parity import LIMITS, compare, noise_crops
from engines.pose import PRECISIONS
from engines.sessions.engine_file import open_engine
from engines.tensorrt.engine import LOW_MEMORY
from tests.engines.manifests import Opened

CROPS = noise_crops(40, seed=5)


def opened(path):
    session = open_engine(path)
    return Opened(session, session.manifest.model)


def assert_close(found, expected):
    """Compare results of the same crops in other batches: other kernels may sum in another order."""
    assert np.abs(found.joints - expected.joints)[..., :2].max() < 1.0  # px
    assert np.abs(found.joints - expected.joints)[..., 2].max() < 5.0  # mm
    assert np.abs(found.scores - expected.scores).max() < 0.02


@pytest.fixture(scope="module")
def alone(xs_engine):
    """The engine's results for each crop alone."""
    with opened(xs_engine.path) as runtime:
        found = [runtime.run(crop[None]) for crop in CROPS]
    return type(found[0])(np.concatenate([f.joints for f in found]), np.concatenate([f.scores for f in found]))


@pytest.mark.parametrize("variant", Variant)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_variant_agrees_with_pytorch_in_every_precision(variant, precision, builds, record_property):
    if precision == "int8" and variant.name.lower() not in weights.names():
        pytest.skip(f"random weights say nothing about INT8, and the package has no weights for {variant.name}")
    built = builds(variant, precision)
    with opened(built.path) as engine, open_pose_model(built.checkpoint, "torch") as reference:
        report = compare(reference, engine, CalibrationSet.load(weights.CALIBRATION).split().proof, LIMITS[precision])
        record_property("parity", str(report))
        print(report)
        assert engine.describe().precision == precision
    report.check()
    found = manifests.load(built.path)
    assert found.engine_parity is not None
    assert found.engine_parity.passed


def test_any_number_of_crops_gives_what_each_crop_gives(xs_engine, alone):
    with opened(xs_engine.path) as runtime:
        for count in (1, 2, 3, 8, 9, 17, 40, 1, 8, 8, 40, 40):
            found = runtime.run(CROPS[:count])
            assert_close(found, type(found)(alone.joints[:count], alone.scores[:count]))


def test_every_batch_is_a_graph_with_the_same_results(xs_engine):
    with opened(xs_engine.path) as runtime:
        if not runtime.has_graphs:
            pytest.skip(f"{runtime.binding} has no graphs")
        for count in (1, 8):
            runs = [(runtime.run(CROPS[:count]), runtime.times.replayed) for _ in range(4)]
            assert {replayed for _, replayed in runs} == {1}
            for found, _ in runs:
                assert_close(found, runs[0][0])
        assert runtime.times.host_ms > runtime.times.inference_ms > 0


def test_crops_of_torch_on_another_stream_are_waited_for(xs_engine, alone):
    """They are made late, on a stream of torch's own, at unaligned addresses that no graph has seen."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch was built without CUDA")
    stream, size = torch.cuda.Stream(), CROPS[:3].size
    with opened(xs_engine.path) as runtime:
        for offset in range(10):
            crops = torch.zeros(size + offset, dtype=torch.uint8, device="cuda")[offset:].reshape(3, 256, 256, 3)
            source = torch.from_numpy(CROPS[offset : offset + 3]).cuda()
            torch.cuda.synchronize()
            with torch.cuda.stream(stream):
                torch.cuda._sleep(20_000_000)
                crops.copy_(source)
                found = runtime._session.run({"crops": crops})
            expected = alone.joints[offset : offset + 3]
            assert np.abs(found["joints"] - expected)[..., :2].max() < 1.0
            assert runtime.times.replayed == (1 if runtime.has_graphs else 0)


def test_threads_may_share_a_runtime_and_have_their_own(xs_engine, alone):
    def work(index, runtime):
        for turn in range(30):
            count = 1 + (index + turn) % 10
            found = runtime.run(CROPS[index : index + count])
            assert_close(found, type(found)(alone.joints[index : index + count], alone.scores[index : index + count]))

    with opened(xs_engine.path) as first, opened(xs_engine.path) as second, ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6), [(first, second)[index % 2] for index in range(6)]))


def test_a_thousand_opened_and_closed_leave_the_memory_as_it_was(gpu, xs_engine):
    def free_bytes():
        with gpu.current():
            return gpu.free_bytes()

    for index in range(1000):
        with opened(xs_engine.path) as runtime:
            runtime.run(CROPS[: 1 + index % 3])
        if index == 10:
            before = free_bytes()
    assert before - free_bytes() < 64 << 20


def test_an_engine_that_is_too_large_for_the_memory_takes_less(gpu, builds):
    """Most of the GPU's memory is occupied, so there is not enough for three batches of the engine's largest size."""
    built, most = builds(most=64), 64
    crops = np.concatenate([CROPS, CROPS])[:most]
    with opened(built.path) as runtime:
        expected = runtime.run(crops)
        one_slot = runtime.memory().held // runtime.slots
    blocks = []
    try:
        with gpu.current():
            while (left := gpu.free_bytes() - LOW_MEMORY - one_slot) > 1 << 20:
                blocks.append(gpu.allocate(left // 2))
        with pytest.warns(RuntimeWarning, match="too little free memory for 3 batches of 64 items in flight: going on with"):
            runtime = opened(built.path)
        with runtime:
            assert (runtime.slots, runtime.limit) < (3, most)
            assert_close(runtime.run(crops), expected)
    finally:
        with gpu.current():
            for block in blocks:
                block.free()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"library_version": "0.0.1"}, "library_version"),
        ({"compute_capabilities": ("1.0",)}, "compute_capability"),
    ],
)
def test_an_engine_of_another_machine_is_refused_by_the_field(xs_engine, change, field, tmp_path):
    path = tmp_path / "other.engine"
    path.write_bytes(xs_engine.path.read_bytes())
    changed = replace(manifests.load(xs_engine.path), **change)
    manifests.path_of(path).write_text(changed.to_json())
    with pytest.raises(
        EngineError, match=rf"{field}: .*this machine.*; rebuild the engine on this machine with `convnextpose build"
    ):
        opened(path)


def test_a_run_and_its_engine(cli, xs_engine, tmp_path):
    code, text, error = cli("run", weights.DEMO_CLIP, "--model", xs_engine.path, "--out", tmp_path / "out")
    assert (code, error) == (0, "")
    assert "the model is an engine" in text
    assert (tmp_path / "out" / "poses.npz").exists()


def test_inspecting_tells_layers_types_and_memory(cli, xs_engine):
    code, text, _ = cli("engine", "inspect", xs_engine.path)
    print(text)
    assert code == 0
    assert "here     runs" in text
    assert "MiB of activations" in text


def test_the_bench_has_both_times_and_the_reference(cli, xs_engine, tmp_path):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch was built without CUDA")
    out = tmp_path / "bench.json"
    code, text, _ = cli("bench-engine", xs_engine.path, "--batches", "1,8", "--rounds", 50, "--warm-up", 10, "--json", out)
    print(text)
    assert code == 0
    rows = json.loads(out.read_text())["latencies"]
    assert [row["crops"] for row in rows] == [1, 1, 8, 8]
    for row in rows:
        assert row["host"]["p50"] >= row["inference"]["p50"] > 0
        assert row["replayed"] == row["rounds"]


def test_the_doctor_names_the_gpu(cli, gpu):
    _, text, _ = cli("doctor", "--json")
    found = {finding["what"]: finding for finding in json.loads(text)}["GPU"]
    assert found["state"] == "ok"
    assert gpu.gpu.name in found["found"]
