"""From whole photo to label: FERPlus valid faces in larger scenes, found, aligned and classified as `nkf predict` does.

    python benchmarks/end_to_end.py

Each face is drawn once for each group of conditions it is in, pasted over pictures without faces (`data/backgrounds`,
see benchmarks/backgrounds.py) in a grey scene of 640x480: whole, with a border that repeats its edge and fades into the
scene, since FERPlus pictures end at the face. What is predicted there stands beside what the same network says of the
picture alone, as `nkf evaluate` shows it, under the same light. A face that is not found counts as wrong.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nkf.boxes import box_area, box_overlap
from nkf.data.pack import Pack
from nkf.data.patches import faded_border, paste, random_part, rotation
from nkf.data.scene_pool import read_pictures
from nkf.evaluate import labelled_rows
from nkf.files import replacing
from nkf.finder import LandmarkFinder
from nkf.geometry import Points
from nkf.images import ImageRGB
from nkf.machine import machine
from nkf.metrics import accuracy_figures, paired_difference
from nkf.predict import Predictor
from nkf.progress import track
from nkf.runtime import load_expression_model
from nkf.views import View
from nkf.weights import DEFAULT_MODEL

SCENE_WH = (640, 480)
SIZES = (48, 72, 96, 144, 192)  # side of the face picture in the scene, pixels
SMALL_SIZES = (24, 36)  # reported beside these, not part of the overall figures
MIDDLE_SIZE = 96
ROTATIONS = (15, 30, 45)  # degrees, either way
LIGHTS = {
    "dark": np.clip(np.arange(256) * 0.35, 0, 255).astype(np.uint8),
    "bright": np.clip(np.arange(256) * 1.5 + 20, 0, 255).astype(np.uint8),
    "low contrast": np.clip(128 + (np.arange(256) - 128) * 0.3, 0, 255).astype(np.uint8),
}
SEVERAL = (2, 3, 4)
SEVERAL_SIZES = (48, 72, 96, 144)
BORDER = 0.25  # of the faded border, in sides of the picture
# What of a box of landmarks lies in the pasted square that it is about, and what it takes of it. Of the true landmarks
# of FERPlus valid all but one in a thousand have 0.61 and 0.10 or more; 3 % take less than 0.3.
SAME_INSIDE, SAME_SHARE = 0.5, 0.1
SCENES_AT_ONCE = 8
COUNT = 300


@dataclass(frozen=True)
class Condition:
    """How faces are shown; `faces` of them in a scene, each of a size drawn from `sizes`, turned either way."""

    sizes: tuple[int, ...]
    rotation_deg: int = 0
    light: str = "as it is"
    faces: int = 1


@dataclass(frozen=True)
class Placed:
    """One pasted face: its place in the list of all faces, and its picture's square before it is turned."""

    face: int
    box_xyxy: NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """What came out under one condition: N faces in some scenes."""

    faces: NDArray[np.int64]
    found: NDArray[np.bool_]
    right: NDArray[np.bool_]
    crop_right: NDArray[np.bool_]
    scenes: int
    false_faces: int

    def figures(self) -> dict[str, Any]:
        """Shares in [0, 1] with 95 % intervals; the difference is of the same faces, scene minus picture alone."""
        difference, interval = paired_difference(self.right, self.crop_right, self.faces)
        figures: dict[str, Any] = {
            "n": len(self.faces),
            "end_to_end": accuracy_figures(self.right),
            "crop": accuracy_figures(self.crop_right),
            "difference": difference,
            "difference_ci95": interval,
            "missed": int((~self.found).sum()),
            "scenes": self.scenes,
            "false_faces": self.false_faces,
        }
        if self.found.any():
            right, crop_right = self.right[self.found], self.crop_right[self.found]
            difference, interval = paired_difference(right, crop_right, self.faces[self.found])
            found = accuracy_figures(right) | {"difference": difference, "difference_ci95": interval}
            figures["found"] = found | {"crop_accuracy": float(crop_right.mean())}
        return figures


def joined(rows: Sequence[Row]) -> Row:
    """All faces of several conditions."""
    arrays = ([getattr(row, name) for row in rows] for name in ("faces", "found", "right", "crop_right"))
    faces, found, right, crop_right = (np.concatenate(array) for array in arrays)
    scenes, false_faces = sum(row.scenes for row in rows), sum(row.false_faces for row in rows)
    return Row(faces, found, right, crop_right, scenes, false_faces)


def conditions() -> dict[str, dict[str, Condition]]:
    """By group: size, rotation and light of one upright face unless the group says otherwise; several faces."""
    sizes = {f"{size}": Condition((size,)) for size in SIZES}
    small = {f"{size}": Condition((size,)) for size in SMALL_SIZES}
    rotations = {f"{angle}": Condition((MIDDLE_SIZE,), rotation_deg=angle) for angle in ROTATIONS}
    lights = {light: Condition((MIDDLE_SIZE,), light=light) for light in LIGHTS}
    several = {f"{count}": Condition(SEVERAL_SIZES, faces=count) for count in SEVERAL}
    return {"size": sizes, "rotation": rotations, "light": lights, "faces": several, "small": small}


def place(rng: np.random.Generator, sizes: Sequence[int], rotation_deg: int) -> list[tuple[int, Points]] | None:
    """Draw top left corners, whole pixels, of squares that stay apart and inside, turned too; None after some tries."""
    angle = np.radians(rotation_deg)
    reach = (abs(np.cos(angle)) + abs(np.sin(angle))) / 2  # of a turned square of side 1, from its middle
    for _ in range(200):
        placed: list[tuple[int, Points]] = []
        for size in sizes:
            low = size * reach - size / 2
            corner = np.floor(rng.uniform(low, np.array(SCENE_WH) - size - low))
            gaps = [np.abs(corner + size / 2 - at - other / 2).max() - (size + other) / 2 for other, at in placed]
            if any(gap < 0.4 * size for gap in gaps):
                break
            placed.append((size, corner))
        else:
            return placed
    return None


def compose(
    rng: np.random.Generator,
    pictures: Sequence[ImageRGB],
    faces: Sequence[int],
    how: Condition,
    background: Image.Image,
) -> tuple[ImageRGB, list[Placed]]:
    """One scene (480, 640, 3) of the `pictures` of the numbered `faces`, in whose condition they are put."""
    canvas = random_part(rng, background, SCENE_WH).convert("L").convert("RGB")
    squares = None
    while squares is None:
        sizes = [int(rng.choice(how.sizes)) for _ in faces]
        squares = place(rng, sizes, how.rotation_deg)
    placed = []
    for face, picture, (size, corner) in zip(faces, pictures, squares, strict=True):
        image, mask = faded_border(picture, round(BORDER * picture.shape[0]))
        linear = rotation(float(rng.choice([-1, 1])) * how.rotation_deg) * size / picture.shape[0]
        middle = corner + size / 2
        matrix = np.column_stack([linear, middle - linear @ [image.width / 2, image.height / 2]])
        paste(canvas, image, mask, matrix, (0, 0, *SCENE_WH))
        placed.append(Placed(face, np.concatenate([corner, corner + size])))
    scene = np.asarray(canvas)
    return (scene if how.light == "as it is" else LIGHTS[how.light][scene]), placed


@dataclass(frozen=True)
class Bench:
    """Faces, what is asked of them, and who answers.

    Attributes:
        pack: that the faces are of.
        rows: (N,) of the pack, in the order in which faces are drawn.
        labels: (N,) names of the true expressions.
        backgrounds: pictures without faces.
        predictor: whose predictions are measured.
        view: the same networks, shown the pictures alone.
        seed: of what is drawn.
    """

    pack: Pack
    rows: NDArray[np.int64]
    labels: NDArray[np.str_]
    backgrounds: list[Image.Image]
    predictor: Predictor
    view: View
    seed: int

    def measure(self, name: str, how: Condition, count: int, first: int) -> Row:
        """Show `count` faces, from the `first` on, under a condition."""
        faces = np.arange(first, first + count) % len(self.rows)
        answers: list[str | None] = []
        false_faces = 0
        groups = [faces[start : start + how.faces].tolist() for start in range(0, len(faces), how.faces)]
        starts = range(0, len(groups), SCENES_AT_ONCE)
        for start in track(starts, name, len(starts)):
            scenes = [self._scene(members, how) for members in groups[start : start + SCENES_AT_ONCE]]
            predictions = self.predictor.predict_batch([image for image, _ in scenes])
            for (_, placed), prediction in zip(scenes, predictions, strict=True):
                points = [face.landmarks_px for face in prediction.faces]
                boxes = np.array([[*one.min(axis=0), *one.max(axis=0)] for one in points]).reshape(-1, 4)
                matched, others = match(boxes, np.stack([one.box_xyxy for one in placed]))
                answers += [None if k is None else prediction.faces[k].expression for k in matched]
                false_faces += others
        told = np.array([answer or "" for answer in answers])
        labels = self.labels[faces]
        return Row(faces, told != "", told == labels, self._crops(faces, how) == labels, len(groups), false_faces)

    def _scene(self, faces: Sequence[int], how: Condition) -> tuple[ImageRGB, list[Placed]]:
        rng = np.random.default_rng([self.seed, *faces, how.rotation_deg, *how.sizes])
        background = self.backgrounds[int(rng.integers(len(self.backgrounds)))]
        pictures = [self.pack.image(int(self.rows[face])) for face in faces]
        return compose(rng, pictures, faces, how, background)

    def _crops(self, faces: NDArray[np.int64], how: Condition) -> NDArray[np.str_]:
        """The expressions that the network sees in the pictures alone."""
        table = LIGHTS.get(how.light)

        def relit(row: int, image: ImageRGB, points: Points) -> tuple[ImageRGB, Points]:
            return (image if table is None else table[image]), points

        probabilities, _ = self.view.classify(self.rows[faces], relit)
        return np.array(self.predictor.classes)[probabilities.argmax(axis=1)]


def match(found: NDArray[np.floating], pasted: NDArray[np.floating]) -> tuple[list[int | None], int]:
    """Match found boxes of landmarks (N, 4) to pasted squares (M, 4), the one that takes most of a square first.

    Such a box lies in its square (`SAME_INSIDE`) and takes some part of it (`SAME_SHARE`): pictures show their faces at
    different distances, so that their overlap tells less.

    Returns:
        For each square the box, None without one; and the number of boxes that are about none.
    """
    shared = box_overlap(found, pasted)
    inside = shared >= SAME_INSIDE * box_area(found)[:, None]
    shares = np.where(inside, shared / box_area(pasted), 0.0)
    false_faces = int((shares.max(axis=1, initial=0) < SAME_SHARE).sum())
    matched: list[int | None] = [None] * len(pasted)
    while shares.size and shares.max() >= SAME_SHARE:
        box, square = np.unravel_index(shares.argmax(), shares.shape)
        matched[int(square)] = int(box)
        shares[box], shares[:, square] = -1, -1
    return matched, false_faces


def run(bench: Bench, count: int) -> Iterator[tuple[str, str, Row]]:
    """Measure all conditions: of each size of the face `count` faces, half as many in the other groups."""
    first = 0
    for group, members in conditions().items():
        for name, how in members.items():
            wanted = count if group == "size" else max(count // 2 // how.faces, 1) * how.faces  # whole scenes
            yield group, name, bench.measure(f"{group} {name}", how, wanted, first)
            first += wanted


def report(bench: Bench, count: int) -> dict[str, Any]:
    """All figures by group, and of all upright single faces from 48 pixels on."""
    rows: dict[str, dict[str, Row]] = {}
    for group, name, row in run(bench, count):
        rows.setdefault(group, {})[name] = row
        print(group, name, json.dumps(row.figures()), flush=True)
    upright = joined([rows["size"][f"{size}"] for size in SIZES])
    everything = joined([upright, *(row for group in ("rotation", "light", "faces") for row in rows[group].values())])
    tables = {group: {name: row.figures() for name, row in members.items()} for group, members in rows.items()}
    return {"upright": upright.figures(), "all": everything.figures(), "groups": tables}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/ferplus"))
    parser.add_argument("--backgrounds", type=Path, default=Path("data/backgrounds/held_out"))
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--count", type=int, default=COUNT, help="faces of each size")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/end_to_end.json"))
    options = parser.parse_args()
    start = time.monotonic()
    pack = Pack(options.data)
    predictor = Predictor(options.model, device="cpu", threads=options.threads)
    rows, labels, _ = labelled_rows(pack, "valid", "majority", predictor.classes)
    order = np.random.default_rng(options.seed).permutation(len(rows))
    network, info = load_expression_model(options.model, "cpu", threads=options.threads)
    bench = Bench(
        pack,
        rows[order],
        np.array(predictor.classes)[labels[order]],
        [picture for picture in read_pictures(options.backgrounds) if picture.mode == "RGB"],
        predictor,
        View(pack, network, LandmarkFinder("cpu")),
        options.seed,
    )
    result = {
        "schema": 1,
        "command": "python benchmarks/end_to_end.py" + (f" --count {options.count}" if options.count != COUNT else ""),
        "data": str(options.data),
        "split": "valid",
        "rule": "majority",
        "model": info.name,
        "seed": options.seed,
        "faces": len(rows),
        **report(bench, options.count),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "seconds": round(time.monotonic() - start, 1),
    }
    with replacing(options.json) as partial:
        partial.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
