"""Find faces: every detector is a callable from an upright image to faces."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nkf.boxes import non_maximum_suppression, turn_back
from nkf.centerface import CenterFace
from nkf.errors import NkfError
from nkf.faces import Face
from nkf.images import ImageRGB, whole_box
from nkf.runtime import Device, load_detector
from nkf.weights import DEFAULT_DETECTOR, WeightsInfo


class Detector(Protocol):
    """Anything that finds faces: an upright RGB image to faces, the largest first."""

    def __call__(self, image_rgb: ImageRGB, /) -> list[Face]: ...


class WholeImage:
    """The detector for pictures that are cropped to one face already: the face fills the image."""

    def __init__(self, device: Device = "auto", *, threads: int | None = None) -> None:
        del device, threads  # nothing to compute

    def __call__(self, image_rgb: ImageRGB) -> list[Face]:
        return [Face(np.array(whole_box(image_rgb)), 1.0)]


LONG_SIDE = 640
FOUND_PX = 24  # longer side of the smallest face that the network finds in its input
SCORE_THRESHOLD = 0.5
# With a face of the first score, the picture is not looked at again (one upside down was taken for an upright one with
# 0.85); what it shows turned has to have the second.
_UPRIGHT_SCORE, _TURNED_SCORE = 0.9, 0.75
_DOUBT_SCALES = (0.5, 1.5)  # of the usual pass, of two more where that shows no sure face
_COARSE_LONG_SIDE = 160  # of the pass for faces that fill the picture
_TURNED_LONG_SIDE = 320  # of the passes over turned pictures
_MULTIPLE = 64  # both sides of the network's input
# Longest side of what is looked at in one go, which keeps memory below 100 MB. Neighbouring tiles have to share what
# the usual pass does not show, so beyond 11,000 scaled pixels tiles are larger: 140 MB for 30,000.
_TILE = 1280


class _Tile(NamedTuple):
    """A part of a picture in its pixels, x0 < x1 and y0 < y1."""

    x0: int
    y0: int
    x1: int
    y1: int


class NkfDetector:
    """Our own detector (`nkf.models.detector`): one pass at `long_side`, a small one for faces that fill the picture.

    Where both find no sure face, the picture is looked at smaller and larger, and where that does not help, sure faces
    are looked for in the picture turned by 90, 180 and 270 degrees. Faces that are too small for this are found when
    `min_face_px` asks for them: then the picture is looked at larger, in tiles.
    """

    def __init__(
        self,
        device: Device = "auto",
        *,
        score_threshold: float = SCORE_THRESHOLD,
        long_side: int = LONG_SIDE,
        min_face_px: int | None = None,
        model: str = DEFAULT_DETECTOR,
        threads: int | None = None,
    ) -> None:
        """Load the network.

        Args:
            device: ``auto`` takes CUDA where it is available.
            score_threshold: least score of a face. Below the default come boxes of which many are no faces: what
                `nkf.finder` wants, which looks for landmarks in them.
            long_side: to which larger pictures are scaled down, pixels: more finds smaller faces, and takes longer.
                Faces of `FOUND_PX` pixels in the scaled picture are found.
            min_face_px: longer side of the smallest faces that are wanted, pixels of the picture; at least `FOUND_PX`.
                Where they are smaller than that at `long_side`, the picture is looked at again at the scale that brings
                them to it, which takes longer in proportion to its pixels there. None: what `long_side` shows.
            model: a packaged NAME, a run folder, or a weights file.
            threads: CPU threads of one call of the network; None takes all cores.

        Raises:
            NkfError: when the network cannot be loaded, or a number is out of range.
        """
        if not long_side >= _MULTIPLE:
            raise NkfError(f"long_side {long_side}: at least {_MULTIPLE} pixels are needed")
        if min_face_px is not None and min_face_px < FOUND_PX:
            raise NkfError(f"min_face_px {min_face_px}: smaller faces than {FOUND_PX} pixels cannot be found")
        if not 0 < score_threshold < 1:
            raise NkfError(f"score_threshold {score_threshold}: between 0 and 1 is allowed")
        self._network = load_detector(model, device, threads=threads)
        self._score_threshold = score_threshold
        self._long_side = long_side
        self._min_face_px = min_face_px

    @property
    def info(self) -> WeightsInfo:
        """Sidecar of the network."""
        return self._network.info

    def __call__(self, image_rgb: ImageRGB) -> list[Face]:
        long_side = min(max(image_rgb.shape[:2]), self._long_side)
        sides = [long_side, _COARSE_LONG_SIDE] if long_side != _COARSE_LONG_SIDE else [long_side]
        faces = [face for side in sides for face in self._look(*scaled(image_rgb, side))]
        faces += self._small_faces(image_rgb, long_side)
        if not _is_sure(faces):
            again = (scaled(image_rgb, round(long_side * scale)) for scale in _DOUBT_SCALES)
            faces += [face for picture, scale_xy in again for face in self._look(picture, scale_xy)]
        if not _is_sure(faces):
            small, scale_xy = scaled(image_rgb, _TURNED_LONG_SIDE)
            turned = [face for turns in (1, 2, 3) for face in self._look(small, scale_xy, turns)]
            faces += [face for face in turned if face.detection_score > _TURNED_SCORE]
        return sorted(self._merged(faces), key=lambda face: face.area, reverse=True)

    def _look(self, image_rgb: ImageRGB, scale_xy: NDArray[np.float64], quarter_turns: int = 0) -> list[Face]:
        """Look once at a `scaled` picture, turned counter-clockwise; the faces are in pixels of the whole one."""
        turned = np.rot90(image_rgb, quarter_turns)
        size_hw = turned.shape[:2]
        scores, boxes, points = (array[0] for array in self._network(network_input(turned)))
        likely = scores > self._score_threshold
        faces = []
        for score, box, points5 in zip(scores[likely], boxes[likely], points[likely], strict=True):
            corners = np.clip(box.reshape(2, 2).astype(np.float64), 0, [size_hw[1], size_hw[0]])
            corners = turn_back(corners, quarter_turns, size_hw) / scale_xy
            low, high = corners.min(axis=0), corners.max(axis=0)
            if (high > low).all():
                points5 = turn_back(points5, quarter_turns, size_hw) / scale_xy
                faces.append(Face(np.concatenate([low, high]), float(score), points5))
        return faces

    def _small_faces(self, image_rgb: ImageRGB, long_side: int) -> list[Face]:
        """Look at a picture in tiles for faces from `min_face_px` on that a pass at `long_side` does not show."""
        whole = max(image_rgb.shape[:2])
        scale = FOUND_PX / self._min_face_px if self._min_face_px else 0.0
        if whole * scale <= long_side:
            return []
        height, width = image_rgb.shape[:2]
        overlap = round(1.5 * FOUND_PX * whole / long_side)  # larger faces are seen whole in the pass at long_side
        faces = []
        for tile in tiles(width, height, side=max(round(_TILE / scale), 2 * overlap), overlap=overlap):
            part = image_rgb[tile.y0 : tile.y1, tile.x0 : tile.x1]
            for face in self._look(*scaled(part, max(round(max(part.shape[:2]) * scale), 1))):
                face = _moved(face, tile.x0, tile.y0)
                if not _is_cut(face, tile, width, height):
                    faces.append(face)
        return faces

    def _merged(self, faces: list[Face]) -> list[Face]:
        boxes = np.array([face.box_xyxy for face in faces]).reshape(-1, 4)
        scores = np.array([face.detection_score for face in faces])
        return [faces[k] for k in non_maximum_suppression(boxes, scores)]


def _is_sure(faces: list[Face]) -> bool:
    return any(face.detection_score > _UPRIGHT_SCORE for face in faces)


def scaled(image_rgb: ImageRGB, long_side: int) -> tuple[ImageRGB, NDArray[np.float64]]:
    """Scale an (H, W, 3) image to a long side in pixels; returns it, and the scale (2,) in x and y."""
    height, width = image_rgb.shape[:2]
    scale = long_side / max(height, width)
    size_wh = (max(round(width * scale), 1), max(round(height * scale), 1))
    small = Image.fromarray(image_rgb).resize(size_wh, Image.Resampling.BILINEAR, reducing_gap=2.0)
    return np.asarray(small), np.array(size_wh) / (width, height)


def network_input(image_rgb: ImageRGB) -> NDArray[np.float32]:
    """Fill an (H, W, 3) image up with black to the sides that the network takes: (1, 3, h, w) in [0, 1]."""
    height, width = image_rgb.shape[:2]
    batch = np.zeros((1, 3, *(side + -side % _MULTIPLE for side in (height, width))), np.float32)
    batch[0, :, :height, :width] = image_rgb.transpose(2, 0, 1)
    batch /= 255
    return batch


def tiles(width: int, height: int, *, side: int, overlap: int) -> Iterator[_Tile]:
    """Cover a picture with tiles of at most `side` pixels, each reaching `overlap` or more into the next ones.

    What is no larger than `overlap` is whole in one of them.
    """
    for y0, y1 in _spans(height, side, overlap):
        for x0, x1 in _spans(width, side, overlap):
            yield _Tile(x0, y0, x1, y1)


def _spans(length: int, side: int, overlap: int) -> list[tuple[int, int]]:
    side = min(side, length)
    count = 1 + -(-(length - side) // max(side - overlap, 1))
    starts = np.linspace(0, length - side, count).astype(int).tolist()
    return [(start, start + side) for start in starts]


def _moved(face: Face, x: int, y: int) -> Face:
    points = None if face.points5_px is None else face.points5_px + [x, y]
    return replace(face, box_xyxy=face.box_xyxy + [x, y, x, y], points5_px=points)


def _is_cut(face: Face, tile: _Tile, width: int, height: int) -> bool:
    """Tell whether the border of a tile cuts a face, where the picture goes on."""
    x0, y0, x1, y1 = face.box_xyxy
    inner = (tile.x0 > 0, tile.y0 > 0, tile.x1 < width, tile.y1 < height)
    touched = (x0 <= tile.x0, y0 <= tile.y0, x1 >= tile.x1, y1 >= tile.y1)
    return any(goes_on and touches for goes_on, touches in zip(inner, touched, strict=True))


DETECTORS: dict[str, Callable[..., Detector]] = {"nkf": NkfDetector, "centerface": CenterFace, "none": WholeImage}


def make_detector(
    name: str = "auto", device: Device = "auto", *, min_face_px: int | None = None, threads: int | None = None
) -> Detector:
    """Make a detector by its name in `DETECTORS`; ``auto`` takes our own, which alone knows `min_face_px`.

    Args:
        name: see above.
        device: ``auto`` takes CUDA where it is available.
        min_face_px: see `NkfDetector`.
        threads: CPU threads of one call of the network; None takes all cores.

    Raises:
        NkfError: when it is unknown, cannot be loaded, or knows no `min_face_px` and gets one.
    """
    if name == "auto":
        name = "nkf"
    if name not in DETECTORS:
        raise NkfError(f"detector {name!r}: unknown; known are auto, {', '.join(DETECTORS)}")
    if min_face_px is None:
        return DETECTORS[name](device, threads=threads)
    if name != "nkf":
        raise NkfError(f"detector {name!r}: cannot look for faces of a least size; only our own, nkf, can")
    return NkfDetector(device, min_face_px=min_face_px, threads=threads)
