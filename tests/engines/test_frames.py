"""Crops, engine and tail as one graph: a frame and matrices in, poses out, on a simulated GPU that runs the kernels' source."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from convnextpose import weights
from convnextpose.crop import Box, crop_from_image
from convnextpose.errors import DeviceError, EngineError, GeometryError, RuntimeUnavailableError
from engines.batcher import Batcher
from engines.kernels import program
from engines.kernels.blocks import BT709, DeviceFrame, PixelFormat, TailShape
from engines.kernels.program import CROP, TAIL
from engines.metadata import read_metadata
from engines.opening import open_pose_model
from engines.parity import LIMITS
from engines.pose import PoseModel
from engines.precision import to_fp16
from engines.sessions.tensorrt import TensorRTSession
from engines.tensorrt.device_pycuda import PycudaDevice
from engines.tensorrt.module import Library
from engines.typed_graph import ends_at_logits
from tests.engines import kernel_twin
from tests.engines.cpu_kernels import KernelDriver, compiled, cpu_device, on_device
from tests.engines.manifests import Opened, manifest_of
from tests.engines.memory_gpu import pycuda_driver
from tests.engines.memory_tensorrt import engine_bytes, predict, tensorrt_module


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    """The kernels compiled by a C++ compiler instead of NVRTC."""
    for kernel in (CROP, TAIL):
        compiled(kernel)
    monkeypatch.setattr(program, "compile_kernel", lambda kernel, capability, text: kernel.encode())


@cache
def network(ends):
    """XS in ONNX Runtime: `fp32` as exported, or the typed FP16 graph cut off at its `logits`."""
    import onnxruntime

    onnx = weights.load("xs").onnx.read_bytes()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    if ends == "logits":
        onnx = ends_at_logits(to_fp16(onnx))
    session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda crops: dict(zip(names, session.run(names, {"crops": crops}), strict=True))


class Bench:
    """A simulated GPU that runs kernels, with a TensorRT whose engines may be XS."""

    def __init__(self, family="10", *, refusals=0, device=cpu_device):
        self.driver = KernelDriver()
        self.device = device(self.driver)
        networks = {name: lambda crops, name=name: network(name)(crops) for name in ("fp32", "logits")}
        self.module = tensorrt_module(self.driver, family, refusals=refusals, networks=networks)
        self.library = Library(self.module.__name__, self.module.__version__, self.module)

    def session(self, **spec):
        data = engine_bytes(**spec)
        here = manifest_of(data, library=self.library.name, library_version=self.library.version)
        return TensorRTSession(data, replace(here, model=replace(here.model, precision="fp16")), self.library, self.device)

    def open(self, **spec):
        session = self.session(**spec)
        return Opened(session, session.manifest.model)

    def check(self):
        """Check that nothing happened that would fail on a real GPU, and that everything is freed."""
        assert self.driver.violations == []
        assert self.driver.live == len(self.driver.engines) == len(self.driver.modules) == 0


def crops_of(image, matrices):
    """The kernel's crops by their definition, with the same rounding."""
    height, width = image.shape[:2]
    exact = (kernel_twin.crop([image], width, height, PixelFormat.BGR, BT709, matrix) for matrix in matrices)
    return np.stack([np.rint(crop).astype(np.uint8) for crop in exact])


def assert_are(found, crops):
    """Check the poses of the engine that counts every value of a crop: a single different value shows."""
    joints, scores = predict(crops)
    assert np.array_equal(found["joints"], joints)
    assert np.array_equal(found["scores"], scores)


WHOLE = [np.full((64, 48, 3), 40, np.uint8), np.full((64, 48, 3), 90, np.uint8)]
"""Pictures of one grey level: their crops have no half levels, which FP32 and FP64 may round differently."""
AT = [crop_from_image(Box(x, y, 64, 64)) for x, y in ((-8, 0), (-40, 16), (0.0, -32.0))]


@pytest.mark.parametrize("family", ["10", "rtx", "8"])
def test_frames_and_crops_may_take_turns(family):
    bench = Bench(family)
    with bench.open(most=4) as model:
        assert model.takes_frames
        assert model.describe().crops == "gpu"
        assert "crops on the GPU" in str(model.describe())
        for count in (1, 3, 2, 3):
            for image in WHOLE:
                with model.hold(image) as held:
                    found = model.run(held.origins(AT[:count]))
                assert_are({"joints": found.joints, "scores": found.scores}, crops_of(image, AT[:count]))
                crops = crops_of(image, AT[:2]) ^ 255
                found = model.run(crops)
                assert_are({"joints": found.joints, "scores": found.scores}, crops)
    bench.check()


def test_a_graph_does_all_of_it_and_nothing_is_made_any_more():
    bench = Bench()
    with bench.open(most=2) as model:
        with model.hold(WHOLE[0]) as held:
            model.run(held.origins(AT[:1]))
        driver = bench.driver
        before = driver.captures, driver.live, driver.allocations
        launches, kernels = driver.launches, driver.kernels
        for image in WHOLE:
            with model.hold(image) as held:
                for count in (1, 2):
                    found = model.run(held.origins(AT[:count]))
                    assert_are({"joints": found.joints, "scores": found.scores}, crops_of(image, AT[:count]))
                    assert model.times.replayed == model.times.batches == 1
        assert driver.launches - launches == 4
        assert driver.kernels == kernels  # none is launched outside a graph
        assert (driver.captures, driver.live, driver.allocations) == before
    bench.check()


def test_more_people_than_the_engine_takes_and_a_picture_that_grows():
    bench = Bench()
    with bench.open(most=2) as model:
        for scale in (1, 2, 1):
            image = WHOLE[0].repeat(scale, 0)
            with model.hold(image) as held:
                for _ in range(2):  # a second look at the same frame
                    found = model.run(held.origins([AT[k % 3] for k in range(5)]))
            assert_are({"joints": found.joints, "scores": found.scores}, crops_of(image, [AT[k % 3] for k in range(5)]))
    bench.check()


def test_a_picture_is_uploaded_once_and_only_when_it_is_wanted():
    bench = Bench()
    with bench.open(most=2) as model:
        bench.driver.uploads = 0
        with model.hold(WHOLE[0]):
            pass
        assert bench.driver.uploads == 0
        with model.hold(WHOLE[0]) as held:
            for _ in range(3):
                model.run(held.origins(AT[:1]))
        assert bench.driver.uploads == 1
    bench.check()


def test_a_frame_that_is_on_the_gpu_is_read_where_it_is():
    """As from NVDEC: NV12, with rows that are longer than the picture."""
    bench = Bench()
    luma, chroma = np.full((64, 64), 235, np.uint8), np.full((32, 32, 2), 128, np.uint8)
    with bench.device.current():
        planes = [on_device(bench.device, plane) for plane in (luma, chroma)]
    frame = DeviceFrame(tuple(plane.address for plane in planes), (64, 64), 48, 64, PixelFormat.NV12)
    with bench.open(most=2) as model, model.hold(frame) as held:
        bench.driver.uploads = 0
        found = model.run(held.origins(AT[:2]))
    white = crops_of(np.full((64, 48, 3), 255, np.uint8), AT[:2])
    assert_are({"joints": found.joints, "scores": found.scores}, white)
    assert bench.driver.uploads == 0
    with bench.device.current():
        for plane in planes:
            plane.free()
    bench.check()


def test_several_sources_share_batches_of_frames_and_of_crops():
    bench = Bench()
    session = bench.session(most=4)
    model = PoseModel(Batcher(session, 4), session.manifest.model)
    assert model.describe().crops == "gpu"

    def work(index):
        image = np.full((64, 48, 3), 10 * index, np.uint8)
        expected = crops_of(image, AT)
        for turn in range(4):
            if index % 3 == 2:
                found = model.run(expected)
            else:
                with model.hold(image) as held:
                    found = model.run(held.origins(AT[: 1 + turn % 3]))
            assert_are({"joints": found.joints, "scores": found.scores}, expected[: len(found.joints)])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    model.close()
    bench.check()


def test_work_that_no_graph_takes_is_done_without():
    bench = Bench(refusals=10**6)
    with pytest.warns(RuntimeWarning, match="run without a CUDA graph"):
        model = bench.open(most=2)
    with model, model.hold(WHOLE[1]) as held:
        found = model.run(held.origins(AT[:2]))
        assert_are({"joints": found.joints, "scores": found.scores}, crops_of(WHOLE[1], AT[:2]))
        assert model.times.replayed == 0
    bench.check()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeUnavailableError("the kernels need NVRTC, which does not load"), "need NVRTC"),
        (DeviceError("NVRTC cannot compile the kernel crop"), "cannot compile"),
    ],
)
def test_without_kernels_crops_are_made_on_the_cpu_and_that_is_told(monkeypatch, error, told):
    def fail(kernel, capability, text):
        if kernel == TAIL:  # the first one is freed
            raise error
        return b"code"

    monkeypatch.setattr(program, "compile_kernel", fail)
    bench = Bench()
    with pytest.warns(RuntimeWarning, match=f"crops are made on the CPU: .*{told}") as warned:
        model = bench.open()
    assert len(warned) == 1
    with model:
        assert not model.takes_frames
        assert model.describe().crops == "cpu"
        with model.hold(WHOLE[0]) as held:
            assert held is None
        with pytest.raises(GeometryError, match="expected arrays named crops"):
            model._session.run({"origins": np.zeros((1, 96), np.uint8)})
    with pytest.raises(RuntimeUnavailableError, match=f"{told}.*built with --tail-kernel.*build it without"):
        bench.open(logits=(576, 32, 32), network="logits")
    assert bench.driver.violations == []
    assert bench.driver.live == len(bench.driver.modules) == 0


def test_pycuda_makes_crops_on_the_cpu():
    bench = Bench(device=lambda driver: PycudaDevice(pycuda_driver(driver), "pycuda in memory"))
    with pytest.warns(RuntimeWarning, match="the kernels need cuda-python, but the GPU is driven through pycuda"):
        model = bench.open()
    model.close()
    bench.check()


def test_logits_of_another_variant_are_refused():
    bench = Bench()
    with pytest.raises(EngineError, match=r"expected logits float16 \[576, 32, 32\] of a model XS, received"):
        bench.open(logits=(1152, 64, 64))
    assert bench.driver.live == len(bench.driver.modules) == 0


def people():
    """The first picture of the demo clip, and two regions of it with people."""
    import cv2

    return cv2.VideoCapture(str(weights.DEMO_CLIP)).read()[1], [Box(150, 60, 380, 380), Box(200, -20, 420, 420)]


@pytest.mark.parametrize("ends", ["fp32", "logits"])
def test_poses_by_the_kernels_are_those_without(ends):
    """The default weights on the demo clip; with the tail kernel as well, within the FP16 limits of the proven graph."""
    from pipeline.stages import warp_crop

    image, regions = people()
    bench, shape = Bench(), TailShape.of(read_metadata(weights.load("xs").onnx.read_bytes(), "xs").variant, 18)
    spec = {"logits": (18 * shape.depth, shape.height, shape.width)} if ends == "logits" else {}
    warped = np.stack([warp_crop(image, region) for region in regions])
    with open_pose_model(weights.load("xs").onnx, "onnxruntime", threads=1) as reference:
        expected = reference.run(warped)
    with bench.open(most=1, network=ends, **spec) as model:
        assert [output.name for output in model.outputs] == ["joints", "scores"]
        with model.hold(image) as held:
            found = model.run(held.origins([crop_from_image(region) for region in regions]))
        of_crops = model.run(warped)
    for predicted in (found, of_crops):
        difference = np.abs(predicted.joints - expected.joints)
        assert difference[..., :2].max() <= LIMITS["fp16"].max_px
        assert difference[..., 2].max() <= LIMITS["fp16"].max_mm
        assert np.abs(predicted.scores - expected.scores).max() <= LIMITS["fp16"].max_score
    bench.check()


def test_an_estimator_gives_the_same_poses_with_the_kernels_and_without(monkeypatch):
    """The demo clip from frames to poses in space, with given people: the kernels change nothing beyond the limits."""
    import itertools

    from engines.sessions import tensorrt as tensorrt_session
    from pipeline.estimator import Estimator
    from pipeline.people.given import GivenBoxes
    from pipeline.sources import open_source
    from pipeline.stages import TrackedBox

    with open_source(str(weights.DEMO_CLIP)) as source:
        frames = list(itertools.islice(source, 2))
    given = tuple(TrackedBox(k, box) for k, box in enumerate((Box(150, 60, 380, 380), Box(250, 40, 300, 300))))
    posed = {}
    for way in ("cpu", "gpu"):
        bench = Bench()
        with monkeypatch.context() as patch:
            if way == "cpu":
                patch.setattr(tensorrt_session, "engine_kernels", lambda *_: None)
            model = bench.open(most=2, network="fp32")
        with model:
            assert model.describe().crops == way
            estimator = Estimator(model, GivenBoxes({frame.index: given for frame in frames}))
            bench.driver.uploads = 0
            posed[way] = [estimator.step(frame) for frame in frames]
            assert bench.driver.uploads == len(frames)  # one upload for each frame, or for its crops
        bench.check()
    for cpu, gpu in zip(posed["cpu"], posed["gpu"], strict=True):
        assert len(cpu.poses) == len(gpu.poses) == 2
        for one, other in zip(cpu.poses, gpu.poses, strict=True):
            assert one.track_id == other.track_id
            scale = one.box.square().width / 256
            assert np.abs(one.joints_px - other.joints_px).max() <= scale * LIMITS["fp16"].max_px
            assert np.abs(one.joints_mm[:, 2] - other.joints_mm[:, 2]).max() <= LIMITS["fp16"].max_mm
