"""Pools of composed scenes, kept in memory-mapped files; and the pictures that scenes are composed over."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nkf.data.scenes import MAX_FACES, SceneMaker
from nkf.errors import NkfError
from nkf.files import replacing
from nkf.images import IMAGE_SUFFIXES, decode_image
from nkf.progress import Progress, no_progress

_VERSION = 4  # of what `SceneMaker` does: counted up when pools made before are stale


def read_pictures(folder: Path) -> list[Image.Image]:
    """Read all pictures of a folder, stamps (with transparency) as RGBA, in the order of their names.

    Raises:
        NkfError: when there is none.
    """
    files = sorted(f for f in folder.glob("*") if f.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise NkfError(f"{folder}: no pictures; see benchmarks/backgrounds.py for a way to collect some")
    pictures = []
    for file in files:
        with Image.open(file) as image:
            if image.has_transparency_data:
                pictures.append(image.convert("RGBA"))
                continue
        pictures.append(Image.fromarray(decode_image(file.read_bytes(), str(file))))
    return pictures


@dataclass(frozen=True, slots=True)
class ScenePool:
    """Many scenes of one size, with room for `MAX_FACES` in each.

    Attributes:
        images: (N, H, W, 3) uint8, memory-mapped.
        boxes: (N, MAX_FACES, 4) xyxy; NaN where there is no face.
        points: (N, MAX_FACES, 5, 2).
    """

    images: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    points: NDArray[np.float32]


def load_pool(
    make: Callable[[], SceneMaker],
    folder: Path,
    count: int,
    seed: int,
    key: str,
    progress: Progress = no_progress,
    *,
    plain: bool = False,
) -> ScenePool:
    """Open a pool of scenes, composing it first if nobody did so before.

    Args:
        make: builds what composes the scenes, when that has to be done.
        folder: where pools are kept.
        count: N.
        seed: of the scenes.
        key: all that the scenes depend on, beside seed and count.
        progress: shows how far it is.
        plain: make scenes without faces.
    """
    settings = json.dumps([_VERSION, key, count, seed, *(["plain"] if plain else [])])
    stem = folder / f"scenes-{hashlib.sha256(settings.encode()).hexdigest()[:10]}"
    images, truth = stem.with_suffix(".npy"), stem.with_suffix(".npz")
    if not (images.exists() and truth.exists()):
        folder.mkdir(parents=True, exist_ok=True)
        maker = make()
        width, height = maker.size_wh
        boxes = np.full((count, MAX_FACES, 4), np.nan, np.float32)
        points = np.full((count, MAX_FACES, 5, 2), np.nan, np.float32)
        with replacing(images) as partial:
            pool = np.lib.format.open_memmap(partial, "w+", np.uint8, (count, height, width, 3))
            for row in progress(range(count), "composing scenes", count):
                generator = np.random.default_rng([seed, row])
                scene = maker.plain(generator) if plain else maker.compose(generator)
                n = len(scene.boxes)
                pool[row], boxes[row, :n], points[row, :n] = scene.image, scene.boxes, scene.points
            pool.flush()
        with replacing(truth) as partial, partial.open("wb") as stream:
            np.savez(stream, boxes=boxes, points=points)
    with np.load(truth) as content:
        return ScenePool(np.load(images, mmap_mode="r"), content["boxes"], content["points"])
