"""Find faces: every detector is a callable from an upright image to faces."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nkf.boxes import non_maximum_suppression, turn_back
from nkf.centerface import CenterFace
from nkf.errors import NkfError
from nkf.faces import Face
from nkf.images import ImageRGB, whole_box
from nkf.runtime import Device, load_detector
from nkf.weights import DEFAULT_DETECTOR


class Detector(Protocol):
    """Anything that finds faces: an upright RGB image to faces, the largest first."""

    def __call__(self, image_rgb: ImageRGB, /) -> list[Face]: ...


class WholeImage:
    """The detector for pictures that are cropped to one face already: the face fills the image."""

    def __init__(self, device: Device = "auto") -> None:
        del device  # nothing to compute

    def __call__(self, image_rgb: ImageRGB) -> list[Face]:
        return [Face(np.array(whole_box(image_rgb)), 1.0)]


LONG_SIDE = 640
SCORE_THRESHOLD = 0.5
_SURE_SCORE = 0.75  # with one of these, turned pictures are not looked at; what they alone show has to have it
_COARSE_LONG_SIDE = 160  # of the pass for faces that fill the picture
_TURNED_LONG_SIDE = 320  # of the passes over turned pictures
_MULTIPLE = 64  # both sides of the network's input


class NkfDetector:
    """Our own detector (`nkf.models.detector`): one pass at `long_side`, a small one for faces that fill the picture.

    Where both find no sure face, sure ones are looked for in the picture turned by 90, 180 and 270 degrees.
    """

    def __init__(
        self,
        device: Device = "auto",
        *,
        score_threshold: float = SCORE_THRESHOLD,
        long_side: int = LONG_SIDE,
        model: str = DEFAULT_DETECTOR,
    ) -> None:
        """Load the network.

        Args:
            device: ``auto`` takes CUDA where it is available.
            score_threshold: least score of a face. Below the default come boxes of which many are no faces: what
                `nkf.finder` wants, which looks for landmarks in them.
            long_side: to which larger pictures are scaled down, pixels: more finds smaller faces, and takes longer.
                Faces of 24 pixels in the scaled picture are found.
            model: a packaged NAME, a run folder, or a weights file.

        Raises:
            NkfError: when the network cannot be loaded, or a number is out of range.
        """
        if not long_side >= _MULTIPLE:
            raise NkfError(f"long_side {long_side}: at least {_MULTIPLE} pixels are needed")
        if not 0 < score_threshold < 1:
            raise NkfError(f"score_threshold {score_threshold}: between 0 and 1 is allowed")
        self._network = load_detector(model, device)
        self._score_threshold = score_threshold
        self._long_side = long_side

    def __call__(self, image_rgb: ImageRGB) -> list[Face]:
        long_side = min(max(image_rgb.shape[:2]), self._long_side)
        sides = [long_side, _COARSE_LONG_SIDE] if long_side != _COARSE_LONG_SIDE else [long_side]
        faces = [face for side in sides for face in self._pass(image_rgb, side, 0)]
        if not any(face.detection_score > _SURE_SCORE for face in faces):
            turned = [face for turns in (1, 2, 3) for face in self._pass(image_rgb, _TURNED_LONG_SIDE, turns)]
            faces += [face for face in turned if face.detection_score > _SURE_SCORE]
        return sorted(self._merged(faces), key=lambda face: face.area, reverse=True)

    def _pass(self, image_rgb: ImageRGB, long_side: int, quarter_turns: int) -> list[Face]:
        """Look at the whole picture once, scaled to `long_side` and turned counter-clockwise."""
        turned = np.rot90(image_rgb, quarter_turns)
        size_hw = turned.shape[:2]
        batch, scale_xy = detector_input(turned, long_side)
        scores, boxes, points = (array[0] for array in self._network(batch))
        likely = scores > self._score_threshold
        faces = []
        for score, box, points5 in zip(scores[likely], boxes[likely], points[likely], strict=True):
            corners = np.clip(box.reshape(2, 2).astype(np.float64) / scale_xy, 0, [size_hw[1], size_hw[0]])
            corners = turn_back(corners, quarter_turns, size_hw)
            low, high = corners.min(axis=0), corners.max(axis=0)
            if (high > low).all():
                points5 = turn_back(points5 / scale_xy, quarter_turns, size_hw)
                faces.append(Face(np.concatenate([low, high]), float(score), points5))
        return faces

    def _merged(self, faces: list[Face]) -> list[Face]:
        boxes = np.array([face.box_xyxy for face in faces]).reshape(-1, 4)
        scores = np.array([face.detection_score for face in faces])
        return [faces[k] for k in non_maximum_suppression(boxes, scores)]


def detector_input(image_rgb: ImageRGB, long_side: int) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Scale an image and fill it up to the sides that the network takes.

    Returns:
        (1, 3, h, w) float32 in [0, 1], and the scale (2,) in x and y.
    """
    height, width = image_rgb.shape[:2]
    scale = long_side / max(height, width)
    size_wh = (max(round(width * scale), 1), max(round(height * scale), 1))
    image = Image.fromarray(image_rgb)
    scaled = np.asarray(image.resize(size_wh, Image.Resampling.BILINEAR, reducing_gap=2.0))
    batch = np.zeros((1, 3, *(side + -side % _MULTIPLE for side in scaled.shape[:2])), np.float32)
    batch[0, :, : size_wh[1], : size_wh[0]] = scaled.transpose(2, 0, 1)
    batch /= 255
    return batch, np.array(size_wh) / (width, height)


DETECTORS: dict[str, Callable[[Device], Detector]] = {"nkf": NkfDetector, "centerface": CenterFace, "none": WholeImage}


def make_detector(name: str = "auto", device: Device = "auto") -> Detector:
    """Make a detector by its name in `DETECTORS`; ``auto`` takes our own."""
    if name == "auto":
        name = "nkf"
    if name not in DETECTORS:
        raise NkfError(f"detector {name!r}: unknown; known are auto, {', '.join(DETECTORS)}")
    return DETECTORS[name](device)
