"""How a stored picture is turned to stand upright."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.frame import VideoFrame
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
        """From EXIF's orientation 1..8 (CIPA DC-008, tag 0x0112); other numbers are undefined and count as upright."""
        flips = {1: None, 2: 1, 3: -1, 4: 0, 5: None, 6: 1, 7: -1, 8: 0}
        return cls(number in (5, 6, 7, 8), flips.get(number))

    @classmethod
    def turned(cls, quarters: int) -> Orientation:
        """By quarters of a turn anticlockwise."""
        return (cls(), cls(True, 0), cls(False, -1), cls(True, 1))[quarters % 4]

    @classmethod
    def of_picture(cls, picture: VideoFrame) -> Orientation:
        """From a decoded picture's display matrix: x' = a x + c y and y' = b x + d y, in multiples of 90 degrees.

        Source: the ISO base media file format (ISO/IEC 14496-12), the track header's matrix.
        """
        try:
            side_data: Any = picture.side_data  # a mapping, which the stubs of each PyAV version describe differently
        except ValueError:  # PyAV doesn't know all kinds of side data; without them it has the angle, but no mirroring
            return cls.turned(round(picture.rotation / 90))
        matrix = side_data.get(SideDataType.DISPLAYMATRIX)
        if matrix is None:
            return cls()
        a, b, _, c, d = struct.unpack("=5i", bytes(matrix)[:20])
        transpose = abs(b) > abs(a)
        right_to_left, upside_down = (c < 0, b < 0) if transpose else (a < 0, d < 0)
        return cls(transpose, {(True, True): -1, (True, False): 1, (False, True): 0}.get((right_to_left, upside_down)))

    def apply(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The upright picture of a stored one [H, W, 3]; [W, H, 3] if it was transposed."""
        turned = cv2.transpose(image) if self.transpose else image
        return np.asarray(turned if self.flip is None else cv2.flip(turned, self.flip), np.uint8)


UPRIGHT = Orientation()
"""Not turned."""

FLIPS = {
    "none": UPRIGHT,
    "horizontal": Orientation(flip=1),
    "vertical": Orientation(flip=0),
    "90": Orientation.turned(3),
    "180": Orientation.turned(2),
    "270": Orientation.turned(1),
}
"""The values of `--flip`: mirrorings, or rotations by degrees clockwise."""
