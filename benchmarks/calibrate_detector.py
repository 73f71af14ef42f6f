"""Make the detector's score a probability: scale and shift its logit so that it fits the validation scenes.

    python benchmarks/calibrate_detector.py configs/face.yaml runs/face runs/face-calibrated

Platt's scaling over all boxes that are left after the removal of duplicates: one that hits a face is a success. The two
numbers are folded into the last layer, and noted in the sidecar. Prints the average precision, and recall and false
boxes by threshold.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from nkf.boxes import average_precision
from nkf.config import load_config
from nkf.models import load_model, save_model
from nkf.models.detector import FaceDetector
from nkf.recipes.detection import DetectionRecipe
from nkf.weights import find_weights


def fit(logits: NDArray[np.float64], right: NDArray[np.bool_]) -> tuple[float, float]:
    """Slope and shift of the most likely logistic curve, by Newton's method."""
    design = np.stack([logits, np.ones_like(logits)], axis=1)
    weights = np.array([1.0, 0.0])
    for _ in range(50):
        probability = 1 / (1 + np.exp(-design @ weights))
        gradient = design.T @ (right - probability)
        curvature = (design * (probability * (1 - probability))[:, None]).T @ design
        weights = weights + np.linalg.solve(curvature, gradient)
    return float(weights[0]), float(weights[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    file, info = find_weights(args.model, (".safetensors",))
    network = load_model(file, info)
    assert isinstance(network, FaceDetector)
    recipe = DetectionRecipe(load_config(args.config), torch.device("cpu"))
    scores, right, truths = recipe.found_boxes(network)
    print(f"average precision {average_precision(right, scores, truths):.3f}, {truths} faces")
    logits = np.log(scores / (1 - scores))
    slope, shift = fit(logits, right)
    assert network.output.bias is not None
    with torch.no_grad():
        network.output.weight[0] *= slope
        network.output.bias[0] = slope * network.output.bias[0] + shift
    probability = 1 / (1 + np.exp(-(slope * logits + shift)))
    for threshold in np.arange(0.2, 0.95, 0.05):
        sure = probability > threshold
        false = (sure & ~right).sum() / len(recipe.valid.images)
        print(f"{threshold:.2f}: recall {(sure & right).sum() / truths:.3f}, false boxes a scene {false:.3f}")
    training = {**info.training, "calibration": {"slope": round(slope, 4), "shift": round(shift, 4)}}
    folder = args.out / "best"
    folder.mkdir(parents=True, exist_ok=True)
    save_model(network, folder / "model.safetensors", info.model_copy(update={"training": training, "sha256": {}}))
    print(json.dumps(training["calibration"]))


if __name__ == "__main__":
    main()
