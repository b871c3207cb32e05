"""Calibration sets: crops of people that show the range of values in a network, so that INT8 can be scaled to it."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convnextpose.archives import read_npz
from convnextpose.errors import CalibrationError
from convnextpose.files import MAX_JSON_BYTES, LimitError, check_place, parse_json, read_file, write_file
from convnextpose.variants import INPUT_SIZE
from engines.pose import check_crops

FORMAT = "convnextpose.calibration"
VERSION = 1

MIN_CROPS = 8
"""Smallest number of different crops in a set: fewer show too little of the range of values (docs/decisions/0004)."""

MAX_CROPS = 1024
"""Largest number of crops in a set, 0.2 GB: more would take hours and add nothing."""

MAX_FILE_BYTES = 256 * 1024**2
"""Largest file of a set, bytes: its uncompressed crops and its header."""

PROOF_SHARE, MAX_PROOF_CROPS = 3, 16
"""One crop in PROOF_SHARE is used for the proof instead of calibration, up to MAX_PROOF_CROPS: each takes a second."""


def hash_crops(crops: NDArray[np.uint8]) -> str:
    """SHA-256, hexadecimal, of crops [N, 256, 256, 3]: over their number and their pixels in order."""
    digest = hashlib.sha256(f"{len(crops)} ".encode())
    digest.update(np.ascontiguousarray(crops).data)
    return digest.hexdigest()


@dataclass(frozen=True)
class SplitCrops:
    """A calibration set in two parts that share no crop.

    Attributes:
        calibration: uint8 [N, 256, 256, 3], to calibrate on.
        proof: uint8 [M, 256, 256, 3], to measure the calibrated model on.
    """

    calibration: NDArray[np.uint8]
    proof: NDArray[np.uint8]


@dataclass(frozen=True)
class CalibrationSet:
    """Crops of people, checked.

    Attributes:
        crops: uint8 [N, 256, 256, 3] BGR, as the pipeline passes them to a network; at least MIN_CROPS different ones.
        sources: names of the files that they come from.
    """

    crops: NDArray[np.uint8]
    sources: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse crops that are useless for calibration.

        Raises:
            GeometryError: they have another shape or type.
            CalibrationError: there are too few, or some are of one colour, black for example.
        """
        check_crops(self.crops)
        if len(self.crops) > MAX_CROPS:
            raise CalibrationError(
                f"expected at most {MAX_CROPS} crops to calibrate on, received {len(self.crops)}: choose some of them"
            )
        different = len({hash_crops(crop[None]) for crop in self.crops})
        if different < MIN_CROPS:
            raise CalibrationError(
                f"expected {MIN_CROPS} different crops or more to calibrate on, received {different} (of {len(self.crops)}); "
                "collect some with `convnextpose calibrate CLIP --out FILE.npz`"
            )
        flat = sum(crop.min() == crop.max() for crop in self.crops)
        if flat:
            raise CalibrationError(
                f"expected crops of people to calibrate on, but {flat} of {len(self.crops)} are of a single colour, such as "
                "black; collect them again"
            )

    def __len__(self) -> int:
        """Number of crops."""
        return len(self.crops)

    @property
    def sha256(self) -> str:
        """Hash of the crops, as recorded in models that were calibrated on them."""
        return hash_crops(self.crops)

    def split(self) -> SplitCrops:
        """Its different crops in two parts, each with crops from the whole set.

        Raises:
            CalibrationError: there are too few for two parts.
        """
        different = list({hash_crops(crop[None]): index for index, crop in reversed(list(enumerate(self.crops)))}.values())
        different.sort()
        needed = MIN_CROPS * PROOF_SHARE // (PROOF_SHARE - 1)
        if len(different) < needed:
            raise CalibrationError(
                f"expected {needed} different crops or more, to calibrate on most of them and prove the model on the others, "
                f"received {len(different)} (of {len(self.crops)}); collect more with `convnextpose calibrate`"
            )
        kept = different[PROOF_SHARE - 1 :: PROOF_SHARE]
        proof = [kept[i] for i in np.linspace(0, len(kept) - 1, min(len(kept), MAX_PROOF_CROPS)).round().astype(int)]
        calibration = [index for index in different if index not in set(proof)]
        return SplitCrops(self.crops[calibration], self.crops[proof])

    def save(self, out: Path, *, overwrite: bool = False) -> None:
        """Write it as a compressed .npz with a header, in one step.

        Raises:
            OutputExistsError: the file exists and may not be replaced.
            SinkError: it cannot be written.
        """
        check_place(out, overwrite=overwrite)
        write_file(out, self.to_bytes(), overwrite=overwrite)

    def to_bytes(self) -> bytes:
        """The bytes of the file that `save` writes."""
        header = {"format": FORMAT, "version": VERSION, "sha256": self.sha256, "sources": list(self.sources)}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, header=np.array(json.dumps(header)), crops=self.crops)
        return buffer.getvalue()

    @classmethod
    def load(cls, path: Path) -> CalibrationSet:
        """Read what `save` wrote.

        Raises:
            CalibrationError: there is no such file, it is damaged or of another kind, or its crops cannot be used.
        """
        try:
            data = read_file(path, MAX_FILE_BYTES, CalibrationError, "a calibration set of `convnextpose calibrate`")
            arrays = read_npz(data, {"header": 4 * MAX_JSON_BYTES, "crops": MAX_CROPS * INPUT_SIZE**2 * 3})
            header, crops = parse_json(str(arrays["header"])), arrays["crops"]
            if header["format"] != FORMAT:
                raise ValueError(f"its format is {header['format']!r}")
            if header["version"] != VERSION:
                raise CalibrationError(f"expected a calibration set of version {VERSION}, but {path} has {header['version']}")
            check_crops(crops)
            if hash_crops(crops) != header["sha256"]:
                raise CalibrationError(
                    f"the crops in {path} are not those that were saved: their hash differs; collect them again"
                )
            return cls(crops, tuple(map(str, header["sources"])))
        except CalibrationError:
            raise
        except LimitError as error:
            raise CalibrationError(f"{path}: {error}") from error
        # numpy, zipfile and their parsers raise all kinds of errors for damaged bytes; GeometryError comes from check_crops.
        except Exception as error:
            raise CalibrationError(
                f"expected a calibration set that `convnextpose calibrate` wrote, but {path} is damaged or something else: "
                f"{error}"
            ) from error
