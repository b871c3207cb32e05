"""A Triton model repository: an engine or an exported model with its configuration, and the server version that fits.

    REPOSITORY/NAME/config.pbtxt
    REPOSITORY/NAME/1/model.plan or model.onnx

The configuration's parameters describe the model, so a client needs no file of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from convnextpose.errors import EngineError, ModelError, SinkError
from convnextpose.files import child, show, write_files
from engines import manifest as manifests
from engines.manifest import RTX, VERSION_COMPATIBLE, EngineManifest, is_engine
from engines.metadata import info_of, read_metadata, write_metadata
from engines.onnx_file import POSE, read_onnx
from engines.pose import CROPS, ModelInfo, predicts
from engines.session import ArraySpec

ONNX_BATCH = 16
"""Largest batch of crops for a model that does not state one."""

_DATA_TYPES = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32"}


@dataclass(frozen=True)
class Server:
    """A release of the server's container.

    Attributes:
        release: its month, which is its tag: `nvcr.io/nvidia/tritonserver:RELEASE-py3`.
        tensorrt: version of the TensorRT in it.
    """

    release: str
    tensorrt: str

    @property
    def image(self) -> str:
        """The container image."""
        return f"nvcr.io/nvidia/tritonserver:{self.release}-py3"


SERVERS = tuple(
    Server(release, tensorrt)
    for release, tensorrt in (
        ("24.05", "10.0.1.6"), ("24.06", "10.1.0.27"), ("24.07", "10.2.0.19"), ("24.08", "10.3.0.26"), ("24.09", "10.4.0.26"),
        ("24.10", "10.5.0.18"), ("24.11", "10.6.0.26"), ("24.12", "10.7.0.23"), ("25.02", "10.8.0.43"), ("25.03", "10.9.0.34"),
        ("25.05", "10.10.0.31"), ("25.06", "10.11.0.33"), ("25.08", "10.13.2.6"), ("25.10", "10.13.3.9"),
        ("25.12", "10.14.1.48"),
    )
)  # fmt: skip
"""A release for each TensorRT. docs/triton.md says where each row comes from, and how to check an image yourself."""


@dataclass(frozen=True)
class Repository:
    """A repository that was written.

    Attributes:
        folder: the model's folder in it.
        name: the model's name on the server.
        info: the model's description.
        tensorrt: version of TensorRT that it needs; None for an exported model.
        server: the release that fits; None if the table has none, or if any release fits.
    """

    folder: Path
    name: str
    info: ModelInfo
    tensorrt: str | None
    server: Server | None


def fitting_server(manifest: EngineManifest) -> Server | None:
    """The server's release that runs an engine: with exactly its TensorRT or, for a version-compatible engine, a later one with
    the same major number."""
    exact = next((server for server in SERVERS if server.tensorrt == manifest.library_version.partition(".post")[0]), None)
    if exact is not None or not manifest.options.get(VERSION_COMPATIBLE):
        return exact
    built = _numbers(manifest.library_version)
    later = [s for s in SERVERS if _numbers(s.tensorrt)[0] == built[0] and _numbers(s.tensorrt) >= built]
    return min(later, key=lambda server: _numbers(server.tensorrt), default=None)


def write_repository(
    model: Path, out: Path, *, name: str | None = None, version: int = 1, queue_us: int = 0, overwrite: bool = False
) -> Repository:
    """Write a model's folder into a repository.

    Args:
        model: an engine with its manifest beside it, or an exported pose model.
        out: the repository; created if it does not exist.
        name: the model's name on the server; None for the model's own name.
        version: the number of its version; the server serves the highest.
        queue_us: time that the server waits for more crops before it runs those it has, microseconds.
        overwrite: whether existing files may be replaced.

    Raises:
        EngineError, ModelError: the model is damaged, or Triton cannot run it.
        SinkError: the repository cannot be written.
    """
    manifest: EngineManifest | None = None
    if is_engine(model):
        manifest, data = manifests.load_with_bytes(model)
        info = manifest.model_of(ModelInfo)
        if manifest.library == RTX:
            raise EngineError(
                f"expected an engine of TensorRT, received {model} of TensorRT for RTX, which Triton has no backend for; build "
                "one with `convnextpose build` on a machine with the package tensorrt, or give it the exported model"
            )
        if manifest.batch.min > 1:
            raise EngineError(
                f"expected an engine that takes single crops, received {model} for {manifest.batch.min} and more; build it "
                "again with a smallest batch of 1"
            )
    else:
        data = read_onnx(model, POSE, str(model))
        info = read_metadata(data, str(model))
    called = name or re.sub(r"[^A-Za-z0-9_.-]+", "_", Path(info.name).stem)
    try:
        out.mkdir(parents=True, exist_ok=True)
        folder = child(out, called)
        (folder / str(version)).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise SinkError(f"expected a folder for the model repository, but {out} cannot hold {show(called)}: {error}") from error
    file = folder / str(version) / ("model.plan" if manifest else "model.onnx")
    config = folder / "config.pbtxt"
    contents = {file: data, config: config_text(called, info, manifest, queue_us=queue_us).encode()}
    write_files(contents, tuple(contents) if overwrite else ())
    server = fitting_server(manifest) if manifest else None
    return Repository(folder, called, info, manifest.library_version if manifest else None, server)


def config_text(name: str, info: ModelInfo, manifest: EngineManifest | None, *, queue_us: int = 0) -> str:
    """A model's `config.pbtxt`, in protobuf's text format.

    Args:
        name: the model's name on the server.
        info: the model's description.
        manifest: the engine's manifest; None for an exported model.
        queue_us: time that the server waits for more crops, microseconds.
    """
    most = manifest.batch.max if manifest else ONNX_BATCH
    platform, backend = ("tensorrt_plan", "tensorrt") if manifest else ("onnxruntime_onnx", "onnxruntime")
    kind = "KIND_GPU" if manifest else "KIND_AUTO"
    lines = [
        "# Written by `convnextpose triton`.",
        f"name: {_quoted(name)}",
        f"platform: {_quoted(platform)}",
        f"backend: {_quoted(backend)}",
        f"max_batch_size: {most}",
        "# Only the highest version is served; a new one takes over when it is loaded.",
        "version_policy: { latest: { num_versions: 1 } }",
    ]
    lines += _tensor("input", CROPS)
    for spec in predicts(len(info.joint_set)):
        lines += _tensor("output", spec)
    preferred = f" preferred_batch_size: [ {manifest.batch.typical} ]" if manifest and manifest.batch.typical > 1 else ""
    lines += [
        f"instance_group [ {{ count: 1 kind: {kind} }} ]",
        "# Crops of several requests go through the network together.",
        f"dynamic_batching {{{preferred} max_queue_delay_microseconds: {queue_us} }}",
        "# The model is ready when it has run a crop and a full batch.",
    ]
    for count in sorted({1, most}):
        dims = ", ".join(str(length) for length in CROPS.shape[1:])
        lines += [
            "model_warmup {",
            f'  name: "{count} crops"',
            f"  batch_size: {count}",
            f"  inputs {{ key: {_quoted(CROPS.name)} value: {{ data_type: TYPE_UINT8 dims: [ {dims} ] zero_data: true }} }}",
            "}",
        ]
    parameters = write_metadata(info)
    parameters["precision"] = info.precision
    if manifest:
        parameters["tensorrt_version"] = manifest.library_version
        server = fitting_server(manifest)
        parameters["tritonserver_image"] = server.image if server else "none known: see docs/triton.md"
        parameters["built_for"] = f"compute capability {', '.join(manifest.compute_capabilities)}"
    lines += [
        f"parameters {{ key: {_quoted(key)} value: {{ string_value: {_quoted(value)} }} }}" for key, value in parameters.items()
    ]
    return "\n".join(lines) + "\n"


def read_parameters(parameters: dict[str, str], source: str) -> ModelInfo:
    """The description of a served model, from the parameters of its configuration.

    Raises:
        ModelError: they are not those of a repository that `write_repository` wrote.
    """
    if "convnextpose.contract" not in parameters:
        raise ModelError(
            f"expected a model of a repository that `convnextpose triton` wrote, received {source}, whose configuration says "
            "nothing of it"
        )
    return info_of(parameters, source)


def _tensor(side: str, spec: ArraySpec) -> list[str]:
    dims = ", ".join(str(length) for length in spec.shape[1:])
    return [f"{side} [ {{ name: {_quoted(spec.name)} data_type: {_DATA_TYPES[spec.dtype]} dims: [ {dims} ] }} ]"]


def _quoted(text: str) -> str:
    """A string in protobuf's text format."""
    plain = (chr(byte) if 32 <= byte < 127 and chr(byte) not in '"\\' else f"\\{byte:03o}" for byte in text.encode())
    return f'"{"".join(plain)}"'


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition(".post")[0]))
