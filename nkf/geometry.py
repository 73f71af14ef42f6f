"""The coordinate convention, and the 68 facial landmarks.

Coordinates are continuous pixels: x right, y down, (0, 0) is the top-left corner of the top-left pixel, so the
centre of the pixel in column i and row j is (i + 0.5, j + 0.5). Boxes are ``xyxy``. Landmarks are the 68 points of
the iBUG 300-W scheme, zero-based; right and left are the subject's, so the right eye is at the image's left.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Points = NDArray[np.floating]  # (..., 2), pixels
Matrix = NDArray[np.float64]  # (2, 3), maps (x, y, 1) to (x, y)

NUM_LANDMARKS = 68
NUM_VERTICES = 478  # of the face mesh that the teacher finds
NASAL_BASE = 33
LANDMARK_GROUPS: dict[str, range] = {
    "jaw": range(0, 17),
    "right_brow": range(17, 22),
    "left_brow": range(22, 27),
    "nose_bridge": range(27, 31),
    "nose_bottom": range(31, 36),
    "right_eye": range(36, 42),
    "left_eye": range(42, 48),
    "outer_lip": range(48, 60),
    "inner_lip": range(60, 68),
}
RIGHT_EYE_OUTER, LEFT_EYE_OUTER = 36, 45
RIGHT_MOUTH_CORNER, LEFT_MOUTH_CORNER = 48, 54

# fmt: off
_MIRROR = (
    16, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0,  # jaw
    26, 25, 24, 23, 22, 21, 20, 19, 18, 17,  # brows
    27, 28, 29, 30, 35, 34, 33, 32, 31,  # nose
    45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40,  # eyes
    54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55,  # outer lip
    64, 63, 62, 61, 60, 67, 66, 65,  # inner lip
)
# fmt: on
LANDMARK_MIRROR: NDArray[np.int64] = np.array(_MIRROR)  # (68,), landmark k of a mirrored face was landmark MIRROR[k]

CROP_SIZE = 112
LOOSE_SCALE, UPRIGHT_SCALE = 1.3, 1.2  # side of the alignment network's crops, in longer sides of the landmarks' box
CROP_TEMPLATE: NDArray[np.float64] = np.array(
    [[0.32, 0.40], [0.68, 0.40], [0.50, 0.62], [0.37, 0.75], [0.63, 0.75]]
)  # (5, 2), fractions of the crop's side, in the order of `five_points`

# fmt: off
# (68, 2), fractions of the crop's side; median of the aligned, mirrored teacher landmarks of our training packs.
MEAN_SHAPE: NDArray[np.float64] = np.array(
    [
        [0.1405, 0.4010], [0.1434, 0.4723], [0.1478, 0.5459], [0.1586, 0.6251], [0.1815, 0.7096], [0.2497, 0.8306],
        [0.2966, 0.8749], [0.3821, 0.9338], [0.5000, 0.9610], [0.6179, 0.9338], [0.7034, 0.8749], [0.7503, 0.8306],
        [0.8185, 0.7096], [0.8414, 0.6251], [0.8522, 0.5459], [0.8566, 0.4723], [0.8595, 0.4010], [0.2072, 0.3163],
        [0.2417, 0.2902], [0.2905, 0.2767], [0.3521, 0.2813], [0.4236, 0.2915], [0.5764, 0.2915], [0.6479, 0.2813],
        [0.7095, 0.2767], [0.7583, 0.2902], [0.7928, 0.3163], [0.5000, 0.4004], [0.5000, 0.4773], [0.5000, 0.5322],
        [0.5000, 0.5762], [0.4291, 0.6172], [0.4571, 0.6342], [0.5000, 0.6363], [0.5429, 0.6342], [0.5709, 0.6172],
        [0.2697, 0.3934], [0.3034, 0.3764], [0.3557, 0.3735], [0.4088, 0.4027], [0.3646, 0.4115], [0.3139, 0.4129],
        [0.5912, 0.4027], [0.6443, 0.3735], [0.6966, 0.3764], [0.7303, 0.3934], [0.6861, 0.4129], [0.6354, 0.4115],
        [0.3696, 0.7483], [0.4213, 0.7148], [0.4588, 0.7063], [0.5000, 0.7123], [0.5412, 0.7063], [0.5787, 0.7148],
        [0.6304, 0.7483], [0.6018, 0.7810], [0.5418, 0.8121], [0.5000, 0.8159], [0.4582, 0.8121], [0.3982, 0.7810],
        [0.3821, 0.7483], [0.4667, 0.7391], [0.5000, 0.7406], [0.5333, 0.7391], [0.6179, 0.7483], [0.5342, 0.7667],
        [0.5000, 0.7688], [0.4658, 0.7667],
    ]
)
# fmt: on


def five_points(landmarks_px: Points) -> Points:
    """Reduce 68 landmarks to the five alignment points.

    Args:
        landmarks_px: (..., 68, 2).

    Returns:
        (..., 5, 2): right eye centre, left eye centre, nasal base, right and left mouth corner.
    """
    right_eye = landmarks_px[..., 36:42, :].mean(axis=-2)
    left_eye = landmarks_px[..., 42:48, :].mean(axis=-2)
    single = landmarks_px[..., [NASAL_BASE, RIGHT_MOUTH_CORNER, LEFT_MOUTH_CORNER], :]
    return np.concatenate([right_eye[..., None, :], left_eye[..., None, :], single], axis=-2)


def similarity_transform(source: ArrayLike, target: ArrayLike) -> Matrix:
    """Find the rotation, uniform scale and translation that map `source` to `target` with least squares error.

    Args:
        source: (N, 2) points, N ≥ 2, not all equal.
        target: (N, 2) points.

    Returns:
        (2, 3) matrix for `transform_points`. Never a reflection.

    Raises:
        ValueError: when all source points coincide.
    """
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    source_centre, target_centre = source.mean(axis=0), target.mean(axis=0)
    s, t = source - source_centre, target - target_centre
    spread = (s**2).sum()
    if not spread > 0:
        raise ValueError("the source points of a similarity transform coincide")
    a = (s * t).sum() / spread
    b = (s[:, 0] * t[:, 1] - s[:, 1] * t[:, 0]).sum() / spread
    linear = np.array([[a, -b], [b, a]])
    return np.column_stack([linear, target_centre - linear @ source_centre])


def transform_points(matrix: Matrix, points: Points) -> Points:
    """Apply a (2, 3) matrix to points of shape (..., 2)."""
    return points @ matrix[:, :2].T + matrix[:, 2]


def invert_transform(matrix: Matrix) -> Matrix:
    """Invert a (2, 3) affine matrix."""
    linear = np.linalg.inv(matrix[:, :2])
    return np.column_stack([linear, -linear @ matrix[:, 2]])


def crop_transform(landmarks_px: Points, size: int = CROP_SIZE) -> Matrix:
    """Find the similarity from image pixels to the aligned face crop.

    Args:
        landmarks_px: (68, 2) in image pixels.
        size: side of the square crop in pixels.
    """
    return similarity_transform(five_points(landmarks_px), CROP_TEMPLATE * size)


def box_transform(box_xyxy: ArrayLike, size: int = CROP_SIZE) -> Matrix:
    """Find the similarity that maps the square around a box's centre, as long as its longer side, to a square crop."""
    x0, y0, x1, y1 = np.asarray(box_xyxy, np.float64)
    scale = size / max(x1 - x0, y1 - y0)
    centre = np.array([x0 + x1, y0 + y1]) / 2
    return np.column_stack([np.eye(2) * scale, size / 2 - centre * scale])


def face_transform(
    landmarks_px: Points | None, box_xyxy: ArrayLike, size: int = CROP_SIZE
) -> tuple[Matrix, NDArray[np.floating]]:
    """Find the similarity from image pixels to the aligned crop: by the landmarks, else by the box.

    Args:
        landmarks_px: (68, 2) in image pixels. Where there are none, or their five points coincide, the box is cut.
        box_xyxy: (4,) of the face in image pixels.
        size: side of the square crop in pixels.

    Returns:
        The (2, 3) map, and (68, 2) landmarks in pixels of the crop: the mean shape where the box is cut.
    """
    try:
        matrix = None if landmarks_px is None else crop_transform(landmarks_px, size)
    except ValueError:
        matrix = None
    if landmarks_px is None or matrix is None:
        return box_transform(box_xyxy, size), MEAN_SHAPE * size
    return matrix, transform_points(matrix, landmarks_px)


def roll(landmarks_px: Points) -> NDArray[np.floating]:
    """Rotation of each face in radians, clockwise as displayed, by the best similarity to the mean shape.

    Args:
        landmarks_px: (..., 68, 2).
    """
    shape = MEAN_SHAPE - MEAN_SHAPE.mean(axis=0)
    points = landmarks_px - landmarks_px.mean(axis=-2, keepdims=True)
    along = (points * shape).sum(axis=(-2, -1))
    across = (points[..., 1] * shape[:, 0] - points[..., 0] * shape[:, 1]).sum(axis=-1)
    return np.arctan2(across, along)


def loose_square(landmarks_px: Points) -> NDArray[np.floating]:
    """Square of a face alignment network's first crop, about as a detector's box gives it.

    Args:
        landmarks_px: (..., 68, 2).

    Returns:
        (..., 4): centre x, centre y and side in pixels, and the angle 0: raised, since detectors add forehead.
    """
    low, high = landmarks_px.min(axis=-2), landmarks_px.max(axis=-2)
    side = (high - low).max(axis=-1) * LOOSE_SCALE
    x, y = ((low + high) / 2)[..., 0], ((low + high) / 2)[..., 1]
    return np.stack([x, y - 0.05 * side, side, np.zeros_like(side)], axis=-1)


def upright_square(landmarks_px: Points) -> NDArray[np.floating]:
    """Square of a face alignment network's second crop: closer around the landmarks, and turned with the face.

    Args:
        landmarks_px: (..., 68, 2).

    Returns:
        (..., 4): centre x, centre y and side in pixels, and the face's rotation in radians (see `roll`).
    """
    angle = roll(landmarks_px)
    cos, sin = np.cos(angle)[..., None], np.sin(angle)[..., None]
    x, y = landmarks_px[..., 0], landmarks_px[..., 1]
    turned = np.stack([cos * x + sin * y, cos * y - sin * x], axis=-1)  # upright, about the origin
    low, high = turned.min(axis=-2), turned.max(axis=-2)
    u, v = ((low + high) / 2)[..., 0], ((low + high) / 2)[..., 1]
    cos, sin = cos[..., 0], sin[..., 0]
    side = (high - low).max(axis=-1) * UPRIGHT_SCALE
    return np.stack([cos * u - sin * v, sin * u + cos * v, side, angle], axis=-1)


def square_transform(square: ArrayLike, size: int = CROP_SIZE) -> Matrix:
    """Find the similarity that maps a square (centre x, centre y, side, angle) to an upright crop of the given size."""
    x, y, side, angle = np.asarray(square, np.float64)
    cos, sin = np.cos(angle) * size / side, np.sin(angle) * size / side
    linear = np.array([[cos, sin], [-sin, cos]])
    return np.column_stack([linear, size / 2 - linear @ [x, y]])


def expand_box(box_xyxy: ArrayLike, factor: float) -> NDArray[np.float64]:
    """Scale a box about its centre."""
    x0, y0, x1, y1 = np.asarray(box_xyxy, np.float64)
    dx, dy = (x1 - x0) * (factor - 1) / 2, (y1 - y0) * (factor - 1) / 2
    return np.array([x0 - dx, y0 - dy, x1 + dx, y1 + dy])


def interocular_distance(landmarks_px: Points) -> NDArray[np.floating]:
    """Distance between the outer eye corners, by which landmark errors are divided: (..., 68, 2) -> (...)."""
    return np.linalg.norm(landmarks_px[..., LEFT_EYE_OUTER, :] - landmarks_px[..., RIGHT_EYE_OUTER, :], axis=-1)


def mirror_landmarks(landmarks_px: Points, width: float) -> Points:
    """Landmarks (..., 68, 2) of the horizontally mirrored image of the given width in pixels."""
    mirrored = landmarks_px[..., LANDMARK_MIRROR, :].copy()
    mirrored[..., 0] = width - mirrored[..., 0]
    return mirrored
