"""Measure how an expression network stands damaged pictures, wrong landmarks and the loss of colour.

Each picture's damage is drawn from a seed of its own (`nkf.corruptions.damage_generator`): all networks see the same.
"""

import csv
import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nkf.corruptions import CORRUPTIONS, SEVERITIES, corrupt, damage_generator, is_grey, to_grey
from nkf.data.labels import LabelRule
from nkf.data.pack import Pack
from nkf.errors import NkfError
from nkf.evaluate import LandmarkSource, check_can_write, labelled_rows
from nkf.files import replacing
from nkf.finder import LandmarkFinder
from nkf.geometry import Points, five_points
from nkf.images import ImageRGB
from nkf.machine import machine
from nkf.metrics import accuracy_figures, wilson_interval
from nkf.progress import Progress, no_progress
from nkf.report_curves import draw_landmark_noise, draw_robustness
from nkf.runtime import Device, FloatArray, load_expression_model
from nkf.views import BATCH, Change, Classifier, View, classify
from nkf.weights import DEFAULT_MODEL

NOISES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2)
RESAMPLES = 2000  # of the bootstrap
CONDITIONS = [(name, severity) for name in CORRUPTIONS for severity in SEVERITIES]


def measure_robustness(
    data: Path,
    out: Path,
    *,
    model: str = DEFAULT_MODEL,
    split: str = "valid",
    rule: LabelRule = "majority",
    landmarks: LandmarkSource = "fan",
    limit: int | None = None,
    seed: int = 0,
    device: Device = "auto",
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Damage the pictures of a split and score a model on them; write ``robustness.json``, ``.csv``, and two pictures.

    Args:
        data: a pack. Its landmarks tell where the face is and how large; where there are none, its box does.
        out: folder, made when missing.
        model: packaged NAME, run folder or weights file.
        split: ``train``, ``valid`` or ``test``.
        rule: how votes become labels.
        landmarks: ``fan`` finds them in each damaged picture, in the boxes of the pack, which move along; ``pack``
            moves the imported ones along.
        limit: number of images, drawn in proportion to the classes; None = all.
        seed: of the damage, and of what `limit` draws.
        device: where networks run.
        progress: shows how far it is.

    Returns:
        What ``robustness.json`` holds: accuracies in [0, 1] with Wilson's 95 % intervals, drops relative to the clean
        accuracy with those of a paired bootstrap over the images, None where the clean accuracy is 0.

    Raises:
        NkfError: when pack or model are unusable, or the split has no labelled image of the model's classes.
    """
    start = time.monotonic()
    check_can_write(out)
    pack = Pack(data)
    network, info = load_expression_model(model, device)
    rows, labels, _ = labelled_rows(pack, split, rule, info.classes)
    chosen = choose(labels, limit, seed)
    in_split, rows, labels = len(rows), rows[chosen], labels[chosen]
    view = View(pack, network, LandmarkFinder(device) if landmarks == "fan" else None)
    scores = {("clean", 0): view.classify(rows)}
    for name, severity in progress(CONDITIONS, f"damaging for {info.name}", len(CONDITIONS)):
        scores[name, severity] = view.classify(rows, _damage(pack, name, severity, seed))
    measured = _summary(scores, labels) | {"landmark_noise": _landmark_noise(view, rows, labels, seed)}
    of = {"model": info.name, "split": split, "rule": rule, "landmarks": landmarks, "seed": seed}
    result = _header(pack, start, device) | of | {"n": len(rows), "n_in_split": in_split} | measured
    out.mkdir(parents=True, exist_ok=True)
    _write_json(out / "robustness.json", result)
    _write_predictions(out / "robustness.csv", pack.names[rows], labels, scores, info.classes)
    with replacing(out / "robustness.png") as file:
        draw_robustness({info.name: result}, file)
    with replacing(out / "landmark_noise.png") as file:
        draw_landmark_noise({info.name: result}, file)
    return result


def colour_agreement(
    data: Path,
    out: Path,
    *,
    model: str = DEFAULT_MODEL,
    split: str = "train",
    landmarks: LandmarkSource = "fan",
    limit: int | None = None,
    seed: int = 0,
    device: Device = "auto",
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Compare what a model says of colour pictures and of their grey versions; write ``colour.json``.

    Args: as for `measure_robustness`; grey pictures of the pack are left out, and no labels are needed.

    Returns:
        What ``colour.json`` holds: the share of faces with equal predictions (``agreement``), Wilson's 95 % interval,
        and the mean absolute difference of the probabilities, over faces and classes.

    Raises:
        NkfError: when pack or model are unusable, or the split has no picture in colour.
    """
    start = time.monotonic()
    if out.exists() and not out.is_dir():
        raise NkfError(f"{out}: a file, expected a folder for the results")
    pack = Pack(data)
    network, info = load_expression_model(model, device)
    rows, grey = _coloured(pack, split, limit, seed)
    view = View(pack, network, LandmarkFinder(device) if landmarks == "fan" else None)
    colour, lost = view.classify(rows, progress=progress)
    luma, lost_luma = view.classify(rows, lambda _, image, points: (to_grey(image), points), progress=progress)
    equal = int((colour.argmax(axis=1) == luma.argmax(axis=1)).sum())
    of = {"model": info.name, "split": split, "landmarks": landmarks, "seed": seed, "n": len(rows)}
    figures = {
        "n_grey_left_out": grey,
        "agreement": equal / len(rows),
        "agreement_ci95": wilson_interval(equal, len(rows)),
        "mean_absolute_difference": float(np.abs(colour - luma).mean()),
        "landmarks_missing": {"colour": lost, "grey": lost_luma},
    }
    result = _header(pack, start, device) | of | figures
    out.mkdir(parents=True, exist_ok=True)
    _write_json(out / "colour.json", result)
    return result


def noise_curve(
    network: Classifier,
    crops: NDArray[np.uint8],
    landmarks_px: Points,
    labels: NDArray[np.integer],
    noises: Sequence[float] = NOISES,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Accuracy of a network whose landmarks, but not crops, get noise.

    Args:
        network: for example a `nkf.runtime.ExpressionModel` or a `nkf.models.TorchModel`.
        crops: (N, S, S, 3) uint8, aligned; may be memory-mapped.
        landmarks_px: (N, 68, 2) in pixels of the crops.
        labels: (N,) indices into the network's classes.
        noises: see `noisy_landmarks`.
        seed: of the noise.

    Returns:
        For each of `noises`: ``noise``, ``n``, ``accuracy``, ``accuracy_ci95`` (Wilson).
    """
    moved = (noisy_landmarks(landmarks_px, noise, seed) for noise in noises)
    right = [classify(network, crops, points).argmax(axis=1) == labels for points in moved]
    return [{"noise": noise} | accuracy_figures(one) for noise, one in zip(noises, right, strict=True)]


def noisy_landmarks(landmarks_px: Points, noise: float, seed: int = 0) -> Points:
    """Move each of (N, 68, 2) landmarks by Gaussian noise.

    Args:
        landmarks_px: (N, 68, 2).
        noise: standard deviation for each axis, over the distance of the face's eye centres.
        seed: of the directions: they depend on it and on the number of the face alone, not on the strength.
    """
    right_eye, left_eye = five_points(landmarks_px)[:, :2].swapaxes(0, 1)
    distance = np.linalg.norm(left_eye - right_eye, axis=-1)[:, None, None]  # (N, 1, 1)
    return landmarks_px + noise * distance * np.random.default_rng(seed).standard_normal(landmarks_px.shape)


def corrupted_crops(
    crops: NDArray[np.uint8], landmarks_px: Points, name: str, severity: int, seed: int = 0
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Damage aligned crops. A rotation is not undone by a new alignment here, unlike in `measure_robustness`.

    Args:
        crops: (N, S, S, 3) uint8.
        landmarks_px: (N, 68, 2) in pixels of the crops.
        name: one of `nkf.corruptions.CORRUPTIONS`.
        severity: 1 to 5.
        seed: with the number of the crop that of its damage.

    Returns:
        (N, S, S, 3) crops, and (N, 68, 2) landmarks that moved along.
    """
    pairs = [
        corrupt(crop, points, name, severity, damage_generator(seed, name, severity, number))
        for number, (crop, points) in enumerate(zip(crops, landmarks_px, strict=True))
    ]
    return np.stack([crop for crop, _ in pairs]), np.stack([points for _, points in pairs]).astype(np.float32)


def relative_drop(
    clean: NDArray[np.generic], damaged: NDArray[np.generic]
) -> tuple[float | None, tuple[float, float] | None]:
    """Share of the clean accuracy that damage costs, with the 95 % interval of a paired bootstrap over the images.

    Args:
        clean: (N,) bool, whether each image is right without damage.
        damaged: (N,) bool with damage, or the share of several damages under which it is right.

    Returns:
        (clean - damaged) / clean and [low, high]; None and None where nothing is right without damage.
    """
    if not clean.any():
        return None, None
    # Images with the same two values are alike, so that drawing how many of each kind come is drawing images.
    kinds, counts = np.unique(np.stack([clean, damaged]).astype(np.float64), axis=1, return_counts=True)
    drawn = np.random.default_rng(0).multinomial(len(clean), counts / counts.sum(), RESAMPLES) @ kinds.T  # (R, 2)
    drawn = drawn[drawn[:, 0] > 0]
    low, high = np.percentile(1 - drawn[:, 1] / drawn[:, 0], [2.5, 97.5])
    return float(1 - damaged.mean() / clean.mean()), (float(low), float(high))


def choose(labels: NDArray[np.int64], limit: int | None, seed: int) -> NDArray[np.int64]:
    """Indices, in order, of `limit` labels drawn in proportion to the classes; all of them without a limit."""
    _check_draw(limit, seed)
    if limit is None or limit >= len(labels):
        return np.arange(len(labels))
    order = np.lexsort([np.random.default_rng(seed).random(len(labels)), labels])  # by class, random inside
    return np.sort(order[np.linspace(0, len(labels), limit, endpoint=False).astype(int)])


def _damage(pack: Pack, name: str, severity: int, seed: int) -> Change:
    def change(row: int, image: ImageRGB, points: Points) -> tuple[ImageRGB, Points]:
        picture = f"{pack.splits[row]}/{pack.names[row]}"
        return corrupt(image, points, name, severity, damage_generator(seed, name, severity, picture))

    return change


def _landmark_noise(view: View, rows: NDArray[np.int64], labels: NDArray[np.int64], seed: int) -> dict[str, Any]:
    """Curves over the faces with landmarks: ``features`` are read at noisy ones; ``alignment`` crops by them too."""
    found = [points for start in range(0, len(rows), BATCH) for points in view.find(rows[start : start + BATCH])[1]]
    known = np.array([points is not None for points in found])
    if not known.any():
        return {"n": 0, "features": [], "alignment": []}
    points, rows, labels = np.stack([one for one in found if one is not None]), rows[known], labels[known]
    crops, in_crops = view.cut(rows, points)
    alignment = []
    for noise in NOISES:
        probabilities = classify(view.network, *view.cut(rows, noisy_landmarks(points, noise, seed)))
        alignment.append({"noise": noise} | accuracy_figures(probabilities.argmax(axis=1) == labels))
    features = noise_curve(view.network, crops, in_crops, labels, NOISES, seed)
    return {"n": len(rows), "features": features, "alignment": alignment}


def _coloured(pack: Pack, split: str, limit: int | None, seed: int) -> tuple[NDArray[np.int64], int]:
    """Rows of pictures in colour, and how many grey ones were met on the way."""
    _check_draw(limit, seed)
    rows = pack.rows(split)
    coloured: list[int] = []
    grey = 0
    for row in np.random.default_rng(seed).permutation(rows):
        if len(coloured) == limit:
            break
        if is_grey(pack.image(row)):
            grey += 1
        else:
            coloured.append(int(row))
    if not coloured:
        raise NkfError(f"{pack.path}: no picture in colour in the {split} split; it has {len(rows)} images")
    return np.sort(coloured), grey


def _check_draw(limit: int | None, seed: int) -> None:
    if limit is not None and limit < 1:
        raise NkfError(f"limit {limit}: expected at least 1 image")
    if seed < 0:
        raise NkfError(f"seed {seed}: expected 0 or more")


def _summary(scores: dict[tuple[str, int], tuple[FloatArray, int]], labels: NDArray[np.int64]) -> dict[str, Any]:
    """Figures of each condition against the clean one, and of all kinds of damage together."""
    right = {condition: probabilities.argmax(axis=1) == labels for condition, (probabilities, _) in scores.items()}
    clean = right["clean", 0]
    corruptions: dict[str, list[dict[str, Any]]] = {name: [] for name in CORRUPTIONS}
    for name, severity in CONDITIONS:
        row = {"severity": severity, "amount": CORRUPTIONS[name].amounts[severity - 1]}
        row |= accuracy_figures(right[name, severity]) | _drop(clean, right[name, severity])
        corruptions[name].append(row | {"landmarks_missing": scores[name, severity][1]})
    mean = np.mean([right[condition] for condition in CONDITIONS], axis=0)  # (N,)
    return {
        "clean": accuracy_figures(clean) | {"landmarks_missing": scores["clean", 0][1]},
        "mean": {"accuracy": float(mean.mean())} | _drop(clean, mean),
        "units": {name: corruption.unit for name, corruption in CORRUPTIONS.items()},
        "corruptions": corruptions,
    }


def _drop(clean: NDArray[np.bool_], damaged: NDArray[np.generic]) -> dict[str, Any]:
    drop, interval = relative_drop(clean, damaged)
    return {"relative_drop": drop, "relative_drop_ci95": interval}


def _header(pack: Pack, start: float, device: str) -> dict[str, Any]:
    return {
        "schema": 1,
        "data": str(pack.manifest.get("dataset", pack.path.name)),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(device),
        "seconds": round(time.monotonic() - start, 1),
    }


def _write_json(file: Path, result: dict[str, Any]) -> None:
    with replacing(file) as partial:
        partial.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")


def _write_predictions(
    file: Path,
    names: NDArray[np.str_],
    labels: NDArray[np.int64],
    scores: dict[tuple[str, int], tuple[FloatArray, int]],
    classes: tuple[str, ...],
) -> None:
    """One row an image: its label, and what is predicted under each condition; for paired tests of two networks."""
    predicted = [probabilities.argmax(axis=1) for probabilities, _ in scores.values()]
    with replacing(file) as partial, partial.open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["name", "label", *(f"{name}-{severity}" if severity else name for name, severity in scores)])
        for name, label, *row in zip(names, labels, *predicted, strict=True):
            table.writerow([name, classes[label], *(classes[one] for one in row)])
