"""Mixing the faces of a batch, their landmarks and their targets.

Mix-up: Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018, arXiv 1710.09412. CutMix: Yun et al.,
ICCV 2019, arXiv 1905.04899. Aligned faces have their landmarks in nearly the same places, so that these are mixed too.

Legend: B faces, P points, S side in pixels, C classes; share = part of the result that is the face itself.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor

from nkf.config import MixConfig


class Faces(NamedTuple):
    """Crops (B, 3, S, S), points (B, P, 2) in pixels of the crops, and target distributions (B, C)."""

    crops: Tensor
    points_px: Tensor
    targets: Tensor


def mix(faces: Faces, config: MixConfig, generator: Generator) -> Faces:
    """Blend each face of a batch with another one, or paste a part of that into it; most often leave all as they are.

    Whether and how is drawn for the batch, shares and rectangles for each face. Where both ways are on, each is taken
    half of the time.

    Args:
        faces: the batch, on any device.
        config: what to draw; with probability 0 nothing is drawn from the generator.
        generator: on the crops' device.
    """
    if not config.probability:
        return faces
    device = faces.crops.device
    chance, way = torch.rand(2, generator=generator, device=device).tolist()
    # torch draws no Beta from a generator of its own.
    numbers = np.random.default_rng(int(torch.randint(2**62, (), generator=generator, device=device)))
    partner = torch.randperm(len(faces.crops), generator=generator, device=device)
    if chance >= config.probability:
        return faces
    blend = bool(config.mixup) and (not config.cutmix or way < 0.5)
    alpha = config.mixup if blend else config.cutmix
    share = torch.from_numpy(numbers.beta(alpha, alpha, len(faces.crops)).astype(np.float32)).to(device)
    if blend:
        return mixup(faces, partner, share)
    centre = torch.from_numpy(numbers.uniform(size=(len(faces.crops), 2)).astype(np.float32)).to(device)
    return cutmix(faces, partner, share, centre * faces.crops.shape[-1])


def mixup(faces: Faces, partner: Tensor, share: Tensor) -> Faces:
    """Blend each face with its partner: images, points and targets in the same proportion.

    Args:
        faces: the batch.
        partner: (B,) row of each face's partner.
        share: (B,) of the face itself, in [0, 1].
    """
    parts = (_blend(part, part[partner], share) for part in faces)
    return Faces(*parts)


def cutmix(faces: Faces, partner: Tensor, share: Tensor, centre_px: Tensor) -> Faces:
    """Paste a square out of each partner's crop at its own place.

    A point that it covers is the partner's. Targets are mixed by the pixels that each face shows.

    Args:
        faces: the batch.
        partner: (B,) row of each face's partner.
        share: (B,) of the face itself, in [0, 1], if the square lies wholly inside the crop.
        centre_px: (B, 2) of the square, anywhere in the crop; what is outside is clipped.
    """
    crops, points_px, targets = faces
    size = crops.shape[-1]
    half = size * (1 - share).sqrt()[:, None] / 2
    low, high = ((centre_px + sign * half).round().clamp(0, size) for sign in (-1, 1))  # (B, 2), borders of pixels
    pixel = torch.arange(size, device=crops.device) + 0.5
    in_x, in_y = ((low[:, k, None] < pixel) & (pixel < high[:, k, None]) for k in (0, 1))  # (B, S)
    covered = (in_y[:, :, None] & in_x[:, None, :])[:, None]  # (B, 1, S, S)
    hidden = ((low[:, None] < points_px) & (points_px < high[:, None])).all(dim=-1, keepdim=True)  # (B, P, 1)
    shown = 1 - (high - low).prod(dim=-1) / size**2
    return Faces(
        torch.where(covered, crops[partner], crops),
        torch.where(hidden, points_px[partner], points_px),
        _blend(targets, targets[partner], shown),
    )


def _blend(own: Tensor, other: Tensor, share: Tensor) -> Tensor:
    share = share.view(-1, *[1] * (own.dim() - 1))
    return share * own + (1 - share) * other
