"""Pieces of a page of HTML that needs nothing beside itself: text is escaped, pictures are in it."""

import base64
import html
import io
from collections.abc import Sequence

from PIL import Image

from nkf.images import ImageRGB

_STYLE = """
body { margin: 2rem auto; max-width: 62rem; padding: 0 1rem; color: #1d2733; background: #fff;
  font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; font-variant-numeric: tabular-nums; }
h1 { font-size: 1.7rem; margin: 0 0 .2rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; padding-bottom: .2rem; border-bottom: 1px solid #d5dce3; }
p { margin: .5rem 0; max-width: 48rem; }
.lead, .quiet { color: #5b6875; } .quiet { font-size: .85rem; }
.note { background: #fdf4e3; border-left: 4px solid #d99a2b; padding: .6rem .9rem; max-width: none; }
table { border-collapse: collapse; font-size: .87rem; margin: .5rem 0; }
th, td { padding: .22rem .6rem; text-align: left; vertical-align: top; border-bottom: 1px solid #e8ecf0; }
thead th { color: #5b6875; font-weight: 600; border-bottom: 1px solid #b8c2cc; vertical-align: bottom; }
tbody th { font-weight: 600; white-space: nowrap; }
td.number, th.number { text-align: right; white-space: nowrap; }
td.changed { background: #e8f1fa; font-weight: 600; }
td.changed { max-width: 16rem; overflow-wrap: anywhere; }
.matrix { font-size: .8rem; } .matrix svg { max-width: none; vertical-align: middle; }
.matrix td, .matrix th { border: 0; padding: .3rem .4rem; vertical-align: middle; white-space: nowrap; }
.matrix td.count { text-align: right; min-width: 2.2rem; border: 1px solid #fff; }
.columns { display: flex; flex-wrap: wrap; gap: 0 3rem; }
details { margin: .6rem 0; } summary { cursor: pointer; color: #2f5d8a; }
svg { max-width: 100%; height: auto; } svg text { font-family: inherit !important; }
.faces { display: flex; flex-wrap: wrap; gap: 1rem .9rem; }
.faces figure { margin: 0; width: 9rem; font-size: .8rem; line-height: 1.35; overflow-wrap: anywhere; }
.faces img { width: 9rem; height: 9rem; border-radius: 4px; display: block; margin-bottom: .25rem; }
"""


class Markup(str):
    """HTML as it is; any other text is escaped where it comes into a page."""

    __slots__ = ()


def markup(value: object) -> Markup:
    """Escape text, unless it is HTML already."""
    return value if isinstance(value, Markup) else Markup(html.escape(str(value)))


def page(title: str, parts: Sequence[Markup]) -> str:
    """A whole page; the style is in it, scripts there are none."""
    lines = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>",
        *parts,
        "</body></html>\n",
    ]
    return "\n".join(lines)


def element(tag: str, *parts: object, kind: str = "", title: str = "", style: str = "") -> Markup:
    """An element with its parts; `kind` is its class."""
    given = {"class": kind, "title": title, "style": style}
    attributes = "".join(f' {name}="{html.escape(value)}"' for name, value in given.items() if value)
    return Markup(f"<{tag}{attributes}>{''.join(markup(part) for part in parts)}</{tag}>")


def table(
    header: Sequence[object], rows: Sequence[Sequence[object]], *, numbers: Sequence[int] = (), kind: str = ""
) -> Markup:
    """A table whose first column heads the rows.

    Args:
        header: of the columns; none, if empty.
        rows: cells; one that is a ``<td>`` already is taken as it is.
        numbers: columns that are aligned at the right.
        kind: its class.
    """

    def cell(tag: str, column: int, value: object) -> Markup:
        if isinstance(value, Markup) and value.startswith("<td"):
            return value
        return element(tag, value, kind="number" if column in numbers else "")

    head = element("thead", element("tr", *(cell("th", column, text) for column, text in enumerate(header))))
    lines = (
        element("tr", *(cell("td" if column else "th", column, v) for column, v in enumerate(row))) for row in rows
    )
    return element("table", head if header else "", element("tbody", *lines), kind=kind)


def picture(image_rgb: ImageRGB, text: str) -> Markup:
    """An (H, W, 3) uint8 picture as a JPEG inside the page.

    Args:
        image_rgb: the picture.
        text: said where it cannot be seen.
    """
    stream = io.BytesIO()
    Image.fromarray(image_rgb).save(stream, "JPEG", quality=88)
    data = base64.b64encode(stream.getvalue()).decode()
    return Markup(f'<img src="data:image/jpeg;base64,{data}" alt="{html.escape(text)}">')


def bar(value: float, low: float, high: float) -> Markup:
    """A share in [0, 1] as a bar, with its interval as a line over it."""
    left, right, end = (round(100 * share, 1) for share in (low, high, value))
    shapes = (
        f'<rect width="{end}" height="10" y="2" fill="#8fb4d9"/>'
        f'<path d="M{left} 7H{right}M{left} 4V10M{right} 4V10" stroke="#1d2733" fill="none"/>'
    )
    return Markup(f'<svg width="80" height="14" viewBox="-1 0 102 14" preserveAspectRatio="none">{shapes}</svg>')
