"""Make the probabilities of a network true, and tell from which confidence on it reaches a wanted accuracy.

Two ways: temperature scaling (Guo et al., ICML 2017, arXiv 1706.04599), and the same with a bias for each class. They
are fitted to labelled images that the network was not trained on, and judged on other images than those that they were
fitted to: each fold by what the others gave. What ships is then fitted to all.

Legend: N images, C classes, K parameters. Logits are known up to a constant for each image, so logarithms of
probabilities will do.
"""

import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from nkf.data.groups import linked_rows
from nkf.data.labels import LabelRule
from nkf.data.pack import Pack
from nkf.data.splitting import folds
from nkf.errors import NkfError
from nkf.evaluate import LandmarkSource, Scored, check_can_write, score, without_copy_in_train
from nkf.files import replacing
from nkf.machine import machine
from nkf.metrics import Labels, mean_class_accuracy, wilson_interval
from nkf.progress import Progress, no_progress
from nkf.reliability import (
    LEAST,
    bootstrap_interval,
    brier_score,
    confidence_bins,
    coverage_curve,
    error_of_perfect,
    expected_calibration_error,
    least_confidence,
    negative_log_likelihood,
    reliability_bins,
    risk_under_coverage,
)
from nkf.report_calibration import draw_coverage, draw_reliability
from nkf.runtime import Device
from nkf.weights import DEFAULT_MODEL, Calibration

Method = Literal["temperature", "class_bias"]
Groups = NDArray[np.integer]  # (N,) images of one number are never in two folds
Floats = NDArray[np.float64]

FOLDS = 5
SEED = 0  # of the folds
TARGET_ACCURACY = 0.95
CURVE_POINTS = 101
TEMPERATURES = (0.05, 20.0)
BIAS_RIDGE = 1.0  # variance 1/2 about 0, for rare classes; from 0.1 to 3, `mobile` gains the same on other folds
_SLOPE_RIDGE = 0.01  # keeps 1 / temperature finite where the network is always right
_STEPS = 50


def fit(logits: Floats, labels: Labels, method: Method) -> Calibration:
    """Find the parameters of the greatest likelihood, those of the biases with a penalty `BIAS_RIDGE`.

    Args:
        logits: (N, C), or logarithms of probabilities.
        labels: (N,).
        method: ``temperature`` never changes which class is the most probable, ``class_bias`` may.
    """
    features = logits.astype(np.float64)[:, :, None]  # (N, C, 1)
    ridge = [_SLOPE_RIDGE]
    if method == "class_bias":
        num_classes = logits.shape[1]
        one_hot = np.broadcast_to(np.eye(num_classes), (len(logits), num_classes, num_classes))
        features = np.concatenate([features, one_hot], axis=2)  # (N, C, 1 + C)
        ridge += [BIAS_RIDGE] * num_classes
    slope, *biases = _most_likely(features, labels, np.array(ridge))
    return Calibration(temperature=float(np.clip(1 / max(slope, 1e-9), *TEMPERATURES)), class_biases=tuple(biases))


def _most_likely(features: Floats, labels: Labels, ridge: Floats) -> list[float]:
    """Minimise the negative log-likelihood of softmax(features @ θ) + ridge * (θ - (1, 0, ...))², by Newton's method.

    It is convex in θ = (1 / temperature, biases), so that there is one minimum; a step that would go up is halved.
    """
    prior = np.zeros(features.shape[2])
    prior[0] = 1
    chosen = features[np.arange(len(labels)), labels].sum(axis=0)  # (K,)

    def loss(theta: Floats) -> float:
        penalty = np.sum(ridge * (theta - prior) ** 2)
        return float(_log_normaliser(features @ theta).sum() - chosen @ theta + penalty)

    theta = prior
    for _ in range(_STEPS):
        probabilities = _softmax(features @ theta)[:, :, None]  # (N, C, 1)
        mean = (probabilities * features).sum(axis=1, keepdims=True)  # (N, 1, K)
        gradient = mean.sum(axis=(0, 1)) - chosen + 2 * ridge * (theta - prior)
        spread = (np.sqrt(probabilities) * (features - mean)).reshape(-1, len(theta))
        step = np.linalg.solve(spread.T @ spread + 2 * np.diag(ridge), gradient)
        before = loss(theta)
        while loss(theta - step) > before and np.abs(step).max() > 1e-12:
            step = step / 2
        theta = theta - step
        if np.abs(step).max() < 1e-9:
            break
    return [float(value) for value in theta]


def apply(calibration: Calibration, logits: Floats) -> Floats:
    """(N, C) calibrated probabilities of logits, or of logarithms of the network's own probabilities."""
    biases = np.array(calibration.class_biases or 0.0)
    return _softmax(logits.astype(np.float64) / calibration.temperature + biases)


def raw_logits(probabilities: NDArray[np.floating], calibration: Calibration | None) -> Floats:
    """(N, C) logits, up to a constant for each image, of a network that gives calibrated probabilities (N, C)."""
    logits = np.log(np.maximum(probabilities.astype(np.float64), LEAST))
    if calibration is None:
        return logits
    return calibration.temperature * (logits - np.array(calibration.class_biases or 0.0))


def _log_normaliser(logits: Floats) -> Floats:
    largest = logits.max(axis=1, keepdims=True)
    return np.log(np.exp(logits - largest).sum(axis=1)) + largest[:, 0]


def _softmax(logits: Floats) -> Floats:
    return np.exp(logits - _log_normaliser(logits)[:, None])


def cross_fit(logits: Floats, labels: Labels, parts: NDArray[np.integer], method: Method) -> Floats:
    """(N, C) probabilities of each fold, calibrated by what was fitted to the other folds.

    Args:
        logits: (N, C), or logarithms of probabilities.
        labels: (N,).
        parts: (N,) number of each image's fold.
        method: see `fit`.
    """
    probabilities = np.empty(logits.shape)
    for part in np.unique(parts):
        here = parts == part
        probabilities[here] = apply(fit(logits[~here], labels[~here], method), logits[here])
    return probabilities


def figures(probabilities: Floats, labels: Labels, groups: Groups) -> dict[str, Any]:
    """What there is to say of probabilities (N, C): accuracy, calibration errors, likelihood."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = confidence_bins(confidence)
    low, high = bootstrap_interval(lambda w: expected_calibration_error(confidence, right, bins, w), groups)
    return {
        "accuracy": float(right.mean()),
        "accuracy_ci95": wilson_interval(int(right.sum()), len(right)),
        "mean_class_accuracy": mean_class_accuracy(labels, probabilities.argmax(axis=1), probabilities.shape[1]),
        "mean_confidence": float(confidence.mean()),
        "ece": expected_calibration_error(confidence, right, bins),
        "ece_ci95": (max(0.0, low), max(0.0, high)),
        "ece_equal_mass": expected_calibration_error(confidence, right, confidence_bins(confidence, equal_mass=True)),
        "ece_if_perfect": error_of_perfect(confidence),
        "nll": float(negative_log_likelihood(probabilities, labels).mean()),
        "brier": float(brier_score(probabilities, labels).mean()),
        "risk_under_coverage": risk_under_coverage(coverage_curve(confidence, right)),
    }


def choose(candidates: Mapping[Method, Floats], labels: Labels, groups: Groups) -> tuple[Method, dict[str, Any]]:
    """Take class biases where they are clearly better than the temperature alone, on cross-fitted probabilities.

    That is: the interval of the gain in log-likelihood is above zero, and no accuracy is lost.

    Returns:
        The method, and why: ``nll_gain`` of the biases, ``nll_gain_ci95``, ``accuracy_gain``.
    """
    plain, biased = candidates["temperature"], candidates["class_bias"]
    gains = negative_log_likelihood(plain, labels) - negative_log_likelihood(biased, labels)
    interval = bootstrap_interval(lambda weights: float(weights @ gains / weights.sum()), groups)
    more_right = (biased.argmax(axis=1) == labels).mean() - (plain.argmax(axis=1) == labels).mean()
    better = interval[0] > 0 and more_right >= 0
    why = {"nll_gain": float(gains.mean()), "nll_gain_ci95": interval, "accuracy_gain": float(more_right)}
    return "class_bias" if better else "temperature", why


def judge_threshold(
    confidence: Floats, right: NDArray[np.bool_], parts: NDArray[np.integer], accuracy: float
) -> dict[str, Any]:
    """Coverage and accuracy of the faces kept, when each fold takes the threshold that the others give.

    Returns:
        ``coverage``, ``accuracy`` of those kept, and their intervals; no accuracy where none is kept.
    """
    kept = np.zeros(len(right), bool)
    for part in np.unique(parts):
        here = parts == part
        threshold = least_confidence(confidence[~here], right[~here], accuracy)
        kept[here] = threshold is not None and confidence[here] >= threshold
    count, kept_right = int(kept.sum()), int(right[kept].sum())
    return {
        "coverage": count / len(right),
        "coverage_ci95": wilson_interval(count, len(right)),
        "accuracy": kept_right / count if count else None,
        "accuracy_ci95": wilson_interval(kept_right, count) if count else None,
    }


def judge(
    logits: Floats,
    labels: Labels,
    groups: Groups,
    *,
    method: Method | Literal["auto"] = "auto",
    target_accuracy: float = TARGET_ACCURACY,
) -> dict[str, Any]:
    """Fit, judge and choose; all figures are of cross-fitted probabilities, the parameters are fitted to all images.

    Args:
        logits: (N, C), or logarithms of probabilities, not calibrated.
        labels: (N,).
        groups: (N,) images of one number are never in two folds.
        method: ``auto`` lets `choose` decide.
        target_accuracy: that the faces above ``min_confidence`` shall reach.

    Returns:
        What ``calibration.json`` says of them, see `calibrate`.

    Raises:
        NkfError: when there are fewer groups than folds.
    """
    parts = folds(labels, groups, FOLDS, SEED)
    fitted: dict[Method, Floats] = {name: cross_fit(logits, labels, parts, name) for name in get_args(Method)}
    chosen, why = choose(fitted, labels, groups)
    chosen = chosen if method == "auto" else method
    before, after = _softmax(logits), fitted[chosen]
    confidence, right = after.max(axis=1), after.argmax(axis=1) == labels
    parameters = fit(logits, labels, chosen)
    judged = {name: figures(probabilities, labels, groups) for name, probabilities in fitted.items()}
    return {
        "n": len(labels),
        "groups": len(np.unique(groups)),
        "folds": FOLDS,
        "seed": SEED,
        "method": chosen,
        "temperature": parameters.temperature,
        "class_biases": parameters.class_biases,
        "before": figures(before, labels, groups),
        "after": judged[chosen],
        "candidates": judged,
        "class_bias_over_temperature": why,
        "target_accuracy": target_accuracy,
        "min_confidence": least_confidence(confidence, right, target_accuracy),
        "at_min_confidence": judge_threshold(confidence, right, parts, target_accuracy),
        "reliability": {name: _bins(one, labels) for name, one in (("before", before), ("after", after))},
        "curve": {"before": _curve(before, labels), "after": _curve(after, labels)},
    }


def _bins(probabilities: Floats, labels: Labels) -> list[dict[str, Any]]:
    return reliability_bins(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels)


def _curve(probabilities: Floats, labels: Labels) -> dict[str, list[float]]:
    """`coverage_curve` at `CURVE_POINTS` evenly spaced places."""
    curve = coverage_curve(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels)
    places = np.searchsorted(curve.coverage, np.linspace(0, 1, CURVE_POINTS)).clip(max=len(curve.coverage) - 1)
    return {name: values[np.unique(places)].tolist() for name, values in curve._asdict().items()}


def calibrate(
    data: Path,
    out: Path,
    *,
    model: str = DEFAULT_MODEL,
    split: str = "valid",
    rule: LabelRule = "majority",
    landmarks: LandmarkSource = "fan",
    method: Method | Literal["auto"] = "auto",
    target_accuracy: float = TARGET_ACCURACY,
    device: Device = "auto",
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Calibrate an expression network; write ``calibration.json``, ``reliability.png`` and ``coverage.png``.

    The network's own probabilities are what is calibrated: where they are calibrated already, that is undone first, so
    that the new parameters take the place of the old ones. Images with a copy in the pack's train split are left out.

    Args:
        data: a pack.
        out: folder, made when missing.
        model: packaged NAME, run folder or weights file.
        split: ``train``, ``valid`` or ``test``; one that the network was not trained on.
        rule: how votes become labels.
        landmarks: see `nkf.evaluate.evaluate`.
        method: ``auto`` takes class biases where they are clearly better than the temperature alone.
        target_accuracy: in (0, 1), for ``min_confidence``. The default leaves less than half of the errors of a
            network that is right in nine of ten faces, and keeps about four in five faces.
        device: where networks run.
        progress: shows how far it is.

    Returns:
        What ``calibration.json`` holds: the parameters; ``before`` and ``after``, figures of `figures`;
        ``min_confidence``, None where nothing reaches the accuracy; lists for the two pictures; where it comes from.

    Raises:
        NkfError: when pack or model are unusable, or there are too few labelled images.
    """
    start = time.monotonic()
    check_can_write(out)
    if not 0 < target_accuracy < 1:
        raise NkfError(f"target accuracy {target_accuracy:g}: expected a share between 0 and 1, such as 0.95")
    scored = score(Pack(data), split, model=model, rule=rule, landmarks=landmarks, device=device, progress=progress)
    unseen = without_copy_in_train(scored.pack, scored.rows)
    chosen = np.ones(len(scored.rows), bool) if unseen is None else unseen
    logits = raw_logits(scored.probabilities[chosen], scored.info.calibration)
    groups = linked_rows(scored.pack.table)[scored.rows[chosen]]
    result = judge(logits, scored.labels[chosen], groups, method=method, target_accuracy=target_accuracy)
    document = {
        "schema": 1,
        "model": scored.info.name,
        "data": str(scored.pack.manifest.get("dataset", scored.pack.path.name)),
        "split": split,
        "rule": rule,
        "landmarks": landmarks,
        "landmarks_missing": scored.landmarks_missing,
        "copies_left_out": int((~chosen).sum()),
        "classes": scored.info.classes,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(device),
        "seconds": round(time.monotonic() - start, 1),
        **result,
    }
    _write(document, out, scored)
    return document


def _write(document: dict[str, Any], out: Path, scored: Scored) -> None:
    title = f"{scored.info.name} on {document['split']} of {document['data']}"
    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / "calibration.json") as file:
        file.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    with replacing(out / "reliability.png") as file:
        draw_reliability(document, file, title=title)
    with replacing(out / "coverage.png") as file:
        draw_coverage(document, file, title=title)
