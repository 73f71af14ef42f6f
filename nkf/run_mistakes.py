"""Where an expression network is wrong, on images that its training knows: part of a run's report.

Legend: N images, C classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nkf.config import validated
from nkf.data.labels import VOTE_COLUMNS
from nkf.errors import NkfError
from nkf.metrics import confusion_matrix, mean_class_accuracy, wilson_interval
from nkf.progress import Progress
from nkf.reliability import brier_score, expected_calibration_error, negative_log_likelihood
from nkf.report_html import Markup, bar, element, picture, table
from nkf.report_run import draw_reliability
from nkf.runtime import Device, torch_device
from nkf.weights import find_weights

_PAIRS = 8
_NEEDED = ("name", "task", "data", "protocol", "crop_size")  # of the configuration; what else it names may be gone
_RIGHT, _WRONG = (47, 93, 138), (200, 85, 61)  # colours of the confusion matrix at a share of 1


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """What the best checkpoint of a run, or before a validation its last one, says of N images.

    Attributes:
        what: which images these are.
        dataset: name of the pack's dataset.
        licence: its terms.
        classes: C names.
        names: (N,) of the images.
        labels: (N,) indices into the classes.
        probabilities: (N, C).
        votes: (N, 10) counts in the order of `VOTE_COLUMNS`; zeros where there are none.
        crops: (M, S, S, 3) uint8 of the whole pack.
        rows: (N,) of the pack.
    """

    what: str
    dataset: str
    licence: str
    classes: tuple[str, ...]
    names: NDArray[np.str_]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    votes: NDArray[np.uint8]
    crops: NDArray[np.uint8]
    rows: NDArray[np.int64]

    @property
    def predicted(self) -> NDArray[np.int64]:
        """(N,) the most probable class."""
        return self.probabilities.argmax(axis=1)


def judge_run(
    run: Path, settings: Mapping[str, Any], *, data: Path | None, device: Device, progress: Progress
) -> Judged:
    """Predict the fold that was left out of training, or without one the images that chose the checkpoint.

    Args:
        run: run folder.
        settings: fields of its configuration; those that tell its images and crops have to be of this version of nkf.
        data: the pack, if it is not where the configuration says.
        device: where the network runs.
        progress: shows how far the preparation of the data is.

    Raises:
        NkfError: without torch, a checkpoint, the pack, or such images.
    """
    kept = [run / folder / "model.safetensors" for folder in ("best", "last")]
    kept = [file for file in kept if file.is_file()]
    if not kept:
        raise NkfError("the run has kept no network yet, which it does when it validates or stops")
    place = torch_device(device)  # without torch this says what to install
    import torch

    from nkf.models import load_model
    from nkf.recipes.expression import ExpressionRecipe

    file, info = find_weights(str(kept[0]), (".safetensors",))
    model = load_model(file, info).to(place)
    content = {key: settings[key] for key in _NEEDED if key in settings} | ({"data": [data]} if data else {})
    recipe = ExpressionRecipe(validated(content, f"{run / 'config.yaml'}"), torch.device(place), progress)
    if recipe.protocol.fold is not None:
        rows, labels, faces = recipe.measured()
        what = f"fold {recipe.protocol.fold} of {recipe.protocol.folds}, which was left out of training"
    elif len(recipe.valid_rows):
        rows, labels, faces = recipe.valid_rows, recipe.valid_labels, recipe.valid
        what = "the images that chose the checkpoint"
        if kept[0].parent.name == "last":
            what = "the images that will choose the checkpoint; none has been validated yet, these are the last weights"
    else:
        raise NkfError("no image chose its checkpoint; 'nkf evaluate' measures it on the split that is reported")
    pack = recipe.pack
    return Judged(
        what=what,
        dataset=str(pack.manifest.get("dataset", pack.path.name)),
        licence=str(pack.manifest.get("licence", "")),
        classes=info.classes,
        names=pack.names[rows],
        labels=labels,
        probabilities=recipe.probabilities(model, faces),
        votes=pack.column("votes")[rows],
        crops=recipe.crops.images,
        rows=rows,
    )


def mistakes(judged: Judged, worst: int, pictures: bool) -> list[Markup]:
    """Sections about accuracy by class, confused pairs, reliability, and the worst mistakes."""
    right = judged.predicted == judged.labels
    low, high = wilson_interval(int(right.sum()), len(right))
    means = mean_class_accuracy(judged.labels, judged.predicted, len(judged.classes))
    text = f"{len(right):,} images of {judged.dataset}: {judged.what}; landmarks of the pack. Accuracy "
    figures = f"{right.mean():.2%}", f" [{low:.2%}, {high:.2%}], mean of the classes' recalls {means:.2%}."
    return [
        element("h2", "By class"),
        element("p", text, element("strong", figures[0]), figures[1]),
        _matrix(judged),
        element("p", "Rows are labels, columns predictions; lines over the bars are 95 % intervals.", kind="quiet"),
        element("div", _confused(judged), _reliability(judged, right), kind="columns"),
        *_worst(judged, worst, pictures),
    ]


def _matrix(judged: Judged) -> Markup:
    confusion = confusion_matrix(judged.labels, judged.predicted, len(judged.classes))
    rows = []
    for number, (name, counts) in enumerate(zip(judged.classes, confusion, strict=True)):
        total, found = int(counts.sum()), int(counts[number])
        cells = [_count(int(count), total, column == number) for column, count in enumerate(counts)]
        recall: tuple[object, ...] = ("", "", "")
        if total:
            ends = wilson_interval(found, total)
            interval = f"{100 * ends[0]:.1f} – {100 * ends[1]:.1f}%"
            recall = f"{found / total:.1%}", bar(found / total, *ends), interval
        rows.append((name, *cells, f"{total:,}", *recall))
    header = ("label", *judged.classes, "images", "recall", "", "95 % interval")
    classes = len(judged.classes)
    return table(header, rows, numbers=range(1, classes + 3), kind="matrix")


def _count(count: int, total: int, right: bool) -> Markup:
    share = count / total if total else 0.0
    red, green, blue = (round(255 + (end - 255) * share**0.7) for end in (_RIGHT if right else _WRONG))
    style = f"background:rgb({red},{green},{blue});color:{'#fff' if share > 0.6 else '#1d2733'}"
    return element("td", f"{count:,}" if count else "", kind="count", title=f"{share:.1%} of the label", style=style)


def _confused(judged: Judged) -> Markup:
    confusion = confusion_matrix(judged.labels, judged.predicted, len(judged.classes))
    wrong = confusion - np.diag(confusion.diagonal())
    order = np.argsort(-wrong, axis=None, kind="stable")[:_PAIRS]
    rows = []
    for label, answer in zip(*np.unravel_index(order, wrong.shape), strict=True):
        count, total = int(wrong[label, answer]), int(confusion[label].sum())
        if count:
            here = (judged.labels == label) & (judged.predicted == answer)
            sure = f"{judged.probabilities[here, answer].mean():.1%}"
            rows.append((f"{judged.classes[label]} → {judged.classes[answer]}", count, f"{count / total:.1%}", sure))
    header = ("label → prediction", "images", "of the label", "mean confidence")
    shown = table(header, rows, numbers=(1, 2, 3)) if rows else "No image is taken for another class."
    return element("section", element("h2", "Most confused"), shown)


def _reliability(judged: Judged, right: NDArray[np.bool_]) -> Markup:
    confidence = judged.probabilities.max(axis=1)
    error = expected_calibration_error(confidence, right)
    likelihood = negative_log_likelihood(judged.probabilities, judged.labels).mean()
    brier = brier_score(judged.probabilities, judged.labels).mean()
    rows = [
        ("mean confidence", f"{confidence.mean():.2%}"),
        ("accuracy", f"{right.mean():.2%}"),
        ("expected calibration error", f"{error:.2%}"),
        ("negative log-likelihood", f"{likelihood:.4f}"),
        ("Brier score", f"{brier:.4f}"),
    ]
    plot = Markup(draw_reliability(confidence, right))
    quiet = element("p", "Before any calibration.", kind="quiet")
    return element("section", element("h2", "Reliability"), plot, table((), rows, numbers=(1,)), quiet)


def _worst(judged: Judged, count: int, pictures: bool) -> list[Markup]:
    """The mistakes with the largest probability of the wrong class."""
    wrong = np.flatnonzero(judged.predicted != judged.labels)
    confidence = judged.probabilities[wrong].max(axis=1)
    shown = wrong[np.argsort(-confidence, kind="stable")][:count]
    parts = [element("h2", "Worst mistakes")]
    text = f"The {len(shown)} of {len(wrong):,} wrong answers that the network is surest of. Labels may be wrong too."
    if not len(shown):
        return [*parts, element("p", f"{len(wrong):,} wrong answers, none is shown.")]
    parts.append(element("p", text))
    if pictures:
        return [*parts, element("div", *(_face(judged, number) for number in shown), kind="faces")]
    rows = [
        (name, judged.classes[judged.labels[number]], *_answer(judged, number), _votes(judged.votes[number]))
        for number, name in zip(shown, judged.names[shown], strict=True)
    ]
    return [*parts, table(("image", "label", "prediction", "", "of the label", "votes"), rows, numbers=(3, 4))]


def _face(judged: Judged, number: int) -> Markup:
    label = judged.classes[judged.labels[number]]
    answer, sure, of_label = _answer(judged, number)
    votes = _votes(judged.votes[number])
    return element(
        "figure",
        picture(np.asarray(judged.crops[judged.rows[number]]), f"face labelled {label}"),
        element("strong", f"{answer} {sure}"),
        element("div", f"label: {label} ({of_label})"),
        element("div", f"votes: {votes}") if votes else "",
        element("div", judged.names[number], kind="quiet"),
    )


def _answer(judged: Judged, number: int) -> tuple[str, str, str]:
    """Predicted class, its probability, and that of the label."""
    probabilities = judged.probabilities[number]
    answer, label = judged.predicted[number], judged.labels[number]
    return judged.classes[answer], f"{probabilities[answer]:.1%}", f"{probabilities[label]:.1%}"


def _votes(votes: NDArray[np.uint8]) -> str:
    order = [number for number in np.argsort(-votes.astype(int), kind="stable") if votes[number]]
    return ", ".join(f"{VOTE_COLUMNS[number]}\N{NO-BREAK SPACE}{votes[number]}".replace("_", " ") for number in order)
