"""Aligned faces of several packs, without labels: what first tasks are trained on and validated by."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from nkf.config import TrainConfig
from nkf.data.dataset import CropRows, FaceCrops, load_crops
from nkf.data.pack import Pack, is_held_out
from nkf.errors import NkfError
from nkf.preprocess import augment
from nkf.progress import Progress, no_progress
from nkf.recipes.common import FaceTensors

_MOST_HELD_OUT = 1024  # faces that validate
_Part = tuple[FaceCrops, NDArray[np.int64]]


class AlignedFaces(NamedTuple):
    """Packs, their faces that are trained on, and those that validate."""

    packs: list[Pack]
    train: FaceTensors
    held_out: FaceTensors


def aligned_faces(
    config: TrainConfig, device: torch.device, *, landmarks: bool, progress: Progress = no_progress
) -> AlignedFaces:
    """Load the faces of the packs' train splits; one in ten is held out, by the hash of its pixels, copies together.

    Args:
        config: of the run.
        device: where batches are needed.
        landmarks: only faces whose landmarks are known.
        progress: shows how far the preparation of crops is.

    Raises:
        NkfError: when a pack is unusable, or fewer than two faces are held out.
    """
    packs = [Pack(path) for path in config.data]
    train, held_out = [], []
    for pack in packs:
        crops = load_crops(pack, "aligned", config.crop_size, progress)
        usable = crops.found if landmarks else crops.shown
        rows = pack.rows("train")[usable[pack.rows("train")]]
        kept_out = is_held_out(pack.column("pixels_md5")[rows])
        train.append((crops, rows[~kept_out]))
        held_out.append((crops, rows[kept_out]))
    faces = AlignedFaces(packs, _join(train, device), _join(held_out, device, _MOST_HELD_OUT))
    if len(faces.held_out) < 2:
        raise NkfError(f"{config.data[0]}: too few faces, a tenth of them is held out")
    return faces


def changed_views(
    images: Tensor, landmarks_px: Tensor, config: TrainConfig, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Augment aligned crops (B, 3, S, S) and their landmarks (B, 68, 2) about the whole crop."""
    size = images.shape[-1]
    base = torch.tensor([size / 2, size / 2, size, 0], device=images.device).expand(len(images), 4)
    crops, points_px, _, _ = augment(images, landmarks_px, base, size, config.augment, generator)
    return crops.contiguous(memory_format=torch.channels_last), points_px


def _join(parts: list[_Part], device: torch.device, most: int | None = None) -> FaceTensors:
    """Faces of all packs, or so many at most, evenly out of all."""
    total = sum(len(rows) for _, rows in parts)
    step = 1 if most is None else max(1, -(-total // most))
    images = CropRows([(crops.images, rows[::step]) for crops, rows in parts])
    landmarks_px = np.concatenate([crops.landmarks_px[rows[::step]] for crops, rows in parts])
    return FaceTensors(images, landmarks_px, device)
