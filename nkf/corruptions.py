"""Ways to damage the picture of a face, in five severities each: what robustness is measured with.

All strengths are relative to the face, so that a picture of 48 px and a large photo are damaged alike. Its size is the
longer side of its landmarks' box (`nkf.quality.face_size`), 1.6 times the distance of the outer eye corners in a
frontal face; that distance itself would not do, since it vanishes in profile. Damage that has a grain (noise, JPEG's
blocks) is made for a face of `REFERENCE_PX`, about its size in an aligned crop of 112 px. A grey picture stays grey.

| name | amount at severity 1 to 5 |
|---|---|
| rotation | 10, 20, 30, 45, 60 degrees in the plane about the face, to either side; landmarks move along |
| occlusion | 5, 10, 20, 30, 40 % of the landmarks' box under one patch of one colour |
| blur | Gaussian, σ of 1.2, 2.5, 4, 5.5, 7.5 % of the face |
| motion_blur | along a line of 6, 12, 18, 26, 36 % of the face, in any direction |
| low_resolution | face shrunk to 32, 24, 18, 14, 10 px and enlarged again |
| darkness | 60, 40, 25, 15, 8 % of the light, and sensor noise (σ 2 of 255) |
| overexposure | 1.4, 1.8, 2.4, 3.2, 4.5 times the light, clipped at white |
| contrast | 70, 50, 35, 22, 12 % of the distance to the face's mean |
| noise | Gaussian, σ of 10, 20, 35, 55, 80 of 255 |
| jpeg | quality 50, 30, 20, 12, 6 |
"""

import io
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from nkf.errors import NkfError
from nkf.geometry import Matrix, Points, invert_transform, transform_points
from nkf.images import ImageRGB
from nkf.quality import face_size

Generator = np.random.Generator
FloatImage = NDArray[np.float32]  # (H, W, 3), 0 to 255
Damage = Callable[[ImageRGB, Points, float, Generator], tuple[ImageRGB, Points]]

SEVERITIES = (1, 2, 3, 4, 5)
REFERENCE_PX = 80.0
SENSOR_NOISE = 2.0  # of 255
MAX_ENLARGED_PIXELS = 4_000_000  # a tiny face in a large photo is not enlarged with all of it


@dataclass(frozen=True, slots=True)
class Corruption:
    """One way to damage a picture.

    Attributes:
        amounts: strength at severity 1 to 5.
        unit: what an amount counts.
        damage: picture, landmarks, amount and generator to the changed picture and landmarks.
    """

    amounts: tuple[float, float, float, float, float]
    unit: str
    damage: Damage


def corrupt(
    image_rgb: ImageRGB, landmarks_px: Points, name: str, severity: int, generator: Generator
) -> tuple[ImageRGB, Points]:
    """Damage a picture of a face.

    Args:
        image_rgb: (H, W, 3) uint8.
        landmarks_px: (68, 2) in its pixels, not all in one place.
        name: one of `CORRUPTIONS`.
        severity: 1 to 5.
        generator: all that is drawn comes from it.

    Returns:
        The (H, W, 3) picture, and the landmarks in it.

    Raises:
        NkfError: when name or severity are unknown.
        ValueError: when the landmarks have no extent.
    """
    if name not in CORRUPTIONS:
        raise NkfError(f"corruption {name!r}: unknown; known are {', '.join(CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise NkfError(f"severity {severity!r}: expected 1 to {len(SEVERITIES)}")
    if not face_size(landmarks_px) > 0:
        raise ValueError("the landmarks of a face that is to be damaged are all in one place, or not finite")
    corruption = CORRUPTIONS[name]
    return corruption.damage(image_rgb, landmarks_px, corruption.amounts[severity - 1], generator)


def damage_generator(seed: int, name: str, severity: int, picture: int | str) -> Generator:
    """The generator of one picture's damage: the same for every network, whatever else is measured.

    Args:
        seed: of the measurement.
        name: of the corruption.
        severity: 1 to 5.
        picture: what tells the picture from others: its name or number.
    """
    key = picture if isinstance(picture, int) else zlib.crc32(picture.encode())
    return np.random.default_rng([seed, zlib.crc32(name.encode()), severity, key])


def is_grey(image_rgb: ImageRGB) -> bool:
    """Whether the three channels are equal."""
    return bool((image_rgb == image_rgb[..., :1]).all())


def to_grey(image_rgb: ImageRGB) -> ImageRGB:
    """Luma (ITU-R BT.601, as Pillow's mode L) in three equal channels."""
    return np.asarray(Image.fromarray(image_rgb).convert("L").convert("RGB"))


def _rotate(image_rgb: ImageRGB, landmarks_px: Points, degrees: float, generator: Generator) -> tuple[ImageRGB, Points]:
    """Turn about the middle of the landmarks' box; what comes into view repeats the picture's edge."""
    angle = math.radians(degrees) * generator.choice([-1, 1])
    linear = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    centre = (landmarks_px.min(axis=0) + landmarks_px.max(axis=0)) / 2
    matrix = np.column_stack([linear, centre - linear @ centre])
    return _warp(image_rgb, invert_transform(matrix)), transform_points(matrix, landmarks_px)


def _warp(image_rgb: ImageRGB, to_source: Matrix) -> ImageRGB:
    """Show in each pixel what lies where `to_source` maps it, at the scale 1."""
    height, width = image_rgb.shape[:2]
    corners = transform_points(to_source, np.array([[0, 0], [width, 0], [0, height], [width, height]]))
    outside = max(-corners.min(), (corners - [width, height]).max(), 0)
    margin = math.ceil(outside) + 1
    padded = np.pad(image_rgb, ((margin, margin), (margin, margin), (0, 0)), "edge")
    shifted = to_source + np.array([[0, 0, margin], [0, 0, margin]])
    picture = Image.fromarray(padded).transform(
        (width, height), Image.Transform.AFFINE, tuple(shifted.ravel()), Image.Resampling.BILINEAR
    )
    return np.asarray(picture)


def _still(damage: Callable[[ImageRGB, Points, float, Generator], ImageRGB]) -> Damage:
    """Make a `Damage` of a function that moves nothing."""

    def apply(image: ImageRGB, landmarks: Points, amount: float, generator: Generator) -> tuple[ImageRGB, Points]:
        return damage(image, landmarks, amount, generator), landmarks

    return apply


def _occlude(image_rgb: ImageRGB, landmarks_px: Points, share: float, generator: Generator) -> ImageRGB:
    """Cover that share of the visible part of the landmarks' box; the patch has the box's aspect."""
    height, width = image_rgb.shape[:2]
    low, high = np.clip([landmarks_px.min(axis=0), landmarks_px.max(axis=0)], 0, [width, height])
    extent = (high - low) * math.sqrt(share)
    start = low + generator.random(2) * (high - low - extent)
    x0, y0 = np.rint(start).astype(int)
    x1, y1 = np.rint(start + extent).astype(int)
    color = generator.integers(0, 256, 3)
    covered = image_rgb.copy()
    covered[y0:y1, x0:x1] = color[0] if is_grey(image_rgb) else color
    return covered


def _blur(image_rgb: ImageRGB, landmarks_px: Points, share: float, generator: Generator) -> ImageRGB:
    del generator
    radius = share * face_size(landmarks_px)
    return np.asarray(Image.fromarray(image_rgb).filter(ImageFilter.GaussianBlur(radius)))


def _motion_blur(image_rgb: ImageRGB, landmarks_px: Points, share: float, generator: Generator) -> ImageRGB:
    """Mean of the picture moved along a line, in steps of about a pixel of a face of the reference size."""
    angle, length = generator.uniform(0, math.pi), share * face_size(landmarks_px)
    steps = np.linspace(-length / 2, length / 2, math.ceil(share * REFERENCE_PX) + 1)
    image = image_rgb.astype(np.float32)
    total = np.zeros_like(image)
    for step in steps:
        total += _moved(_moved(image, 1, step * math.cos(angle)), 0, step * math.sin(angle))
    return _to_uint8(total / np.float32(len(steps)))


def _moved(image: FloatImage, axis: int, distance: float) -> FloatImage:
    """Move along an axis, between pixels linearly; the edge is repeated."""
    whole = math.floor(distance)
    part = np.float32(distance - whole)
    index, last = np.arange(image.shape[axis]) + whole, image.shape[axis] - 1
    near, far = (np.take(image, np.clip(index + k, 0, last), axis=axis) for k in (0, 1))
    return near + part * (far - near)


def _lower_resolution(image_rgb: ImageRGB, landmarks_px: Points, face_px: float, generator: Generator) -> ImageRGB:
    """A face that is smaller already stays as it is."""
    del generator
    scale = min(1.0, face_px / face_size(landmarks_px))
    picture = Image.fromarray(image_rgb)
    small = picture.resize(_scaled(picture.size, scale), Image.Resampling.BILINEAR)
    return np.asarray(small.resize(picture.size, Image.Resampling.BILINEAR))


def _darken(image_rgb: ImageRGB, landmarks_px: Points, gain: float, generator: Generator) -> ImageRGB:
    noise = SENSOR_NOISE * _grain(image_rgb, face_size(landmarks_px), generator)
    return _to_uint8(image_rgb * np.float32(gain) + noise)


def _overexpose(image_rgb: ImageRGB, landmarks_px: Points, gain: float, generator: Generator) -> ImageRGB:
    del landmarks_px, generator
    return _to_uint8(image_rgb * np.float32(gain))


def _flatten(image_rgb: ImageRGB, landmarks_px: Points, share: float, generator: Generator) -> ImageRGB:
    """Bring all values nearer to the mean inside the landmarks' box, so that what is around the face does not count."""
    del generator
    last = np.array(image_rgb.shape[1::-1]) - 1
    x0, y0 = np.clip(np.floor(landmarks_px.min(axis=0)).astype(int), 0, last)
    x1, y1 = np.clip(np.ceil(landmarks_px.max(axis=0)).astype(int), [x0 + 1, y0 + 1], last + 1)
    mean = image_rgb[y0:y1, x0:x1].mean(dtype=np.float32)
    return _to_uint8(mean + (image_rgb - mean) * np.float32(share))


def _add_noise(image_rgb: ImageRGB, landmarks_px: Points, sigma: float, generator: Generator) -> ImageRGB:
    return _to_uint8(image_rgb + np.float32(sigma) * _grain(image_rgb, face_size(landmarks_px), generator))


def _grain(image_rgb: ImageRGB, size_px: float, generator: Generator) -> FloatImage:
    """White noise, σ = 1 at a face of the reference size, of equal power per area of the face at any other size.

    A larger face gets coarser grains, a smaller one weaker noise: what is left when the noisy picture of a face of the
    reference size is shrunk to it.
    """
    height, width = image_rgb.shape[:2]
    coarse = _scaled((width, height), min(1.0, REFERENCE_PX / size_px))
    channels = 1 if is_grey(image_rgb) else 3
    field = generator.standard_normal((channels, coarse[1], coarse[0]), np.float32)
    grains = [np.asarray(Image.fromarray(one).resize((width, height), Image.Resampling.NEAREST)) for one in field]
    return np.stack(grains, axis=-1) * np.float32(min(1.0, size_px / REFERENCE_PX))


def _compress(image_rgb: ImageRGB, landmarks_px: Points, quality: float, generator: Generator) -> ImageRGB:
    """Save as JPEG at the scale where the face has the reference size: blocks of 8 px are then a tenth of it."""
    del generator
    picture = Image.fromarray(image_rgb[..., 0] if is_grey(image_rgb) else image_rgb)
    most = max(1.0, math.sqrt(MAX_ENLARGED_PIXELS / (picture.width * picture.height)))
    scale = min(REFERENCE_PX / face_size(landmarks_px), most)
    stream = io.BytesIO()
    picture.resize(_scaled(picture.size, scale), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=int(quality))
    with Image.open(stream) as saved:
        return np.asarray(saved.resize(picture.size, Image.Resampling.BICUBIC).convert("RGB"))


def _scaled(size_wh: tuple[int, int], scale: float) -> tuple[int, int]:
    return max(1, round(size_wh[0] * scale)), max(1, round(size_wh[1] * scale))


def _to_uint8(image: FloatImage) -> ImageRGB:
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


CORRUPTIONS: Mapping[str, Corruption] = {
    "rotation": Corruption((10, 20, 30, 45, 60), "degrees", _rotate),
    "occlusion": Corruption((0.05, 0.1, 0.2, 0.3, 0.4), "share of the face's box", _still(_occlude)),
    "blur": Corruption((0.012, 0.025, 0.04, 0.055, 0.075), "σ over the face's size", _still(_blur)),
    "motion_blur": Corruption((0.06, 0.12, 0.18, 0.26, 0.36), "length over the face's size", _still(_motion_blur)),
    "low_resolution": Corruption((32, 24, 18, 14, 10), "face in px", _still(_lower_resolution)),
    "darkness": Corruption((0.6, 0.4, 0.25, 0.15, 0.08), "gain", _still(_darken)),
    "overexposure": Corruption((1.4, 1.8, 2.4, 3.2, 4.5), "gain", _still(_overexpose)),
    "contrast": Corruption((0.7, 0.5, 0.35, 0.22, 0.12), "contrast left", _still(_flatten)),
    "noise": Corruption((10, 20, 35, 55, 80), "σ of 255", _still(_add_noise)),
    "jpeg": Corruption((50, 30, 20, 12, 6), "quality", _still(_compress)),
}
