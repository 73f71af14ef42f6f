"""Read an image file into upright RGB, and cut faces out of it."""

import io
import threading
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from nkf.errors import ImageError
from nkf.geometry import CROP_SIZE, Matrix, Points, face_transform, invert_transform, transform_points

ImageRGB = NDArray[np.uint8]  # (H, W, 3)

# Those of HEIC are here so that such a photo in a folder is told of, and not passed over (see `_what_it_is`).
# fmt: off
IMAGE_SUFFIXES = frozenset({
    ".apng", ".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg",
    ".jpx", ".mpo", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".tga", ".tif", ".tiff", ".webp",
})
# fmt: on

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB in [0, 1]
MAX_PIXELS = 100_000_000  # a picture costs 3 bytes a pixel, with transparency 18 for a moment
MAX_FILE_BYTES = 1 << 30  # no photo has more; it is read into memory whole
_PIECE_BYTES = 1 << 22

# Pillow reads more, but not all of it safely: EPS, for one, starts Ghostscript, and ICO decodes before it tells a size.
# HEIF is there where pillow-heif has been registered; AVIF is not in every Pillow.
_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "HEIF", "GIF", "TIFF", "BMP", "DIB", "JPEG2000", "PPM", "QOI", "TGA")

_HEIC_BRANDS = frozenset({b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"})

_UPRIGHT = {  # EXIF orientation -> what undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class _QuietPillow:
    """Silence Pillow's warnings while any thread decodes.

    `warnings.catch_warnings` alone is not for threads: one that leaves restores what another has just set.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads = 0
        self._caught: warnings.catch_warnings[None] | None = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._threads:
                self._caught = warnings.catch_warnings()
                self._caught.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
            self._threads += 1

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._threads -= 1
            if not self._threads and self._caught is not None:
                self._caught.__exit__(None, None, None)


_QUIET = _QuietPillow()


def read_image(source: str | Path | bytes | BinaryIO, *, frame: int = 0) -> ImageRGB:
    """Read an image into upright RGB, EXIF orientation applied.

    Args:
        source: a path, the content of a file, or an open binary file, in any common format (`IMAGE_SUFFIXES`).
        frame: which picture of an animation or of a file with several pages, from 0.

    Returns:
        (H, W, 3) uint8. Grey is repeated in three channels, 16 bits a channel scaled to 8, transparency laid over
        white.

    Raises:
        ImageError: one line that names the file and what is wrong with it, or how many frames it has.
    """
    if isinstance(source, bytes):
        return decode_image(source, "image of bytes", frame=frame)
    path = source if isinstance(source, str | Path) else getattr(source, "name", "open file")
    try:
        with Path(source).open("rb") if isinstance(source, str | Path) else nullcontext(source) as stream:
            data = _read_all(stream)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in a path, or a closed file
        raise ImageError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    if len(data) > MAX_FILE_BYTES:
        raise ImageError(f"{path}: more than {MAX_FILE_BYTES:,} bytes, no photo has so many")
    return decode_image(data, str(path), frame=frame)


def decode_image(data: bytes, name: str, *, frame: int = 0) -> ImageRGB:
    """Decode the bytes of an image file; `name` is what error messages call it. See `read_image`."""
    if not data:
        raise ImageError(f"{name}: empty file, expected an image")
    try:
        with _QUIET:  # size is checked below, and broken metadata does not matter here
            image = Image.open(io.BytesIO(data), formats=_formats(data))
            _check_size(image, name)
            _seek(image, frame, name)
            return to_rgb(upright(image))
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: {_what_it_is(data)}") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: too many pixels, at most {MAX_PIXELS:,} are read") from error
    except Exception as error:  # on broken data Pillow's decoders raise nearly anything, struct.error for one
        raise ImageError(f"{name}: broken image ({' '.join(str(error).split())})") from error


def upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; `ImageOps.exif_transpose` also rewrites the other tags and fails on broken ones."""
    image.load()  # some formats tell the orientation at the end
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # of many types; a broken EXIF block tells nothing, and the picture is good
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def to_rgb(image: Image.Image) -> ImageRGB:
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is not known")
    if image.mode.startswith("I"):  # 16 bits; in mode I too, as Pillow reads them from PGM
        wide = np.asarray(image).astype(np.int32)  # convert("RGB") would clip
        wide >>= 8
        return np.repeat(wide.clip(0, 255, out=wide).astype(np.uint8)[..., None], 3, axis=2)
    if image.has_transparency_data:
        rgba = image if image.mode == "RGBA" else image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.asarray(image.convert("RGB"))


def _read_all(stream: BinaryIO) -> bytes:
    """Read to the end or past `MAX_FILE_BYTES`, in pieces: a device may have no end."""
    data = bytearray()
    while len(data) <= MAX_FILE_BYTES and (piece := stream.read(_PIECE_BYTES)):
        data += piece
    return bytes(data)


def _formats(data: bytes) -> list[str]:
    """Formats to try; loading all of Pillow's plugins takes a tenth of a second, which most photos do not need."""
    if data.startswith((b"\xff\xd8", b"\x89PNG")):
        return ["JPEG", "PNG"]
    Image.init()
    return [one for one in _FORMATS if one in Image.OPEN]


def _what_it_is(data: bytes) -> str:
    """Why bytes are not an image that can be read; what people often have instead is told."""
    if data[4:8] == b"ftyp" and data[8:12] in _HEIC_BRANDS:
        return "HEIC is not read; convert it to JPEG"
    if data[:1000].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "a web page, not an image"
    if not data.strip(b"\0"):
        return "nothing but zeros, a broken copy of an image"
    return "not an image in a format that can be read (JPEG, PNG, WebP, ...)"


def _check_size(image: Image.Image, name: str) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(f"{name}: {image.width}x{image.height} pixels, at most {MAX_PIXELS:,} are read")


def _seek(image: Image.Image, frame: int, name: str) -> None:
    """Go to a frame one by one, as Pillow does too: each may be larger than those before it."""
    count = getattr(image, "n_frames", 1) if frame else 1
    if not 0 <= frame < count:
        frames = "1 frame" if count == 1 else f"{count} frames"
        raise ImageError(f"{name}: no frame {frame}, it has {frames}, counted from 0")
    for number in range(1, frame + 1):
        image.seek(number)
        _check_size(image, name)


def warp_similarity(image_rgb: ImageRGB, matrix: Matrix, size: int) -> ImageRGB:
    """Cut a square crop with bilinear sampling; outside the image its edge pixels are repeated.

    When the crop shrinks the image, the part it needs is first averaged down to the crop's scale, since bilinear
    sampling alone would alias.

    Args:
        image_rgb: (H, W, 3) uint8.
        matrix: (2, 3) similarity from image pixels to crop pixels.
        size: side of the crop in pixels.

    Returns:
        (size, size, 3) uint8.
    """
    centres = np.arange(size) + 0.5
    grid = np.stack(np.meshgrid(centres, centres), axis=-1)  # (size, size, 2)
    source = transform_points(invert_transform(matrix), grid)
    image_rgb, source = _shrink_to_scale(image_rgb, source, np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    return _sample_bilinear(image_rgb, source - 0.5)


def whole_box(image_rgb: ImageRGB) -> NDArray[np.float64]:
    """Return the (4,) xyxy box of a complete image."""
    height, width = image_rgb.shape[:2]
    return np.array([0, 0, width, height], np.float64)


def align(
    image_rgb: ImageRGB, landmarks_px: Points | None, size: int = CROP_SIZE, box_xyxy: ArrayLike | None = None
) -> tuple[ImageRGB, Points]:
    """Cut a face out so that its eyes, nasal base and mouth corners lie on the crop template.

    Args:
        image_rgb: (H, W, 3) uint8.
        landmarks_px: (68, 2) in image pixels. Where there are none, or they are all in one place, the box is cut, and
            the mean shape stands for the landmarks.
        size: side of the crop.
        box_xyxy: (4,) of the face in image pixels; None or not finite = the image's central square.

    Returns:
        The (size, size, 3) crop, and the (68, 2) landmarks in its pixels.
    """
    known = box_xyxy is not None and np.isfinite(box_xyxy).all()
    box = np.asarray(box_xyxy, np.float64) if known else whole_box(image_rgb)
    matrix, points = face_transform(landmarks_px, box, size)
    return warp_similarity(image_rgb, matrix, size), points


def _shrink_to_scale(image_rgb: ImageRGB, source: Points, scale: float) -> tuple[ImageRGB, Points]:
    factor = int(1 / scale)
    if factor < 2:
        return image_rgb, source
    height, width = image_rgb.shape[:2]
    low = np.clip(np.floor(source.min(axis=(0, 1))).astype(int) - factor, 0, [width - 1, height - 1])
    high = np.clip(np.ceil(source.max(axis=(0, 1))).astype(int) + factor, low + 1, [width, height])
    part = Image.fromarray(image_rgb[low[1] : high[1], low[0] : high[0]]).reduce(factor)
    return np.asarray(part), (source - low) / factor


def _sample_bilinear(image: ImageRGB, index_xy: Points) -> ImageRGB:
    limit = np.array([image.shape[1] - 1, image.shape[0] - 1])
    index_xy = np.clip(index_xy, 0, limit)
    low = np.floor(index_xy).astype(np.intp)
    fraction = (index_xy - low)[..., None].astype(np.float32)
    high = np.minimum(low + 1, limit)
    x0, y0, x1, y1 = low[..., 0], low[..., 1], high[..., 0], high[..., 1]
    fx, fy = fraction[..., 0, :], fraction[..., 1, :]
    top = image[y0, x0] * (1 - fx) + image[y0, x1] * fx
    bottom = image[y1, x0] * (1 - fx) + image[y1, x1] * fx
    return (top * (1 - fy) + bottom * fy + 0.5).astype(np.uint8)
