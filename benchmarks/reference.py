"""An independent open pose detector for comparison: MediaPipe's pose landmarker (Apache-2.0), which its wheel contains.

It is not a dependency of this project. The benchmarks that compare with it run in a separate environment:

    python3.11 -m venv reference-env
    reference-env/bin/pip install mediapipe==0.10.14 'av>=17'
    PYTHONPATH=. reference-env/bin/python benchmarks/accuracy.py agreement VIDEO RESULTS/poses.npz
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from convnextpose.crop import Box, apply_affine, crop_from_image, crop_region, invert_affine
from convnextpose.errors import RuntimeUnavailableError
from convnextpose.skeleton import HUMAN36M

SIDE = 512
"""Side of the detector's crops, px."""

LANDMARKS = {
    "Nose": 0, "L_Shoulder": 11, "R_Shoulder": 12, "L_Elbow": 13, "R_Elbow": 14, "L_Wrist": 15, "R_Wrist": 16,
    "L_Hip": 23, "R_Hip": 24, "L_Knee": 25, "R_Knee": 26, "L_Ankle": 27, "R_Ankle": 28,
}  # fmt: skip


class Reference:
    """MediaPipe's full pose model on single pictures.

    Raises:
        RuntimeUnavailableError: it is not installed here; says how to install it.
    """

    def __init__(self) -> None:
        try:
            import mediapipe
        except ImportError as error:
            raise RuntimeUnavailableError(
                "expected mediapipe to compare with, which is not installed here; the top of benchmarks/reference.py says how"
            ) from error
        self._pose: Any = mediapipe.solutions.pose.Pose(
            static_image_mode=True, model_complexity=1, min_detection_confidence=0.3
        )

    def estimate(self, image: NDArray[np.uint8], box: Box) -> tuple[NDArray[np.float64], NDArray[np.bool_]] | None:
        """The joints [18, 2] (px) of the person in a box, and whether it surely sees each [18]; None if it finds nobody."""
        matrix = crop_from_image(crop_region(box, image.shape[1], image.shape[0]), SIDE)
        crop = cv2.warpAffine(image, matrix, (SIDE, SIDE), flags=cv2.INTER_CUBIC)
        found = self._pose.process(cv2.cvtColor(crop, cv2.COLOR_BGR2RGB)).pose_landmarks
        if found is None:
            return None
        joints, sure = np.full((len(HUMAN36M), 2), np.nan), np.zeros(len(HUMAN36M), bool)
        for name, number in LANDMARKS.items():
            landmark = found.landmark[number]
            joints[HUMAN36M.joints.index(name)] = landmark.x * SIDE - 0.5, landmark.y * SIDE - 0.5
            sure[HUMAN36M.joints.index(name)] = landmark.visibility >= 0.5
        return apply_affine(invert_affine(matrix), joints), sure
