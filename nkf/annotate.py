"""Draw predictions over their image: boxes, landmarks, expressions, charts of probabilities."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from nkf.geometry import LANDMARK_GROUPS
from nkf.images import ImageRGB
from nkf.predict import FacePrediction, Prediction

MIN_ANNOTATED_SIDE = 480  # a smaller image is enlarged to this longer side, so that the text on it can be read
_SMOOTH_BELOW = 4_000_000  # pixels up to which lines are drawn at twice the size; in larger images steps do not show
_ACCENT, _DARK, _LIGHT = (255, 193, 37), (18, 20, 26), (245, 246, 248)
_MAX_CHARTS = 4  # with more faces than that nobody sees which chart belongs to which
_CLOSED_GROUPS = ("right_eye", "left_eye", "outer_lip", "inner_lip")


class _Box(NamedTuple):
    """A rectangle in canvas pixels."""

    x0: float
    y0: float
    x1: float
    y1: float

    def overlap(self, other: "_Box") -> float:
        width = min(self.x1, other.x1) - max(self.x0, other.x0)
        height = min(self.y1, other.y1) - max(self.y0, other.y0)
        return max(width, 0) * max(height, 0)

    def moved_into(self, other: "_Box") -> "_Box":
        dx = min(max(self.x0, other.x0), other.x1 - (self.x1 - self.x0)) - self.x0
        dy = min(max(self.y0, other.y0), other.y1 - (self.y1 - self.y0)) - self.y0
        return _Box(self.x0 + dx, self.y0 + dy, self.x1 + dx, self.y1 + dy)


def annotate(image_rgb: ImageRGB, prediction: Prediction) -> Image.Image:
    """Draw each face's box, landmarks, expression, and a chart of its probabilities.

    An expression that is uncertain, or of a face of low quality, is followed by a question mark. A chart goes where it
    hides no other face or is left out; so are all of them when there are many faces.

    Args:
        image_rgb: the (H, W, 3) image that `prediction` is about.
        prediction: coordinates in pixels of that image.

    Returns:
        An RGB picture of the image's size; at least `MIN_ANNOTATED_SIDE` long.
    """
    height, width = image_rgb.shape[:2]
    enlarge = max(1.0, MIN_ANNOTATED_SIDE / max(width, height))
    size = (max(round(width * enlarge), 1), max(round(height * enlarge), 1))
    smooth = 2 if size[0] * size[1] <= _SMOOTH_BELOW else 1
    picture = Image.fromarray(image_rgb)
    if enlarge > 1:
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    picture = picture.resize((size[0] * smooth, size[1] * smooth), Image.Resampling.NEAREST)
    canvas = _Canvas(picture, enlarge * smooth)
    if prediction.faces:
        canvas.draw_faces(prediction.faces)
    else:
        canvas.draw_label("no face", 0, 0, canvas.font_size(min(width, height)))
    return picture.reduce(smooth)


class _Canvas:
    """Draws on a picture; `scale` is canvas pixels per image pixel."""

    def __init__(self, picture: Image.Image, scale: float) -> None:
        self._draw = ImageDraw.Draw(picture, "RGBA")  # colours with alpha are blended
        self._bounds = _Box(0, 0, *picture.size)
        self._scale = scale

    def font_size(self, face_side: float) -> int:
        """Text height in canvas pixels: it follows the face, within what suits the whole picture."""
        long_side = max(self._bounds.x1, self._bounds.y1)
        return round(min(max(face_side * self._scale / 7, long_side / 80, 22), long_side / 30))

    def draw_faces(self, faces: tuple[FacePrediction, ...]) -> None:
        boxes = [_Box(*(face.box_xyxy * self._scale)) for face in faces]
        taken = list(boxes)
        for face, box in zip(faces, boxes, strict=True):
            self._draw_landmarks(face.landmarks_px * self._scale, box)
            self._draw_frame(box)
        sizes = [self.font_size(max(box.x1 - box.x0, box.y1 - box.y0) / self._scale) for box in boxes]
        for face, box, size in zip(faces, boxes, sizes, strict=True):
            doubt = "" if face.status == "ok" else "?"
            taken.append(self.draw_label(f"{face.expression}{doubt} {face.confidence:.0%}", box.x0, box.y0, size))
        for face, box, size in zip(faces, boxes, sizes, strict=True) if len(faces) <= _MAX_CHARTS else ():
            self._draw_chart(face, box, size, taken)

    def _draw_frame(self, box: _Box) -> None:
        line = max(round(max(box.x1 - box.x0, box.y1 - box.y0) / 60), 2)
        outer = (box.x0 - line / 2, box.y0 - line / 2, box.x1 + line / 2, box.y1 + line / 2)
        self._draw.rectangle(outer, outline=(*_DARK, 150), width=2 * line)
        self._draw.rectangle(box, outline=_ACCENT, width=line)

    def _draw_landmarks(self, points: NDArray[np.float64], box: _Box) -> None:
        radius = max((box.x1 - box.x0) / 90, 1.5)
        for name, group in LANDMARK_GROUPS.items():
            line = [(float(x), float(y)) for x, y in points[list(group)]]
            line += line[:1] if name in _CLOSED_GROUPS else []
            self._draw.line(line, fill=(*_DARK, 130), width=math.ceil(radius * 1.4), joint="curve")
            self._draw.line(line, fill=(*_LIGHT, 150), width=math.ceil(radius / 2), joint="curve")
        for x, y in points:
            self._draw.ellipse(
                (x - radius * 1.4, y - radius * 1.4, x + radius * 1.4, y + radius * 1.4), fill=(*_DARK, 170)
            )
            self._draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_LIGHT)

    def draw_label(self, text: str, x: float, y: float, size: int) -> _Box:
        """Write on an opaque plate that stands on (x, y) if there is room above; returns the plate."""
        font = ImageFont.load_default(size)
        padding = size * 0.3
        plate = _Box(x, y - size - 2 * padding, x + font.getlength(text) + 2 * padding, y).moved_into(self._bounds)
        self._draw.rectangle(plate, fill=_ACCENT)
        self._draw.text((plate.x0 + padding, (plate.y0 + plate.y1) / 2), text, fill=_DARK, font=font, anchor="lm")
        return plate

    def _draw_chart(self, face: FacePrediction, box: _Box, size: float, taken: list[_Box]) -> None:
        font = ImageFont.load_default(size * 0.85)
        row, padding = size * 1.25, size * 0.5
        names = max(font.getlength(name) for name in face.probabilities)
        bars, percents = size * 4.5, font.getlength("100%")
        width, height = names + bars + percents + 4 * padding, row * len(face.probabilities) + 2 * padding
        place = self._free_place(width, height, box, padding, taken)
        if place is None:
            return
        taken.append(place)
        self._draw.rounded_rectangle(place, radius=padding, fill=(*_DARK, 205))
        x = place.x0 + padding * 2 + names
        for k, (name, value) in enumerate(face.probabilities.items()):
            y = place.y0 + padding + row * (k + 0.5)
            colour = _ACCENT if name == face.expression else _LIGHT
            self._draw.text((x - padding, y), name, fill=colour, font=font, anchor="rm")
            self._draw.rectangle((x, y - row * 0.25, x + bars, y + row * 0.25), fill=(*_LIGHT, 40))
            self._draw.rectangle((x, y - row * 0.25, x + bars * value, y + row * 0.25), fill=colour)
            self._draw.text((place.x1 - padding, y), f"{value:.0%}", fill=colour, font=font, anchor="rm")

    def _free_place(self, width: float, height: float, box: _Box, gap: float, taken: list[_Box]) -> _Box | None:
        """Find a place for a chart beside, below or above its box; for a single face also a corner, even over it."""
        alone = len(taken) == 2  # the box and its label
        end_x, end_y = self._bounds.x1 - width - gap, self._bounds.y1 - height - gap
        beside = [(box.x1 + gap, box.y0), (box.x0 - gap - width, box.y0)]
        stacked = [(box.x0, box.y1 + gap), (box.x0, box.y0 - gap * 4 - height)]
        corners = [(end_x, end_y), (gap, end_y), (end_x, gap), (gap, gap)] if alone else []
        inside = _Box(gap, gap, self._bounds.x1 - gap, self._bounds.y1 - gap)
        places = [_Box(x, y, x + width, y + height).moved_into(inside) for x, y in beside + stacked + corners]
        places = [place for place in places if place.x0 >= 0 and place.y0 >= 0]
        hidden = [sum(place.overlap(other) for other in taken) for place in places]
        if not places or (min(hidden) > 0 and not alone):
            return None
        return places[hidden.index(min(hidden))]
