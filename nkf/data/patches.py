"""What scenes are made of: parts of pictures, masks, light, and distractors that share a face's colours and outline.

Every function draws from the generator that it is given. numpy and Pillow only.
"""

import io
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from nkf.geometry import Points
from nkf.images import ImageRGB

FOREHEAD = 0.28  # the brows, moved up by this share of the distance from nose bridge to chin, bound the box
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;!?()%&   "


def face_boxes(landmarks_px: Points) -> NDArray[np.floating]:
    """Boxes (..., 4) as CenterFace draws them, from landmarks (..., 68, 2): from forehead to chin.

    The median IoU with CenterFace's own boxes is 0.87: 0.88 upright, 0.85 at 25 to 40 degrees (604 faces of three packs
    pasted at 60 to 205 px, `FOREHEAD` fitted on them; margins at the sides were all below 0.02, so there are none).
    """
    up = landmarks_px[..., 27:28, :] - landmarks_px[..., 8:9, :]
    outline = np.concatenate([landmarks_px, landmarks_px[..., 17:27, :] + FOREHEAD * up], axis=-2)
    return np.concatenate([outline.min(axis=-2), outline.max(axis=-2)], axis=-1)


def face_mask(rng: np.random.Generator, landmarks_px: Points, side: int) -> Image.Image:
    """What of a face picture is pasted: an ellipse around the head, a rectangle, all of it, or the face alone."""
    low, high = np.split(face_boxes(landmarks_px), 2)
    mask = Image.new("L", (side, side))
    draw = ImageDraw.Draw(mask)
    kind = rng.random()
    margin = rng.uniform(0.02, 0.22, 4) * np.tile(high - low, 2)
    frame = (*(low - margin[:2]), *(high + margin[2:]))
    if kind < 0.45:
        draw.ellipse(tuple(frame), fill=255)
    elif kind < 0.75:
        draw.rectangle(tuple(frame), fill=255)
    elif kind < 0.88:
        draw.rectangle((0, 0, side, side), fill=255)
    else:
        up = landmarks_px[27] - landmarks_px[8]
        outline = np.concatenate([landmarks_px[:17], (landmarks_px[17:27] + 0.35 * up)[::-1]])
        draw.polygon([(float(x), float(y)) for x, y in outline], fill=255)
    if rng.random() < 0.7:
        mask = mask.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 5.0)))
    return mask


def faded_border(image_rgb: ImageRGB, border: int) -> tuple[Image.Image, Image.Image]:
    """Widen a square picture (S, S, 3) by its blurred edge, `border` pixels all around.

    Returns:
        The picture, and a mask of its size that fades to nothing over the border: to paste a tight picture of a face,
        which ends at the face, without a line where it ends.
    """
    side = image_rgb.shape[0]
    wide = Image.fromarray(np.pad(image_rgb, ((border, border), (border, border), (0, 0)), mode="edge"))
    soft = wide.filter(ImageFilter.GaussianBlur(border / 4))
    soft.paste(Image.fromarray(image_rgb), (border, border))
    outside = np.maximum(np.abs(np.arange(side + 2 * border) + 0.5 - side / 2 - border) - side / 2, 0) / border
    fade = np.clip(1 - np.hypot(outside[:, None], outside[None]), 0, 1)
    return soft, Image.fromarray((255 * fade * fade * (3 - 2 * fade)).astype(np.uint8))


def fade_out(
    rng: np.random.Generator, image: Image.Image, matrix: NDArray[np.float64]
) -> tuple[Image.Image, Image.Image, NDArray[np.float64]]:
    """Give a picture a `faded_border`: picture, mask, and a (2, 3) matrix that keeps its pixels where they were."""
    border = round(rng.uniform(0.1, 0.25) * image.width)
    image, mask = faded_border(np.asarray(image), border)
    linear = matrix[:, :2]
    return image, mask, np.column_stack([linear, matrix[:, 2] - linear @ [border, border]])


def cover(
    rng: np.random.Generator, image: Image.Image, landmarks: Points, part: str, make_patch: Callable[[int], Image.Image]
) -> Image.Image:
    """Cover the eyes (sunglasses), the mouth (a mask) or anything (a hand, or a patch of the side it is asked for)."""
    image = image.copy()
    draw = ImageDraw.Draw(image)
    color = tuple(int(v) for v in (rng.integers(0, 60, 3) if rng.random() < 0.5 else rng.integers(0, 256, 3)))
    width = float(np.ptp(landmarks[:, 0]))
    if part == "eyes":
        for eye in (landmarks[36:42], landmarks[42:48]):
            x, y = eye.mean(axis=0)
            rx, ry = width * rng.uniform(0.14, 0.2), width * rng.uniform(0.09, 0.16)
            draw.ellipse((x - rx, y - ry, x + rx, y + ry), fill=color)
        draw.line([tuple(landmarks[k]) for k in (0, 36, 45, 16)], fill=color, width=max(1, int(width * 0.03)))
    elif part == "mouth":
        lift = rng.uniform(0.0, 0.6)
        top = landmarks[33] * (1 - lift) + landmarks[29] * lift
        points = [tuple(p) for p in landmarks[2:15]] + [tuple(top)]
        draw.polygon(points, fill=color)
        if rng.random() < 0.5:  # a mask that shades
            for k in range(1, 4):
                y = landmarks[33, 1] + (landmarks[8, 1] - landmarks[33, 1]) * k / 4
                line = tuple(max(0, c - 40) for c in color)
                draw.line([(landmarks[4, 0], y), (landmarks[12, 0], y)], fill=line, width=1)
    elif rng.random() < 0.5:
        draw_hand(rng, draw, landmarks, _skin(image, landmarks))
    else:
        side = int(width * rng.uniform(0.25, 0.5))
        x, y = landmarks[int(rng.integers(68))] - side / 2
        patch = make_patch(max(side, 4)) if rng.random() < 0.6 else Image.new("RGB", (side, side), color)
        image.paste(patch.resize((max(side, 4), max(side, 4))), (int(x), int(y)))
    return image


def person_outlines(landmarks_px: Points) -> dict[str, Points]:
    """Where hair, neck and body of a face (68, 2) would be: outlines (N, 2), turned as the face is."""
    down = landmarks_px[8] - landmarks_px[27]  # from nose bridge to chin
    right = np.array([down[1], -down[0]])
    chin, middle = landmarks_px[8], landmarks_px[28]

    def outline(origin: Points, shape: Sequence[tuple[float, float]]) -> Points:
        half = np.array(shape)
        both = np.concatenate([half, half[::-1] * [-1, 1]])
        points: Points = origin + both[:, :1] * right + both[:, 1:] * down
        return points

    circle = np.linspace(0, np.pi, 12)
    return {
        "hair": outline(middle, [(0.85 * np.sin(a), 1.15 * -np.cos(a)) for a in circle]),
        "neck": outline(chin, [(0.38, -0.4), (0.42, 0.5)]),
        "body": outline(chin, [(0.35, 0.2), (1.3, 0.55), (1.7, 3.5)]),
    }


def fill_outline(canvas: Image.Image, outline: Points, fill: Image.Image | tuple[int, ...]) -> None:
    """Fill an outline (N, 2) in pixels of the canvas with a colour, or with a picture stretched over it."""
    low = np.maximum(np.floor(outline.min(axis=0)).astype(int), 0)
    high = np.minimum(np.ceil(outline.max(axis=0)).astype(int), canvas.size)
    if not (high > low).all():
        return
    size = (int(high[0] - low[0]), int(high[1] - low[1]))
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).polygon([(float(x), float(y)) for x, y in outline - low], fill=255)
    content = fill.resize(size) if isinstance(fill, Image.Image) else Image.new("RGB", size, fill)
    canvas.paste(content, (int(low[0]), int(low[1])), mask)


def scramble(rng: np.random.Generator, image: ImageRGB, *, tiles: int = 0) -> ImageRGB:
    """Destroy a face and keep its colours and textures: shuffled tiles, turned ones too."""
    side = image.shape[0]
    tiles = tiles or int(rng.integers(3, 7))
    step = side // tiles
    size = step * tiles
    parts = image[:size, :size].reshape(tiles, step, tiles, step, 3).swapaxes(1, 2).reshape(-1, step, step, 3)
    parts = parts[rng.permutation(len(parts))]
    if rng.random() < 0.7:
        parts = np.stack(
            [np.rot90(part, int(turn)) for part, turn in zip(parts, rng.integers(0, 4, len(parts)), strict=True)]
        )
    joined = parts.reshape(tiles, tiles, step, step, 3).swapaxes(1, 2).reshape(size, size, 3)
    result = np.empty_like(image)
    rows = np.minimum(np.arange(side), size - 1)
    result[:] = joined[rows][:, rows]
    return result


def paste(
    canvas: Image.Image, image: Image.Image, mask: Image.Image, matrix: NDArray[np.float64], limits: tuple[int, ...]
) -> None:
    """Paste through a mask by a (2, 3) matrix to canvas pixels, within the limits (x0, y0, x1, y1)."""
    side = image.width
    corners = np.array([[0, 0], [side, 0], [0, side], [side, side]]) @ matrix[:, :2].T + matrix[:, 2]
    low = np.maximum(np.floor(corners.min(axis=0)).astype(int), limits[:2])
    high = np.minimum(np.ceil(corners.max(axis=0)).astype(int), limits[2:])
    if not (high > low).all():
        return
    scale = float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    if scale < 0.75:  # average down first, bilinear sampling alone would alias
        small = max(4, round(side * scale * 1.1))
        image, mask = (x.resize((small, small), Image.Resampling.BOX) for x in (image, mask))
        matrix = np.column_stack([matrix[:, :2] * side / small, matrix[:, 2]])
    inverse = np.linalg.inv(matrix[:, :2])
    offset = inverse @ (low - matrix[:, 2])
    data = (*inverse[0], offset[0], *inverse[1], offset[1])
    size = (int(high[0] - low[0]), int(high[1] - low[1]))
    turned = image.transform(size, Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)
    cover = mask.transform(size, Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)
    canvas.paste(turned, (int(low[0]), int(low[1])), cover)


def rotation(angle_deg: float) -> NDArray[np.float64]:
    """Rotation matrix (2, 2), clockwise as displayed."""
    angle = np.deg2rad(angle_deg)
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Draw a number whose logarithm is uniform."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def relight(rng: np.random.Generator, image: ImageRGB, strength: float = 1.0) -> ImageRGB:
    """Change brightness, contrast and colour; sometimes light from one side; sometimes grey."""
    table = np.arange(256, dtype=np.float32)
    gain = 1 + strength * rng.uniform(-0.35, 0.35) + strength * rng.uniform(-0.1, 0.1, 3)
    gamma = 2 ** (strength * rng.uniform(-0.7, 0.7))
    tables = [np.clip(255 * (table / 255) ** gamma * g, 0, 255).astype(np.uint8) for g in gain]
    changed = np.stack([lookup[image[..., c]] for c, lookup in enumerate(tables)], axis=-1)
    if rng.random() < 0.15 * strength:
        changed = np.repeat(changed.mean(axis=-1, keepdims=True).astype(np.uint8), 3, axis=-1)
    if rng.random() < 0.25 * strength:
        ramp = np.linspace(rng.uniform(0.2, 0.8), 1.2, image.shape[1], dtype=np.float32)[None, :, None]
        ramp = ramp[:, ::-1] if rng.random() < 0.5 else ramp
        changed = np.clip(changed * ramp, 0, 255).astype(np.uint8)
    return changed


def random_part(rng: np.random.Generator, picture: Image.Image, size_wh: tuple[int, int]) -> Image.Image:
    """A random part of a picture, mirrored or not, scaled to a size."""
    width, height = picture.size
    share = rng.uniform(0.25, 1.0)
    w = max(4.0, min(width, height * size_wh[0] / size_wh[1]) * share)
    h = max(4.0, w * size_wh[1] / size_wh[0])
    x, y = rng.uniform(0, max(width - w, 1e-3)), rng.uniform(0, max(height - h, 1e-3))
    box = (x, y, min(x + w, width), min(y + h, height))
    part = picture.resize(size_wh, Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)
    return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else part


def compress(image: Image.Image, quality: int) -> Image.Image:
    """Save as JPEG and read back."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream).convert("RGB")


def draw_limbs(rng: np.random.Generator, image: ImageRGB) -> Image.Image:
    """Fingers, limbs and blobs: strokes and ellipses in the colours of a face."""
    side = image.shape[0]
    colors = image[side // 4 : -side // 4, side // 4 : -side // 4].reshape(-1, 3)
    patch = Image.new("RGB", (side, side), tuple(int(v) for v in colors[rng.integers(len(colors))]))
    draw = ImageDraw.Draw(patch)
    for _ in range(int(rng.integers(1, 7))):
        color = tuple(int(v) for v in colors[rng.integers(len(colors))])
        x, y = rng.uniform(0, side, 2)
        if rng.random() < 0.6:
            end = (x + rng.normal(0, side / 2), y + rng.normal(0, side / 2))
            draw.line([(x, y), end], fill=color, width=int(rng.integers(3, 24)), joint="curve")
        else:
            rx, ry = rng.uniform(2, side / 4, 2)
            draw.ellipse((x - rx, y - ry, x + rx, y + ry), fill=color)
    return patch.filter(ImageFilter.GaussianBlur(rng.uniform(0, 2)))


def draw_hand(rng: np.random.Generator, draw: ImageDraw.ImageDraw, landmarks: Points, skin: Sequence[int]) -> None:
    """Draw a hand over a face (68, 2): a palm at its edge, four fingers to somewhere inside, shaded between them."""
    width = float(np.ptp(landmarks[:, 0]))
    palm, tip = landmarks[int(rng.integers(17))], landmarks[int(rng.integers(17, 68))]
    along = tip - palm
    across = np.array([-along[1], along[0]]) / max(float(np.hypot(*along)), 1.0)
    thick = width * rng.uniform(0.07, 0.13)
    shade, light = (tuple(int(min(255, v * k)) for v in skin) for k in (rng.uniform(0.5, 0.8), rng.uniform(0.8, 1.25)))
    radius = 2.3 * thick
    draw.ellipse((*(palm - radius), *(palm + radius)), fill=light)
    for finger in range(4):
        start = palm + across * (finger - 1.5) * thick
        end = start + along * rng.uniform(0.7, 1.1) + across * (finger - 1.5) * rng.uniform(0, 0.5) * thick
        for color, share in ((shade, 1.15), (light, 0.85)):
            draw.line([tuple(start), tuple(end)], fill=color, width=max(1, int(thick * share)))
            tip_radius = thick * share / 2
            draw.ellipse((*(end - tip_radius), *(end + tip_radius)), fill=color)


def _skin(image: Image.Image, landmarks: Points) -> tuple[int, ...]:
    """The colour (RGB) of the nose's bridge."""
    x, y = np.clip(landmarks[28].astype(int), 0, np.array(image.size) - 1)
    color = image.getpixel((int(x), int(y)))
    assert isinstance(color, tuple)
    return color


def draw_text(rng: np.random.Generator, side: int) -> Image.Image:
    """Lines of random letters."""
    paper, ink = (tuple(int(v) for v in color) for color in rng.integers(0, 256, (2, 3)))
    patch = Image.new("RGB", (side, side), paper)
    draw = ImageDraw.Draw(patch)
    font = ImageFont.load_default(size=float(rng.integers(9, 60)))
    for y in range(0, side, max(9, int(rng.integers(10, 60)))):
        line = "".join(_LETTERS[k] for k in rng.integers(0, len(_LETTERS), 20))
        draw.text((0, y), line, fill=ink, font=font)
    return patch
