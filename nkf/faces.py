"""A found face, and its 68 landmarks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nkf.geometry import (
    CROP_SIZE,
    MEAN_SHAPE,
    NUM_LANDMARKS,
    Matrix,
    Points,
    box_transform,
    expand_box,
    five_points,
    invert_transform,
    similarity_transform,
    square_transform,
    transform_points,
    upright_square,
)
from nkf.images import ImageRGB, warp_similarity
from nkf.quality import Problem
from nkf.runtime import FoundLandmarks

FAN_BOX_SCALE = 1.15  # side of the crop for the face alignment network, in longer sides of the detected box
# From where a second pass pays for itself (docs/landmarks.md): the face's rotation in radians; its shift, and its size
# against the best one, in the crop.
MAX_ROLL, MAX_SHIFT, MIN_SCALE = np.radians(10), 0.06, 0.85
MIN_SIDE_PX = 1.0  # of a crop; where points lie closer together they tell no place
Passes = Literal["auto", 1, 2]


@dataclass(frozen=True, slots=True, eq=False)
class Face:
    """One found face; all coordinates are pixels of the upright image.

    `box_xyxy` is (4,), `detection_score` in [0, 1], `points5_px` (5, 2) in the order of `geometry.five_points`,
    `landmarks_px` (68, 2); `landmark_spread_px` (68,) is the expected distance of each landmark to the truth.
    `problems` tell why the face is of low quality (see `nkf.quality`).
    """

    box_xyxy: NDArray[np.float64]
    detection_score: float
    points5_px: NDArray[np.float64] | None = None
    landmarks_px: NDArray[np.float64] | None = None
    landmark_spread_px: NDArray[np.float64] | None = None
    problems: tuple[Problem, ...] = ()

    def __post_init__(self) -> None:
        shapes = {
            "box_xyxy": (4,),
            "points5_px": (5, 2),
            "landmarks_px": (NUM_LANDMARKS, 2),
            "landmark_spread_px": (NUM_LANDMARKS,),
        }
        for name, shape in shapes.items():
            value = getattr(self, name)
            if value is None:
                continue
            value = np.asarray(value, np.float64)
            if value.shape != shape or not np.isfinite(value).all():
                raise ValueError(f"{name} has shape {value.shape} or is not finite; expected {shape}, finite")
            object.__setattr__(self, name, value)
        x0, y0, x1, y1 = self.box_xyxy
        if not (x1 > x0 and y1 > y0):
            raise ValueError(f"box_xyxy {self.box_xyxy.tolist()} is empty; expected x0 < x1 and y0 < y1")
        if not 0 <= self.detection_score <= 1:
            raise ValueError(f"detection_score is {self.detection_score}; expected 0 to 1")

    @property
    def status(self) -> Literal["ok", "low_quality"]:
        """Whether the landmarks, and what is read from them, can be trusted."""
        return "low_quality" if self.problems else "ok"

    @property
    def area(self) -> float:
        """Area of the box in square pixels."""
        x0, y0, x1, y1 = self.box_xyxy
        return float((x1 - x0) * (y1 - y0))


Network = Callable[[NDArray[np.float32]], FoundLandmarks]  # crops (B, 3, S, S) in [0, 1] to pixels of the crop


def find_landmarks(
    fan: Network,
    image_rgb: ImageRGB,
    boxes_xyxy: Sequence[ArrayLike],
    *,
    quarter_turns: Sequence[int] | None = None,
    size: int = CROP_SIZE,
    passes: Passes = "auto",
) -> FoundLandmarks:
    """Find 68 landmarks in each box.

    The first pass looks at the loose square around a box. Where it finds the face turned or badly placed there, a
    second one looks at a crop that the landmarks of the first put upright and in the middle.

    Args:
        fan: a face alignment network, for example from `nkf.runtime.load_fan`.
        image_rgb: (H, W, 3) uint8.
        boxes_xyxy: N boxes in image pixels.
        quarter_turns: for each box the counter-clockwise quarter turns that put its face upright; None = all upright.
        size: S, the side of the network's crop.
        passes: 1 or 2 for every face, or as many as it needs.

    Returns:
        (N, 68, 2) and (N, 68) in image pixels.
    """
    turns = quarter_turns or [0] * len(boxes_xyxy)
    matrices = [first_crop(box, size, turn) for box, turn in zip(boxes_xyxy, turns, strict=True)]
    return find_in_crops(fan, [image_rgb] * len(matrices), matrices, size=size, passes=passes)


def first_crop(box_xyxy: ArrayLike, size: int, quarter_turns: int = 0) -> Matrix:
    """The (2, 3) map from image pixels to those of the first pass's crop: a loose square around the box.

    Args:
        box_xyxy: (4,) in image pixels.
        size: side of the crop.
        quarter_turns: counter-clockwise, that put the face upright.
    """
    return _turned(box_transform(expand_box(box_xyxy, FAN_BOX_SCALE), size), quarter_turns, size)


def crop_from_points(points5_px: Points, size: int) -> Matrix:
    """The (2, 3) map from image pixels to an upright crop around the landmarks of a mean face with these five points.

    Args:
        points5_px: (5, 2) in the order of `geometry.five_points`.
        size: side of the crop.

    Raises:
        ValueError: when the points (nearly) coincide.
    """
    guess = transform_points(similarity_transform(five_points(MEAN_SHAPE), points5_px), MEAN_SHAPE)
    square = upright_square(guess)
    if not square[2] > MIN_SIDE_PX:
        raise ValueError("the five points coincide")
    return square_transform(square, size)


def find_in_crops(
    fan: Network,
    images: Sequence[ImageRGB],
    matrices: Sequence[Matrix],
    *,
    size: int = CROP_SIZE,
    passes: Passes = "auto",
) -> FoundLandmarks:
    """Find 68 landmarks from given first crops, as `find_landmarks` does.

    Args:
        fan: as there.
        images: N images, (H, W, 3) uint8 each.
        matrices: N similarities (2, 3), from an image's pixels to those of its first crop.
        size: S.
        passes: as there.

    Returns:
        (N, 68, 2) and (N, 68) in pixels of the images.
    """
    found = first_look(fan, images, matrices, size)
    return second_look(fan, images, matrices, found, size=size, passes=passes)


def first_look(
    fan: Network, images: Sequence[ImageRGB], matrices: Sequence[Matrix], size: int = CROP_SIZE
) -> FoundLandmarks:
    """The first pass of `find_in_crops`, with the same arguments and result."""
    if not matrices:
        return FoundLandmarks(np.zeros((0, NUM_LANDMARKS, 2)), np.zeros((0, NUM_LANDMARKS)))
    crops = [warp_similarity(image, matrix, size) for image, matrix in zip(images, matrices, strict=True)]
    found = fan(to_batch(crops))
    points = [transform_points(invert_transform(m), p) for m, p in zip(matrices, found.points_px, strict=True)]
    scales = np.sqrt([abs(np.linalg.det(matrix[:, :2])) for matrix in matrices])
    return FoundLandmarks(np.stack(points).astype(np.float64), found.spread_px / scales[:, None])


def second_look(
    fan: Network,
    images: Sequence[ImageRGB],
    matrices: Sequence[Matrix],
    found: FoundLandmarks,
    *,
    size: int = CROP_SIZE,
    passes: Passes = "auto",
) -> FoundLandmarks:
    """The second pass of `find_in_crops`, with the same arguments and what the first one found."""
    points_px, spread_px = found
    squares = {
        k: upright_square(points)
        for k, (matrix, points) in enumerate(zip(matrices, points_px, strict=True))
        if passes == 2 or (passes == "auto" and is_badly_placed(transform_points(matrix, points), size))
    }
    again = [k for k, square in squares.items() if square[2] > 0]  # all landmarks in one place give no crop
    if again:
        closer = [square_transform(squares[k], size) for k in again]
        points_px, spread_px = points_px.copy(), spread_px.copy()
        points_px[again], spread_px[again] = first_look(fan, [images[k] for k in again], closer, size)
    return FoundLandmarks(points_px, spread_px)


def is_badly_placed(landmarks_px: Points, size: int) -> bool:
    """Tell whether a crop shows its face so turned, shifted or scaled that a second pass pays for itself.

    Args:
        landmarks_px: (68, 2) in pixels of the crop.
        size: side of the crop.
    """
    x, y, side, angle = upright_square(landmarks_px)
    shift = max(abs(x - size / 2), abs(y - size / 2)) / size
    return bool(abs(angle) > MAX_ROLL or shift > MAX_SHIFT or not MIN_SCALE < side / size < 1 / MIN_SCALE)


def quarter_turns_upright(points5_px: Points | None) -> int:
    """Count the counter-clockwise quarter turns of the image that bring a face nearest to upright; 0 without points."""
    if points5_px is None:
        return 0
    right_eye, left_eye = points5_px[0], points5_px[1]
    x, y = left_eye - right_eye
    return int(np.rint(np.arctan2(y, x) / (np.pi / 2))) % 4


def to_batch(crops: Sequence[ImageRGB]) -> NDArray[np.float32]:
    """Stack B crops (S, S, 3) uint8 to (B, 3, S, S) float32 in [0, 1]."""
    return np.ascontiguousarray(np.stack(crops).transpose(0, 3, 1, 2), np.float32) / np.float32(255)


def _turned(matrix: Matrix, quarter_turns: int, size: int) -> Matrix:
    """Follow a map to a square crop by counter-clockwise quarter turns of that crop."""
    for _ in range(quarter_turns):
        # (x, y) of the crop goes to (y, size - x).
        matrix = np.stack([matrix[1], [-matrix[0, 0], -matrix[0, 1], size - matrix[0, 2]]])
    return matrix
