"""Scenes for the face detector: faces from packs pasted over pictures without faces, and what is true about them.

What must not tell a face is the paste itself, so every scene holds as many distractors (parts of other pictures,
stamps, scrambled faces, text, blobs in the colours of skin) as faces, with the same masks and sizes. numpy and Pillow
only; a scene is a function of the generator's seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from nkf.data.patches import (
    compress,
    cover,
    draw_limbs,
    draw_text,
    face_boxes,
    face_mask,
    fade_out,
    fill_outline,
    log_uniform,
    paste,
    person_outlines,
    random_part,
    relight,
    rotation,
    scramble,
)
from nkf.data.sampling import turned_weights
from nkf.geometry import five_points
from nkf.images import ImageRGB

MAX_FACES = 12  # in a scene
_VISIBLE = 0.45  # share of a face's box that has to be inside the picture to count
_PERSON = 0.4  # share of pasted faces that get hair, neck and a body
_TIGHT, _FADED = 0.6, 0.4  # of pictures that a face fills to so much of their side, the share that fades into the scene
_PORTRAIT = 0.15  # share of faces, and of distractors, in a picture of head and shoulders with edges of its own
_GREY = 0.2  # share of scenes made grey; the light then tints half of these
Square = NDArray[np.float64]  # (4,) xyxy of something pasted
OCCLUSIONS = ("none", "eyes", "mouth", "patch")


@dataclass(frozen=True, slots=True)
class Faces:
    """Square pictures of one face each: images (N, S, S, 3) uint8 and their landmarks (N, 68, 2) in pixels."""

    images: NDArray[np.uint8]
    landmarks_px: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture, and its n faces.

    Attributes:
        image: (H, W, 3) uint8.
        boxes: (n, 4) xyxy pixels, parts outside the picture included.
        points: (n, 5, 2) pixels.
        rotation_deg: (n,) in the image's plane, 0 = upright.
        occlusion: (n,) index into `OCCLUSIONS`.
        visible: (n,) share of the box inside the picture.
    """

    image: ImageRGB
    boxes: NDArray[np.float32]
    points: NDArray[np.float32]
    rotation_deg: NDArray[np.float32]
    occlusion: NDArray[np.int64]
    visible: NDArray[np.float32]


class _Placed(NamedTuple):
    """A face in a scene, as in `Scene`."""

    box: NDArray[np.floating]
    points: NDArray[np.floating]
    rotation_deg: float
    occlusion: int
    visible: float


class SceneMaker:
    """Composes scenes.

    Args:
        faces: what is pasted.
        pictures: without faces; RGB ones become backgrounds, and all of them distractors.
        size_wh: of the scenes, pixels.
        face_px: range of the longer side of a face's box, drawn log-uniformly.
        rotation_deg: largest rotation.
        level: share of the faces that stay within ±15 degrees; the others are uniform.
        clean_share: share of the faces without anything over them.
    """

    def __init__(
        self,
        faces: Faces,
        pictures: Sequence[Image.Image],
        size_wh: tuple[int, int],
        *,
        face_px: tuple[float, float] = (20.0, 420.0),
        rotation_deg: float = 75.0,
        level: float = 0.45,
        clean_share: float = 0.6,
    ) -> None:
        self.faces = faces
        self.pictures = list(pictures)
        self.backgrounds = [p for p in pictures if p.mode == "RGB"] or [p.convert("RGB") for p in pictures]
        self.size_wh = size_wh
        self.face_px = face_px
        self.rotation_deg = rotation_deg
        self.level = level
        self.clean_share = clean_share
        self.boxes = face_boxes(faces.landmarks_px)
        turned = turned_weights(faces.landmarks_px)
        self._chances = np.cumsum(turned) / np.sum(turned)

    def compose(self, rng: np.random.Generator, *, faces: int | None = None) -> Scene:
        """Make one scene; `faces` (at most `MAX_FACES`) fixes how many are tried."""
        kind = rng.random()
        if faces is None and kind < 0.22:
            return self._collage(rng)
        canvas = self._background(rng, self.size_wh)
        count = (
            faces
            if faces is not None
            else int(rng.choice([0, 1, 2, 3, 4, 6, 9], p=[0.12, 0.24, 0.2, 0.16, 0.12, 0.1, 0.06]))
        )
        distractors = max(1, int(rng.integers(0, count + 3)))
        jobs = rng.permutation([True] * count + [False] * distractors)
        taken: list[Square] = []
        found: list[_Placed] = []
        for is_face in jobs:
            if rng.random() < _PORTRAIT:
                self._paste_portrait(canvas, rng, taken, found if is_face else None)
            elif is_face:
                self._paste_face(canvas, rng, taken, found)
            else:
                self._paste_distractor(canvas, rng, taken)
        return self._finish(canvas, rng, found)

    def plain(self, rng: np.random.Generator) -> Scene:
        """Make a scene without faces: one to four whole pictures, on white, a colour or another picture."""
        width, height = self.size_wh
        kind = rng.random()
        color = (255, 255, 255) if kind < 0.45 else tuple(int(v) for v in rng.integers(0, 256, 3))
        canvas = self._background(rng, self.size_wh) if kind > 0.7 else Image.new("RGB", self.size_wh, color)
        columns, rows = [(1, 1), (2, 1), (1, 2), (2, 2)][rng.choice(4, p=[0.55, 0.1, 0.1, 0.25])]
        for cell in range(columns * rows):
            picture = self.pictures[int(rng.integers(len(self.pictures)))].convert("RGBA")
            if rng.random() < 0.5:
                picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            if rng.random() < 0.3:
                picture = picture.rotate(float(rng.uniform(-180, 180)), Image.Resampling.BILINEAR, expand=True)
            share = rng.uniform(0.35, 1.15) if columns * rows == 1 else rng.uniform(0.6, 1.0)
            scale = share * min(width / columns / picture.width, height / rows / picture.height)
            size = (max(4, round(picture.width * scale)), max(4, round(picture.height * scale)))
            picture = picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
            room = np.array([width / columns, height / rows])
            low = [cell % columns, cell // columns] * room + rng.uniform(0.2, 0.8, 2) * (room - size)
            canvas.paste(picture.convert("RGB"), (int(low[0]), int(low[1])), picture.getchannel("A"))
        return self._finish(canvas, rng, [])

    # Pictures of packs as they are: the only faces here with their own hair, neck and surroundings.

    def _collage(self, rng: np.random.Generator) -> Scene:
        width, height = self.size_wh
        columns, rows = [(1, 1), (2, 1), (1, 2), (2, 2), (3, 2), (4, 3)][
            rng.choice(6, p=[0.3, 0.15, 0.1, 0.2, 0.15, 0.1])
        ]
        canvas = self._background(rng, self.size_wh)
        found: list[_Placed] = []
        for cell in range(columns * rows):
            w, h = width / columns, height / rows
            low = np.array([cell % columns * w, cell // columns * h])
            if rng.random() < 0.12:
                patch = self._patch(rng, int(max(w, h)) + 1).resize((int(w) + 1, int(h) + 1))
                canvas.paste(patch.convert("RGB"), (int(low[0]), int(low[1])))
                continue
            row = self._row(rng)
            side = self.faces.images.shape[1]
            scale = max(w, h) / side if rng.random() < 0.6 else min(w, h) / side
            if columns * rows == 1 and rng.random() < 0.4:
                scale *= rng.uniform(1.0, 1.5)
            angle = float(np.clip(rng.normal(0, 6), -20, 20)) if rng.random() < 0.7 else 0.0
            linear = rotation(angle) * scale
            centre = low + [w / 2, h / 2] + rng.uniform(-0.08, 0.08, 2) * [w, h]
            matrix = np.column_stack([linear, centre - linear @ [side / 2, side / 2]])
            mask = Image.new("L", (side, side), 255)
            tile_low = np.maximum(low.round().astype(int), 0)
            tile_high = np.minimum((low + [w, h]).round().astype(int), [width, height])
            self._put(canvas, row, matrix, mask, rng, found, angle, limits=(*tile_low, *tile_high))
        return self._finish(canvas, rng, found)

    def _paste_face(
        self, canvas: Image.Image, rng: np.random.Generator, taken: list[Square], found: list[_Placed]
    ) -> None:
        row, side = self._row(rng), self.faces.images.shape[1]
        angle = float(rng.uniform(-15, 15) if rng.random() < self.level else rng.uniform(-1, 1) * self.rotation_deg)
        turned = self.faces.landmarks_px[row] @ rotation(angle).T
        box = face_boxes(turned)
        size, longer = log_uniform(rng, *self.face_px), float((box[2:] - box[:2]).max())
        scale = size / longer
        faded = longer > _TIGHT * side and rng.random() < _FADED
        room = 1.5 * side * scale if faded else size
        place = self._place(rng, room, taken)
        if place is None:
            return
        linear = rotation(angle) * scale
        matrix = np.column_stack([linear, place - (box[:2] + box[2:]) / 2 * scale])
        if not faded and rng.random() < _PERSON:
            self._draw_person(canvas, rng, row, matrix, taken)
        taken.append(np.array([*(place - room / 2), *(place + room / 2)]))
        mask = None if faded else face_mask(rng, self.faces.landmarks_px[row], side)
        self._put(canvas, row, matrix, mask, rng, found, angle)

    def _paste_portrait(
        self, canvas: Image.Image, rng: np.random.Generator, taken: list[Square], found: list[_Placed] | None
    ) -> None:
        """Paste a picture of a person from the chest up, with hard edges; without `found`, of one without a face."""
        row, side = self._row(rng), self.faces.images.shape[1]
        angle = float(rng.uniform(-15, 15))
        box = face_boxes(self.faces.landmarks_px[row] @ rotation(angle).T)
        size = log_uniform(rng, self.face_px[0], self.face_px[1] / 3)
        frame = np.minimum(size * rng.uniform([1.8, 2.2], [4.5, 5.0]), self.size_wh).astype(int)
        place = self._place(rng, float(frame.max()), taken, whole=True)
        if place is None:
            return
        corner = (place - frame / 2).astype(int)
        taken.append(np.array([*corner, *(corner + frame)], np.float64))
        portrait = self._background(rng, (int(frame[0]), int(frame[1])))
        head = frame * rng.uniform([0.35, 0.0], [0.65, 0.2]) + [0, 0.75 * size]
        scale = size / float((box[2:] - box[:2]).max())
        matrix = np.column_stack([rotation(angle) * scale, head - (box[:2] + box[2:]) / 2 * scale])
        self._draw_person(portrait, rng, row, matrix, [])
        mask, area = face_mask(rng, self.faces.landmarks_px[row], side), (0, 0, *portrait.size)
        if found is not None:
            shown: list[_Placed] = []
            self._put(portrait, row, matrix, mask, rng, shown, angle, limits=area)
            found += [face._replace(box=face.box + np.tile(corner, 2), points=face.points + corner) for face in shown]
        elif rng.random() < 0.5:
            paste(portrait, Image.fromarray(relight(rng, scramble(rng, self.faces.images[row]))), mask, matrix, area)
        canvas.paste(portrait, (int(corner[0]), int(corner[1])))

    def _draw_person(
        self, canvas: Image.Image, rng: np.random.Generator, row: int, matrix: NDArray[np.float64], taken: list[Square]
    ) -> None:
        """Draw hair, neck and body where a face is going to be pasted, unless they would cover something pasted."""
        outlines = person_outlines(self.faces.landmarks_px[row] @ matrix[:, :2].T + matrix[:, 2])
        points = np.concatenate(list(outlines.values()))
        low, high = points.min(axis=0), points.max(axis=0)
        if any((np.minimum(high, other[2:]) > np.maximum(low, other[:2])).all() for other in taken):
            return
        image = self.faces.images[row]
        colors = image[image.shape[0] // 3 : -image.shape[0] // 3].reshape(-1, 3)
        skin = tuple(int(v) for v in np.median(colors, axis=0))
        cloth = self._patch(rng, 64) if rng.random() < 0.6 else tuple(int(v) for v in rng.integers(0, 256, 3))
        if rng.random() < 0.7:
            shade = rng.uniform(0.05, 0.9) * rng.uniform([0.6, 0.5, 0.3], [1.0, 0.9, 0.8])
            fill_outline(canvas, outlines["hair"], tuple(int(255 * v) for v in shade))
        fill_outline(canvas, outlines["neck"], skin)
        fill_outline(canvas, outlines["body"], cloth)

    def _put(
        self,
        canvas: Image.Image,
        row: int,
        matrix: NDArray[np.float64],
        mask: Image.Image | None,
        rng: np.random.Generator,
        found: list[_Placed],
        angle: float,
        *,
        limits: tuple[int, ...] | None = None,
    ) -> None:
        """Paste a face by its (2, 3) matrix to canvas pixels, cover parts of it, and note what is true about it.

        Without a mask, all of its picture is pasted, and fades into the canvas.
        """
        landmarks = self.faces.landmarks_px[row]
        image = Image.fromarray(relight(rng, self.faces.images[row]))
        occlusion = 0
        if rng.random() > self.clean_share:
            occlusion = int(rng.integers(1, 4))
            image = cover(rng, image, landmarks, OCCLUSIONS[occlusion], lambda side: self._patch(rng, side))
        if rng.random() < 0.2:  # as from a small or distant picture
            side = int(rng.integers(28, 80))
            image = image.resize((side, side), Image.Resampling.BOX).resize(image.size, Image.Resampling.BILINEAR)
        moved = landmarks @ matrix[:, :2].T + matrix[:, 2]
        box = face_boxes(moved)
        area = limits or (0, 0, canvas.width, canvas.height)
        low, high = np.maximum(box[:2], area[:2]), np.minimum(box[2:], area[2:])
        visible = float(np.prod(np.maximum(high - low, 0)) / np.prod(box[2:] - box[:2]))
        if mask is None:
            image, mask, matrix = fade_out(rng, image, matrix)
        paste(canvas, image, mask, matrix, area)
        if visible >= _VISIBLE and len(found) < MAX_FACES:
            box = np.concatenate([low, high]) if limits else box
            found.append(_Placed(box, five_points(moved), angle, occlusion, visible))
        else:
            # Too little of it is left to say that it is a face or none: hide it.
            x0, y0, x1, y1 = (int(v) for v in (*np.maximum(low, 0), *np.maximum(high, low) + 1))
            if x1 > x0 and y1 > y0:
                canvas.paste(
                    self._patch(rng, max(x1 - x0, y1 - y0)).resize((x1 - x0, y1 - y0)).convert("RGB"), (x0, y0)
                )

    def _paste_distractor(self, canvas: Image.Image, rng: np.random.Generator, taken: list[Square]) -> None:
        size = log_uniform(rng, *self.face_px)
        place = self._place(rng, size, taken)
        if place is None:
            return
        taken.append(np.array([*(place - size / 2), *(place + size / 2)]))
        kind, side = rng.random(), self.faces.images.shape[1]
        row = self._row(rng)
        mask = face_mask(rng, self.faces.landmarks_px[row], side)
        angle = rng.uniform(-1, 1) * self.rotation_deg
        linear = rotation(angle) * size / (0.8 * side)
        matrix = np.column_stack([linear, place - linear @ [side / 2, side / 2]])
        if rng.random() < _PERSON / 2:  # without a face: what is pasted on the head is none
            self._draw_person(canvas, rng, row, matrix, taken[:-1])
        if kind < 0.35:
            patch = self._patch(rng, side)
        elif kind < 0.6:
            patch = Image.fromarray(relight(rng, scramble(rng, self.faces.images[row])))
        elif kind < 0.72:
            patch = draw_limbs(rng, self.faces.images[row])
        elif kind < 0.82:
            patch = draw_text(rng, side)
        else:
            stamp = self.pictures[int(rng.integers(len(self.pictures)))].convert("RGBA").copy()
            stamp.thumbnail((side, side))
            patch = Image.new("RGB", (side, side))
            patch.paste(stamp.convert("RGB"), ((side - stamp.width) // 2, (side - stamp.height) // 2))
            mask = Image.new("L", (side, side))
            mask.paste(stamp.getchannel("A"), ((side - stamp.width) // 2, (side - stamp.height) // 2))
        if kind < 0.82 and rng.random() < _FADED / 2:  # about as many as of the faces
            patch, mask, matrix = fade_out(rng, patch, matrix)
        paste(canvas, patch, mask, matrix, (0, 0, canvas.width, canvas.height))

    def _row(self, rng: np.random.Generator) -> int:
        return int(np.searchsorted(self._chances, rng.random()))

    def _place(
        self, rng: np.random.Generator, size: float, taken: list[Square], *, whole: bool = False
    ) -> NDArray[np.float64] | None:
        """Find a centre whose square overlaps nothing pasted by much; None after some attempts."""
        canvas = np.array(self.size_wh, np.float64)
        inside = np.minimum(size * 0.5, canvas / 2) * (1.0 if whole or rng.random() < 0.8 else 0.5)
        for _ in range(12):
            centre = rng.uniform(inside, np.maximum(canvas - inside, inside + 1e-3))
            low, high = centre - size / 2, centre + size / 2
            for other in taken:
                overlap = np.prod(np.maximum(np.minimum(high, other[2:]) - np.maximum(low, other[:2]), 0))
                if overlap > 0.1 * min(size**2, float(np.prod(other[2:] - other[:2]))):
                    break
            else:
                return centre
        return None

    def _background(self, rng: np.random.Generator, size_wh: tuple[int, int]) -> Image.Image:
        kind = rng.random()
        if kind < 0.08:  # plain or a gradient
            ends = rng.integers(0, 256, (2, 3))
            ramp = np.linspace(0, 1, size_wh[1])[:, None, None]
            rows = (ends[0] * (1 - ramp) + ends[1] * ramp).astype(np.uint8)  # (H, 1, 3)
            return Image.fromarray(np.repeat(rows, size_wh[0], axis=1))
        if kind < 0.2:  # a face, scrambled and blown up
            row = self._row(rng)
            tiles = scramble(rng, self.faces.images[row], tiles=int(rng.integers(4, 9)))
            return Image.fromarray(relight(rng, tiles)).resize(size_wh)
        return random_part(rng, self.backgrounds[int(rng.integers(len(self.backgrounds)))], size_wh)

    def _patch(self, rng: np.random.Generator, side: int) -> Image.Image:
        return random_part(rng, self.pictures[int(rng.integers(len(self.pictures)))].convert("RGB"), (side, side))

    def _finish(self, canvas: Image.Image, rng: np.random.Generator, found: list[_Placed]) -> Scene:
        if rng.random() < 0.15:
            canvas = canvas.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.6)))
        if rng.random() < 0.25:
            canvas = compress(canvas, int(rng.integers(25, 85)))
        if rng.random() < _GREY:
            canvas = canvas.convert("L").convert("RGB")
        image = np.asarray(canvas)
        if rng.random() < 0.5:
            image = relight(rng, image, strength=0.6)
        return Scene(
            np.ascontiguousarray(image),
            np.array([face.box for face in found], np.float32).reshape(-1, 4),
            np.array([face.points for face in found], np.float32).reshape(-1, 5, 2),
            np.array([face.rotation_deg for face in found], np.float32),
            np.array([face.occlusion for face in found], np.int64),
            np.array([face.visible for face in found], np.float32),
        )
