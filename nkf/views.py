"""A network's view of the faces of a pack, with whatever is done to the pictures before."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from nkf.data.pack import Pack
from nkf.faces import to_batch
from nkf.finder import LandmarkFinder
from nkf.geometry import MEAN_SHAPE, Points, similarity_transform, transform_points
from nkf.images import ImageRGB, align, whole_box
from nkf.progress import Progress, no_progress
from nkf.quality import face_size
from nkf.runtime import ExpressionModel, FloatArray

# Crops (B, 3, S, S) and landmarks (B, 68, 2) to probabilities (B, C), which may be the first of several outputs.
Classifier = Callable[[FloatArray, FloatArray], FloatArray | tuple[FloatArray, ...]]
# Row of the pack, picture and landmarks to changed picture and landmarks.
Change = Callable[[int, ImageRGB, Points], tuple[ImageRGB, Points]]
Found = list[Points | None]
Crops = NDArray[np.uint8]  # (N, S, S, 3)

BATCH = 64


def classify(network: Classifier, crops: Crops, landmarks_px: Points) -> FloatArray:
    """Probabilities (N, C) of (N, S, S, 3) uint8 crops with their (N, 68, 2) landmarks, some at a time."""
    parts = []
    for start in range(0, len(crops), BATCH):
        batch = slice(start, start + BATCH)
        output = network(to_batch(list(crops[batch])), landmarks_px[batch].astype(np.float32))
        parts.append(output[0] if isinstance(output, tuple) else output)
    return np.concatenate(parts)


@dataclass(frozen=True, eq=False)
class View:
    """A network's view of the faces of a pack.

    Attributes:
        pack: the pack.
        network: that classifies.
        finder: of landmarks; None takes those of the pack.
    """

    pack: Pack
    network: ExpressionModel
    finder: LandmarkFinder | None

    def classify(
        self, rows: NDArray[np.int64], change: Change | None = None, progress: Progress = no_progress
    ) -> tuple[FloatArray, int]:
        """Probabilities (N, C) for changed pictures, and how many faces have no landmarks in these."""
        parts, missing, starts = [], 0, range(0, len(rows), BATCH)
        for start in progress(starts, f"classifying with {self.network.info.name}", len(starts)):
            images, found, boxes = self.find(rows[start : start + BATCH], change)
            crops, points = self.aligned(images, found, boxes)
            parts.append(classify(self.network, crops, points))
            missing += sum(one is None for one in found)
        return np.concatenate(parts), missing

    def find(
        self, rows: NDArray[np.int64], change: Change | None = None
    ) -> tuple[list[ImageRGB], Found, list[NDArray[np.floating]]]:
        """Changed pictures, the landmarks in them, and their boxes; not finite without one."""
        images, known, boxes = map(list, zip(*(self._changed(int(row), change) for row in rows), strict=True))
        if self.finder is None:
            return images, known, boxes
        given = [box if np.isfinite(box).all() else None for box in boxes]
        return images, self.finder(images, given, self.pack.manifest.get("shows", "face")), boxes

    def aligned(
        self, images: Sequence[ImageRGB], found: Sequence[Points | None], boxes: Sequence[NDArray[np.floating]]
    ) -> tuple[Crops, Points]:
        """Crops (B, S, S, 3) and landmarks (B, 68, 2) in them, see `nkf.images.align`."""
        size = self.network.info.input_size
        faces = zip(images, found, boxes, strict=True)
        pairs = [align(image, points, size, box) for image, points, box in faces]
        return np.stack([crop for crop, _ in pairs]), np.stack([points for _, points in pairs])

    def cut(self, rows: NDArray[np.int64], landmarks_px: Points) -> tuple[Crops, Points]:
        """Crops (N, S, S, 3) of the unchanged pictures by given landmarks (N, 68, 2), and the landmarks in them."""
        size = self.network.info.input_size
        pairs = [align(self.pack.image(row), one, size) for row, one in zip(rows, landmarks_px, strict=True)]
        return np.stack([crop for crop, _ in pairs]), np.stack([points for _, points in pairs])

    @cached_property
    def _boxes(self) -> NDArray[np.float32]:
        return self.pack.column("box_xyxy")

    def _changed(self, row: int, change: Change | None) -> tuple[ImageRGB, Points | None, NDArray[np.floating]]:
        image, box = self.pack.image(row), self._boxes[row]
        points = self.pack.landmarks_px[row].astype(np.float64)
        known = bool(face_size(points) > 0)  # neither missing nor all in one place
        if change is not None:
            before = points if known else _shape_in(box if np.isfinite(box).all() else whole_box(image))
            image, points = change(row, image, before)
            box = _moved_box(box, before, points)
        return image, points if known else None, box


def _shape_in(box_xyxy: NDArray[np.floating]) -> Points:
    """The mean shape in the largest square about the middle of a box."""
    low, high = box_xyxy[:2].astype(np.float64), box_xyxy[2:].astype(np.float64)
    return (low + high) / 2 + (MEAN_SHAPE - 0.5) * (high - low).min()


def _moved_box(box_xyxy: NDArray[np.floating], before: Points, after: Points) -> NDArray[np.floating]:
    """A box of the same size where the landmarks' movement brings its middle."""
    if after is before:
        return box_xyxy
    centre = (box_xyxy[:2] + box_xyxy[2:]) / 2
    shift = transform_points(similarity_transform(before, after), centre) - centre
    return box_xyxy + np.tile(shift, 2)
