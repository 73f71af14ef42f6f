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
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from nkf import images
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


def png(size_wh: tuple[int, int], depth: int, colour: int, rows: bytes, more: bytes = b"") -> bytes:
    """A PNG as the format defines it: colour 0 is grey, 2 RGB, 6 RGB with alpha; `more` are chunks before the rows."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", *size_wh, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + more + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")


def png_with_size(width: int, height: int) -> bytes:
    return png((width, height), 8, 0, bytes(1000))


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


def animation(file_format: str = "GIF", **options: Any) -> bytes:
    frames = [Image.new("RGB", (16, 8), colour) for colour in FRAMES]
    return encode(frames[0], file_format, save_all=True, append_images=frames[1:], **options)


def growing_gif() -> bytes:
    """Three frames, the last said to be of 11,000x11,000 pixels."""
    data = bytearray(animation())
    last = data.rindex(b"\x2c\0\0\0\0")  # image descriptor: separator, left, top, width, height
    data[last + 5 : last + 9] = struct.pack("<HH", 11_000, 11_000)
    return bytes(data)


def growing_tiff() -> bytes:
    """Three pages, the last said to be of 12,000x12,000 pixels."""
    data = bytearray(animation("TIFF"))
    place = 4
    for _ in range(3):
        place = struct.unpack_from("<I", data, place)[0]
        tags = range(place + 2, place + 2 + 12 * struct.unpack_from("<H", data, place)[0], 12)
        place = tags.stop
    for tag in tags:
        if struct.unpack_from("<H", data, tag)[0] in (256, 257):  # width, height
            struct.pack_into("<HII", data, tag + 2, 4, 1, 12_000)
    return bytes(data)


def red_ycck() -> bytes:
    """A JPEG as Adobe's programs write it: brightness, colour differences and black, all of them inverted."""
    luma, blue, red = Image.new("RGB", (16, 16), (0, 255, 255)).convert("YCbCr").getpixel((0, 0))  # type: ignore[misc]
    data = bytearray(encode(Image.new("CMYK", (16, 16), (255 - luma, 255 - blue, 255 - red, 0)), "JPEG", quality=95))
    transform = data.index(b"Adobe") + 11
    assert data[transform] == 0
    data[transform] = 2  # YCCK
    return bytes(data)


def filled(colour: tuple[int, int, int], height: int = 2, width: int = 3) -> Array:
    return np.full((height, width, 3), colour, np.uint8)


FRAMES = {"red": (255, 0, 0), "lime": (0, 255, 0), "blue": (0, 0, 255)}
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
    "first frame of a gif": (animation, filled((255, 0, 0), 8, 16)),
    "first frame of an animated png": (lambda: animation("PNG"), filled((255, 0, 0), 8, 16)),
    "first frame of a webp": (lambda: animation("WEBP", lossless=True), filled((255, 0, 0), 8, 16)),
    "first page of a tiff": (lambda: animation("TIFF"), filled((255, 0, 0), 8, 16)),
    "16-bit rgb png is scaled": (
        lambda: png((2, 1), 16, 2, b"\0" + struct.pack(">6H", 0x1234, 0x80FF, 0xFFFF, 0, 255, 256)),
        np.array([[[0x12, 0x80, 0xFF], [0, 0, 1]]], np.uint8),
    ),
    "16-bit rgb png with alpha": (
        lambda: png((2, 1), 16, 6, b"\0" + struct.pack(">8H", 0x1234, 0x80FF, 0, 0xFFFF, 0, 0, 0, 0)),
        np.array([[[0x12, 0x80, 0], [255] * 3]], np.uint8),
    ),
    "16-bit ppm is scaled": (
        lambda: b"P6 1 1 65535\n" + struct.pack(">3H", 0x1234, 0x80FF, 0xFFFF),
        np.array([[[0x12, 0x80, 0xFF]]], np.uint8),
    ),
    "10-bit pgm is scaled": (
        lambda: b"P5 2 1 1023\n" + struct.pack(">2H", 512, 1023),
        np.array([[[128] * 3, [255] * 3]], np.uint8),
    ),
    "2-bit png": (
        lambda: png((4, 1), 2, 0, b"\0\x1b"),
        np.array([[[0] * 3, [85] * 3, [170] * 3, [255] * 3]], np.uint8),
    ),
    "a colour that is transparent": (
        lambda: png((2, 1), 8, 2, b"\0\1\2\3\5\6\7", png_chunk(b"tRNS", struct.pack(">3H", 1, 2, 3))),
        np.array([[[255] * 3, [5, 6, 7]]], np.uint8),
    ),
    "transparent webp": (
        lambda: encode(np.full((2, 3, 4), (255, 0, 0, 0), np.uint8), "WEBP", lossless=True),
        filled((255, 255, 255)),
    ),
    "tga": (lambda: encode(SMALL, "TGA"), SMALL),
    "packed tga": (lambda: encode(SMALL, "TGA", compression="tga_rle"), SMALL),
    "qoi": (lambda: encode(SMALL, "QOI"), SMALL),
    "jpeg 2000": (lambda: encode(SMALL, "JPEG2000"), SMALL),
    "packed tiff": (lambda: encode(SMALL, "TIFF", compression="tiff_lzw"), SMALL),
    "fax": (lambda: encode(Image.new("1", (3, 2), 1), "TIFF", compression="group4"), filled((255, 255, 255))),
    "cmyk tiff": (lambda: encode(Image.new("CMYK", (3, 2), (0, 255, 255, 0)), "TIFF"), filled((255, 0, 0))),
}


@pytest.mark.parametrize("case", GOOD)
def test_good_image(case: str) -> None:
    make, expected = GOOD[case]
    image = decode_image(make(), "photo")
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, expected)


RED = Image.new("RGB", (16, 16), "red")
NEARLY_RED: dict[str, Callable[[], bytes]] = {
    "cmyk jpeg": lambda: encode(RED.convert("CMYK"), "JPEG", quality=95),
    "ycck jpeg": red_ycck,
    "avif": lambda: encode(RED, "AVIF"),
    "jpeg in a tiff": lambda: encode(RED, "TIFF", compression="jpeg"),
    "mpo": lambda: encode(RED, "MPO", save_all=True, append_images=[Image.new("RGB", (16, 16))]),
}


@pytest.mark.parametrize("case", NEARLY_RED)
def test_lossy_image(case: str) -> None:
    np.testing.assert_allclose(decode_image(NEARLY_RED[case](), "photo"), np.full((16, 16, 3), (255, 0, 0)), atol=4)


ANIMATIONS: dict[str, dict[str, Any]] = {
    "GIF": {}, "PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}, "AVIF": {}, "MPO": {}
}  # fmt: skip


@pytest.mark.parametrize("frame", range(3))
@pytest.mark.parametrize("file_format", ANIMATIONS)
def test_frame_that_is_asked_for(file_format: str, frame: int) -> None:
    image = decode_image(animation(file_format, **ANIMATIONS[file_format]), "photo", frame=frame)
    np.testing.assert_allclose(image, filled(list(FRAMES.values())[frame], 8, 16), atol=4)


@pytest.mark.parametrize("frame", [3, -1])
@pytest.mark.parametrize("file_format", ANIMATIONS)
def test_frame_that_is_not_there(file_format: str, frame: int) -> None:
    data = animation(file_format, **ANIMATIONS[file_format])
    with pytest.raises(ImageError, match=f"^photo: no frame {frame}, it has 3 frames, counted from 0$"):
        decode_image(data, "photo", frame=frame)


def test_second_frame_of_a_photo() -> None:
    with pytest.raises(ImageError, match=r"^photo: no frame 1, it has 1 frame, counted from 0$"):
        decode_image(encode(SMALL), "photo", frame=1)


@pytest.mark.parametrize(
    ("make", "size"), [(growing_gif, "11000x11000"), (growing_tiff, "12000x12000")], ids=["gif", "tiff"]
)
def test_a_frame_may_be_too_large_too(make: Callable[[], bytes], size: str) -> None:
    data = make()
    np.testing.assert_array_equal(decode_image(data, "photo"), filled((255, 0, 0), 8, 16))
    with pytest.raises(ImageError, match=f"^photo: {size} pixels, at most 100,000,000 are read$"):
        decode_image(data, "photo", frame=2)


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty file": (lambda: b"", "^photo.jpg: empty file, expected an image$"),
    "text": (lambda: b"Dear Sir or Madam,\n", r"^photo.jpg: not an image in a format that can be read \(JPEG, PNG"),
    "truncated jpeg": (lambda: encode(NOISE, "JPEG")[:-300], r"^photo.jpg: broken image \(.*truncated"),
    "truncated png": (lambda: encode(NOISE)[:500], r"^photo.jpg: broken image \(.*truncated"),
    "iphone photo": (lambda: b"\0\0\0\x18ftypheic" + bytes(100), "^photo.jpg: HEIC is not read; convert it to JPEG$"),
    "error page": (lambda: b"\n<!DOCTYPE html><h1>404</h1>", "^photo.jpg: a web page, not an image$"),
    "zeros": (lambda: bytes(2000), "^photo.jpg: nothing but zeros, a broken copy of an image$"),
    "icon": (lambda: encode(RED, "ICO"), "^photo.jpg: not an image in a format that can be read"),
    "postscript": (lambda: encode(RED, "EPS"), "^photo.jpg: not an image in a format that can be read"),
    "colour profile of 2 MB": (
        lambda: png((1, 1), 8, 0, b"\0\0", png_chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(2_000_000)))),
        r"^photo.jpg: broken image \(Decompressed data too large",
    ),
    "text of 2 MB": (
        lambda: png((1, 1), 8, 0, b"\0\0", png_chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(2_000_000)))),
        r"^photo.jpg: broken image \(Decompressed data too large",
    ),
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


WITH_EXIF = Image.Exif()
WITH_EXIF[274], WITH_EXIF[270] = 6, "a portrait"
UNDAMAGED = (
    encode(NOISE, "JPEG", exif=WITH_EXIF),
    encode(NOISE, exif=WITH_EXIF),
    encode(NOISE, "TIFF", exif=WITH_EXIF),
    *(animation(name, **options) for name, options in ANIMATIONS.items()),
    *(encode(NOISE, name) for name in ("BMP", "JPEG2000", "PPM", "QOI", "TGA")),
)


@given(data=st.data())
@settings(max_examples=200, deadline=None, derandomize=True, database=None)
def test_any_damage_is_an_image_error(data: st.DataObject) -> None:
    """Whatever the decoders raise on broken bytes, it arrives as `ImageError`; most damage is found, but not all."""
    damaged = bytearray(data.draw(st.sampled_from(UNDAMAGED)))
    for place, value in data.draw(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), max_size=4)):
        damaged[place % len(damaged)] = value
    cut = data.draw(st.none() | st.integers(0, len(damaged)))
    try:
        image = decode_image(bytes(damaged[:cut]) + data.draw(st.binary(max_size=8)), "photo", frame=cut == 1)
    except ImageError as error:
        assert str(error).startswith("photo: ")  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert image.dtype == np.uint8
        assert image.ndim == 3
        assert image.shape[2] == 3
        assert image.size


@given(data=st.binary(max_size=100))
@settings(max_examples=100, deadline=None, derandomize=True, database=None)
def test_random_bytes_are_no_image(data: bytes) -> None:
    with pytest.raises(ImageError, match=r"^photo: "):
        decode_image(b"\xff\xff" + data, "photo")


def test_path_with_a_zero_byte() -> None:
    with pytest.raises(ImageError, match=r"^a\0b\.png: embedded null byte$"):
        read_image("a\0b.png")


def test_missing_path(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"nowhere\.png: No such file or directory$"):
        read_image(tmp_path / "nowhere.png")


def test_folder_instead_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=rf"^{tmp_path}: Is a directory$"):
        read_image(tmp_path)


def test_read_image(tmp_path: Path) -> None:
    file = tmp_path / "photo.png"
    Image.fromarray(SMALL).save(file)
    with file.open("rb") as stream:
        for source in (file, str(file), file.read_bytes(), io.BytesIO(file.read_bytes()), stream):
            np.testing.assert_array_equal(read_image(source), SMALL)


def test_errors_name_where_an_image_comes_from(tmp_path: Path) -> None:
    file = tmp_path / "photo.png"
    file.write_bytes(b"?")
    with file.open("rb") as stream:
        for source, name in ((file, file), (b"?", "image of bytes"), (io.BytesIO(b"?"), "open file"), (stream, file)):
            with pytest.raises(ImageError, match=f"^{name}: not an image"):
                read_image(source)


def test_a_file_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 1_000_000)
    with pytest.raises(ImageError, match=r"^/dev/zero: more than 1,000,000 bytes, no photo has so many$"):
        read_image("/dev/zero")


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


# How an upright picture with a gradient arrives through formats that lose something: the largest difference.
ORIENTED: dict[str, tuple[dict[str, Any], int]] = {
    "PNG": ({}, 0),
    "TIFF": ({}, 0),
    "WEBP": ({"lossless": True}, 0),
    "JPEG": ({"quality": 95}, 12),
    "AVIF": ({"quality": 95}, 12),
    "MPO": ({"quality": 95, "save_all": True, "append_images": [RED]}, 12),
}
GRADIENT = np.stack(np.broadcast_arrays(np.arange(48)[:, None] * 5, np.arange(32) * 7, 90), -1).astype(np.uint8)


@pytest.mark.parametrize("file_format", ORIENTED)
@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation(orientation: int, file_format: str) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    options, loss = ORIENTED[file_format]
    data = encode(np.ascontiguousarray(STORED[orientation](GRADIENT)), file_format, exif=exif, **options)
    np.testing.assert_allclose(decode_image(data, "photo"), GRADIENT.astype(int), atol=loss)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_unknown_exif_orientation_is_ignored(orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    np.testing.assert_array_equal(decode_image(encode(NOISE, exif=exif), "photo"), NOISE)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0MM\0\x16\0\0\0\x08", b"Exif\0\0MM", b"nothing", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
)
@pytest.mark.parametrize(("file_format", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_broken_exif_is_ignored(file_format: str, options: dict[str, Any], exif: bytes) -> None:
    np.testing.assert_array_equal(decode_image(encode(NOISE, file_format, exif=exif, **options), "photo"), NOISE)


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
