"""Pictures that stand around the faces' own in training: photos show more than the tight pictures of datasets."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Generator, Tensor

from nkf.config import TrainConfig
from nkf.data.dataset import CropKind, crop_map
from nkf.data.pack import Pack
from nkf.data.patches import log_uniform, random_part
from nkf.data.scene_pool import read_pictures
from nkf.geometry import invert_transform
from nkf.preprocess import Around, to_float
from nkf.progress import Progress, no_progress

_TILES = 3000  # a few for each picture of some hundreds; 113 MB on the device at 112 px


class Surroundings:
    """Draws an `Around` for each batch.

    Args:
        config: of the run, with backgrounds.
        parts: packs and their rows, in the order in which the faces that are trained on are counted.
        kind: of the crops that are trained on.
        size: their side in pixels.
        device: where batches are needed.
        progress: shows how far it is.
    """

    def __init__(
        self,
        config: TrainConfig,
        parts: Sequence[tuple[Pack, NDArray[np.int64]]],
        kind: CropKind,
        size: int,
        device: torch.device,
        progress: Progress = no_progress,
    ) -> None:
        maps = np.concatenate([picture_maps(pack, rows, kind, size) for pack, rows in parts])
        self._in_picture = torch.from_numpy(maps).to(device)
        self._tiles = torch.from_numpy(make_tiles(config.backgrounds, config.crop_size, config.seed, progress)).to(
            device
        )

    def draw(self, index: Tensor, generator: Generator) -> Around:
        """For the faces of the numbers (B,)."""
        tiles = torch.randint(len(self._tiles), (len(index),), generator=generator, device=index.device)
        return Around(self._in_picture[index], to_float(self._tiles[tiles]))


def picture_maps(pack: Pack, rows: NDArray[np.int64], kind: CropKind, size: int) -> NDArray[np.float32]:
    """Maps (N, 2, 3) from pixels of the rows' crops to shares, 0 to 1, of the pictures' width and height."""
    sizes = np.stack([pack.column("width"), pack.column("height")], axis=1)[rows]
    boxes, landmarks = pack.column("box_xyxy")[rows], pack.landmarks_px[rows]
    maps = np.empty((len(rows), 2, 3), np.float32)
    for k, (width, height) in enumerate(sizes.tolist()):
        points = landmarks[k] if np.isfinite(landmarks[k]).all() else None
        to_crop, _ = crop_map(kind, (width, height), points, boxes[k], size)
        maps[k] = invert_transform(to_crop) / np.array([[width], [height]])
    return maps


def make_tiles(
    folders: Sequence[Path], size: int, seed: int, progress: Progress = no_progress, count: int = _TILES
) -> NDArray[np.uint8]:
    """Random parts (count, size, size, 3) of the folders' pictures, sharp or as blurred as the faces of small pictures.

    Around a stamp is the colour that its transparent pixels have, black or white mostly: faces stand before plain walls
    too, and where a collection is of stamps for the most part, half of the tiles are plain.

    Raises:
        NkfError: when a folder has no pictures.
    """
    pictures = [picture.convert("RGB") for folder in folders for picture in read_pictures(folder)]
    tiles = np.empty((count, size, size, 3), np.uint8)
    for k in progress(range(count), "cutting surroundings", count):
        rng = np.random.default_rng([seed, k])
        side = round(log_uniform(rng, size / 4, size))
        part = random_part(rng, pictures[int(rng.integers(len(pictures)))], (side, side))
        tiles[k] = np.asarray(part.resize((size, size), Image.Resampling.BILINEAR))
    return tiles
