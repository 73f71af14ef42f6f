"""What the verdicts on faces are worth: rejection of non-faces (ROC), and accuracy of faces judged good or bad.

    python benchmarks/quality.py --out benchmarks/results/quality.json --plot docs/rejection.png

Rejection: every box that our detector gives from score 0.02 on, in scenes of faces and backgrounds that no training
saw, on pictures without faces, and on drawn smileys, text and walls. The logistic regression of `nkf.quality` is the
fit to all of them; its figures are of each half of the pictures under the fit to the other half, whose scenes show the
same persons and backgrounds.

Verdicts: FERPlus valid, each face made worse at random (blurred, shrunk, turned away by nothing but itself), accuracy
of the expression where the verdict is ``ok`` and where it is ``low_quality``, and by problem.

Needs the packs, `data/backgrounds` (benchmarks/backgrounds.py), and scikit-learn (extra ``dev``).
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from nkf.boxes import box_iou
from nkf.data.dataset import load_crops
from nkf.data.labels import DROPPED, EXPRESSIONS
from nkf.data.pack import Pack, is_held_out
from nkf.data.scene_pool import read_pictures
from nkf.data.scenes import Faces, SceneMaker
from nkf.detectors import NkfDetector, WholeImage
from nkf.evaluate_landmarks import blur, shrink
from nkf.faces import to_batch
from nkf.finder import CANDIDATE_SCORE, FaceFinder
from nkf.images import align
from nkf.metrics import wilson_interval
from nkf.progress import track
from nkf.quality import MIN_FACE_PROBABILITY, relative_spread
from nkf.report import draw_rejection
from nkf.runtime import load_expression_model
from nkf.weights import DEFAULT_MODEL

PACKS = ("data/fairface", "data/faces", "data/ferplus")
DEGRADATIONS = {
    "none": None,
    **{f"blur {share:.0%}": blur(share) for share in (0.02, 0.04, 0.08)},
    **{f"{side} px": shrink(side) for side in (32, 24, 16, 12)},
}


def held_out_faces(limit: int) -> Faces:
    parts = []
    for path in PACKS:
        pack = Pack(Path(path))
        crops = load_crops(pack, "whole", 128)
        rows = pack.rows("train")[crops.found[pack.rows("train")]]
        rows = rows[is_held_out(pack.column("pixels_md5")[rows])][:limit]
        parts.append((crops.images[rows], crops.landmarks_px[rows]))
    return Faces(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def drawn_pictures(count: int) -> list[NDArray[np.uint8]]:
    """Smileys, text, and walls with a little structure."""
    pictures = []
    for number in range(count):
        rng = np.random.default_rng([7, number])
        colors = [tuple(int(v) for v in rng.integers(0, 256, 3)) for _ in range(3)]
        image = Image.new("RGB", (320, 240), colors[0])
        draw = ImageDraw.Draw(image)
        if number % 3 == 0:
            x, y, r = rng.uniform(80, 240), rng.uniform(80, 160), rng.uniform(25, 75)
            draw.ellipse((x - r, y - r, x + r, y + r), fill=colors[1], outline=colors[2], width=3)
            for side in (-1, 1):
                eye = (x + side * 0.35 * r, y - 0.25 * r)
                draw.ellipse((eye[0] - 0.1 * r, eye[1] - 0.15 * r, eye[0] + 0.1 * r, eye[1] + 0.15 * r), fill=colors[2])
            draw.arc((x - 0.55 * r, y - 0.4 * r, x + 0.55 * r, y + 0.6 * r), 20, 160, fill=colors[2], width=4)
        elif number % 3 == 1:
            for line in range(8):
                text = "".join(chr(c) for c in rng.integers(48, 123, 20))
                draw.text(
                    (10, 10 + 28 * line), text, fill=colors[1], font=ImageFont.load_default(int(rng.integers(10, 40)))
                )
        else:
            noise = rng.normal(0, 6, (240, 320, 3))
            image = Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
        pictures.append(np.asarray(image))
    return pictures


def candidates(scenes: int) -> dict[str, NDArray[Any]]:
    """All boxes: detection score, relative spread, whether a face, number of the picture, and its kind."""
    backgrounds = read_pictures(Path("data/backgrounds/held_out"))
    maker = SceneMaker(held_out_faces(700), backgrounds, (640, 480), face_px=(24.0, 420.0))
    finder = FaceFinder(NkfDetector("cpu", score_threshold=CANDIDATE_SCORE), device="cpu")
    rows: list[tuple[float, float, bool, int, str]] = []

    def look(image: NDArray[np.uint8], truth: NDArray[np.floating], number: int, kind: str) -> None:
        for face in finder.candidates([image])[0]:
            assert face.landmarks_px is not None
            assert face.landmark_spread_px is not None
            spread = relative_spread(face.landmarks_px, face.landmark_spread_px)
            overlap = box_iou(face.box_xyxy[None], truth).max(initial=0.0)
            if overlap >= 0.4 or overlap < 0.2:  # else neither a find nor a false one
                rows.append((face.detection_score, spread, overlap >= 0.4, number, kind))

    for number in track(range(scenes), "scenes", scenes):
        scene = maker.compose(np.random.default_rng([3, number]))
        look(scene.image, scene.boxes.astype(float), number, "scenes")
    nothing = np.zeros((0, 4))
    for number, picture in enumerate(track(backgrounds, "pictures", len(backgrounds))):
        picture.thumbnail((640, 640))
        look(np.asarray(picture.convert("RGB")), nothing, number, "pictures")
    drawings = drawn_pictures(150)
    for number, drawing in enumerate(track(drawings, "drawings", len(drawings))):
        look(drawing, nothing, number, "drawings")
    names = ("score", "spread", "is_face", "number", "kind")
    return {name: np.array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def rejection(table: dict[str, NDArray[Any]], plot: Path) -> dict[str, Any]:
    score = np.clip(table["score"], 1e-4, 1 - 1e-4)
    features = np.stack([np.log(score / (1 - score)), np.log(np.clip(table["spread"], 1e-4, 1e4))], axis=1)
    truth = table["is_face"]
    both = np.empty(len(truth))
    for judged in (table["number"] % 2 == 0, table["number"] % 2 == 1):
        both[judged] = fit(features[~judged], truth[~judged]).decision_function(features[judged])
    scores = {"detection score": features[:, 0], "landmark spread": -features[:, 1], "both": both}
    draw_rejection(scores, truth.astype(int), plot)
    kept = both >= np.log(MIN_FACE_PROBABILITY / (1 - MIN_FACE_PROBABILITY))
    model = fit(features, truth)
    kinds = table["kind"]
    return {
        "intercept": float(model.intercept_[0]),
        "per_logit_and_log_spread": model.coef_[0].tolist(),
        "auc": {name: float(roc_auc_score(truth, values)) for name, values in scores.items()},
        "min_probability": MIN_FACE_PROBABILITY,
        "faces": int(truth.sum()),
        "faces_kept": int((kept & truth).sum()),
        "faces_kept_ci95": wilson_interval(int((kept & truth).sum()), int(truth.sum())),
        "non_faces": {kind: int((~truth & (kinds == kind)).sum()) for kind in np.unique(kinds)},
        "non_faces_kept": {kind: int((kept & ~truth & (kinds == kind)).sum()) for kind in np.unique(kinds)},
    }


def fit(features: NDArray[np.floating], is_face: NDArray[np.bool_]) -> LogisticRegression:
    """The regression of `nkf.quality`, of (N, 2) logits of the score and logarithms of the spread."""
    return LogisticRegression(C=100).fit(features, is_face)


def verdicts() -> dict[str, Any]:
    """Accuracy on worsened FERPlus valid faces by verdict."""
    pack = Pack(Path("data/ferplus"))
    labels = pack.labels("majority")
    rows = pack.rows("valid")
    rows = rows[labels[rows] != DROPPED]
    finder, (model, info) = FaceFinder(WholeImage(), device="cpu"), load_expression_model(DEFAULT_MODEL, "cpu")
    names = list(DEGRADATIONS)
    drawn = np.random.default_rng(0).integers(0, len(names), len(rows))
    right: list[bool] = []
    problems: list[tuple[str, ...]] = []
    for row, kind in zip(track(rows, "verdicts", len(rows)), drawn, strict=True):
        image, degrade = pack.image(row), DEGRADATIONS[names[kind]]
        if degrade is not None:
            image, _ = degrade(image, 44.0)  # FER-2013 faces fill their 48 pixels
        (face,) = finder(image)
        crop, landmarks = align(image, face.landmarks_px, info.input_size, face.box_xyxy)
        probabilities = model(to_batch([crop]), landmarks[None].astype(np.float32))
        right.append(EXPRESSIONS[labels[row]] == info.classes[int(probabilities.argmax())])
        problems.append(face.problems)
    correct = np.array(right)
    masks = {"all": np.ones(len(rows), bool), "ok": np.array([not p for p in problems])}
    masks["low_quality"] = ~masks["ok"]
    masks |= {
        f"problem {name}": np.array([name in p for p in problems]) for name in sorted({q for p in problems for q in p})
    }
    masks |= {f"made {name}": drawn == k for k, name in enumerate(names)}
    masks |= {f"made {name}, ok": (drawn == k) & masks["ok"] for k, name in enumerate(names)}
    return {
        title: {
            "n": int(mask.sum()),
            "accuracy": float(correct[mask].mean()),
            "ci95": wilson_interval(int(correct[mask].sum()), int(mask.sum())),
        }
        for title, mask in masks.items()
        if mask.any()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=900)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/quality.json"))
    parser.add_argument("--plot", type=Path, default=Path("docs/rejection.png"))
    options = parser.parse_args()
    result = {"schema": 1, "rejection": rejection(candidates(options.scenes), options.plot), "verdicts": verdicts()}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
