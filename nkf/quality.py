"""Judge a found face: whether it is one at all, and whether its landmarks and its expression can be trusted.

The limits come from `benchmarks/quality.py`, whose figures stand in docs/landmarks.md.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nkf.geometry import Points
from nkf.images import ImageRGB
from nkf.pose import head_pose

Problem = Literal["small", "blurred", "turned", "landmarks"]


@dataclass(frozen=True, slots=True)
class QualityLimits:
    """From where a face is of low quality.

    Attributes:
        min_size_px: longer side of the landmarks' box in the photo.
        min_sharpness: see `sharpness`.
        max_yaw_deg: turned to a side; more is profile.
        max_pitch_deg: looking up or down.
        max_spread: see `relative_spread`.
    """

    min_size_px: float = 20.0
    min_sharpness: float = 0.135
    max_yaw_deg: float = 60.0
    max_pitch_deg: float = 45.0
    max_spread: float = 0.05


def find_problems(
    landmarks_px: Points, spread_px: NDArray[np.floating], crop: ImageRGB, limits: QualityLimits
) -> tuple[Problem, ...]:
    """List what keeps a face from being trusted; nothing for a good one.

    Args:
        landmarks_px: (68, 2) in pixels of the photo.
        spread_px: (68,) expected distance of each landmark to the truth, same pixels.
        crop: (S, S, 3) uint8, the aligned face.
        limits: where to draw the lines.
    """
    problems: list[Problem] = []
    if face_size(landmarks_px) < limits.min_size_px:
        problems.append("small")
    if sharpness(crop) < limits.min_sharpness:
        problems.append("blurred")
    try:
        yaw, pitch, _ = head_pose(landmarks_px)
    except ValueError:
        yaw = pitch = 180.0  # no face has such landmarks
    if abs(yaw) > limits.max_yaw_deg or abs(pitch) > limits.max_pitch_deg:
        problems.append("turned")
    if relative_spread(landmarks_px, spread_px) > limits.max_spread:
        problems.append("landmarks")
    return tuple(problems)


def face_size(landmarks_px: Points) -> float:
    """Longer side of the landmarks' box, pixels."""
    return float(np.ptp(landmarks_px, axis=0).max())


def relative_spread(landmarks_px: Points, spread_px: NDArray[np.floating]) -> float:
    """Mean expected error of the landmarks over the face's size; infinite for a face without size."""
    size = face_size(landmarks_px)
    return float(np.mean(spread_px)) / size if size > 0 else float("inf")


def sharpness(crop: ImageRGB) -> float:
    """Detail of an aligned face: gradient over contrast, at a quarter of its side; 0 for one colour.

    A blur lowers the gradients, light and contrast cancel out. Coarse on purpose: a picture of 48 px is not blurred.

    Args:
        crop: (S, S, 3) uint8, S a multiple of 4.
    """
    grey = crop.mean(axis=2)
    side = len(grey) // 4 * 4
    small = grey[:side, :side].reshape(side // 4, 4, side // 4, 4).mean(axis=(1, 3))
    contrast = small.std()
    gradient = np.abs(np.diff(small, axis=0)).mean() + np.abs(np.diff(small, axis=1)).mean()
    return float(gradient / 2 / contrast) if contrast > 1 else 0.0


# Logistic regression on the logit of the detection score and the logarithm of the relative spread, fitted on the boxes
# of the detector of 2026-11-29 and the alignment network of that evening.
_INTERCEPT, _PER_LOGIT, _PER_LOG_SPREAD = -9.539, 0.602, -3.732
MIN_FACE_PROBABILITY = 0.7  # rather no face than a wrong one


def face_probability(detection_score: float, spread: float) -> float:
    """Probability that a found face is one, from the detector's and the alignment network's certainty together.

    Args:
        detection_score: 0 to 1.
        spread: see `relative_spread`.
    """
    score = np.clip(detection_score, 1e-4, 1 - 1e-4)
    z = _INTERCEPT + _PER_LOGIT * np.log(score / (1 - score)) + _PER_LOG_SPREAD * np.log(np.clip(spread, 1e-4, 1e4))
    return float(1 / (1 + np.exp(-z)))
