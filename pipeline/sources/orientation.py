"""How a stored picture is turned to stand upright."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Orientation:
    """A picture is transposed first, then flipped.

    Attributes:
        transpose: whether rows become columns.
        flip: OpenCV's flip code: 0 upside down, 1 left to right, -1 both; None for neither.
    """

    transpose: bool = False
    flip: int | None = None

    @classmethod
    def of_exif(cls, number: int) -> Orientation:
        """From EXIF's orientation 1..8 (CIPA DC-008, tag 0x0112); other numbers mean nothing, so that it is upright."""
        flips = {1: None, 2: 1, 3: -1, 4: 0, 5: None, 6: 1, 7: -1, 8: 0}
        return cls(number in (5, 6, 7, 8), flips.get(number))

    @classmethod
    def turned(cls, quarters: int) -> Orientation:
        """By quarters of a turn anticlockwise."""
        return (cls(), cls(True, 0), cls(False, -1), cls(True, 1))[quarters % 4]

    def apply(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The picture [H, W, 3] upright: [W, H, 3] where it was transposed."""
        turned = cv2.transpose(image) if self.transpose else image
        return np.asarray(turned if self.flip is None else cv2.flip(turned, self.flip), np.uint8)
