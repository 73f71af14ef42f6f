"""Draw explanations: the face with its keypoints as discs, beside it the attention, and what the regions add."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from nkf.explain import Explanation
from nkf.geometry import NUM_LANDMARKS, Points, face_transform, transform_points
from nkf.images import ImageRGB, warp_similarity, whole_box
from nkf.predict import FacePrediction, Prediction

MAX_FACES = 8  # in one picture; more would be too high to look at

_FACE, _SIDE, _GAP, _HEAD = 360, 290, 20, 44  # pixels: side of a face, width of the bars' column, gaps, titles
_SMOOTH = 2  # drawn so many times larger, then averaged
_DARK, _LIGHT, _DIM = (18, 20, 26), (245, 246, 248), (150, 156, 168)
_FOR, _AGAINST, _GIVEN = (255, 150, 46), (74, 150, 255), (72, 214, 160)
_ZOOM = 0.9  # of the network's crop in the picture of a face
_LARGEST, _SMALLEST = 0.03, 0.004  # radius of a disc, in sides of that picture

Colour = tuple[int, int, int]


def draw_explanations(image_rgb: ImageRGB, prediction: Prediction) -> Image.Image:
    """Draw the faces that have an explanation below each other, at most `MAX_FACES`, the largest of them.

    On the left a keypoint's disc is the larger the more covering it changes, warm where it speaks for the expression
    and cold where it speaks against it; then, if the network has it, what the attention gives each keypoint; on the
    right the mean of each region. All are to the scale of their own face, whose largest values are written beside.

    Args:
        image_rgb: the (H, W, 3) image that `prediction` is about.
        prediction: that `nkf.predict.Predictor.explain` has explained.

    Raises:
        ValueError: when no face has an explanation.
    """
    faces = [(face, face.explanation) for face in prediction.faces if face.explanation is not None][:MAX_FACES]
    if not faces:
        raise ValueError(f"{len(prediction.faces)} faces, none with an explanation; expected one at least")
    with_attention = faces[0][1].attention is not None  # all are of one network
    width = _GAP + (_FACE + _GAP) * (2 if with_attention else 1) + _SIDE + _GAP
    row = _HEAD + _FACE + _GAP
    picture = Image.new("RGB", (width * _SMOOTH, row * len(faces) * _SMOOTH), _DARK)
    for number, (face, explanation) in enumerate(faces):
        _Row(picture, number * row).draw(image_rgb, face, explanation)
    return picture.reduce(_SMOOTH)


class _Row:
    """One face of the picture; positions are pixels of the reduced picture, `top` is where the row begins."""

    def __init__(self, picture: Image.Image, top: int) -> None:
        self._picture, self._top = picture, top
        self._draw = ImageDraw.Draw(picture, "RGBA")

    def draw(self, image_rgb: ImageRGB, face: FacePrediction, explanation: Explanation) -> None:
        crop_rgb, points = _view(image_rgb, face.landmarks_px, _FACE)
        contributions, attention = explanation.contributions, explanation.attention
        x = _GAP
        self._text(x, 26, f"speaks for or against {explanation.expression}", 17, _LIGHT)
        scale = np.abs(contributions).max() or 1.0
        self._face(x, crop_rgb, points, contributions / scale, _FOR)
        x += _FACE + _GAP
        if attention is not None:
            self._text(x, 26, "what the attention gives", 17, _LIGHT)
            self._face(x, crop_rgb, points, attention / attention.max(), _GIVEN)
            x += _FACE + _GAP
        self._text(x, 26, f"{face.expression}{'' if face.status == 'ok' else '?'} {face.confidence:.0%}", 22, _FOR)
        self._bars(x, explanation)
        self._legend(x, explanation)

    def _face(self, left: int, crop_rgb: ImageRGB, points: Points, values: NDArray[np.float64], warm: Colour) -> None:
        """Dim the face and lay discs on it; `values` (68,) are in [-1, 1]."""
        grey = np.asarray(Image.fromarray(crop_rgb).convert("L"), np.float32)[..., None]
        dimmed = (0.35 * crop_rgb + 0.3 * grey).astype(np.uint8)
        side = _FACE * _SMOOTH
        enlarged = Image.fromarray(dimmed).resize((side, side), Image.Resampling.NEAREST)  # reduced again to the same
        self._picture.paste(enlarged, (left * _SMOOTH, (self._top + _HEAD) * _SMOOTH))
        for k in np.argsort(-np.abs(values)):  # small ones on top, else large ones hide them
            x, y = points[k]
            self._disc(left + x, _HEAD + y, float(values[k]), warm)

    def _disc(self, x: float, y: float, value: float, warm: Colour) -> None:
        """Its area shows the value in [-1, 1], its colour the sign and the value."""
        radius = _FACE * (_SMALLEST + (_LARGEST - _SMALLEST) * abs(value) ** 0.5)
        box = tuple(_SMOOTH * v for v in (x - radius, self._top + y - radius, x + radius, self._top + y + radius))
        colour = _mixed(_DIM, warm if value > 0 else _AGAINST, abs(value) ** 0.5)
        self._draw.ellipse(box, fill=(*colour, 225), outline=(*_DARK, 200), width=_SMOOTH)

    def _bars(self, left: int, explanation: Explanation) -> None:
        """The mean contribution of each region, from a common zero."""
        self._text(left, 66, "mean of each region", 14, _DIM)
        largest = max(map(abs, explanation.regions.values()), default=0) or 1.0
        zero, reach, height = left + 136, 76, 30
        for number, (name, value) in enumerate(explanation.regions.items()):
            y = 96 + number * height
            self._text(left, y, name, 15, _LIGHT)
            end = zero + reach * value / largest
            self._box(min(zero, end), y - 8, max(zero, end), y + 8, _FOR if value > 0 else _AGAINST)
            self._text(left + _SIDE, y, _signed(value), 15, _LIGHT, anchor="rm")
        self._box(zero - 0.5, 80, zero + 0.5, 80 + height * len(explanation.regions), _DIM)

    def _legend(self, left: int, explanation: Explanation) -> None:
        strongest = float(np.abs(explanation.contributions).max())
        lines: list[tuple[float, Colour, str]] = [
            (1, _FOR, f"for {explanation.expression}, up to {_signed(max(explanation.contributions.max(), 0.0))}"),
            (-1, _FOR, f"against it, down to {_signed(min(explanation.contributions.min(), 0.0))}"),
        ]
        if explanation.attention is not None:
            share = f"{explanation.attention.max():.1%}"
            lines.append((1, _GIVEN, f"attention, up to {share} (even: {1 / NUM_LANDMARKS:.1%})"))
        y = _HEAD + _FACE - 26 * len(lines) - 40
        for value, warm, text in lines:
            self._disc(left + 12, y, value if strongest else 0.0, warm)
            self._text(left + 32, y, text, 14, _LIGHT)
            y += 26
        self._text(left, y + 8, "how far the log-odds fall", 13, _DIM)
        self._text(left, y + 26, "when a disc covers the spot", 13, _DIM)

    def _text(self, x: float, y: float, text: str, size: int, colour: Colour, anchor: str = "lm") -> None:
        font = ImageFont.load_default(size * _SMOOTH)
        self._draw.text((x * _SMOOTH, (self._top + y) * _SMOOTH), text, fill=colour, font=font, anchor=anchor)

    def _box(self, x0: float, y0: float, x1: float, y1: float, colour: Colour) -> None:
        self._draw.rectangle(
            (x0 * _SMOOTH, (self._top + y0) * _SMOOTH, x1 * _SMOOTH, (self._top + y1) * _SMOOTH), fill=colour
        )


def _view(image_rgb: ImageRGB, landmarks_px: Points, side: int) -> tuple[ImageRGB, Points]:
    """Cut out what the network sees and a little more, since the chin may lie at its edge: crop and landmarks in it."""
    matrix, _ = face_transform(landmarks_px, whole_box(image_rgb), side)
    matrix = _ZOOM * matrix
    matrix[:, 2] += (1 - _ZOOM) / 2 * side
    return warp_similarity(image_rgb, matrix, side), transform_points(matrix, landmarks_px)


def _mixed(first: Colour, second: Colour, share: float) -> Colour:
    red, green, blue = (round(a + share * (b - a)) for a, b in zip(first, second, strict=True))
    return red, green, blue


def _signed(value: float) -> str:
    return f"{value:+.{1 if abs(value) >= 10 else 2}f}"
