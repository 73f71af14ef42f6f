"""Random changes of training crops, on whole batches and on any device; landmarks move along.

Every function takes the generator that it draws from, so that a training step is a function of its number and seed.

Legend: B faces, S side in pixels; images are (B, 3, S, S) float32 RGB in [0, 1], landmarks (B, 68, 2) in pixels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from nkf.config import AugmentConfig
from nkf.geometry import LANDMARK_MIRROR


def to_float(images_uint8: Tensor) -> Tensor:
    """(B, S, S, 3) uint8 to (B, 3, S, S) float32 in [0, 1]."""
    return images_uint8.permute(0, 3, 1, 2).float() / 255


def augment(
    images: Tensor, landmarks_px: Tensor, base: Tensor, crop_size: int, config: AugmentConfig, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Cut randomly placed crops out of `images` and change their looks.

    Args:
        images: (B, 3, S, S).
        landmarks_px: (B, 68, 2) in pixels of `images`.
        base: (B, 3) centre x, centre y and side, in pixels, of the square that an unchanged crop would show.
        crop_size: side of the result.
        config: what to draw.
        generator: on the images' device.

    Returns:
        crops (B, 3, crop_size, crop_size) and their landmarks (B, 68, 2).
    """
    matrices, mirrored = random_similarities(base, crop_size, config, generator)
    crops = warp(images, matrices, crop_size)
    landmarks = transform_landmarks(landmarks_px, matrices, mirrored)
    crops = change_colors(crops, config, generator)
    crops = blur(crops, config.blur, generator)
    crops = lower_resolution(crops, config.low_resolution, generator)
    crops = erase(crops, config.erase, config.erase_area, generator)
    crops = add_noise(crops, config.noise, generator)
    return crops.clamp(0, 1), landmarks


def random_similarities(
    base: Tensor, crop_size: int, config: AugmentConfig, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Draw (B, 2, 3) matrices from source pixels to crop pixels, and (B,) bool: mirrored or not."""
    angle = _uniform(base, -1, 1, generator)[:, 0] * math.radians(config.rotation_deg)  # (B,)
    scale = 1 + config.scale * _uniform(base, -1, 1, generator)[:, 0]
    shift = config.shift * (2 * torch.rand(len(base), 2, generator=generator, device=base.device) - 1)
    mirrored = torch.rand(len(base), generator=generator, device=base.device) < config.flip
    return similarity_matrices(base, crop_size, angle=angle, scale=scale, shift=shift, mirrored=mirrored), mirrored


def similarity_matrices(
    base: Tensor, crop_size: int, *, angle: Tensor, scale: Tensor, shift: Tensor, mirrored: Tensor
) -> Tensor:
    """Matrices (B, 2, 3) that show the square `base` turned, scaled about its centre, shifted, and then mirrored.

    Args:
        base: (B, 3) centre x, y and side in source pixels.
        crop_size: side of the crop in pixels.
        angle: (B,) radians, clockwise as displayed.
        scale: (B,) size of the face in the crop over its size in the square.
        shift: (B, 2) of the face, as a share of the crop's side.
        mirrored: (B,) bool.
    """
    centre, side = base[:, :2], base[:, 2]
    zoom = scale * crop_size / side
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    linear = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], dim=1)  # (B, 2, 2)
    offset = (0.5 + shift) * crop_size - (linear @ centre[..., None]).squeeze(-1)
    matrices = torch.cat([linear, offset[..., None]], dim=-1)
    across = torch.where(mirrored, -1.0, 1.0)[:, None]
    first = matrices[:, 0] * across
    first = torch.cat([first[:, :2], first[:, 2:] + mirrored[:, None] * crop_size], dim=-1)
    return torch.stack([first, matrices[:, 1]], dim=1)


def warp(images: Tensor, matrices: Tensor, crop_size: int) -> Tensor:
    """Cut (B, 3, crop_size, crop_size) crops; `matrices` (B, 2, 3) map source to crop pixels. Edges are repeated."""
    linear = torch.linalg.inv(matrices[:, :, :2])
    offset = -linear @ matrices[:, :, 2:]  # crop pixels -> source pixels
    centres = torch.arange(crop_size, device=images.device) + 0.5
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    points = torch.stack([x, y], dim=-1).view(1, -1, 2)
    source = points @ linear.transpose(1, 2) + offset.transpose(1, 2)  # (B, crop_size^2, 2)
    height, width = images.shape[-2:]
    grid = 2 * source / torch.tensor([width, height], device=images.device) - 1
    grid = grid.view(-1, crop_size, crop_size, 2)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def transform_landmarks(landmarks_px: Tensor, matrices: Tensor, mirrored: Tensor) -> Tensor:
    """Move (B, 68, 2) landmarks along, and swap right and left where the crop is mirrored."""
    moved = landmarks_px @ matrices[:, :, :2].transpose(1, 2) + matrices[:, None, :, 2]
    partner = torch.from_numpy(LANDMARK_MIRROR).to(moved.device)
    return torch.where(mirrored[:, None, None], moved[:, partner], moved)


def change_colors(images: Tensor, config: AugmentConfig, generator: Generator) -> Tensor:
    """Draw brightness, contrast, colour cast, gamma and loss of colour for each image."""
    gain = 1 + config.brightness * _uniform(images, -1, 1, generator)
    cast = 1 + config.color_cast * (2 * torch.rand(len(images), 3, 1, 1, generator=generator, device=images.device) - 1)
    contrast = 1 + config.contrast * _uniform(images, -1, 1, generator)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    images = ((images - mean) * contrast + mean) * gain * cast
    if config.gamma:
        exponent = 2 ** (config.gamma * _uniform(images, -1, 1, generator))
        images = images.clamp(1e-4, 1) ** exponent
    if config.grey:
        luma = torch.tensor([0.299, 0.587, 0.114], device=images.device).view(1, 3, 1, 1)
        grey = (images * luma).sum(dim=1, keepdim=True).expand_as(images)
        images = torch.where(_chance(images, config.grey, generator), grey, images)
    return images


def blur(images: Tensor, probability: float, generator: Generator) -> Tensor:
    """Gaussian blur of some images; σ, up to 4 % of the side, is common to the batch."""
    if not probability:
        return images
    sigma = 0.3 + (0.04 * images.shape[-1]) * float(torch.rand((), generator=generator, device=images.device))
    reach = math.ceil(2 * sigma)
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=images.device) / sigma) ** 2)
    weights = (weights / weights.sum()).expand(3, 1, 1, -1)
    blurred = F.conv2d(F.pad(images, (reach, reach, 0, 0), "replicate"), weights, groups=3)
    blurred = F.conv2d(F.pad(blurred, (0, 0, reach, reach), "replicate"), weights.transpose(2, 3), groups=3)
    return torch.where(_chance(images, probability, generator), blurred, images)


def lower_resolution(images: Tensor, probability: float, generator: Generator, smallest: int = 24) -> Tensor:
    """Shrink some images and enlarge them again; the size in between is common to the batch."""
    if not probability:
        return images
    side = images.shape[-1]
    small = smallest + int((side - smallest) * float(torch.rand((), generator=generator, device=images.device)) ** 1.5)
    shrunk = F.interpolate(images, size=(small, small), mode="bilinear", antialias=True, align_corners=False)
    coarse = F.interpolate(shrunk, size=(side, side), mode="bilinear", align_corners=False)
    return torch.where(_chance(images, probability, generator), coarse, images)


def erase(images: Tensor, probability: float, largest_area: float, generator: Generator) -> Tensor:
    """Cover a random rectangle of some images with one random colour."""
    if not probability:
        return images
    side = images.shape[-1]
    area = (0.02 + (largest_area - 0.02) * _uniform(images, 0, 1, generator)) * side**2
    aspect = 2 ** _uniform(images, -1.5, 1.5, generator)  # width over height
    half_width, half_height = (area * aspect).sqrt() / 2, (area / aspect).sqrt() / 2
    centre_x, centre_y = _uniform(images, 0, side, generator), _uniform(images, 0, side, generator)
    axis = torch.arange(side, device=images.device) + 0.5
    inside = ((axis.view(1, 1, 1, -1) - centre_x).abs() < half_width) & (
        (axis.view(1, 1, -1, 1) - centre_y).abs() < half_height
    )
    color = torch.rand(len(images), 3, 1, 1, generator=generator, device=images.device)
    return torch.where(inside & _chance(images, probability, generator), color, images)


def add_noise(images: Tensor, largest: float, generator: Generator) -> Tensor:
    """Add Gaussian pixel noise, its standard deviation uniform in [0, largest] for each image."""
    if not largest:
        return images
    noise = torch.randn(images.shape, generator=generator, device=images.device)
    return images + _uniform(images, 0, largest, generator) * noise


def _uniform(like: Tensor, low: float, high: float, generator: Generator) -> Tensor:
    """One number an image, shaped to broadcast over it."""
    shape = (len(like),) + (1,) * (like.dim() - 1)
    return low + (high - low) * torch.rand(shape, generator=generator, device=like.device)


def _chance(like: Tensor, probability: float, generator: Generator) -> Tensor:
    return _uniform(like, 0, 1, generator) < probability
