"""Every error that this project raises on purpose, in one tree.

    PoseError
    ├── CheckpointError(ValueError)        a checkpoint that cannot be read, or that is not what it claims
    ├── GeometryError(ValueError)          a box, a camera or an array that has no meaning
    ├── ModelError(ValueError)             an exported model file that breaks the contract
    │   └── EngineError                    an engine file that is damaged, or does not fit this machine
    ├── ExportError(RuntimeError)          an export that failed
    ├── CalibrationError(ValueError)       crops that an INT8 model cannot be calibrated on
    ├── RuntimeUnavailableError(RuntimeError)  a runtime that was asked for and cannot start
    │   └── DeviceError                    CUDA refused or failed at something
    │       └── DeviceMemoryError(MemoryError)  the GPU's memory does not suffice
    ├── ParityError(RuntimeError)          a runtime that differs from the reference by more than its limit
    ├── SourceError(OSError)               a video, picture or folder that cannot be read
    ├── SinkError(OSError)                 a result that cannot be written, or a view that cannot be opened
    │   └── OutputExistsError(FileExistsError)  a result that is already there
    └── StageError(RuntimeError)           a pipeline stage that failed; `stage` names it

Each is also a subclass of a built-in error, so code that does not know this project can catch it, too. Every message is
one or two sentences on one line: what was expected, what was received, what to do.
"""

from __future__ import annotations

LONGEST = 1200
"""Limit of a message's length, characters: the middle of longer messages is left out."""


class PoseError(Exception):
    """The root of the tree: catch this to catch every error that the project raises on purpose."""

    def __str__(self) -> str:
        """The message on one line of at most LONGEST characters.

        A file's name may contain newlines, and a library's message may repeat kilobytes of the data that it rejects.
        """
        text = super().__str__()
        if not text.isprintable():
            text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
        return text if len(text) <= LONGEST else f"{text[: LONGEST * 2 // 3]} ... {text[-LONGEST // 4 :]}"


class CheckpointError(PoseError, ValueError):
    """A checkpoint cannot be read, or its tensors are not those of a ConvNeXtPose variant."""


class GeometryError(PoseError, ValueError):
    """A box, a camera or an array of joints has no geometric meaning."""


class ModelError(PoseError, ValueError):
    """A model file does not follow the contract that every exported model follows."""


class EngineError(ModelError):
    """An engine file is damaged, or it does not fit the machine that it should run on."""


class ExportError(PoseError, RuntimeError):
    """An export to ONNX failed."""


class CalibrationError(PoseError, ValueError):
    """A calibration set cannot be read, or its crops cannot show the range of values in a network."""


class RuntimeUnavailableError(PoseError, RuntimeError):
    """A runtime that was requested by name cannot start on this machine."""


class DeviceError(RuntimeUnavailableError):
    """A CUDA call failed. After a failure within the GPU, this process cannot use it any more."""


class DeviceMemoryError(DeviceError, MemoryError):
    """The GPU's memory, or the host's memory that the GPU can read, does not suffice."""


class ParityError(PoseError, RuntimeError):
    """A runtime's predictions differ from the reference by more than the limit."""


class SourceError(PoseError, OSError):
    """A video, a picture or a folder of pictures cannot be read."""


class SinkError(PoseError, OSError):
    """A result cannot be written, or a live view or output cannot be opened."""


class OutputExistsError(SinkError, FileExistsError):
    """A result exists already and may not be replaced."""


class StageError(PoseError, RuntimeError):
    """A pipeline stage failed.

    Attributes:
        stage: the name of the stage whose worker raised; the cause is chained as `__cause__`.
    """

    def __init__(self, stage: str, message: str) -> None:
        super().__init__(f"stage {stage}: {message}")
        self.stage = stage


def install_command(extra: str) -> str:
    """The command that installs one of the package's extras, for messages: the project is installed from its checkout."""
    return f"pip install '.[{extra}]' in the project's folder"
