"""Random changes of training crops, on whole batches and on any device; landmarks move along.

Every function takes the generator that it draws from, so that a training step is a function of its number and seed.

Legend: B faces, S side in pixels; images are (B, 3, S, S) float32 RGB in [0, 1], landmarks (B, 68, 2) in pixels.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from nkf.config import AugmentConfig
from nkf.geometry import LANDMARK_MIRROR, MEAN_SHAPE
from nkf.images import IMAGENET_MEAN

_COLORLESS = 1e-3  # largest difference of a channel from the mean of the three in a grey picture
_NEAR = 0.2  # ranges of a well-placed crop, over those of a loose one


def to_float(images_uint8: Tensor) -> Tensor:
    """(B, S, S, 3) uint8 to (B, 3, S, S) float32 in [0, 1]."""
    return images_uint8.permute(0, 3, 1, 2).float().div_(255)


class Around(NamedTuple):
    """What may stand around the pictures of B faces.

    Attributes:
        in_picture: (B, 2, 3) maps from pixels of an image to shares, 0 to 1, of its picture's width and height.
        tiles: (B, 3, crop_size, crop_size) float32 in [0, 1], of other pictures.
    """

    in_picture: Tensor
    tiles: Tensor


def augment(
    images: Tensor,
    landmarks_px: Tensor,
    base: Tensor,
    crop_size: int,
    config: AugmentConfig,
    generator: Generator,
    around: Around | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cut randomly placed crops out of `images` and change their looks.

    Args:
        images: (B, 3, S, S).
        landmarks_px: (B, 68, 2) in pixels of `images`.
        base: (B, 4) or (B, 2, 4) squares that an unchanged crop would show: centre x, centre y and side in pixels,
            angle in radians. Of two, the second is for the crops that `config.near` draws.
        crop_size: side of the result.
        config: what to draw.
        generator: on the images' device.
        around: None leaves the pictures' repeated edges around them.

    Returns:
        crops (B, 3, crop_size, crop_size), their landmarks (B, 68, 2), the matrices (B, 2, 3) from image to crop, and
        (B,) bool: mirrored or not.
    """
    matrices, mirrored = random_similarities(base, crop_size, config, generator)
    matrices = resized_crop(matrices, crop_size, config.resized_crop, generator)
    crops = warp(images, matrices, crop_size)
    landmarks = transform_landmarks(landmarks_px, matrices, mirrored)
    if around is not None:
        crops = surround(crops, matrices, around, config.surroundings, generator)
    crops = cover_eyes(crops, landmarks, config.glasses, generator)
    crops = cover_mouth(crops, landmarks, config.mask, generator)
    crops = change_colors(crops, config, generator)
    crops = blur(crops, config.blur, generator)
    crops = motion_blur(crops, config.motion_blur, generator)
    crops = lower_resolution(crops, config.low_resolution, generator)
    crops = erase(crops, config, generator)
    crops = add_noise(crops, config.noise, config.noise_probability, generator)
    crops = jpeg(crops.clamp(0, 1), config.jpeg, generator)
    return crops.clamp(0, 1), landmarks, matrices, mirrored


def random_similarities(
    base: Tensor, crop_size: int, config: AugmentConfig, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Draw (B, 2, 3) matrices from source pixels to crop pixels, and (B,) bool: mirrored or not; `base` as above."""
    count, device = len(base), base.device
    near = torch.rand(count, generator=generator, device=device) < config.near
    square = base if base.dim() == 2 else torch.where(near[:, None], base[:, -1], base[:, 0])  # (B, 4)
    reach = torch.where(near, _NEAR, 1.0)  # (B,)
    angle, scale, x, y = reach * (2 * torch.rand(4, count, generator=generator, device=device) - 1)
    mirrored = torch.rand(count, generator=generator, device=device) < config.flip
    matrices = similarity_matrices(
        square[:, :3],
        crop_size,
        angle=math.radians(config.rotation_deg) * angle - square[:, 3],
        scale=1 + config.scale * scale,
        shift=config.shift * torch.stack([x, y], dim=-1),
        mirrored=mirrored,
    )
    return matrices, mirrored


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


def resized_crop(matrices: Tensor, crop_size: int, smallest: float, generator: Generator) -> Tensor:
    """Let a random part of each crop fill it: of `smallest` to all of its area, 3:4 to 4:3.

    Args:
        matrices: (B, 2, 3) from image to crop.
        crop_size: side of the crop in pixels.
        smallest: share of the area; 1 changes nothing.
        generator: on the matrices' device.

    Returns:
        Matrices (B, 2, 3) from image to the enlarged part.
    """
    if smallest == 1:
        return matrices
    lot = torch.rand(len(matrices), 4, generator=generator, device=matrices.device)
    area, aspect = smallest + (1 - smallest) * lot[:, 0], (4 / 3) ** (2 * lot[:, 1] - 1)
    extent = torch.stack([area * aspect, area / aspect], dim=1).sqrt().clamp(max=1)  # (B, 2) shares of the side
    corner = lot[:, 2:] * (1 - extent) * crop_size
    matrices = torch.cat([matrices[:, :, :2], matrices[:, :, 2:] - corner[..., None]], dim=-1)
    return matrices / extent[..., None]


def warp(images: Tensor, matrices: Tensor, crop_size: int) -> Tensor:
    """Cut (B, 3, crop_size, crop_size) crops; `matrices` (B, 2, 3) map source to crop pixels. Edges are repeated."""
    source = _source_points(matrices, crop_size)
    height, width = images.shape[-2:]
    grid = 2 * source / torch.tensor([width, height], device=images.device) - 1
    grid = grid.view(-1, crop_size, crop_size, 2)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _source_points(matrices: Tensor, crop_size: int) -> Tensor:
    """Where a crop's pixels lie in its source: (B, crop_size^2, 2)."""
    linear = torch.linalg.inv(matrices[:, :, :2])
    offset = -linear @ matrices[:, :, 2:]  # crop pixels -> source pixels
    centres = torch.arange(crop_size, device=matrices.device) + 0.5
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    points = torch.stack([x, y], dim=-1).view(1, -1, 2)
    return points @ linear.transpose(1, 2) + offset.transpose(1, 2)


def surround(crops: Tensor, matrices: Tensor, around: Around, probability: float, generator: Generator) -> Tensor:
    """Put another picture around some faces' own, into which its repeated edge fades: in photos, something is there.

    The fading is a hundredth to a third of the picture wide. A grey face gets grey surroundings.

    Args:
        crops: (B, 3, S, S) as `warp` cut them.
        matrices: (B, 2, 3) from image to crop.
        around: the pictures' places in the images, and what to put around them.
        probability: of each face.
        generator: on the crops' device.

    Returns:
        (B, 3, S, S).
    """
    size = crops.shape[-1]
    shares = _source_points(matrices, size) @ around.in_picture[:, :, :2].transpose(1, 2)
    shares = (shares + around.in_picture[:, None, :, 2]).view(-1, size, size, 2)
    outside = ((shares - 0.5).abs() - 0.5).clamp(min=0).norm(dim=-1)[:, None]  # (B, 1, S, S), in sides of the picture
    width = 10 ** _uniform(crops, -2, -0.5, generator)
    fade = (1 - outside / width).clamp(min=0)
    own = fade**2 * (3 - 2 * fade)
    is_grey = ((crops - crops.mean(dim=1, keepdim=True)).abs() < _COLORLESS).flatten(1).all(dim=1).view(-1, 1, 1, 1)
    tiles = torch.where(is_grey, _luma(around.tiles), around.tiles)
    return torch.where(_chance(crops, probability, generator), own * crops + (1 - own) * tiles, crops)


def transform_landmarks(landmarks_px: Tensor, matrices: Tensor, mirrored: Tensor) -> Tensor:
    """Move (B, 68, 2) landmarks along, and swap right and left where the crop is mirrored."""
    moved = landmarks_px @ matrices[:, :, :2].transpose(1, 2) + matrices[:, None, :, 2]
    partner = torch.from_numpy(LANDMARK_MIRROR).to(moved.device)
    return torch.where(mirrored[:, None, None], moved[:, partner], moved)


def cover_eyes(images: Tensor, landmarks_px: Tensor, probability: float, generator: Generator) -> Tensor:
    """Draw glasses over some faces: two ellipses and a bar between them, of one colour, more or less see-through."""
    if not probability:
        return images
    eyes = torch.stack([landmarks_px[:, 36:42].mean(dim=1), landmarks_px[:, 42:48].mean(dim=1)])  # (2, B, 2)
    unit, axis = _face_frame(landmarks_px)
    width, height = unit * _uniform(unit, 0.22, 0.34, generator), unit * _uniform(unit, 0.14, 0.3, generator)
    lenses = [_in_frame(images, centre, axis) for centre in eyes]
    inside = torch.stack([(u / width) ** 2 + (v / height) ** 2 < 1 for u, v in lenses]).any(dim=0)  # (B, S, S)
    u, v = _in_frame(images, eyes.mean(dim=0), axis)
    bar = (u.abs() < 0.5 * unit) & (v.abs() < 0.04 * unit)
    return _paint(images, inside | bar, probability, generator)


def cover_mouth(images: Tensor, landmarks_px: Tensor, probability: float, generator: Generator) -> Tensor:
    """Draw a cover over some faces, from the nose or the upper lip down to below the chin."""
    if not probability:
        return images
    unit, axis = _face_frame(landmarks_px)
    u, v = _in_frame(images, landmarks_px[:, 48:60].mean(dim=1), axis)
    top = -unit * _uniform(unit, 0.3, 0.65, generator)
    inside = (v > top) & ((u / (0.75 * unit)) ** 2 + (v / (0.95 * unit)) ** 2 < 1)
    return _paint(images, inside, probability, generator)


def _face_frame(landmarks_px: Tensor) -> tuple[Tensor, Tensor]:
    """Unit of length (B, 1, 1), about the distance of the eye centres in a frontal face, and the axis (B, 2) to the
    left eye; both from the whole shape, because in profile the eyes coincide."""
    shape = torch.from_numpy(MEAN_SHAPE - MEAN_SHAPE.mean(axis=0)).to(landmarks_px)
    points = landmarks_px - landmarks_px.mean(dim=1, keepdim=True)
    along = (points * shape).sum(dim=(1, 2))
    across = (points[..., 1] * shape[:, 0] - points[..., 0] * shape[:, 1]).sum(dim=1)
    axis = torch.stack([along, across], dim=-1)
    scale = axis.norm(dim=-1, keepdim=True)  # (B, 1)
    return (0.36 / (shape**2).sum() * scale)[..., None], axis / scale.clamp(min=1e-6)


def _in_frame(images: Tensor, centre: Tensor, axis: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates (B, S, S) of the pixels along `axis` (B, 2) and across it, from `centre` (B, 2)."""
    pixel = torch.arange(images.shape[-1], device=images.device) + 0.5
    dx = pixel[None, None, :] - centre[:, 0, None, None]
    dy = pixel[None, :, None] - centre[:, 1, None, None]
    cos, sin = axis[:, 0, None, None], axis[:, 1, None, None]
    return cos * dx + sin * dy, cos * dy - sin * dx


def _paint(images: Tensor, inside: Tensor, probability: float, generator: Generator) -> Tensor:
    """Fill (B, S, S) areas of some images with a colour each, see-through up to a half."""
    color = torch.rand(len(images), 3, 1, 1, generator=generator, device=images.device)
    color = color * _uniform(images, 0, 1, generator)  # dark more often than bright
    opacity = _uniform(images, 0.5, 1.2, generator).clamp(max=1)
    chosen = inside[:, None] & _chance(images, probability, generator)
    return torch.where(chosen, opacity * color + (1 - opacity) * images, images)


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
    if config.darkness:
        dimmed = images * _uniform(images, 0.1, 0.5, generator)
        images = torch.where(_chance(images, config.darkness, generator), dimmed, images)
    if config.grey:
        images = torch.where(_chance(images, config.grey, generator), _luma(images), images)
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


def motion_blur(images: Tensor, probability: float, generator: Generator) -> Tensor:
    """Smear some images along a line; its direction, and its length up to a tenth of the side, are the batch's."""
    if not probability:
        return images
    angle, length = torch.rand(2, generator=generator, device=images.device).tolist()
    reach = max(1, round(0.05 * images.shape[-1] * length))
    offsets = torch.arange(-reach, reach + 1, device=images.device)
    x, y = offsets * math.cos(math.pi * angle), offsets * math.sin(math.pi * angle)
    axis = torch.arange(2 * reach + 1, device=images.device) - reach
    distance = (axis[None, :, None] - x) ** 2 + (axis[:, None, None] - y) ** 2  # (L, L, L): of each cell to each point
    kernel = (1 - distance.sqrt()).clamp(min=0).sum(dim=-1)
    weights = (kernel / kernel.sum()).expand(3, 1, -1, -1)
    smeared = F.conv2d(F.pad(images, (reach,) * 4, "replicate"), weights, groups=3)
    return torch.where(_chance(images, probability, generator), smeared, images)


def jpeg(images: Tensor, probability: float, generator: Generator) -> Tensor:
    """Round the 8x8 cosine coefficients of some images, coarser at higher frequencies: what JPEG loses, without its
    colour space. The sides have to be multiples of 8."""
    if not probability:
        return images
    n = torch.arange(8, device=images.device)
    basis = torch.cos(math.pi * (n[None, :] + 0.5) * n[:, None] / 8)
    basis = basis * torch.where(n == 0, 8**-0.5, 0.5)[:, None]  # (8, 8), orthonormal rows
    step = (1 + n[:, None] + n[None, :]) * (0.01 + 0.05 * _uniform(images, 0, 1, generator)[..., None, None])
    batch, channels, height, width = images.shape
    blocks = images.view(batch, channels, height // 8, 8, width // 8, 8).transpose(3, 4)  # (B, 3, H/8, W/8, 8, 8)
    coefficients = basis @ blocks @ basis.T
    blocks = basis.T @ ((coefficients / step).round() * step) @ basis
    coarse = blocks.transpose(3, 4).reshape(images.shape)
    return torch.where(_chance(images, probability, generator), coarse, images)


def lower_resolution(images: Tensor, probability: float, generator: Generator, smallest: int = 24) -> Tensor:
    """Shrink some images and enlarge them again; the size in between is common to the batch."""
    if not probability:
        return images
    side = images.shape[-1]
    small = smallest + int((side - smallest) * float(torch.rand((), generator=generator, device=images.device)) ** 1.5)
    shrunk = F.interpolate(images, size=(small, small), mode="bilinear", antialias=True, align_corners=False)
    coarse = F.interpolate(shrunk, size=(side, side), mode="bilinear", align_corners=False)
    return torch.where(_chance(images, probability, generator), coarse, images)


def erase(images: Tensor, config: AugmentConfig, generator: Generator) -> Tensor:
    """Cover a random rectangle of some images with one colour, random or ImageNet's mean."""
    if not config.erase:
        return images
    side = images.shape[-1]
    area = (0.02 + (config.erase_area - 0.02) * _uniform(images, 0, 1, generator)) * side**2
    aspect = 2 ** _uniform(images, -1.5, 1.5, generator)  # width over height
    half_width, half_height = (area * aspect).sqrt() / 2, (area / aspect).sqrt() / 2
    centre_x, centre_y = _uniform(images, 0, side, generator), _uniform(images, 0, side, generator)
    axis = torch.arange(side, device=images.device) + 0.5
    inside = ((axis.view(1, 1, 1, -1) - centre_x).abs() < half_width) & (
        (axis.view(1, 1, -1, 1) - centre_y).abs() < half_height
    )
    color = torch.rand(len(images), 3, 1, 1, generator=generator, device=images.device)
    if config.erase_fill == "mean":
        color = torch.tensor(IMAGENET_MEAN, device=images.device).view(3, 1, 1)
    return torch.where(inside & _chance(images, config.erase, generator), color, images)


def add_noise(images: Tensor, largest: float, probability: float, generator: Generator) -> Tensor:
    """Add Gaussian pixel noise to some images, its standard deviation uniform in [0, largest] for each."""
    if not largest:
        return images
    noise = torch.randn(images.shape, generator=generator, device=images.device)
    spread = _uniform(images, 0, largest, generator)
    if probability < 1:
        spread = spread * _chance(images, probability, generator)
    return images + spread * noise


def _luma(images: Tensor) -> Tensor:
    """Images without their colour."""
    weights = torch.tensor([0.299, 0.587, 0.114], device=images.device).view(1, 3, 1, 1)
    return (images * weights).sum(dim=1, keepdim=True).expand_as(images)


def _uniform(like: Tensor, low: float, high: float, generator: Generator) -> Tensor:
    """One number an image, shaped to broadcast over it."""
    shape = (len(like),) + (1,) * (like.dim() - 1)
    return low + (high - low) * torch.rand(shape, generator=generator, device=like.device)


def _chance(like: Tensor, probability: float, generator: Generator) -> Tensor:
    return _uniform(like, 0, 1, generator) < probability
