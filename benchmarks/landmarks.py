"""What the face alignment network costs: latency for 1 and 32 faces beside the floor, and what a second pass gives.

    python benchmarks/landmarks.py --out benchmarks/results/landmarks_latency.json

Errors of one pass, of two, and of as many as a face needs: from crops placed at random, and from our detector's boxes
on held-out pictures as they are and turned by 40 degrees. Needs the packs with teacher landmarks in `data/`.

Two threads. The floor is the network's multiply-accumulates over the measured peak of float32 matrix products.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from timing import peak_macs_per_second

from nkf.boxes import box_iou
from nkf.costs import by_turns, count_macs
from nkf.data.pack import Pack
from nkf.detectors import NkfDetector
from nkf.evaluate_landmarks import CONDITIONS, KnownFaces, measure
from nkf.faces import find_landmarks, quarter_turns_upright
from nkf.geometry import Points, interocular_distance, loose_square, square_transform, transform_points
from nkf.images import read_image, warp_similarity
from nkf.models import load_model
from nkf.progress import track
from nkf.runtime import LandmarkModel, OnnxModel, load_fan
from nkf.weights import DEFAULT_FAN, find_weights

BATCHES = (1, 32)
PACKS = ("data/ferplus", "data/faces", "data/fairface")
PLACEMENTS = ("well placed", "upright", "loose", "turned 45°")


def errors_by_passes(model: str, limit: int) -> dict[str, dict[str, float]]:
    """Mean error over the inter-ocular distance by number of passes, and the share of faces that need two."""
    fan = load_fan(model, "cpu")
    faces = KnownFaces.choose([Pack(Path(path)) for path in PACKS], "train", "held_out", limit)
    rows = {}
    for name in PLACEMENTS:
        found = {n: measure(fan, faces, CONDITIONS[name], passes=n, progress=track, title=name) for n in (1, 2, "auto")}
        rows[name] = summary({str(n): one.found_px for n, one in found.items()}) | {
            f"error, {n} passes": float(one.per_face.mean()) for n, one in found.items()
        }
    for angle in (0, 40):
        rows[f"detected, turned {angle}°"] = from_detector(fan, faces, angle)
    return rows


def summary(found_px: dict[str, NDArray[np.float64]]) -> dict[str, float]:
    """Share of faces that were looked at twice: those whose points differ from the first pass's."""
    return {"looked at twice": float((found_px["auto"] != found_px["1"]).any(axis=(1, 2)).mean())}


def from_detector(fan: LandmarkModel, faces: KnownFaces, angle_deg: float) -> dict[str, float]:
    """Errors where our detector's box is the start; faces that it misses are counted and left out."""
    detector = NkfDetector("cpu")
    errors: dict[str, list[float]] = {"1": [], "2": [], "auto": []}
    twice = missed = 0
    rows = track(faces.rows, f"detected, turned {angle_deg}", len(faces.rows))
    for (pack, row), truth in zip(rows, faces.landmarks_px, strict=True):
        image = pack.image(row)
        side = max(image.shape[:2])
        turn = square_transform([image.shape[1] / 2, image.shape[0] / 2, side * 1.3, -np.radians(angle_deg)], 2 * side)
        image, truth = warp_similarity(image, turn, 2 * side), transform_points(turn, truth)
        boxes = [face for face in detector(image) if box_iou(face.box_xyxy[None], loose_box(truth)[None])[0, 0] > 0.3]
        if not boxes:
            missed += 1
            continue
        turns = [quarter_turns_upright(boxes[0].points5_px)]
        found = {}
        for name, passes in (("1", 1), ("2", 2), ("auto", "auto")):
            points, _ = find_landmarks(fan, image, [boxes[0].box_xyxy], quarter_turns=turns, passes=passes)
            found[name] = points[0]
            distance = np.linalg.norm(points[0] - truth, axis=1).mean()
            errors[name].append(distance / max(interocular_distance(truth), 1.0))
        twice += bool((found["auto"] != found["1"]).any())
    count = len(errors["1"])
    means = {f"error, {name} passes": float(np.mean(values)) for name, values in errors.items()}
    return {"looked at twice": twice / count, **means, "missed by the detector": missed / len(faces.rows)}


def loose_box(landmarks_px: Points) -> NDArray[np.floating]:
    x, y, side, _ = loose_square(landmarks_px)
    return np.array([x - side / 2, y - side / 2, x + side / 2, y + side / 2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_FAN)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--faces", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/landmarks_latency.json"))
    options = parser.parse_args()
    network = OnnxModel(find_weights(options.model, (".onnx",))[0], "cpu", threads=2)
    torch_network = load_model(*find_weights(options.model, (".safetensors",)))
    macs = count_macs(torch_network, torch.zeros(1, 3, 112, 112))
    peak = peak_macs_per_second()
    crops = {f"{n} faces": np.random.default_rng(0).random((n, 3, 112, 112), np.float32) for n in BATCHES}
    result = {
        "schema": 1,
        "threads": 2,
        "macs": macs,
        "parameters": sum(p.numel() for p in torch_network.parameters()),
        "peak_macs_per_second": peak,
        "floor_ms": {name: 1e3 * macs * len(batch) / peak for name, batch in crops.items()},
        "network": by_turns({name: partial(network, crops=batch) for name, batch in crops.items()}, options.runs),
    }
    fan, photo = load_fan(options.model, "cpu"), read_image(Path("examples/eileen_collins.jpg"))
    box = [np.array([178.0, 60, 272, 180])]
    passes = {f"{n} passes, photo to landmarks": partial(find_landmarks, fan, photo, box, passes=n) for n in (1, 2)}
    result["one face"] = by_turns(passes, options.runs)
    result["passes"] = errors_by_passes(options.model, options.faces)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
