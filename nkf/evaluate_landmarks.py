"""Measure a face alignment network against known landmarks, from crops placed as badly as a detector may place them."""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from nkf.data.pack import Pack, is_held_out
from nkf.errors import NkfError
from nkf.faces import Passes, find_in_crops
from nkf.files import replacing
from nkf.geometry import LANDMARK_GROUPS, Matrix, Points, interocular_distance, loose_square, square_transform
from nkf.images import ImageRGB
from nkf.pose import head_pose
from nkf.progress import Progress, no_progress
from nkf.quality import face_size
from nkf.report import draw_calibration, draw_cumulative_error, draw_landmark_cases, require_matplotlib
from nkf.runtime import Device, LandmarkModel, load_fan
from nkf.weights import DEFAULT_FAN

BATCH = 64
FAILURE = 0.10  # error from which a face counts as failed
QUANTILES = (0.5, 0.8, 0.9, 0.95)
# Distance over the expected distance below which that share of points should lie: Gamma(2, 1) over its mean, 2.
_GAMMA_2 = {0.5: 0.8392, 0.8: 1.4972, 0.9: 1.9449, 0.95: 2.3719}
_CASES = 8  # faces in each row of the picture of cases


@dataclass(frozen=True, slots=True)
class Condition:
    """How first crops are placed, and what is done to the picture before.

    Attributes:
        rotation_deg: uniform in ± this; with `exact`, one of both ends.
        scale: size of the face in the crop, uniform in 1 ± this.
        shift: uniform in ± this share of the crop's side, in x and y.
        exact: whether the rotation is drawn from the two ends.
        degrade: picture and size of its face in pixels to a changed picture, and the factor of its size.
    """

    rotation_deg: float = 60.0
    scale: float = 0.30
    shift: float = 0.15
    exact: bool = False
    degrade: Callable[[ImageRGB, float], tuple[ImageRGB, float]] | None = None


def shrink(face_px: float) -> Callable[[ImageRGB, float], tuple[ImageRGB, float]]:
    """Make pictures so small that the longer side of the face is `face_px`; smaller ones stay."""

    def apply(image: ImageRGB, size: float) -> tuple[ImageRGB, float]:
        factor = min(1.0, face_px / size)
        shape = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
        return np.asarray(Image.fromarray(image).resize(shape, Image.Resampling.BILINEAR)), shape[0] / image.shape[1]

    return apply


def blur(share: float) -> Callable[[ImageRGB, float], tuple[ImageRGB, float]]:
    """Blur pictures by a Gaussian whose σ is that share of the face's size."""

    def apply(image: ImageRGB, size: float) -> tuple[ImageRGB, float]:
        return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(share * size))), 1.0

    return apply


def darken(image: ImageRGB, size: float) -> tuple[ImageRGB, float]:
    """Leave a sixth of the light, with the noise of a camera that has to amplify it (σ = 2 of 255)."""
    del size
    noise = np.random.default_rng(0).normal(0, 2, image.shape)
    return np.clip(image / 6 + noise, 0, 255).astype(np.uint8), 1.0


LOOSE = Condition()
CONDITIONS: dict[str, Condition] = {
    "loose": LOOSE,
    "upright": Condition(rotation_deg=0),
    "well placed": Condition(rotation_deg=12, scale=0.06, shift=0.03),
    **{f"turned {angle}°": Condition(rotation_deg=angle, exact=True) for angle in (15, 30, 45, 60)},
    **{f"face of {side} px": Condition(degrade=shrink(side)) for side in (64, 48, 32, 24)},
    **{f"blur {share:.0%}": Condition(degrade=blur(share)) for share in (0.02, 0.04)},
    "dark": Condition(degrade=darken),
}


@dataclass(frozen=True, slots=True, eq=False)
class LandmarkErrors:
    """Distances between found and known landmarks, over the distance of the outer eye corners.

    Attributes:
        distances: (N, 68).
        spread: (N, 68) what the network expected them to be.
        found_px: (N, 68, 2) pixels of the (changed) pictures.
        rotation_deg: (N,) of the first crop.
    """

    distances: NDArray[np.float64]
    spread: NDArray[np.float64]
    found_px: NDArray[np.float64]
    rotation_deg: NDArray[np.float64]

    @property
    def per_face(self) -> NDArray[np.float64]:
        """(N,) mean over the landmarks."""
        return self.distances.mean(axis=1)


@dataclass(frozen=True, slots=True, eq=False)
class KnownFaces:
    """Faces with known landmarks, rows of packs.

    Attributes:
        rows: (pack, row) of each of N faces.
        landmarks_px: (N, 68, 2) pixels of the pictures.
    """

    rows: list[tuple[Pack, int]]
    landmarks_px: NDArray[np.float64]

    @classmethod
    def choose(
        cls, packs: Sequence[Pack], split: str, which: Literal["held_out", "all"], limit: int | None
    ) -> "KnownFaces":
        """Take the faces of a split that have landmarks; `limit` of them, spread evenly.

        Raises:
            NkfError: when there is none.
        """
        rows, landmarks = [], []
        for pack in packs:
            chosen = pack.rows(split)
            chosen = chosen[np.isfinite(pack.landmarks_px[chosen]).all(axis=(1, 2))]
            if which == "held_out":
                chosen = chosen[is_held_out(pack.column("pixels_md5")[chosen])]
            rows += [(pack, int(row)) for row in chosen]
            landmarks.append(pack.landmarks_px[chosen])
        if not rows:
            names = ", ".join(str(pack.path) for pack in packs)
            raise NkfError(f"{names}: no face with landmarks in the {split} split ({which.replace('_', ' ')})")
        step = max(1, len(rows) // limit) if limit else 1
        return cls(rows[::step], np.concatenate(landmarks).astype(np.float64)[::step])

    def column(self, name: str) -> NDArray[Any] | None:
        """Metadata of the faces, or None where a pack does not have it."""
        columns = {pack: pack.metadata(name) for pack in {pack for pack, _ in self.rows}}
        known = {pack: column for pack, column in columns.items() if column is not None}
        return np.array([known[pack][row] for pack, row in self.rows]) if len(known) == len(columns) else None


def measure(
    fan: LandmarkModel,
    faces: KnownFaces,
    condition: Condition,
    *,
    passes: Passes = "auto",
    seed: int = 0,
    progress: Progress = no_progress,
    title: str = "finding landmarks",
) -> LandmarkErrors:
    """Find the landmarks of all faces from one random first crop each, the same for every network.

    Args:
        fan: the network.
        faces: N faces.
        condition: how the crops are placed.
        passes: see `nkf.faces.find_landmarks`.
        seed: of the placement.
        progress: shows how far it is.
        title: what it calls this.
    """
    generator = np.random.default_rng(seed)
    angle, scale, x, y = generator.uniform(-1, 1, (4, len(faces.rows)))
    if condition.exact:
        angle = np.sign(angle)
    size, starts = fan.info.input_size, range(0, len(faces.rows), BATCH)
    distances, spreads, points = [], [], []
    for start in progress(starts, title, len(starts)):
        images, matrices, truths = [], [], []
        for k in range(start, min(start + BATCH, len(faces.rows))):
            pack, row = faces.rows[k]
            image, truth = pack.image(row), faces.landmarks_px[k]
            if condition.degrade is not None:
                image, factor = condition.degrade(image, face_size(truth))
                truth = truth * factor
            placed = (condition.rotation_deg * angle[k], 1 + condition.scale * scale[k], condition.shift * x[k])
            matrices.append(first_crop(truth, size, *placed, condition.shift * y[k]))
            images.append(image)
            truths.append(truth)
        found = find_in_crops(fan, images, matrices, size=size, passes=passes)
        eyes = np.maximum(interocular_distance(np.stack(truths)), 1.0)[:, None]  # in exact profile it vanishes
        distances.append(np.linalg.norm(found.points_px - np.stack(truths), axis=-1) / eyes)
        spreads.append(found.spread_px / eyes)
        points.append(found.points_px)
    return LandmarkErrors(
        np.concatenate(distances), np.concatenate(spreads), np.concatenate(points), condition.rotation_deg * angle
    )


def first_crop(landmarks_px: Points, size: int, rotation_deg: float, scale: float, x: float, y: float) -> Matrix:
    """Similarity (2, 3) to a loose crop that shows the face turned clockwise, scaled, and shifted by shares of it."""
    centre_x, centre_y, side, _ = loose_square(landmarks_px)
    matrix = square_transform([centre_x, centre_y, side / scale, -np.radians(rotation_deg)], size)
    matrix[:, 2] += np.array([x, y]) * size
    return matrix


def describe(errors: NDArray[np.float64]) -> dict[str, Any]:
    """Mean with its 95 % interval (bootstrap over faces, 1000 times), median, and share of failures of (N,) errors."""
    generator = np.random.default_rng(0)
    means = [errors[generator.integers(0, len(errors), len(errors))].mean() for _ in range(1000)]
    return {
        "n": len(errors),
        "mean": float(errors.mean()),
        "mean_ci95": [float(value) for value in np.percentile(means, [2.5, 97.5])],
        "median": float(np.median(errors)),
        "failures": float((errors > FAILURE).mean()),
    }


def coverage(errors: LandmarkErrors) -> dict[str, float]:
    """Share of points within the distance that should hold 50, 80, 90 and 95 % of them, by the network's own word."""
    ratio = errors.distances / np.maximum(errors.spread, 1e-6)
    return {f"{q:.0%}": float((ratio <= _GAMMA_2[q]).mean()) for q in QUANTILES}


def evaluate_landmarks(
    data: Sequence[Path],
    out: Path,
    *,
    model: str = DEFAULT_FAN,
    split: str = "train",
    which: Literal["held_out", "all"] = "held_out",
    limit: int | None = None,
    passes: Passes = "auto",
    seed: int = 0,
    outlines: bool = False,
    device: Device = "auto",
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Measure under every condition, and write ``landmarks.json``, ``faces.csv`` and pictures.

    Args:
        data: packs with known landmarks.
        out: folder for the results, made when missing.
        model: the face alignment network: a packaged NAME, a run folder, or a weights file.
        split: of the packs.
        which: the faces that landmark training holds out, or all.
        limit: number of faces under each condition but the first; None = all.
        passes: see `nkf.faces.find_landmarks`.
        seed: of the placement.
        outlines: leave the people's pictures out of the files, so that they can be published.
        device: where the network runs.
        progress: shows how far it is.

    Returns:
        What ``landmarks.json`` holds.

    Raises:
        NkfError: when packs or network are unusable, or matplotlib is missing.
    """
    require_matplotlib()
    fan = load_fan(model, device)
    packs = [Pack(path) for path in data]
    faces, fewer = (KnownFaces.choose(packs, split, which, number) for number in (None, limit))
    found: dict[str, LandmarkErrors] = {}
    for name, condition in CONDITIONS.items():
        subjects = faces if name == "loose" else fewer
        found[name] = measure(fan, subjects, condition, passes=passes, seed=seed, progress=progress, title=name)
    loose = found["loose"]
    result = {
        "schema": 1,
        "model": fan.info.name,
        "data": [str(path) for path in data],
        "split": split,
        "which": which,
        "passes": passes,
        "seed": seed,
        "conditions": {name: describe(errors.per_face) for name, errors in found.items()},
        "inner": describe(loose.distances[:, 17:].mean(axis=1)),
        "groups": {name: describe(loose.distances[:, list(g)].mean(axis=1)) for name, g in LANDMARK_GROUPS.items()},
        "subsets": {title: describe(loose.per_face[mask]) for title, mask in subsets(faces, loose).items()},
        "coverage": coverage(loose),
    }
    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / "landmarks.json") as file:
        file.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    _write_faces(faces, loose, out / "faces.csv")
    _draw(faces, found, out, outlines)
    return result


def subsets(faces: KnownFaces, errors: LandmarkErrors) -> dict[str, NDArray[np.bool_]]:
    """Masks over the faces: by pack, rotation of the crop, true yaw, size, and the people's recorded groups."""
    masks = {f"pack {pack.path.name}": _equal([p for p, _ in faces.rows], pack) for pack, _ in faces.rows}
    yaw = np.abs([head_pose(landmarks).yaw_deg for landmarks in faces.landmarks_px])
    size = np.array([face_size(landmarks) for landmarks in faces.landmarks_px])
    ranges = {
        "rotation": (np.abs(errors.rotation_deg), (0, 15, 30, 45, 61)),
        "yaw": (yaw, (0, 15, 30, 45, np.inf)),
        "size": (size, (0, 40, 60, 80, np.inf)),
    }
    for name, (values, edges) in ranges.items():
        for low, high in pairwise(edges):
            title = f"{name} {low:g} to {high:g}" if np.isfinite(high) else f"{name} from {low:g}"
            masks[title] = (values >= low) & (values < high)
    for name in ("race", "gender", "age"):
        column = faces.column(name)
        for value in () if column is None else sorted(set(column.tolist())):
            masks[f"{name} {value}"] = column == value
    return {title: mask for title, mask in masks.items() if mask.any()}


def _equal(values: Sequence[Any], value: Any) -> NDArray[np.bool_]:
    return np.array([one is value for one in values])


def _write_faces(faces: KnownFaces, errors: LandmarkErrors, file: Path) -> None:
    with replacing(file) as partial, partial.open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["pack", "name", "error", "inner_error", "expected_error", "rotation_deg"])
        inner = errors.distances[:, 17:].mean(axis=1)
        columns = (errors.per_face, inner, errors.spread.mean(axis=1), errors.rotation_deg)
        for (pack, row), *values in zip(faces.rows, *columns, strict=True):
            table.writerow([pack.path.name, pack.column("name")[row], *(f"{value:.5f}" for value in values)])


def _draw(faces: KnownFaces, found: dict[str, LandmarkErrors], out: Path, outlines: bool) -> None:
    curves = {name: found[name].per_face for name in ("well placed", "loose", "turned 45°", "face of 32 px", "dark")}
    with replacing(out / "cumulative.png") as file:
        draw_cumulative_error(curves, file, limit=FAILURE)
    loose = found["loose"]
    with replacing(out / "calibration.png") as file:
        draw_calibration(loose.spread.ravel(), loose.distances.ravel(), file)
    order = np.argsort(loose.per_face)
    middle = len(order) // 2 - min(_CASES, len(order)) // 2
    rows = {"best": order[:_CASES], "median": order[middle : middle + _CASES], "worst": order[-_CASES:]}
    drawn = np.random.default_rng(0).permutation(len(order))[: 3 * _CASES]
    sheet = {f"random {n + 1}": part for n, part in enumerate(np.array_split(drawn, 3)) if len(part)}
    for name, chosen in (("cases.png", rows), ("random.png", sheet)):
        cases = {title: [_case(faces, loose, int(k), outlines) for k in part] for title, part in chosen.items()}
        with replacing(out / name) as file:
            draw_landmark_cases(cases, file)


def _case(faces: KnownFaces, errors: LandmarkErrors, k: int, outlines: bool) -> tuple[ImageRGB, Points, Points, float]:
    pack, row = faces.rows[k]
    image = pack.image(row)
    shown = np.full_like(image, 32) if outlines else image
    return shown, faces.landmarks_px[k], errors.found_px[k], float(errors.per_face[k])
