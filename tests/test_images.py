"""Reading every kind of image file, and cutting crops."""

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from nkf.errors import ImageError
from nkf.geometry import box_transform, invert_transform, similarity_transform, transform_points
from nkf.images import align, decode_image, read_image, warp_similarity

Array = NDArray[Any]

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (40, 30, 3), np.uint8)  # (H, W, 3)
SMALL = NOISE[:2, :3]
GREY = NOISE[:2, :3, 0]
GREY_AS_RGB = np.repeat(GREY[..., None], 3, axis=2)


def encode(image: Image.Image | Array, file_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, file_format, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with_size(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def palette_with_transparency() -> bytes:
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    return encode(image, transparency=1)


def big_endian_tiff() -> bytes:
    """2x1 pixels of 16 bits, 0x1234 and 0xFF00, stored with the high byte first."""
    entries = [(256, 3, 2), (257, 3, 1), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 134), (277, 3, 1)]
    entries += [(278, 3, 1), (279, 4, 4)]
    body = b"".join(
        struct.pack(">HHI", tag, kind, 1) + (struct.pack(">HH", value, 0) if kind == 3 else struct.pack(">I", value))
        for tag, kind, value in entries
    )
    head = b"MM\x00\x2a" + struct.pack(">IH", 8, len(entries)) + body + struct.pack(">I", 0)
    return head.ljust(134, b"\0") + b"\x12\x34\xff\x00"


def animation() -> bytes:
    frames = [Image.new("RGB", (3, 2), colour) for colour in ("red", "blue")]
    return encode(frames[0], "GIF", save_all=True, append_images=frames[1:])


def filled(colour: tuple[int, int, int]) -> Array:
    return np.full((2, 3, 3), colour, np.uint8)


SIXTEEN_BITS = np.array([[0, 0x80FF, 0xFFFF]], np.uint16)
EIGHT_BITS = np.repeat(np.array([[0, 0x80, 0xFF]], np.uint8)[..., None], 3, axis=2)
HALF_RED = np.full((2, 3, 4), (255, 0, 0, 128), np.uint8)
GREY_ALPHA = np.array([[[10, 255], [10, 0]]], np.uint8)

GOOD: dict[str, tuple[Callable[[], bytes], Array]] = {
    "rgb png": (lambda: encode(SMALL), SMALL),
    "grey png": (lambda: encode(GREY), GREY_AS_RGB),
    "one-bit png": (lambda: encode(Image.new("1", (3, 2), 1)), filled((255, 255, 255))),
    "bmp": (lambda: encode(SMALL, "BMP"), SMALL),
    "lossless webp": (lambda: encode(SMALL, "WEBP", lossless=True), SMALL),
    "16-bit grey png is scaled": (lambda: encode(SIXTEEN_BITS), EIGHT_BITS),
    "16-bit grey tiff is scaled": (lambda: encode(SIXTEEN_BITS, "TIFF"), EIGHT_BITS),
    "16-bit big-endian tiff is scaled": (
        big_endian_tiff,
        np.array([[[0x12] * 3, [0xFF] * 3]], np.uint8),
    ),
    "16-bit pgm is scaled": (lambda: b"P5 3 1 65535\n" + SIXTEEN_BITS.astype(">u2").tobytes(), EIGHT_BITS),
    "alpha over white": (lambda: encode(HALF_RED), filled((255, 127, 127))),
    "grey with alpha": (lambda: encode(GREY_ALPHA), np.array([[[10] * 3, [255] * 3]], np.uint8)),
    "palette with transparency": (
        palette_with_transparency,
        np.array([[[255, 0, 0], [255, 255, 255], [0, 0, 255]]], np.uint8),
    ),
    "first frame": (animation, filled((255, 0, 0))),
    "cmyk tiff": (lambda: encode(Image.new("CMYK", (3, 2), (0, 255, 255, 0)), "TIFF"), filled((255, 0, 0))),
}


@pytest.mark.parametrize("case", GOOD)
def test_good_image(case: str) -> None:
    make, expected = GOOD[case]
    image = decode_image(make(), "photo")
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, expected)


def test_cmyk_jpeg() -> None:
    image = decode_image(encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95), "photo")
    np.testing.assert_allclose(image, np.full((16, 16, 3), (255, 0, 0)), atol=4)


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty file": (lambda: b"", "^photo.jpg: empty file, expected an image$"),
    "text": (lambda: b"Dear Sir or Madam,\n", r"^photo.jpg: not an image in a format that can be read \(JPEG, PNG"),
    "truncated jpeg": (lambda: encode(NOISE, "JPEG")[:-300], r"^photo.jpg: broken image \(.*truncated"),
    "truncated png": (lambda: encode(NOISE)[:500], r"^photo.jpg: broken image \(.*truncated"),
    "truncated header": (lambda: encode(NOISE)[:12], "^photo.jpg: "),
    "png of 20,000x20,000": (
        lambda: png_with_size(20_000, 20_000),
        "^photo.jpg: too many pixels, at most 100,000,000 are read$",
    ),
    "png of 10,001x10,000": (
        lambda: png_with_size(10_001, 10_000),
        "^photo.jpg: 10001x10000 pixels, at most 100,000,000 are read$",
    ),
    "floating point": (
        lambda: encode(np.ones((2, 3), np.float32), "TIFF"),
        r"^photo.jpg: broken image \(floating-point pixels, whose range is not known\)$",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_image_is_told_in_one_line(case: str, tmp_path: Path) -> None:
    make, message = BAD[case]
    with pytest.raises(ImageError, match=message) as caught:
        decode_image(make(), "photo.jpg")
    assert "\n" not in str(caught.value)
    file = tmp_path / "photo.jpg"
    file.write_bytes(make())
    with pytest.raises(ImageError, match=r"photo\.jpg: "):
        read_image(file)


def test_any_damage_is_an_image_error() -> None:
    """Whatever the decoders raise on broken bytes, it arrives as `ImageError`."""
    exif = Image.Exif()
    exif[274], exif[270] = 6, "a portrait"
    rng = np.random.default_rng(0)
    for data in (encode(NOISE, "JPEG", exif=exif), encode(NOISE, exif=exif), encode(NOISE, "GIF")):
        for _ in range(150):
            damaged = bytearray(data)
            for position in rng.integers(0, 200, 3):
                damaged[position] = rng.integers(0, 256)
            try:
                assert decode_image(bytes(damaged), "photo").dtype == np.uint8
            except ImageError as error:
                assert "\n" not in str(error)  # noqa: PT017 - most damage is found, but not all


def test_missing_path(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"nowhere\.png: No such file or directory$"):
        read_image(tmp_path / "nowhere.png")


def test_folder_instead_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=rf"^{tmp_path}: Is a directory$"):
        read_image(tmp_path)


def test_read_image(tmp_path: Path) -> None:
    Image.fromarray(SMALL).save(tmp_path / "photo.png")
    np.testing.assert_array_equal(read_image(tmp_path / "photo.png"), SMALL)


# How a camera stores an upright picture under each EXIF orientation, from where the stored row 0 and column 0 belong.
STORED: dict[int, Callable[[Array], Array]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],  # row 0 top, column 0 right
    3: lambda upright: upright[::-1, ::-1],  # bottom, right
    4: lambda upright: upright[::-1],  # bottom, left
    5: lambda upright: upright.swapaxes(0, 1),  # left, top
    6: lambda upright: upright[:, ::-1].swapaxes(0, 1),  # right, top
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),  # right, bottom
    8: lambda upright: upright[::-1].swapaxes(0, 1),  # left, bottom
}


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation(orientation: int, file_format: str) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    data = encode(np.ascontiguousarray(STORED[orientation](NOISE)), file_format, exif=exif)
    np.testing.assert_array_equal(decode_image(data, "photo"), NOISE)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_unknown_exif_orientation_is_ignored(orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    np.testing.assert_array_equal(decode_image(encode(NOISE, exif=exif), "photo"), NOISE)


def test_identity_warp_returns_the_image() -> None:
    square = NOISE[:30]
    np.testing.assert_array_equal(warp_similarity(square, np.eye(2, 3), 30), square)


def test_warp_repeats_the_edge() -> None:
    shifted = warp_similarity(NOISE[:30], np.array([[1.0, 0, 10], [0, 1, 4]]), 30)
    expected = np.pad(NOISE[:30], ((4, 0), (10, 0), (0, 0)), mode="edge")[:30, :30]
    np.testing.assert_array_equal(shifted, expected)


def test_warp_far_outside_gives_the_nearest_corner() -> None:
    crop = warp_similarity(NOISE, np.array([[1.0, 0, -900], [0, 1, -900]]), 8)
    np.testing.assert_array_equal(crop, np.broadcast_to(NOISE[-1, -1], (8, 8, 3)))


@pytest.mark.parametrize(("degrees", "scale"), [(0, 1.0), (0, 2.3), (30, 1.0), (-75, 1.6), (180, 0.8)])
def test_warp_agrees_with_pillow(degrees: float, scale: float) -> None:
    """Pillow too takes pixel (i, j) for the square around (i + 0.5, j + 0.5)."""
    angle, size = np.deg2rad(degrees), 32
    target = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) * scale * 5 + 16
    matrix = similarity_transform([(20.3, 20.1), (15.3, 20.1)], [target[0], [16, 16]])
    inverse = invert_transform(matrix)
    by_pillow = Image.fromarray(NOISE).transform(
        (size, size), Image.Transform.AFFINE, tuple(inverse.ravel()), Image.Resampling.BILINEAR
    )
    centres = np.stack(np.meshgrid(*[np.arange(size) + 0.5] * 2), axis=-1)
    source = transform_points(inverse, centres)
    interior = ((source > 1) & (source < [29, 39])).all(axis=-1)
    assert interior.sum() > 100
    ours = warp_similarity(NOISE, matrix, size)
    np.testing.assert_allclose(ours[interior], np.asarray(by_pillow)[interior].astype(float), atol=1)


@pytest.mark.parametrize("factor", [2, 3, 5])
def test_shrinking_averages_blocks(factor: int) -> None:
    size = 12
    image = np.random.default_rng(factor).integers(0, 256, (size * factor, size * factor, 3), np.uint8)
    means = image.reshape(size, factor, size, factor, 3).mean(axis=(1, 3))
    crop = warp_similarity(image, box_transform((0, 0, size * factor, size * factor), size), size)
    np.testing.assert_allclose(crop, means, atol=0.6)  # Pillow reduces with fixed-point numbers


@pytest.mark.parametrize("degrees", [0, 20, 45])
def test_shrinking_does_not_alias(degrees: float) -> None:
    stripes = np.zeros((300, 300, 3), np.uint8)
    stripes[:, ::2] = 255
    angle = np.deg2rad(degrees)
    step = np.array([np.cos(angle), np.sin(angle)]) * 10 * 0.23
    matrix = similarity_transform([(150, 150), (160, 150)], [(16, 16), 16 + step])
    crop = warp_similarity(stripes, matrix, 32)
    np.testing.assert_allclose(crop[8:24, 8:24], 127.5, atol=1)


@pytest.mark.parametrize("scale", [0.001, 0.3, 40.0])
def test_warp_of_one_pixel(scale: float) -> None:
    pixel = np.full((1, 1, 3), 77, np.uint8)
    crop = warp_similarity(pixel, np.array([[scale, 0, 0], [0, scale, 0]]), 6)
    np.testing.assert_array_equal(crop, np.full((6, 6, 3), 77))


def test_align_without_landmarks_shows_the_whole_image() -> None:
    crop, landmarks = align(NOISE, None, 40)
    np.testing.assert_array_equal(crop[:, 5:35], NOISE)  # 30 columns centred in 40
    assert landmarks.shape == (68, 2)


def test_decoding_in_threads_leaves_the_warnings_as_they_were() -> None:
    """Many pictures with an EXIF block that Pillow warns of, at once: nothing is said, and later warnings are."""
    stream = io.BytesIO()
    Image.new("RGB", (300, 300)).save(stream, "JPEG", exif=b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff")
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        for image in pool.map(lambda _: decode_image(stream.getvalue(), "a"), range(200)):
            assert image.shape == (300, 300, 3)
    assert list(warnings.filters) == before
    with pytest.warns(UserWarning, match="^still heard$"):
        warnings.warn("still heard", stacklevel=1)
