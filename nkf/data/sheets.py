"""Contact sheets: many small pictures with captions on one, to look at what a check of a dataset found."""

import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from nkf.geometry import Points
from nkf.images import ImageRGB

MAX_ENLARGEMENT = 4.0
SIDE = 96  # of a cell in pixels
GAP_PX = 6
CAPTION_PX = 11
TITLE_PX = 18
BACKGROUND, TEXT = "white", "black"
CELL = (232, 232, 232)  # tells a picture's own border from the empty part of its cell
BOX, LANDMARK = (255, 170, 0), (0, 255, 80)

_ELLIPSIS = "…"
_DASHES = str.maketrans("–—−", "---")


def contact_sheet(
    pictures: Sequence[ImageRGB],
    captions: Sequence[str],
    *,
    columns: int = 10,
    side: int = SIDE,
    title: str = "",
    landmarks_px: Sequence[Points | None] | None = None,
    boxes_xyxy: Sequence[NDArray[np.floating] | None] | None = None,
) -> Image.Image:
    """Lay pictures out in rows, each in a square cell with a caption below it.

    Args:
        pictures: (H, W, 3) uint8 each, of any sizes; scaled to fit, enlarged by at most `MAX_ENLARGEMENT`.
        captions: one for each picture, cut to the width of a cell.
        columns: most pictures in a row, at least 1.
        side: of a cell in pixels, at least 8.
        title: line above all, cut to the width of the sheet.
        landmarks_px: for each picture (K, 2) in its own pixels, or None; drawn where finite.
        boxes_xyxy: for each picture (4,) in its own pixels, or None; drawn where finite.

    Returns:
        The sheet in mode RGB. Without pictures it says so.

    Raises:
        ValueError: when the sequences differ in length, or `columns` or `side` are too small.
    """
    if columns < 1 or side < 8:
        raise ValueError(f"columns {columns}, side {side}: expected at least 1 and 8")
    for name, values in (("captions", captions), ("landmarks_px", landmarks_px), ("boxes_xyxy", boxes_xyxy)):
        if values is not None and len(values) != len(pictures):
            raise ValueError(f"{len(values)} {name} for {len(pictures)} pictures")
    if not pictures:
        title = f"{title}: no pictures" if title else "no pictures"
    sheet, top = _empty_sheet(len(pictures), columns, side, title)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(CAPTION_PX)
    for number, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        row, column = divmod(number, columns)
        x = GAP_PX + column * (side + GAP_PX)
        y = top + row * (side + _line_height(font) + GAP_PX)
        draw.rectangle((x, y, x + side - 1, y + side - 1), fill=CELL)
        cell, scale, offset = _fit(picture, side)
        corner = np.array([x, y]) + offset
        sheet.paste(cell, (int(corner[0]), int(corner[1])))
        if boxes_xyxy is not None and (box := boxes_xyxy[number]) is not None:
            _draw_box(draw, np.asarray(box, np.float64).reshape(2, 2) * scale + corner, (x, y, side))
        if landmarks_px is not None and (points := landmarks_px[number]) is not None:
            _draw_points(draw, np.asarray(points, np.float64) * scale + corner, (x, y, side))
        draw.text((x, y + side), cut(caption, side, font), fill=TEXT, font=font)
    return sheet


def shrink(picture: ImageRGB, side: int = SIDE) -> tuple[ImageRGB, NDArray[np.float64]]:
    """Make a picture as small as it gets in its cell, so that a sheet needs no more; never larger.

    Returns:
        The picture and the (2,) factors in x and y, for its boxes and landmarks.
    """
    if max(picture.shape[:2]) <= side:
        return picture, np.ones(2)
    image, scale, _ = _fit(picture, side)
    return np.asarray(image), scale


def cut(text: str, width_px: int, font: Any) -> str:
    """Shorten a line to a width in pixels, ending it with an ellipsis; breaks become spaces, accents are lost."""
    text = " ".join(_drawable(text).split())
    if font.getlength(text) <= width_px:
        return text
    low, high = 0, len(text)  # the longest beginning that fits, by bisection: captions may be whole paths
    while low < high:
        middle = (low + high + 1) // 2
        fits = font.getlength(text[:middle].rstrip() + _ELLIPSIS) <= width_px
        low, high = (middle, high) if fits else (low, middle - 1)
    return text[:low].rstrip() + _ELLIPSIS


def _drawable(text: str) -> str:
    """Reduce text to what Pillow's own font can draw: letters without accents, ``?`` for all others."""
    plain = unicodedata.normalize("NFKD", text.translate(_DASHES))
    return "".join(c if c.isascii() else "?" for c in plain if not unicodedata.combining(c))


def _empty_sheet(count: int, columns: int, side: int, title: str) -> tuple[Image.Image, int]:
    """The sheet with its title, and where the first row of cells begins."""
    font = ImageFont.load_default(TITLE_PX)
    rows = -(-count // columns)
    used = min(max(count, 3), columns)  # wide enough for a title even when there are few pictures
    width = GAP_PX + used * (side + GAP_PX)
    top = GAP_PX + (_line_height(font) + GAP_PX if title else 0)
    height = top + rows * (side + _line_height(ImageFont.load_default(CAPTION_PX)) + GAP_PX)
    sheet = Image.new("RGB", (width, height), BACKGROUND)
    ImageDraw.Draw(sheet).text((GAP_PX, GAP_PX), cut(title, width - 2 * GAP_PX, font), fill=TEXT, font=font)
    return sheet, top


def _line_height(font: Any) -> int:
    ascent, descent = font.getmetrics()
    return int(ascent + descent)


def _fit(picture: ImageRGB, side: int) -> tuple[Image.Image, NDArray[np.float64], NDArray[np.intp]]:
    """The picture scaled into a cell, the (2,) factors in x and y, and the (2,) offset of its corner in the cell."""
    image = Image.fromarray(picture)
    factor = min(side / max(image.size), MAX_ENLARGEMENT)
    size = tuple(max(1, round(length * factor)) for length in image.size)
    filtered = Image.Resampling.BICUBIC if factor > 1 else Image.Resampling.LANCZOS
    scale = np.array(size) / np.array(image.size)
    return image.resize((size[0], size[1]), filtered), scale, (side - np.array(size)) // 2


def _draw_box(draw: ImageDraw.ImageDraw, corners: Points, cell: tuple[int, int, int]) -> None:
    """Draw a (2, 2) box in pixels of the sheet, clipped to its cell so that no neighbour is painted over."""
    if not np.isfinite(corners).all():
        return
    x, y, side = cell
    low = np.clip(corners.min(axis=0), [x, y], [x + side - 1, y + side - 1])
    high = np.clip(corners.max(axis=0) - 1, low, [x + side - 1, y + side - 1])
    draw.rectangle((*low.tolist(), *high.tolist()), outline=BOX, width=2)


def _draw_points(draw: ImageDraw.ImageDraw, points: Points, cell: tuple[int, int, int]) -> None:
    """Draw (K, 2) points in pixels of the sheet as squares of 2 pixels, where those lie in the cell."""
    corners = np.round(points[np.isfinite(points).all(axis=1)]) - 1
    x, y, side = cell
    inside = ((corners >= [x, y]) & (corners < [x + side - 1, y + side - 1])).all(axis=1)
    for left, top in corners[inside].astype(int).tolist():
        draw.rectangle((left, top, left + 1, top + 1), fill=LANDMARK)
