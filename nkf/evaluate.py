"""Measure an expression network on one split of a pack, the way it is used: with the landmarks of our own FAN."""

import csv
import json
import time
import warnings
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nkf.data.counts import differences
from nkf.data.groups import LINKS, picture_keys
from nkf.data.labels import DROPPED, EXPRESSIONS, LabelRule
from nkf.data.pack import Pack
from nkf.errors import NkfError, NkfWarning
from nkf.files import replacing
from nkf.finder import LandmarkFinder
from nkf.machine import machine
from nkf.metrics import accuracy_figures, confusion_matrix, recall_by_class
from nkf.progress import Progress, no_progress
from nkf.protocols import PROTOCOLS, check_counts
from nkf.reliability import brier_score, expected_calibration_error, negative_log_likelihood
from nkf.report import draw_confusion, require_matplotlib
from nkf.runtime import Device, load_expression_model
from nkf.views import View
from nkf.weights import DEFAULT_MODEL, WeightsInfo

LandmarkSource = Literal["fan", "pack"]
TOLD_OF_PACK = (
    "source", "layout", "label_file", "crop", "release", "test_split_is", "images_by_split", "leaks_dropped",
    "valid_carved", "split", "nkf_version",
)  # fmt: skip
MOST_GROUPS = 20


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """What a network says of the labelled images of a split.

    Attributes:
        pack: that the images are of.
        info: sidecar of the network.
        rows: (N,) of the pack.
        labels: (N,) indices into the network's classes.
        probabilities: (N, C).
        left_out: labelled images whose class the network does not know.
        landmarks_missing: images without a found face.
    """

    pack: Pack
    info: WeightsInfo
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    left_out: int
    landmarks_missing: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What ``evaluation.json`` holds. Fractions are in [0, 1], intervals 95 % (Wilson).

    Attributes:
        n: labelled images that were scored.
        n_left_out: labelled images whose class the model does not know.
        ece: expected calibration error of the probabilities, in fifteen bins of equal width.
        nll: mean negative log-likelihood of the labels.
        brier: mean Brier score, 0 to 2.
        accuracy_leakfree: accuracy on images with no pixel-identical copy in the pack's train split; None without one.
        landmarks_missing: images without a found face, scored by their box or their middle and the mean shape.
        confusion: counts, ``confusion[true][predicted]`` in the order of `classes`.
        protocol: that the model was trained under, a name of `nkf.protocols.PROTOCOLS`; None if it does not tell.
        differences: one line for each count that is not what the dataset, or the protocol, is known to have.
        pack: what images and labels are: ``label_file``, ``test_split_is``, ``valid_carved`` and so on, where known.
        groups: metadata column -> value -> ``n``, ``accuracy``, ``accuracy_ci95``, for columns of few values.
        date: of the measurement, with the machine and the seconds that it took.
    """

    n: int
    n_left_out: int
    accuracy: float
    accuracy_ci95: tuple[float, float]
    mean_class_accuracy: float
    ece: float
    nll: float
    brier: float
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
    pack: dict[str, Any]
    groups: dict[str, dict[str, Any]]
    date: str
    machine: str
    seconds: float
    schema: int = 1


def evaluate(
    data: Path,
    split: str,
    out: Path,
    *,
    model: str = DEFAULT_MODEL,
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
        landmarks: ``fan`` finds them with our own networks, in the boxes of the pack or in its photos; ``pack`` takes
            those that were imported. A face without landmarks is shown by its box, or the middle of its image.
        device: where networks run.
        progress: shows how far it is.

    Raises:
        NkfError: when pack or model are unusable, or the split has no labelled image of the model's classes.
    """
    start = time.monotonic()
    check_can_write(out)
    scored = score(Pack(data), split, model=model, rule=rule, landmarks=landmarks, device=device, progress=progress)
    pack, info, rows = scored.pack, scored.info, scored.rows
    labels, probabilities = scored.labels, scored.probabilities
    right = labels == probabilities.argmax(axis=1)
    confusion = confusion_matrix(labels, probabilities.argmax(axis=1), len(info.classes))
    recalls = recall_by_class(confusion)
    result = Evaluation(
        **accuracy_figures(right),
        n_left_out=scored.left_out,
        mean_class_accuracy=float(np.nanmean(recalls)),
        ece=expected_calibration_error(probabilities.max(axis=1), right),
        nll=float(negative_log_likelihood(probabilities, labels).mean()),
        brier=float(brier_score(probabilities, labels).mean()),
        recall_by_class={c: None if np.isnan(r) else float(r) for c, r in zip(info.classes, recalls, strict=True)},
        confusion=confusion.tolist(),
        classes=info.classes,
        rule=rule,
        split=split,
        model=info.name,
        seed=info.training.get("seed"),
        landmarks=landmarks,
        landmarks_missing=scored.landmarks_missing,
        **_leakfree(right, without_copy_in_train(pack, rows)),
        data=str(pack.manifest.get("dataset", pack.path.name)),
        protocol=info.training.get("protocol", {}).get("name"),
        differences=tuple(_differences(pack, split, rule, info, len(rows))),
        pack={key: pack.manifest[key] for key in TOLD_OF_PACK if pack.manifest.get(key)},
        groups=_by_group(pack, rows, right),
        date=datetime.now(UTC).date().isoformat(),
        machine=machine(device),
        seconds=round(time.monotonic() - start, 1),
    )
    for difference in result.differences:
        warnings.warn(difference, NkfWarning, stacklevel=2)
    _write(result, out, pack.names[rows], labels, probabilities)
    return result


def check_can_write(out: Path) -> None:
    """Raise `NkfError` where results with pictures could not be written, before any work is done for them."""
    require_matplotlib()
    if out.exists() and not out.is_dir():
        raise NkfError(f"{out}: a file, expected a folder for the results")


def score(
    pack: Pack,
    split: str,
    *,
    model: str,
    rule: LabelRule,
    landmarks: LandmarkSource,
    device: Device,
    progress: Progress,
) -> Scored:
    """Show a network the labelled images of a split; see `evaluate`."""
    network, info = load_expression_model(model, device)
    finder = LandmarkFinder(device) if landmarks == "fan" else None
    rows, labels, left_out = labelled_rows(pack, split, rule, info.classes)
    probabilities, missing = View(pack, network, finder).classify(rows, progress=progress)
    return Scored(pack, info, rows, labels, probabilities, left_out, missing)


def _differences(pack: Pack, split: str, rule: LabelRule, info: WeightsInfo, count: int) -> list[str]:
    """Where the images are not those that others report on."""
    how = "majority" if rule == "distribution" else rule
    lines = [str(found) for found in differences(pack) if found.split == split and found.how in (how, "label")]
    trained = info.training.get("protocol", {})
    protocol = PROTOCOLS.get(trained.get("name", ""))
    if protocol is not None and split == protocol.test and trained.get("classes") == list(protocol.classes):
        lines += check_counts(protocol, {split: count})
    if trained.get("rule", rule) != rule:
        lines.append(f"the network was trained under the rule {trained['rule']}, and is measured under {rule}")
    return lines


def labelled_rows(
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
        present = pack.manifest["images_by_split"]
        if split not in present:
            raise NkfError(f"{pack.path}: has no {split} split; it has {', '.join(present)}")
        raise NkfError(f"{pack.path}: no image of the {split} split has a label of this model's classes")
    return rows[known], translated[known], int((~known).sum())


def _leakfree(right: NDArray[np.bool_], mask: NDArray[np.bool_] | None) -> dict[str, Any]:
    figures = {} if mask is None else accuracy_figures(right[mask])
    return {
        "n_leakfree": figures.get("n"),
        "accuracy_leakfree": figures.get("accuracy"),
        "accuracy_leakfree_ci95": figures.get("accuracy_ci95"),
    }


def _by_group(pack: Pack, rows: NDArray[np.int64], right: NDArray[np.bool_]) -> dict[str, dict[str, Any]]:
    """Accuracy by each text column of few values: of people's groups, poses, or lists of hard images."""
    groups: dict[str, dict[str, Any]] = {}
    for name in pack.metadata_names:
        values = pack.column(name)[rows]
        told = sorted(set(values.tolist()) - {""}) if values.dtype.kind == "U" and name not in LINKS else []
        if 2 <= len(told) <= MOST_GROUPS:
            groups[name] = {value: accuracy_figures(right[values == value]) for value in told}
    return groups


def without_copy_in_train(pack: Pack, rows: NDArray[np.int64]) -> NDArray[np.bool_] | None:
    """Mask over rows, or None where the question makes no sense: no train split, or nothing outside it."""
    train = pack.rows("train")
    digests = picture_keys(pack.table)
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
