"""Decoders: if NVDEC is requested but not available, the CPU decodes the same frames with a note; what `auto` chooses."""

from types import SimpleNamespace

import av
import numpy as np
import pytest

from convnextpose import weights
from convnextpose.errors import SourceError
from pipeline.run import RunConfig
from pipeline.sources import Decode, open_source
from pipeline.sources import decoding as decodings
from pipeline.sources.decoding import accelerator, decoding_notes, why_no_nvdec

WHY = why_no_nvdec()
needs_none = pytest.mark.skipif(WHY is None, reason="this machine has NVDEC: tests/gpu decode with it")


def first_images(count, **options):
    with open_source(weights.DEMO_CLIP, **options) as source:
        images = [item.image for item, _ in zip(source, range(count), strict=False)]
        return source.info.notes, images


def test_pyavs_wheel_has_nvdec():
    """The choice depends on this: decoders of H.264, HEVC, VP9, AV1 and MJPEG on CUDA, with nothing else to install."""
    assert "cuda" in av.codec.hwaccel.hwdevices_available()
    for name in ("h264", "hevc", "vp9", "av1", "mjpeg"):
        assert f"{name}_cuvid" in av.codecs_available
    configs = av.codec.Codec("h264", "r").hardware_configs
    assert any(config.device_type.name == "cuda" and config.is_supported for config in configs)


@needs_none
def test_without_a_gpu_the_cpu_decodes_the_same_frames_and_a_note_says_why():
    notes, images = first_images(5, decode="nvdec")
    (note,) = notes
    assert note.startswith("the CPU decodes it, as NVDEC cannot be used: FFmpeg finds no NVIDIA GPU with its driver")
    assert note.endswith("look at `nvidia-smi`")
    plain_notes, plain = first_images(5)
    assert plain_notes == ()
    assert np.array_equal(images, plain)


@needs_none
@pytest.mark.parametrize(
    "uri", ["rtsp://127.0.0.1:9/live", "http://127.0.0.1:9/a.mp4", "udp://@:50555", "rtp://@:50556", "/dev/video77"]
)
def test_a_cameras_notes_say_it_too(uri):
    with open_source(uri, decode="nvdec") as source:
        assert source.info.notes == (f"the CPU decodes it, as NVDEC cannot be used: {WHY}",)
    with open_source(uri) as source:
        assert source.info.notes == ()


@needs_none
def test_the_wish_reaches_ffmpeg(monkeypatch):
    """If NVDEC is reported to be available, FFmpeg is asked to use it, and fails here."""
    monkeypatch.setattr(decodings, "why_no_nvdec", lambda: None)
    assert accelerator(Decode.NVDEC) is not None
    assert accelerator(Decode.CPU) is None
    with pytest.raises(SourceError, match="not permitted"):
        open_source(weights.DEMO_CLIP, decode="nvdec")


def test_what_the_gpu_does_not_decode_is_told(monkeypatch):
    monkeypatch.setattr(decodings, "why_no_nvdec", lambda: None)
    on_gpu, on_cpu = SimpleNamespace(name="h264", pix_fmt="cuda"), SimpleNamespace(name="prores", pix_fmt="yuv422p10le")
    assert decoding_notes(Decode.NVDEC, on_gpu) == ("the GPU decodes it (NVDEC)",)
    assert decoding_notes(Decode.NVDEC, on_cpu) == (
        "the CPU decodes it, as NVDEC cannot be used: this GPU does not decode this kind of prores",
    )
    assert decoding_notes(Decode.CPU, on_cpu) == decoding_notes(Decode.NVDEC) == ()


def test_a_build_of_pyav_without_cuda_is_one_sentence(monkeypatch):
    monkeypatch.setattr(decodings, "hwdevices_available", lambda: ["vaapi"])
    assert "has no CUDA" in why_no_nvdec.__wrapped__()


def test_auto_is_the_gpu_where_it_runs_the_model():
    assert RunConfig("clip.mp4", model="xs").decoder is Decode.CPU
    assert RunConfig("clip.mp4", model="xs-fp16-rtx40.engine").decoder is Decode.NVDEC
    assert RunConfig("clip.mp4", model="xs-fp16-rtx40.engine", decode="cpu").decoder is Decode.CPU
    assert not RunConfig("clip.mp4").has_engine
    assert RunConfig("clip.mp4", model="xs-fp16-rtx40.engine").has_engine
    assert RunConfig("clip.mp4", detector="detector-384x384-fp32-rtx40.engine").has_engine
    with pytest.raises(ValueError, match="expected decode auto, cpu, nvdec, received 'gpu'"):
        RunConfig("clip.mp4", decode="gpu")
