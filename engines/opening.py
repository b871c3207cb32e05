"""From a file to a model that runs: the choice of runtime and precision, and a `PoseModel` or `PeopleDetector` around it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from convnextpose import weights
from convnextpose.errors import EngineError, ModelError, RuntimeUnavailableError
from convnextpose.variants import INPUT_SIZE
from engines.batcher import Batcher, can_batch
from engines.graph import pose_graph
from engines.manifest import EngineManifest, is_engine
from engines.metadata import read_metadata
from engines.onnx_file import POSE, first_channels, read_onnx
from engines.onnx_parser import parse_onnx
from engines.parity import LIMITS
from engines.people import DetectorInfo, PeopleDetector, people_metadata, people_specs
from engines.pose import CROPS, ModelInfo, PoseModel, predicts
from engines.session import Session, check_threads
from engines.sessions.openvino import cpu_precisions
from engines.sessions.registry import CHECKPOINT, ENGINE, RUNTIMES, Choice, Runtime, choose_runtime, loading
from engines.sessions.torch import TorchNetwork
from engines.sessions.triton import ServedAddress, TritonSession, is_served
from engines.triton import read_parameters

if TYPE_CHECKING:
    from convnextpose.checkpoint import VerifiedCheckpoint

CPU_PRECISIONS = ("fp32", "bf16", "fp16", "int8")
"""The precisions of a network on a CPU; which of them are available depends on the CPU and the model."""


def open_pose_model(
    model: Path | bytes | VerifiedCheckpoint,
    runtime: str = "auto",
    *,
    precision: str = "auto",
    threads: int | None = None,
    name: str | None = None,
    random: bool = False,
    max_batch: int | None = None,
) -> PoseModel:
    """Open a pose model. It has already run one crop, and with `max_batch` a batch, so that the first call is fast.

    Args:
        model: an exported ONNX file or its bytes; an engine, named `.engine`, with its manifest beside it; or a verified
            checkpoint, which is exported in memory unless the runtime is torch.
        runtime: as for `choose_runtime`.
        precision: as for `choose_precision`.
        threads: number of threads; None leaves it to the library. An engine has none.
        name: the model's name; None for an exported model's own name, or a checkpoint's variant.
        random: whether a checkpoint's weights are random; an exported model's metadata says so itself.
        max_batch: calls from several threads share batches of up to this many crops; None runs one call after the other.

    Raises:
        RuntimeUnavailableError: the runtime is not installed, or cannot run such a model, precision or number of threads.
        ModelError: the file is no complete model that this project exported; EngineError: the engine does not fit this machine.
        ExportError: the checkpoint could not be exported.
    """
    chosen = _choose(model, runtime, threads)
    with loading(chosen):
        if chosen.runs == ENGINE:
            assert isinstance(model, Path)
            called = f"model {name or model.name}"
            session: Session = chosen.open(model, called, threads=threads, precision=precision, kind=ModelInfo)
            info = _manifest_of(session).model_of(ModelInfo)
            info = info if name is None else replace(info, name=name)
        elif chosen.runs == CHECKPOINT:
            if isinstance(model, (Path, bytes)):
                raise RuntimeUnavailableError(
                    f"expected a checkpoint for the runtime {chosen.name}, received an exported model; give it the "
                    "checkpoint, or choose openvino or onnxruntime"
                )
            info = ModelInfo(name or model.variant.name.lower(), model.variant, model.joint_set, model.sha256, random)
            what = choose_precision(precision, chosen.name, info).name
            session = chosen.open(pose_reference(model), f"model {info.name}", threads=threads, precision=what)
        else:
            onnx, info = _exported(model, name, random=random)
            what = choose_precision(precision, chosen.name, info).name
            if what == "int8" and info.precision != "int8":
                onnx, info = _shipped_int8(info)
            # An INT8 graph itself says which layers are in INT8: the precision is that of the others.
            rest = "fp32" if what == "int8" else what
            session = chosen.open(onnx, f"model {info.name}", threads=threads, precision=rest)
    if max_batch is None:
        return PoseModel(session, info)
    shared = PoseModel(Batcher(session, max_batch), info)
    shared.run(np.zeros((3, INPUT_SIZE, INPUT_SIZE, 3), np.uint8))  # libraries prepare separately for batches
    return shared


def open_people_detector(
    model: Path | bytes,
    runtime: str = "auto",
    *,
    threads: int | None = None,
    max_batch: int | None = None,
    person: str | None = None,
    name: str = "the people detector",
    frame: tuple[int, int] | None = None,
) -> PeopleDetector:
    """Open a people detector, in FP32. It has run one frame when this returns.

    Args:
        model: an ONNX file or its bytes, of any layout that `engines.layouts` knows; an engine, named `.engine`, with its
            manifest beside it; or for torch a safetensors file.
        runtime: as for `choose_runtime`.
        threads: number of threads; None leaves it to the library.
        max_batch: as for `open_pose_model`, for frames instead of crops. A network that takes one frame at a time runs them
            one after the other.
        person: the class of people, by name or number; None for the one that the file states, or else the layout's own.
        name: the detector's name.
        frame: width and height of its frames, if an ONNX file takes any size, px; None for the size that the file states.

    Raises:
        ModelError: the file cannot be read, or is no detector; EngineError: the engine is of another model or does not fit this
            machine.
        CheckpointError: a safetensors file is not that of a detector.
        RuntimeUnavailableError: the runtime is not installed, or cannot run such a file.
    """
    chosen = _choose(model, runtime, threads)
    called = "the people detector"
    metadata: Mapping[str, str] = {}
    stem, manifest = None, None
    with loading(chosen):
        if chosen.runs == ENGINE:
            session: Session = chosen.open(model, called, threads=threads, precision="auto", kind=DetectorInfo)
            manifest = _manifest_of(session)
            info = manifest.model_of(DetectorInfo)
            metadata, stem = info.metadata, info.stem
            person = str(info.person) if person is None and info.person is not None else person
        elif chosen.runs == CHECKPOINT:
            if isinstance(model, bytes) or model.suffix != ".safetensors":
                raise RuntimeUnavailableError(
                    f"expected a people detector's safetensors file for the runtime {chosen.name}, received an exported "
                    "one; choose openvino or onnxruntime for it"
                )
            network, metadata = _people_reference(model)
            session = chosen.open(network, called, threads=threads, precision="fp32")
        else:
            onnx = read_onnx(model, None, called)  # its layout is checked after it is opened
            found = parse_onnx(onnx, called)
            metadata, stem = found.metadata, first_channels(found)
            if frame is not None:
                metadata = {**metadata, "imgsz": f"[{frame[1]}, {frame[0]}]"}
            session = chosen.open(onnx, called, threads=threads, precision="fp32")
    shared = session if max_batch is None or not can_batch(session) else Batcher(session, max_batch)
    detector = PeopleDetector(shared, metadata=metadata, stem=stem, person=person, name=name)
    if manifest is not None:
        _check_engine(detector, manifest)
    return detector


def open_served_model(address: str, *, precision: str = "auto", max_batch: int | None = None) -> PoseModel:
    """Open a pose model on a Triton server. It has already run one crop.

    Args:
        address: `triton://HOST:PORT/NAME` with the HTTP port; NAME is in a repository that `convnextpose triton` wrote.
        precision: `auto`, or the served model's own.
        max_batch: as for `open_pose_model`.

    Raises:
        RuntimeUnavailableError: the server cannot be reached or has no such model, or the model is in another precision.
        ModelError: it is no pose model of this project.
    """
    session = TritonSession(ServedAddress.parse(address))
    try:
        info = read_parameters(session.parameters, address)
        if precision not in ("auto", info.precision):
            raise RuntimeUnavailableError(
                f"expected precision auto or {info.precision}, which the served model computes in, received {precision!r}"
            )
        session.described(info.precision)
    except BaseException:
        session.close()
        raise
    return PoseModel(session if max_batch is None else Batcher(session, max_batch), info)


def choose_precision(precision: str, runtime: str, info: ModelInfo) -> Choice:
    """Choose the precision of a model's convolutions.

    Args:
        precision: one of CPU_PRECISIONS, or `auto`: an engine's or a graph's own; otherwise `bf16` in OpenVINO if the CPU
            computes it natively and the model is one of the package's whose BF16 is within the limits of `engines.parity`; else
            `fp32`. `int8` needs an INT8 model, or one of the package's that has an INT8 graph beside it.
        runtime: name of the runtime that runs the model.
        info: the model.

    Raises:
        RuntimeUnavailableError: the runtime or the CPU does not have the precision.
        ModelError: the model has no INT8 graph.
        CheckpointError: the package's file of the model was modified.
    """
    if precision not in ("auto", *CPU_PRECISIONS):
        raise RuntimeUnavailableError(f"expected precision auto, {', '.join(CPU_PRECISIONS)}, received {precision!r}")
    if is_served(runtime):
        return Choice(info.precision, "the server has the model in it")
    if info.precision == "int8" or RUNTIMES[runtime].runs == ENGINE:
        if precision not in ("auto", info.precision):
            raise RuntimeUnavailableError(
                f"expected precision auto or {info.precision}, which model {info.name} was made in, received {precision!r}"
            )
        return Choice(info.precision, "the model was made in it")
    if precision != "auto":
        if precision == "int8" and runtime == "openvino":
            _shipped_int8(info)
        elif precision != "fp32":
            able = cpu_precisions() if runtime == "openvino" else ("fp32",)
            if precision not in able:
                elsewhere = "" if runtime == "openvino" else "; openvino has others"
                raise RuntimeUnavailableError(
                    f"expected a precision that {runtime} has on this CPU ({', '.join(able)}), received "
                    f"{precision!r}{elsewhere}"
                )
        return Choice(precision, "it was asked for")
    if runtime != "openvino":
        return Choice("fp32", f"{runtime} computes in no other here")
    if info.precision != "fp32":
        return Choice("fp32", f"model {info.name} is in {info.precision}: only FP32 models are proven in BF16")
    if "bf16" not in cpu_precisions():
        return Choice("fp32", "this CPU does not compute BF16 natively")
    shipped = weights.by_checkpoint(info.checkpoint_sha256)
    measured = None if shipped is None else shipped.deviations.get("bf16")
    if measured is None:
        return Choice("fp32", f"model {info.name} was not proven in BF16; --precision bf16 uses it anyway")
    where = "" if measured.runtime == runtime else f" of {measured.runtime}, in which it was proven"
    strays = f"differs from FP32 by {measured.mean_px:.2g} px and {measured.mean_mm:.2g} mm on average in BF16{where}"
    if not LIMITS["bf16"].hold(measured):
        return Choice("fp32", f"model {info.name} {strays}, beyond the limits")
    return Choice("bf16", f"this CPU computes it natively and model {info.name} {strays}")


def pose_reference(checkpoint: VerifiedCheckpoint, precision: str = "fp32") -> TorchNetwork:
    """The reference: a checkpoint in PyTorch as the authors define it, nothing folded, with the contract's inputs and outputs.

    Args:
        checkpoint: the model.
        precision: `fp32`, `fp16` or `bf16`: its precision up to the logits.
    """
    from convnextpose.checkpoint import build_network
    from convnextpose.network import Bf16Reference, PoseReference

    made = {"fp32": PoseReference, "fp16": lambda network: PoseReference(network.half()), "bf16": Bf16Reference}
    if precision not in made:
        raise RuntimeUnavailableError(f"expected precision {', '.join(made)} for PyTorch, received {precision!r}")
    module = made[precision](build_network(checkpoint)).eval()
    return TorchNetwork(module, (CROPS,), predicts(len(checkpoint.joint_set)))


def pose_baseline(checkpoint: VerifiedCheckpoint, precision: str = "fp16") -> TorchNetwork:
    """The baseline for an engine's speed: a checkpoint in PyTorch, folded as for an export.

    Args:
        checkpoint: the model.
        precision: `fp32` or `fp16`: its precision up to the logits.
    """
    from engines.folding import contract_network

    module = contract_network(checkpoint, half=precision == "fp16")
    return TorchNetwork(module, (CROPS,), predicts(len(checkpoint.joint_set)))


def _people_reference(path: Path) -> tuple[TorchNetwork, dict[str, str]]:
    """A detector as it was trained, nothing folded, and the metadata of its exported file."""
    from convnextpose.detector import CANDIDATES, FRAME_SIZE, DetectorReference, build_detector

    network = TorchNetwork(DetectorReference(build_detector(path)).eval(), *people_specs(CANDIDATES))
    return network, people_metadata(FRAME_SIZE)


def _manifest_of(session: Session) -> EngineManifest:
    from engines.sessions.tensorrt import TensorRTSession  # much that runs without a GPU does not need

    assert isinstance(session, TensorRTSession)
    return session.manifest


def _check_engine(detector: PeopleDetector, manifest: EngineManifest) -> None:
    """Refuse, and close, a detector whose engine does not have the frames and layout of the file that it was built from.

    Raises:
        EngineError: it has other frames or another layout.
    """
    info = manifest.model_of(DetectorInfo)
    expected = f"{info.layout}, {info.width}x{info.height} px"
    found = "{}, {}x{} px".format(detector.layout.name, *detector.frame_size)
    if found != expected:
        detector.close()
        raise EngineError(
            f"expected the people detector that the engine's manifest describes ({expected}), received one of {found}; build "
            f"it again with `{manifest.command}`"
        )


def _choose(model: object, runtime: str, threads: int | None) -> Runtime:
    if is_served(runtime):
        raise RuntimeUnavailableError(
            f"expected no model beside {runtime}, which is a served model itself: open it with `open_served_model`"
        )
    chosen = RUNTIMES[choose_runtime(runtime, engine=is_engine(model)).name]
    check_threads(threads)
    return chosen


def _exported(model: Path | bytes | VerifiedCheckpoint, name: str | None, *, random: bool) -> tuple[bytes, ModelInfo]:
    """An ONNX file and the model's description from its metadata."""
    if isinstance(model, (Path, bytes)):
        source = "the model in memory" if isinstance(model, bytes) else str(model)
        onnx = read_onnx(model, POSE, source)
        return onnx, read_metadata(onnx, source, name)
    onnx = pose_graph(model, name=name or model.variant.name.lower(), random=random)
    return onnx, read_metadata(onnx, model.source, name)


def _shipped_int8(info: ModelInfo) -> tuple[bytes, ModelInfo]:
    """The package's INT8 graph of a model, under the model's name.

    Raises:
        ModelError: it has none.
    """
    shipped = weights.by_checkpoint(info.checkpoint_sha256)
    if shipped is None or shipped.int8 is None:
        able = [name for name in weights.names() if weights.load(name).int8 is not None]
        raise ModelError(
            f"expected a model with an INT8 graph (of the package's: {', '.join(able) or 'none'}), received {info.name}, which "
            "has none; take another precision"
        )
    onnx = shipped.int8.read_bytes()
    return onnx, read_metadata(onnx, str(shipped.int8), info.name)
