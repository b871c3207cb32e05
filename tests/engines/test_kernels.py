"""The GPU kernels' own source, run on the CPU: crops against OpenCV's warp, the tail against the network's functions."""

import importlib

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from convnextpose import weights
from convnextpose.crop import Box, crop_from_image
from convnextpose.errors import DeviceError, GeometryError, RuntimeUnavailableError
from convnextpose.variants import Variant
from engines.kernels import program
from engines.kernels.blocks import (
    BT601,
    BT601_FULL,
    BT709,
    BT709_FULL,
    ORIGIN,
    DeviceFrame,
    PixelFormat,
    TailShape,
    crop_origins,
)
from engines.kernels.program import CROP, TAIL, Kernels, compile_kernel
from tests.engines import kernel_twin
from tests.engines.cpu_kernels import KernelDriver, compiled, cpu_device, from_device, on_device

COLOURS = (BT601, BT601_FULL, BT709, BT709_FULL)
EXACT_WARP = int(cv2.__version__.split(".")[0]) >= 5
"""OpenCV 4 rounds positions to 1/32 px, which shows where neighbouring pixels differ much."""

few = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def kernels():
    """The kernels on a simulated GPU, and the GPU."""
    for kernel in (CROP, TAIL):
        compiled(kernel)
    patch = pytest.MonkeyPatch()
    patch.setattr(program, "compile_kernel", lambda kernel, capability, text: kernel.encode())
    driver = KernelDriver()
    device = cpu_device(driver)
    with device.current():
        made = Kernels(device)
        patch.undo()
        yield made, device
        made.free()
    assert driver.violations == []
    assert driver.live == 0


def padded(plane, pitch):
    """A plane's rows, each padded to `pitch` bytes with 255."""
    rows = plane.reshape(len(plane), -1)
    return np.pad(rows, ((0, 0), (0, pitch - rows.shape[1])), constant_values=255)


def run_crop(kernels, planes, width, height, pixels, colours, matrices, *, padding=0, most=None):
    """The kernel's crops of a frame."""
    kernels, device = kernels
    most = most or len(matrices)
    pitches = tuple(plane.reshape(len(plane), -1).shape[1] + padding for plane in planes)
    blocks = [on_device(device, padded(plane, pitch)) for plane, pitch in zip(planes, pitches, strict=True)]
    frame = DeviceFrame(tuple(block.address for block in blocks), pitches, width, height, pixels, colours)
    told = np.zeros((most, ORIGIN.itemsize), np.uint8)
    told[: len(matrices)] = crop_origins(frame, matrices)
    result = np.full((most, 256, 256, 3), 7, np.uint8)
    block, crops, stream = on_device(device, told), on_device(device, result), device.stream()
    kernels.crop(block.address, crops.address, most, stream)
    stream.synchronize()
    found = from_device(device, crops, result)
    for owned in (*blocks, block, crops, stream):
        owned.free()
    return found


@st.composite
def affine(draw, width, height):
    """A matrix that maps part of a picture to a crop: rotated, mirrored, sheared, enlarged or reduced."""
    scale, turn = draw(st.floats(0.3, 8)), draw(st.floats(-np.pi, np.pi))
    flip, shear = draw(st.sampled_from((-1, 1))), draw(st.floats(-0.5, 0.5))
    linear = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ [[flip, shear], [0, 1]]
    center = np.array([draw(st.floats(0, width)), draw(st.floats(0, height))])
    return np.column_stack([linear, 128 - linear @ center])


def picture(rng, width, height):
    """Noise from single pixels to large blocks; smooth if OpenCV is not exact."""
    image = sum(
        cv2.resize(
            rng.normal(0, 60, (max(1, height // n), max(1, width // n), 3)), (width, height), interpolation=cv2.INTER_LINEAR
        ).reshape(height, width, 3)
        for n in ((1, 9, 40) if EXACT_WARP else (40,))
    )
    return np.clip(image + 128, 0, 255).astype(np.uint8)


@few
@given(data=st.data())
def test_crops_of_bgr_are_those_of_opencv(kernels, data):
    width, height = data.draw(st.integers(1, 300)), data.draw(st.integers(1, 200))
    image = picture(np.random.default_rng(data.draw(st.integers(0, 99))), width, height)
    matrices = data.draw(st.lists(affine(width, height), min_size=1, max_size=2))
    found = run_crop(kernels, [image], width, height, PixelFormat.BGR, BT709, matrices, padding=data.draw(st.integers(0, 40)))
    for crop, matrix in zip(found, matrices, strict=True):
        warped = cv2.warpAffine(image, matrix, (256, 256), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
        assert (np.abs(crop.astype(int) - warped) <= 1).mean() >= 0.999
        twin = kernel_twin.crop([image], width, height, PixelFormat.BGR, BT709, matrix)
        assert np.abs(crop - twin).max() < 1


@few
@given(data=st.data())
def test_crops_of_yuv_are_those_of_its_definition(kernels, data):
    width, height = data.draw(st.integers(1, 120)), data.draw(st.integers(1, 90))
    pixels, colours = data.draw(st.sampled_from((PixelFormat.NV12, PixelFormat.YUV420))), data.draw(st.sampled_from(COLOURS))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    half = (height + 1) // 2, (width + 1) // 2
    chroma = [(*half, 2)] if pixels is PixelFormat.NV12 else [half, half]
    planes = [rng.integers(0, 256, shape, np.uint8) for shape in ((height, width), *chroma)]
    matrix = data.draw(affine(width, height))
    (found,) = run_crop(kernels, planes, width, height, pixels, colours, [matrix], padding=data.draw(st.integers(0, 9)))
    assert np.abs(found - kernel_twin.crop(planes, width, height, pixels, colours, matrix)).max() < 1.01


@few
@given(bgr=st.tuples(*[st.integers(0, 255)] * 3), colours=st.sampled_from(COLOURS))
@example((255, 255, 255), BT709)
@example((0, 0, 0), BT601)
@example((0, 0, 255), BT601_FULL)
def test_a_colour_comes_back_from_yuv(kernels, bgr, colours):
    """Rounding Y, U and V to whole numbers costs up to 2 levels."""
    y, u, v = (
        np.full(shape, value, np.uint8)
        for shape, value in zip(((6, 6), (3, 3), (3, 3)), kernel_twin.yuv_from_bgr(bgr, colours), strict=True)
    )
    matrix = crop_from_image(Box(0, 0, 6, 6))
    (found,) = run_crop(kernels, [y, u, v], 6, 6, PixelFormat.YUV420, colours, [matrix])
    assert np.abs(found[100, 100].astype(int) - bgr).max() <= 2


def test_the_colours_are_those_that_ffmpeg_takes(kernels):
    """FFmpeg has its own factors and rounding, and does not interpolate chroma, so the picture has large blocks."""
    av = pytest.importorskip("av")
    rng = np.random.default_rng(3)
    bgr = rng.integers(0, 256, (4, 4, 3), np.uint8).repeat(64, 0).repeat(64, 1)
    for colours, space in ((BT601, "ITU601"), (BT709, "ITU709")):
        for full in (False, True):
            colours = type(colours)(colours.red, colours.blue, full)
            ranges = {"src_color_range": "JPEG", "dst_color_range": "JPEG" if full else "MPEG"}
            frame = av.VideoFrame.from_ndarray(bgr, "bgr24").reformat(format="yuv420p", dst_colorspace=space, **ranges)
            planes = [
                np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]
                for plane in frame.planes
            ]
            (found,) = run_crop(kernels, planes, 256, 256, PixelFormat.YUV420, colours, [np.eye(2, 3)])
            middle = np.s_[32::64, 32::64]
            assert np.abs(found[middle].astype(int) - bgr[middle]).max() <= 3


def test_nv12_and_planes_of_their_own_give_the_same(kernels):
    rng = np.random.default_rng(1)
    y, u, v = (rng.integers(0, 256, shape, np.uint8) for shape in ((31, 45), (16, 23), (16, 23)))
    matrices = [crop_from_image(Box(-5, 3, 40, 40)), crop_from_image(Box(20, 0, 31, 31))]
    nv12 = run_crop(kernels, [y, np.stack([u, v], -1)], 45, 31, PixelFormat.NV12, BT709, matrices)
    assert np.array_equal(nv12, run_crop(kernels, [y, u, v], 45, 31, PixelFormat.YUV420, BT709, matrices, padding=5))


def test_one_launch_serves_several_frames(kernels):
    """As for a batch from several cameras: each crop refers to its own frame, of any size and kind."""
    made, device = kernels
    rng = np.random.default_rng(2)
    images = [rng.integers(0, 256, (height, width, 3), np.uint8) for height, width in ((20, 30), (41, 17))]
    matrix = crop_from_image(Box(2, 3, 15, 15))
    blocks = [on_device(device, image) for image in images]
    frames = [
        DeviceFrame((block.address,), (3 * image.shape[1],), image.shape[1], image.shape[0])
        for block, image in zip(blocks, images, strict=True)
    ]
    told = on_device(device, np.concatenate([crop_origins(frame, [matrix]) for frame in frames]))
    result = np.zeros((2, 256, 256, 3), np.uint8)
    crops, stream = on_device(device, result), device.stream()
    made.crop(told.address, crops.address, 2, stream)
    stream.synchronize()
    for found, image in zip(from_device(device, crops, result), images, strict=True):
        expected = kernel_twin.crop([image], image.shape[1], image.shape[0], PixelFormat.BGR, BT709, matrix)
        assert np.abs(found - expected).max() < 1
    for owned in (*blocks, told, crops, stream):
        owned.free()


def test_only_the_wanted_crops_are_written_and_outside_is_black(kernels):
    image = np.full((20, 20, 3), 255, np.uint8)
    far, whole = crop_from_image(Box(1e6, 1e6, 50, 50)), crop_from_image(Box(0, 0, 20, 20))
    found = run_crop(kernels, [image], 20, 20, PixelFormat.BGR, BT709, [far, whole], most=4)
    assert (found[0] == 0).all()
    assert (found[1, 10:-20, 10:-20] == 255).all()
    assert (found[2:] == 7).all()
    white = [np.full(shape, value, np.uint8) for shape, value in (((20, 20), 235), ((10, 10, 2), 128))]
    (found,) = run_crop(kernels, white, 20, 20, PixelFormat.NV12, BT709, [far])
    assert (found == 0).all()


def test_poses_of_the_kernels_crops_are_those_of_opencvs(kernels):
    """The default weights on the demo clip: within the limits of an exported model, in px and mm."""
    from engines.opening import open_pose_model
    from engines.parity import LIMITS
    from pipeline.stages import warp_crop

    image = cv2.VideoCapture(str(weights.DEMO_CLIP)).read()[1]
    height, width = image.shape[:2]
    regions = [Box(150, 60, 380, 380), Box(200, -20, 420, 420)]
    warped = np.stack([warp_crop(image, region) for region in regions])
    found = run_crop(kernels, [image], width, height, PixelFormat.BGR, BT709, [crop_from_image(region) for region in regions])
    with open_pose_model(weights.load("xs").onnx, threads=1, precision="fp32") as model:
        expected, of_kernel = model.run(warped), model.run(found)
    difference = np.abs(of_kernel.joints - expected.joints)
    assert difference[..., :2].max() <= LIMITS["fp16"].max_px
    assert difference[..., 2].max() <= LIMITS["fp16"].max_mm


def run_tail(kernels, logits, shape, *, workspace=None):
    """The kernel's joints and scores of float16 [N, J * D, H, W]."""
    kernels, device = kernels
    count = len(logits)
    joints, scores = np.zeros((count, shape.joint_count, 3), np.float32), np.zeros((count, shape.joint_count), np.float32)
    there, stream = [on_device(device, array) for array in (logits, joints, scores)], device.stream()
    work = workspace or device.allocate(shape.workspace(count))
    if workspace is None:
        kernels.clear(work.address, shape.workspace(count), stream)
    kernels.tail(shape, *(block.address for block in there), work.address, count, stream)
    stream.synchronize()
    found = from_device(device, there[1], joints), from_device(device, there[2], scores)
    for owned in (*there, stream, *([] if workspace else [work])):
        owned.free()
    return found


def expected_tail(logits, shape):
    """The network's own functions, in FP64, on the same FP16 logits."""
    torch = pytest.importorskip("torch")
    from convnextpose.network import joint_scores, soft_argmax

    volume = torch.from_numpy(logits.astype(np.float64)).reshape(
        len(logits), shape.joint_count, shape.depth, shape.height, shape.width
    )
    factor = torch.tensor([shape.px_x, shape.px_y, shape.mm], dtype=torch.float64)
    joints = soft_argmax(volume) * factor + torch.tensor([0.0, 0.0, shape.mm_offset], dtype=torch.float64)
    return joints.numpy(), joint_scores(volume).numpy()


def assert_tail(found, expected):
    """Joints within a thousandth of a px and a hundredth of a mm, scores within a hundred-thousandth."""
    difference = np.abs(found[0] - expected[0])
    assert difference[..., :2].max() < 1e-3
    assert difference[..., 2].max() < 1e-2
    assert np.abs(found[1] - expected[1]).max() < 1e-5


@few
@given(data=st.data())
def test_the_tail_is_that_of_the_network(kernels, data):
    depth, height, width = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 40)), 8 * data.draw(st.integers(1, 8))
    joint_count, count = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2))
    shape = TailShape(joint_count, depth, height, width, 256 / width, 256 / height, 2000 / depth, -1000.0)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    spread, shift = data.draw(st.sampled_from((0.0, 1.0, 10.0, 1000.0))), data.draw(st.sampled_from((-60_000.0, 0.0, 60_000.0)))
    logits = (rng.normal(size=(count, joint_count * depth, height, width)) * spread + shift).clip(-65_504, 65_504)
    logits = logits.astype(np.float16)
    if data.draw(st.booleans()):  # a joint with all its mass in one place
        logits.reshape(-1)[rng.integers(logits.size)] = 65_504
    if data.draw(st.booleans()):
        logits.reshape(-1)[rng.integers(logits.size, size=logits.size // 3)] = -np.inf
    assert_tail(run_tail(kernels, logits, shape), expected_tail(logits, shape))


@pytest.mark.parametrize("variant", [Variant.XS, pytest.param(Variant.L, marks=pytest.mark.slow)])
def test_the_tail_of_a_real_networks_logits_again_and_again(kernels, variant):
    """The next run can use the same workspace: its counters are back at zero."""
    torch = pytest.importorskip("torch")
    from convnextpose.checkpoint import build_network, verify, verify_state
    from convnextpose.network import Normalise, random_state
    from engines.calibration import CalibrationSet

    trained = variant is Variant.XS
    checkpoint = verify(weights.load("xs").safetensors) if trained else verify_state(random_state(variant), source="random")
    network = build_network(checkpoint)
    proof = CalibrationSet.load(weights.CALIBRATION).split().proof
    shape = TailShape.of(variant, network.joint_count)
    made, device = kernels
    work, stream = device.allocate(shape.workspace(1)), device.stream()
    made.clear(work.address, shape.workspace(1), stream)
    stream.synchronize()
    for crop in proof[: 3 if trained else 1]:
        with torch.inference_mode():
            logits = network.head(network.backbone(Normalise()(torch.from_numpy(crop[None])))).half().numpy()
        assert_tail(run_tail(kernels, logits, shape, workspace=work), expected_tail(logits, shape))
    work.free()
    stream.free()


def test_places_that_are_ruled_out_have_no_mass(kernels):
    """Minus infinity everywhere except in one bin: most threads see nothing else."""
    shape = TailShape.of(Variant.XS, 1)
    logits = np.full((1, 32, 32, 32), -np.inf, np.float16)
    logits[0, 7, 20, 3] = -5
    joints, scores = run_tail(kernels, logits, shape)
    assert joints[0, 0] == pytest.approx([3 * 8, 20 * 8, 7 * 62.5 - 1000], abs=1e-3)
    assert scores[0, 0] == pytest.approx(1)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_broken_network_is_not_hidden(kernels, bad):
    shape = TailShape.of(Variant.XS, 2)
    logits = np.zeros((1, 64, 32, 32), np.float16)
    logits[0, 40, 3, 5] = bad
    joints, scores = run_tail(kernels, logits, shape)
    assert np.isfinite(joints[0, 0]).all()
    assert np.isnan(joints[0, 1]).all()
    assert np.isnan(scores[0, 1])


def test_a_graph_of_both_serves_the_next_frame(kernels):
    """Captured once, replayed after the block and the pixels were rewritten: a launch keeps its arguments."""
    made, device = kernels
    shape = TailShape.of(Variant.XS, 1)
    images = [np.full((8, 8, 3), value, np.uint8) for value in (50, 200)]
    places = [on_device(device, image) for image in images]
    told, crops, stream = device.pin(ORIGIN.itemsize), device.allocate(256 * 256 * 3), device.stream()
    block = device.allocate(ORIGIN.itemsize)
    logits = on_device(device, np.zeros((1, 32, 32, 32), np.float16))
    joints, scores = device.allocate(12), device.allocate(4)
    work = device.allocate(shape.workspace(1))
    made.clear(work.address, shape.workspace(1), stream)

    def record():
        device.copy_in(block.address, told.array, stream)
        made.crop(block.address, crops.address, 1, stream)
        made.tail(shape, logits.address, joints.address, scores.address, work.address, 1, stream)

    graph = device.capture(stream, record)
    for place, value in zip(places, (50, 200), strict=True):
        told.array[:] = crop_origins(DeviceFrame((place.address,), (24,), 8, 8), [crop_from_image(Box(0, 0, 8, 8))])[0]
        graph.launch(stream)
        stream.synchronize()
        assert (from_device(device, crops, np.zeros((256, 256, 3), np.uint8))[20:200, 20:200] == value).all()
        assert from_device(device, joints, np.zeros(3, np.float32)).tolist() == pytest.approx([124, 124, -31.25])
    for owned in (graph, *places, told, block, crops, stream, logits, joints, scores, work):
        owned.free()


def test_what_the_kernels_do_not_read_is_refused():
    with pytest.raises(GeometryError, match="rows of at least 90 bytes of BGR, 30 px wide, received 89"):
        DeviceFrame((4096,), (89,), 30, 20)
    with pytest.raises(GeometryError, match="expected 2 planes of NV12, received 3"):
        DeviceFrame((1, 2, 3), (32, 32, 32), 30, 20, PixelFormat.NV12)
    with pytest.raises(GeometryError, match="sides of 1 to"):
        DeviceFrame((1,), (0,), 0, 20)
    with pytest.raises(GeometryError, match="width in 8s"):
        TailShape(1, 2, 2, 12, 1, 1, 1, 0)
    with pytest.raises(GeometryError, match="can be inverted"):
        crop_origins(DeviceFrame((1,), (90,), 30, 20), [np.zeros((2, 3))])
    assert ORIGIN.itemsize == 96


GPUS = ("7.5", "8.0", "8.6", "8.7", "8.9", "9.0", "10.0", "11.0", "12.0", "12.1")


@pytest.mark.parametrize("kernel", [CROP, TAIL])
def test_nvrtc_compiles_them_for_every_gpu(kernel):
    try:
        codes = {gpu: compile_kernel(kernel, gpu) for gpu in GPUS}
    except RuntimeUnavailableError as error:
        pytest.skip(str(error))
    assert all(code[:4] == b"\x7fELF" and kernel.encode() in code for code in codes.values())
    newer = compile_kernel(kernel, "99.0")
    assert b".version" in newer  # PTX, which the driver compiles


def test_nvrtc_tells_where_the_source_is_wrong():
    try:
        compile_kernel(CROP, "8.9")
    except RuntimeUnavailableError as error:
        pytest.skip(str(error))
    with pytest.raises(DeviceError, match=r"cannot compile the kernel wrong for 8\.9: .*\(1\): error: .*nothing"):
        compile_kernel("wrong", "8.9", "__device__ int wrong() { return nothing; }")


def test_without_nvrtc_it_is_one_sentence(monkeypatch):
    real = importlib.import_module

    def fail(name):
        if name.startswith("cuda"):
            raise ImportError("No module named 'cuda'")
        return real(name)

    monkeypatch.setattr(program.importlib, "import_module", fail)
    with pytest.raises(RuntimeUnavailableError, match=r"need NVRTC, which does not load: No module named 'cuda'; pip install"):
        compile_kernel(CROP, "8.9")
