"""Measure an expression network on one split of a pack, the way it is used: with the landmarks of our own FAN."""

import csv
import json
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nkf.data.counts import differences
from nkf.data.labels import DROPPED, EXPRESSIONS, LabelRule
from nkf.data.pack import Pack
from nkf.errors import NkfError, NkfWarning
from nkf.faces import find_landmarks, to_batch
from nkf.files import replacing
from nkf.images import align, whole_box
from nkf.metrics import confusion_matrix, recall_by_class, wilson_interval
from nkf.progress import Progress, no_progress
from nkf.protocols import PROTOCOLS, check_counts
from nkf.report import draw_confusion, require_matplotlib
from nkf.runtime import Device, ExpressionModel, LandmarkModel, load_expression_model, load_fan
from nkf.weights import WeightsInfo

LandmarkSource = Literal["fan", "pack"]
BATCH = 64
TOLD_OF_PACK = ("source", "layout", "label_file", "crop", "release", "test_split_is")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What ``evaluation.json`` holds. Fractions are in [0, 1], intervals 95 % (Wilson).

    Attributes:
        n: labelled images that were scored.
        n_left_out: labelled images whose class the model does not know.
        accuracy_leakfree: accuracy on images with no pixel-identical copy in the pack's train split; None without one.
        landmarks_missing: images that were scored with the centred crop and the mean shape.
        confusion: counts, ``confusion[true][predicted]`` in the order of `classes`.
        protocol: that the model was trained under, a name of `nkf.protocols.PROTOCOLS`; None if it does not tell.
        differences: one line for each count that is not what the dataset, or the protocol, is known to have.
        pack: what the images and labels are: ``label_file``, ``images``, ``test_split_is`` and so on, where known.
    """

    n: int
    n_left_out: int
    accuracy: float
    accuracy_ci95: tuple[float, float]
    mean_class_accuracy: float
    recall_by_class: dict[str, float | None]
    confusion: list[list[int]]
    classes: tuple[str, ...]
    rule: str
    split: str
    model: str
    seed: int | None
    landmarks: str
    landmarks_missing: int
    accuracy_leakfree: float | None
    accuracy_leakfree_ci95: tuple[float, float] | None
    n_leakfree: int | None
    data: str
    protocol: str | None
    differences: tuple[str, ...]
    pack: dict[str, str]
    schema: int = 1


def evaluate(
    data: Path,
    split: str,
    out: Path,
    *,
    model: str = "mobile",
    rule: LabelRule = "majority",
    landmarks: LandmarkSource = "fan",
    device: Device = "auto",
    progress: Progress = no_progress,
) -> Evaluation:
    """Score a model and write ``evaluation.json``, ``predictions.csv`` and ``confusion.png`` into a folder.

    Args:
        data: a pack.
        split: ``train``, ``valid`` or ``test``.
        out: folder, made when missing.
        model: packaged NAME, run folder or weights file.
        rule: how votes become labels.
        landmarks: ``fan`` finds them with the packaged network, ``pack`` takes those that were imported.
        device: where networks run.
        progress: shows how far it is.

    Raises:
        NkfError: when pack or model are unusable, or the split has no labelled image of the model's classes.
    """
    require_matplotlib()
    if out.exists() and not out.is_dir():
        raise NkfError(f"{out}: a file, expected a folder for the results")
    pack = Pack(data)
    network, info = load_expression_model(model, device)
    fan = load_fan(device=device) if landmarks == "fan" else None
    rows, labels, left_out = _labelled_rows(pack, split, rule, info.classes)
    probabilities, missing = _predict_rows(pack, rows, network, fan, progress)
    right = labels == probabilities.argmax(axis=1)
    leakfree = _without_copy_in_train(pack, rows)
    confusion = confusion_matrix(labels, probabilities.argmax(axis=1), len(info.classes))
    recalls = recall_by_class(confusion)
    result = Evaluation(
        n=len(rows),
        n_left_out=left_out,
        accuracy=float(right.mean()),
        accuracy_ci95=wilson_interval(int(right.sum()), len(rows)),
        mean_class_accuracy=float(np.nanmean(recalls)),
        recall_by_class={c: None if np.isnan(r) else float(r) for c, r in zip(info.classes, recalls, strict=True)},
        confusion=confusion.tolist(),
        classes=info.classes,
        rule=rule,
        split=split,
        model=info.name,
        seed=info.training.get("seed"),
        landmarks=landmarks,
        landmarks_missing=missing,
        accuracy_leakfree=None if leakfree is None else float(right[leakfree].mean()),
        accuracy_leakfree_ci95=None
        if leakfree is None
        else wilson_interval(int(right[leakfree].sum()), int(leakfree.sum())),
        n_leakfree=None if leakfree is None else int(leakfree.sum()),
        data=str(pack.manifest.get("dataset", pack.path.name)),
        protocol=info.training.get("protocol", {}).get("name"),
        differences=tuple(_differences(pack, split, rule, info, len(rows))),
        pack={key: pack.manifest[key] for key in TOLD_OF_PACK if pack.manifest.get(key)},
    )
    for difference in result.differences:
        warnings.warn(difference, NkfWarning, stacklevel=2)
    _write(result, out, pack.names[rows], labels, probabilities)
    return result


def _differences(pack: Pack, split: str, rule: LabelRule, info: WeightsInfo, count: int) -> list[str]:
    """Where the images are not those that others report on."""
    lines = [line for line in differences(pack) if f", {split})" in line and (rule in line or "(label" in line)]
    trained = info.training.get("protocol", {})
    protocol = PROTOCOLS.get(trained.get("name", ""))
    if protocol is not None and split == protocol.test and trained.get("classes") == list(protocol.classes):
        lines += check_counts(protocol, {split: count})
    return lines


def _labelled_rows(
    pack: Pack, split: str, rule: LabelRule, classes: tuple[str, ...]
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Rows that have a label among `classes`, the labels as indices into these, and how many labels are not."""
    rows = pack.rows(split)
    labels = pack.labels(rule)[rows]
    rows, labels = rows[labels != DROPPED], labels[labels != DROPPED]
    position = np.array([classes.index(name) if name in classes else DROPPED for name in EXPRESSIONS])
    translated = position[labels]
    known = translated != DROPPED
    if not known.any():
        present = sorted(set(pack.manifest.get("images_by_split", {})))
        raise NkfError(f"{pack.path}: no image of the {split} split has a label of this model; splits: {present}")
    return rows[known], translated[known], int((~known).sum())


def _predict_rows(
    pack: Pack, rows: NDArray[np.int64], network: ExpressionModel, fan: LandmarkModel | None, progress: Progress
) -> tuple[NDArray[np.float32], int]:
    """Probabilities (N, C), and the number of faces without landmarks."""
    starts = range(0, len(rows), BATCH)
    parts, missing = [], 0
    for start in progress(starts, f"evaluating {network.info.name}", len(starts)):
        images = [pack.image(row) for row in rows[start : start + BATCH]]
        if fan is None:
            stored = pack.landmarks_px[rows[start : start + BATCH]]
            points = [face if np.isfinite(face).all() else None for face in stored]
        else:
            size = fan.info.input_size
            points = [find_landmarks(fan, image, [whole_box(image)], size=size).points_px[0] for image in images]
        aligned = [align(image, face, network.info.input_size) for image, face in zip(images, points, strict=True)]
        missing += sum(face is None for face in points)
        landmarks_px = np.stack([face for _, face in aligned]).astype(np.float32)
        parts.append(network(to_batch([crop for crop, _ in aligned]), landmarks_px))
    return np.concatenate(parts), missing


def _without_copy_in_train(pack: Pack, rows: NDArray[np.int64]) -> NDArray[np.bool_] | None:
    """Mask over rows, or None where the question makes no sense: no train split, or nothing outside it."""
    train = pack.rows("train")
    digests = pack.column("pixels_md5")
    mask = ~np.isin(digests[rows], digests[train])
    return mask if len(train) and mask.any() else None


def _write(
    result: Evaluation,
    out: Path,
    names: NDArray[np.str_],
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float32],
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / "evaluation.json") as file:
        file.write_text(json.dumps(asdict(result), indent=1, allow_nan=False) + "\n")
    with replacing(out / "predictions.csv") as file, file.open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["name", "label", *result.classes])
        for name, label, row in zip(names, labels, probabilities, strict=True):
            table.writerow([name, result.classes[label], *(f"{p:.6f}" for p in row)])
    with replacing(out / "confusion.png") as file:
        draw_confusion(np.array(result.confusion), result.classes, file, title=f"{result.model} on {result.split}")
