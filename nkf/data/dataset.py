"""Face crops ready for a network, cut once from a pack into a memory-mapped cache.

Two kinds: ``aligned`` crops put the landmarks on the template; ``whole`` ones show the complete picture in a square,
from which training cuts its own loose crops.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nkf.data.pack import Pack
from nkf.files import replacing
from nkf.geometry import CROP_TEMPLATE, MEAN_SHAPE, Points, box_transform, transform_points
from nkf.images import ImageRGB, align, warp_similarity, whole_box
from nkf.progress import Progress, no_progress

CropKind = Literal["aligned", "whole"]


@dataclass(frozen=True, slots=True)
class FaceCrops:
    """Crops of all rows of a pack.

    Attributes:
        images: (N, S, S, 3) uint8 RGB, memory-mapped.
        landmarks_px: (N, 68, 2) float32 in pixels of the crop; the mean shape where `found` is false.
        found: (N,) bool, whether the pack has landmarks for the face.
    """

    images: NDArray[np.uint8]
    landmarks_px: NDArray[np.float32]
    found: NDArray[np.bool_]


def load_crops(pack: Pack, kind: CropKind, size: int, progress: Progress = no_progress) -> FaceCrops:
    """Open the crops of a pack, cutting them first if nobody did so before.

    Args:
        pack: the pack; its folder gets a sub-folder ``cache``.
        kind: ``aligned`` by the pack's landmarks, or ``whole``.
        size: side of the crop in pixels.
        progress: shows how far it is.
    """
    key = hashlib.sha256(f"{CROP_TEMPLATE.tolist()}{MEAN_SHAPE.tolist()}".encode()).hexdigest()[:8]
    stem = pack.path / "cache" / f"{kind}{size}-{key}"
    images, landmarks = stem.with_suffix(".images.npy"), stem.with_suffix(".landmarks.npy")
    if not (images.exists() and landmarks.exists()):
        _cut_crops(pack, kind, size, images, landmarks, progress)
    found = np.asarray(np.isfinite(pack.landmarks_px).all(axis=(1, 2)))
    return FaceCrops(np.load(images, mmap_mode="r"), np.load(landmarks), found)


def _cut_crops(pack: Pack, kind: CropKind, size: int, images: Path, landmarks: Path, progress: Progress) -> None:
    images.parent.mkdir(exist_ok=True)
    moved = np.empty((len(pack), *MEAN_SHAPE.shape), np.float32)
    with replacing(images) as partial:
        crops = np.lib.format.open_memmap(partial, "w+", np.uint8, (len(pack), size, size, 3))
        for row in progress(range(len(pack)), f"cutting {kind} crops", len(pack)):
            points = pack.landmarks_px[row]
            crops[row], moved[row] = _cut(pack.image(row), points if np.isfinite(points).all() else None, kind, size)
        crops.flush()
    with replacing(landmarks) as partial, partial.open("wb") as stream:
        np.save(stream, moved)


def _cut(image_rgb: ImageRGB, points: Points | None, kind: CropKind, size: int) -> tuple[ImageRGB, Points]:
    if kind == "aligned":
        return align(image_rgb, points, size)
    matrix = box_transform(whole_box(image_rgb), size)
    moved = MEAN_SHAPE * size if points is None else transform_points(matrix, points)
    return warp_similarity(image_rgb, matrix, size), moved


def training_targets(
    labels: NDArray[np.int64], distributions: NDArray[np.float32], *, soft: bool, smoothing: float
) -> NDArray[np.float32]:
    """Make the (N, C) target distributions.

    Args:
        labels: (N,) class indices.
        distributions: (N, C) vote shares.
        soft: take the vote shares instead of the label.
        smoothing: share of the mass spread evenly over the classes.
    """
    num_classes = distributions.shape[1]
    targets = distributions if soft else np.eye(num_classes, dtype=np.float32)[labels]
    return ((1 - smoothing) * targets + smoothing / num_classes).astype(np.float32)
