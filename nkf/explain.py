"""Which keypoints carried a decision: each is covered in turn, and what that costs the expression is its contribution.

Tested on the network as it is, and not read out of it, so it holds for every network that tells expressions; what
NKF's own attention gives each keypoint is told beside it. What the numbers do not mean is in ``docs/explanation.md``.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from nkf.faces import to_batch
from nkf.geometry import LANDMARK_GROUPS, NUM_LANDMARKS, Points
from nkf.images import ImageRGB
from nkf.runtime import ExpressionModel, FloatArray

RADIUS = 0.07  # of what covers a keypoint, in sides of the crop: half the width of an eye
BLUR = 0.07  # σ of what it is covered with, in sides of the crop

_GROUPS = {
    "brows": ("right_brow", "left_brow"),
    "eyes": ("right_eye", "left_eye"),
    "nose": ("nose_bridge", "nose_bottom"),
    "mouth": ("outer_lip", "inner_lip"),
    "jaw": ("jaw",),
}
REGIONS = {name: tuple(k for group in groups for k in LANDMARK_GROUPS[group]) for name, groups in _GROUPS.items()}
"""Parts of the face and their landmarks."""


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """What the keypoints of one face have to do with the expression that was told.

    `contributions` (68,): by how much the natural logarithm of the expression's odds p / (1 - p) drops when the
    keypoint is covered; above zero it speaks for the expression, below against it. The order of the keypoints is that
    of the probabilities, which themselves hardly move where the network is sure. Neighbours share what they cover, so
    contributions do not add up. `attention` (68,): what the network gives each keypoint, sums to 1; None of a network
    that has no such thing. `regions`: mean contribution of the landmarks of each of `REGIONS`.
    """

    expression: str
    contributions: NDArray[np.float64]
    attention: NDArray[np.float64] | None
    regions: dict[str, float]

    def __post_init__(self) -> None:
        for name in ("contributions", "attention"):
            value = getattr(self, name)
            if value is not None and (value.shape != (NUM_LANDMARKS,) or not np.isfinite(value).all()):
                raise ValueError(f"{name} has shape {value.shape} or is not finite; expected (68,), finite")

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values: contributions to 1e-4, attention to 1e-6."""
        return {
            "expression": self.expression,
            "contributions": np.round(self.contributions, 4).tolist(),
            "attention": None if self.attention is None else np.round(self.attention, 6).tolist(),
            "regions": {name: round(value, 4) for name, value in self.regions.items()},
        }


def explain_face(
    model: ExpressionModel, crop_rgb: ImageRGB, landmarks_px: Points, expression_index: int
) -> Explanation:
    """Cover each keypoint of a face with a blurred disc, and see what becomes of an expression's odds.

    The landmarks stay, so the network reads at the same places what is left there. It runs 69 times.

    Args:
        model: that tells expressions.
        crop_rgb: (S, S, 3) uint8 aligned crop, S = ``model.info.input_size``, as `nkf.images.align` cuts it.
        landmarks_px: (68, 2) in pixels of the crop.
        expression_index: of the expression to explain in ``model.info.classes``, in general the most probable one.

    Raises:
        ValueError: when the crop or the landmarks have another shape.
    """
    size = model.info.input_size
    if crop_rgb.shape != (size, size, 3) or np.shape(landmarks_px) != (NUM_LANDMARKS, 2):
        given = f"a crop {crop_rgb.shape} and landmarks {np.shape(landmarks_px)}"
        raise ValueError(f"{given}; expected {(size, size, 3)} and {(NUM_LANDMARKS, 2)}")
    points = np.asarray(landmarks_px, np.float32)
    whole, attention = model.with_attention(to_batch([crop_rgb]), points[None])
    covered = cover(crop_rgb, soft_discs(points, size), blurred(crop_rgb))
    probabilities = model(covered, np.tile(points, (NUM_LANDMARKS, 1, 1)))
    contributions = _log_odds(whole, expression_index) - _log_odds(probabilities, expression_index)
    return Explanation(
        model.info.classes[expression_index],
        contributions,
        None if attention is None else attention[0].astype(np.float64),
        {name: float(contributions[list(keypoints)].mean()) for name, keypoints in REGIONS.items()},
    )


def soft_discs(centres_px: Points, size: int) -> FloatArray:
    """How much of each pixel the discs around (N, 2) points cover: (N, size, size) in [0, 1].

    All of it up to half of `RADIUS`, a half at the radius, nothing from one and a half of it on: a hard edge would be
    a feature of its own.
    """
    axis = np.arange(size, dtype=np.float32) + 0.5
    x, y = centres_px[:, 0, None, None], centres_px[:, 1, None, None]
    distance = np.hypot(axis - x, axis[:, None] - y)
    return np.clip(1.5 - distance / (RADIUS * size), 0, 1).astype(np.float32)


def cover(crop_rgb: ImageRGB, masks: FloatArray, fill_rgb: ImageRGB) -> FloatArray:
    """Lay another picture over a crop.

    Args:
        crop_rgb: (S, S, 3) uint8.
        masks: (N, S, S), the share of each pixel that is covered.
        fill_rgb: (S, S, 3) uint8, what it is covered with.

    Returns:
        (N, 3, S, S) float32 in [0, 1], as networks take them.
    """
    crop, fill = to_batch([crop_rgb, fill_rgb])
    return crop + masks[:, None] * (fill - crop)


def blurred(crop_rgb: ImageRGB) -> ImageRGB:
    """Blur a crop by `BLUR`: it keeps the skin's tone and light, and loses what tells an expression.

    Less artificial than one colour, which is a spot wherever the face is lighter or darker.
    """
    return np.asarray(Image.fromarray(crop_rgb).filter(ImageFilter.GaussianBlur(BLUR * len(crop_rgb))))


def _log_odds(probabilities: FloatArray, index: int) -> NDArray[np.float64]:
    """(B,) of one class; against the sum of the others, since 1 - p of a float32 near 1 is mostly rounding."""
    values = np.maximum(probabilities.astype(np.float64), 1e-37)
    return np.log(values[:, index]) - np.log(np.delete(values, index, axis=1).sum(axis=1))
