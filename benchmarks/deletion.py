"""The deletion test of explanations: does covering the keypoints that are said to matter cost more than others?

    python benchmarks/deletion.py data/ferplus --json benchmarks/results/deletion.json

Of images that the network gets right, the 1, 2, 4, 8 and 16 keypoints with the highest contribution (`nkf.explain`) are
covered together, and beside it as many of the highest attention, of the lowest contribution, and at random. So that the
test is not the measurement again, what is covered here gets the mean colour of the crop; contributions are measured
with a blur.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nkf.data.groups import picture_keys
from nkf.data.pack import Pack
from nkf.evaluate import labelled_rows
from nkf.explain import RADIUS, REGIONS, Explanation, cover, explain_face, soft_discs
from nkf.files import replacing
from nkf.finder import LandmarkFinder
from nkf.geometry import NUM_LANDMARKS, Points
from nkf.images import ImageRGB
from nkf.machine import machine
from nkf.metrics import wilson_interval
from nkf.reliability import bootstrap_interval
from nkf.runtime import ExpressionModel, FloatArray, load_expression_model
from nkf.views import BATCH, View, classify

COUNTS = (1, 2, 4, 8, 16)  # of keypoints that are covered together
ORDERS = ("highest contribution", "highest attention", "random", "lowest contribution")
REFERENCE = "random"
Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Face:
    """An aligned face that the network gets right: its row in the pack, crop, landmarks in it, and class."""

    row: int
    crop_rgb: ImageRGB
    landmarks_px: Points
    label: int


@dataclass(frozen=True, eq=False)
class Deletion:
    """What covering keypoints did to N faces, by order of the keypoints.

    `probability` and `kept`, whether the expression stayed: (N, len(COUNTS)); `covered`: share of the crop, the same.
    """

    probability: dict[str, Array]
    kept: dict[str, NDArray[np.bool_]]
    covered: dict[str, Array]


def right_faces(view: View, rows: NDArray[np.int64], labels: NDArray[np.int64], n: int) -> list[Face]:
    """The first `n` faces, in the order of the rows, whose landmarks are found and whose expression is told right."""
    faces: list[Face] = []
    for start in range(0, len(rows), BATCH):
        part = slice(start, start + BATCH)
        images, found, boxes = view.find(rows[part])
        crops, points = view.aligned(images, found, boxes)
        told = classify(view.network, crops, points).argmax(axis=1)
        for k, (row, label) in enumerate(zip(rows[part], labels[part], strict=True)):
            if found[k] is not None and told[k] == label:
                faces.append(Face(int(row), crops[k], points[k].astype(np.float32), int(label)))
        if len(faces) >= n:
            break
    return faces[:n]


def orders_of(explanation: Explanation, generator: np.random.Generator) -> dict[str, NDArray[np.int64]]:
    """The keypoints (68,) in each order of `ORDERS`; without attention there is none by it."""
    orders = {
        "highest contribution": np.argsort(-explanation.contributions, kind="stable"),
        "random": generator.permutation(NUM_LANDMARKS),
        "lowest contribution": np.argsort(explanation.contributions, kind="stable"),
    }
    if explanation.attention is not None:
        orders["highest attention"] = np.argsort(-explanation.attention, kind="stable")
    return {name: orders[name] for name in ORDERS if name in orders}


def delete(face: Face, keypoints: NDArray[np.int64]) -> tuple[FloatArray, Array]:
    """Cover the first of the keypoints, as many as each of `COUNTS` says: (len(COUNTS), 3, S, S), and the shares."""
    size = len(face.crop_rgb)
    discs = soft_discs(face.landmarks_px[keypoints[: max(COUNTS)]], size)
    masks = np.stack([discs[:count].max(axis=0) for count in COUNTS])
    colour = np.rint(face.crop_rgb.mean(axis=(0, 1))).astype(np.uint8)
    return cover(face.crop_rgb, masks, np.broadcast_to(colour, face.crop_rgb.shape)), masks.mean(axis=(1, 2))


def measure(model: ExpressionModel, faces: Sequence[Face], seed: int) -> tuple[list[Explanation], Deletion]:
    """Explain each face, then cover keypoints in each order."""
    generator, explanations = np.random.default_rng(seed), []
    rows: dict[str, list[tuple[Array, NDArray[np.bool_], Array]]] = {}
    for number, face in enumerate(faces):
        explanation = explain_face(model, face.crop_rgb, face.landmarks_px, face.label)
        explanations.append(explanation)
        orders = orders_of(explanation, generator)
        pictures, shares = zip(*(delete(face, keypoints) for keypoints in orders.values()), strict=True)
        batch = np.concatenate(pictures)
        told = model(batch, np.tile(face.landmarks_px, (len(batch), 1, 1)))
        for name, answer, covered in zip(orders, told.reshape(len(orders), len(COUNTS), -1), shares, strict=True):
            kept = answer.argmax(axis=1) == face.label
            rows.setdefault(name, []).append((answer[:, face.label].astype(np.float64), kept, covered))
        if (number + 1) % 20 == 0:
            print(f"{number + 1} of {len(faces)} faces", file=sys.stderr, flush=True)
    stacked = {name: [np.stack(column) for column in zip(*parts, strict=True)] for name, parts in rows.items()}
    return explanations, Deletion(*({name: columns[k] for name, columns in stacked.items()} for k in range(3)))


def figures(deletion: Deletion, groups: NDArray[np.integer]) -> dict[str, list[dict[str, Any]]]:
    """For each order and count: how many expressions stay, and the probability of the original one."""
    return {
        name: [
            {
                "keypoints": count,
                "accuracy": float(kept[:, k].mean()),
                "accuracy_ci95": wilson_interval(int(kept[:, k].sum()), len(kept)),
                **_mean("probability", deletion.probability[name][:, k], groups),
                "covered": float(deletion.covered[name][:, k].mean()),
            }
            for k, count in enumerate(COUNTS)
        ]
        for name, kept in deletion.kept.items()
    }


def differences(deletion: Deletion, groups: NDArray[np.integer]) -> dict[str, list[dict[str, Any]]]:
    """The same as differences to `REFERENCE`, paired over the images."""
    kept, probability = deletion.kept, deletion.probability
    return {
        name: [
            {
                "keypoints": count,
                **_mean("accuracy", kept[name][:, k] * 1.0 - kept[REFERENCE][:, k], groups),
                **_mean("probability", probability[name][:, k] - probability[REFERENCE][:, k], groups),
            }
            for k, count in enumerate(COUNTS)
        ]
        for name in kept
        if name != REFERENCE
    }


def by_expression(explanations: Sequence[Explanation]) -> dict[str, dict[str, Any]]:
    """Number of faces, and mean contribution of each region, for each expression."""
    result = {}
    for expression in dict.fromkeys(one.expression for one in explanations):
        parts = [one.regions for one in explanations if one.expression == expression]
        regions = {region: float(np.mean([part[region] for part in parts])) for region in REGIONS}
        result[expression] = {"n": len(parts), "regions": regions}
    return result


def agreement(explanations: Sequence[Explanation], groups: NDArray[np.integer]) -> dict[str, Any] | None:
    """Mean rank correlation of attention and contributions over the 68 keypoints of a face; None without attention."""
    pairs = [(one.attention, one.contributions) for one in explanations if one.attention is not None]
    if not pairs:
        return None
    ranks = [(np.argsort(np.argsort(first)), np.argsort(np.argsort(second))) for first, second in pairs]
    return _mean("rank_correlation", np.array([np.corrcoef(first, second)[0, 1] for first, second in ranks]), groups)


def _mean(name: str, values: NDArray[np.floating], groups: NDArray[np.integer]) -> dict[str, Any]:
    """The mean of (N,) values, with its 95 % interval (bootstrap over images)."""
    interval = bootstrap_interval(lambda weights: float(weights @ values / weights.sum()), groups)
    return {name: float(values.mean()), f"{name}_ci95": interval}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a pack")
    parser.add_argument("--model", default="mobile")
    parser.add_argument("--split", default="valid")
    parser.add_argument("--n", type=int, default=400, help="images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=Path("results/deletion.json"))
    options = parser.parse_args()
    start = time.monotonic()
    model, info = load_expression_model(options.model, "cpu", threads=options.threads)
    pack = Pack(options.data)
    rows, labels, _ = labelled_rows(pack, options.split, "majority", info.classes)
    order = np.random.default_rng(options.seed).permutation(len(rows))
    faces = right_faces(View(pack, model, LandmarkFinder("cpu")), rows[order], labels[order], options.n)
    groups = np.unique(picture_keys(pack.table)[[face.row for face in faces]], return_inverse=True)[1]
    explanations, deletion = measure(model, faces, options.seed)
    document = {
        "schema": 1,
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine("cpu"),
        "seconds": round(time.monotonic() - start, 1),
        "seed": options.seed,
        "n": len(faces),
        "model": info.name,
        "data": str(pack.manifest.get("dataset", pack.path.name)),
        "split": options.split,
        "rule": "majority",
        "landmarks": "fan",
        "radius": RADIUS,
        "fill_of_contributions": "blur",
        "fill_of_deletion": "mean colour of the crop",
        "orders": figures(deletion, groups),
        "differences": differences(deletion, groups),
        "by_expression": by_expression(explanations),
        "attention": agreement(explanations, groups),
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    with replacing(options.json) as partial:
        partial.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    for name, parts in document["orders"].items():
        print(f"{name:22}", *(f"{part['accuracy']:6.1%} {part['probability']:.3f}" for part in parts))


if __name__ == "__main__":
    main()
