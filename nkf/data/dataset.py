"""Face crops ready for a network, cut once from a pack into a memory-mapped cache.

Two kinds: ``aligned`` crops put the landmarks on the template; ``whole`` ones show the complete picture in a square,
from which training cuts its own loose crops.
"""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from nkf.data.pack import Pack
from nkf.data.pack_writer import THREADS
from nkf.errors import NkfError
from nkf.files import replacing
from nkf.geometry import CROP_TEMPLATE, MEAN_SHAPE, Matrix, Points, box_transform, face_transform, transform_points
from nkf.images import ImageRGB, warp_similarity
from nkf.progress import Progress, no_progress

CropKind = Literal["aligned", "whole"]
CHECKPOINT_ROWS = 512  # what is cut again after a kill, at most
CUT_VERSION = 2  # of what is cut where there are no landmarks; older caches are not used


@dataclass(frozen=True, slots=True)
class FaceCrops:
    """Crops of all rows of a pack.

    Attributes:
        images: (N, S, S, 3) uint8 RGB, memory-mapped.
        landmarks_px: (N, 68, 2) float32 in pixels of the crop; the mean shape where `found` is false.
        found: (N,) bool, whether the pack has landmarks for the face.
        shown: (N,) bool, whether the crop shows the face: by its landmarks or its box, or since the image is one face.
    """

    images: NDArray[np.uint8]
    landmarks_px: NDArray[np.float32]
    found: NDArray[np.bool_]
    shown: NDArray[np.bool_]


class CropRows:
    """Some crops out of one or several caches, copied into memory only when they are asked for.

    Args:
        parts: for each cache its crops (N, S, S, 3), and the rows that count.
    """

    def __init__(self, parts: Sequence[tuple[NDArray[np.uint8], NDArray[np.int64]]]) -> None:
        self._parts = [(images, np.asarray(rows)) for images, rows in parts]
        self._ends = np.cumsum([len(rows) for _, rows in self._parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def shape(self) -> tuple[int, ...]:
        """(S, S, 3) of one crop."""
        return self._parts[0][0].shape[1:]

    @property
    def nbytes(self) -> int:
        """Size of all crops."""
        return len(self) * int(np.prod(self.shape))

    def take(self, index: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Copy (B, S, S, 3) crops by their numbers (B,), counted through all parts."""
        if len(self._parts) == 1:
            images, rows = self._parts[0]
            return np.take(images, rows[index], axis=0)
        batch = np.empty((len(index), *self.shape), np.uint8)
        part_of = np.searchsorted(self._ends, index, side="right")
        for number, (images, rows) in enumerate(self._parts):
            here = part_of == number
            batch[here] = images[rows[index[here] - self._ends[number] + len(rows)]]
        return batch


def load_crops(pack: Pack, kind: CropKind, size: int, progress: Progress = no_progress) -> FaceCrops:
    """Open the crops of a pack, cutting them first if nobody did so before.

    Cutting goes on where it was killed, and another process that wants the same crops waits for it.

    Args:
        pack: the pack; its folder gets a sub-folder ``cache``, or that of the user if it cannot be written.
        kind: ``aligned`` by the pack's landmarks, or ``whole``.
        size: side of the crop in pixels.
        progress: shows how far it is.
    """
    version = f"{CUT_VERSION}{CROP_TEMPLATE.tolist()}{MEAN_SHAPE.tolist()}"
    stem = cache_folder(pack) / f"{kind}{size}-{hashlib.sha256(version.encode()).hexdigest()[:8]}"
    images, landmarks = stem.with_suffix(".images.npy"), stem.with_suffix(".landmarks.npy")
    if not (images.exists() and landmarks.exists()):
        with FileLock(stem.with_suffix(".lock")):
            if not (images.exists() and landmarks.exists()):  # another process may have been quicker
                try:
                    _cut_crops(pack, kind, size, images, landmarks, progress)
                except OSError as error:  # no space left
                    reason = error.strerror or error
                    raise NkfError(f"{images.parent}: crops cannot be written ({reason})") from error
    found = np.asarray(np.isfinite(pack.landmarks_px).all(axis=(1, 2)))
    boxed = np.isfinite(pack.column("box_xyxy")).all(axis=1)
    shown = found | boxed | (pack.manifest.get("shows", "face") == "face")
    return FaceCrops(np.load(images, mmap_mode="r"), np.load(landmarks), found, shown)


def cache_folder(pack: Pack) -> Path:
    """Where the crops of a pack are kept: in the pack, or, where it cannot be written, in ``~/.cache/nkf``."""
    folder = pack.path / "cache"
    try:
        folder.mkdir(exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = home / "nkf" / str(pack.manifest.get("rows_sha256", "crops"))[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _cut_crops(pack: Pack, kind: CropKind, size: int, images: Path, landmarks: Path, progress: Progress) -> None:
    """Cut all crops into files that get their names when they are whole."""
    partial, moved = (file.with_suffix(".partial") for file in (images, landmarks))
    done = images.with_suffix(".done")  # how many rows are cut
    start = int(done.read_text()) if done.exists() and partial.exists() and moved.exists() else 0
    if not start:
        done.unlink(missing_ok=True)  # it would tell of files that are replaced now
    mode: Literal["r+", "w+"] = "r+" if start else "w+"
    crops = np.lib.format.open_memmap(partial, mode, np.uint8, (len(pack), size, size, 3))
    points = np.lib.format.open_memmap(moved, mode, np.float32, (len(pack), *MEAN_SHAPE.shape))
    _reserve(partial)
    _reserve(moved)
    boxes = pack.column("box_xyxy")

    def cut(row: int) -> int:
        known = pack.landmarks_px[row]
        face = known if np.isfinite(known).all() else None
        crops[row], points[row] = _cut(pack.image(row), face, boxes[row], kind, size)
        return row

    rows = range(start, len(pack))
    with ThreadPoolExecutor(THREADS) as pool:
        blocks = (rows[first : first + CHECKPOINT_ROWS] for first in range(0, len(rows), CHECKPOINT_ROWS))
        cutting = (row for block in blocks for row in pool.map(cut, block))
        for row in progress(cutting, f"cutting {kind} crops", len(rows)):
            if (row + 1 - start) % CHECKPOINT_ROWS == 0:
                with replacing(done) as file:
                    file.write_text(str(row + 1))
    crops.flush()
    points.flush()
    moved.replace(landmarks)
    partial.replace(images)
    done.unlink(missing_ok=True)


def _reserve(file: Path) -> None:
    """Take the disk space now: where it ends while a mapped file is written, the system kills the process."""
    if hasattr(os, "posix_fallocate"):
        with file.open("r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, file.stat().st_size)


def _cut(
    image_rgb: ImageRGB, points: Points | None, box_xyxy: NDArray[np.float32], kind: CropKind, size: int
) -> tuple[ImageRGB, Points]:
    height, width = image_rgb.shape[:2]
    matrix, moved = crop_map(kind, (width, height), points, box_xyxy, size)
    return warp_similarity(image_rgb, matrix, size), moved


def crop_map(
    kind: CropKind, size_wh: tuple[int, int], points: Points | None, box_xyxy: NDArray[np.floating], size: int
) -> tuple[Matrix, Points]:
    """How a picture is cut: the (2, 3) map from its pixels to those of the crop, and the landmarks (68, 2) in the crop.

    Args:
        kind: of the crop.
        size_wh: of the picture.
        points: landmarks (68, 2) in pixels of the picture; without them the mean shape stands in the crop.
        box_xyxy: of the face; not finite without one, the whole picture counts then.
        size: side of the crop.
    """
    whole = np.array([0, 0, *size_wh], np.float64)
    if kind == "aligned":
        box = box_xyxy.astype(np.float64) if np.isfinite(box_xyxy).all() else whole
        return face_transform(points, box, size)
    matrix = box_transform(whole, size)
    return matrix, MEAN_SHAPE * size if points is None else transform_points(matrix, points)


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
