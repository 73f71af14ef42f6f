"""The results page, from made-up numbers, and the one in the repository."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from nkf.corruptions import CORRUPTIONS
from nkf.metrics import wilson_interval
from nkf.reliability import BINS

ROOT = Path(__file__).parents[1]
CLASSES = ["neutral", "happiness"]


def load_script() -> Any:
    spec = importlib.util.spec_from_file_location("results", ROOT / "benchmarks" / "results.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


results = load_script()


def score(right: int, n: int = 200, **more: Any) -> dict[str, Any]:
    return {"n": n, "accuracy": right / n, "accuracy_ci95": list(wilson_interval(right, n)), **more}


EVALUATION = score(170) | {
    "accuracy_leakfree": 0.84, "accuracy_leakfree_ci95": [0.78, 0.88], "n_leakfree": 190, "mean_class_accuracy": 0.7,
    "classes": CLASSES, "confusion": [[140, 10], [20, 30]], "rule": "majority", "split": "valid", "model": "mobile",
    "seed": 4, "landmarks": "fan", "data": "ferplus", "ece": 0.0123, "date": "2026-11-22", "seconds": 81.0,
}  # fmt: skip


def damaged(right: int) -> dict[str, Any]:
    return score(right, relative_drop=1 - right / 170, relative_drop_ci95=[0.01, 0.05])


ROBUSTNESS = {
    "model": "mobile", "data": "ferplus", "split": "valid", "rule": "majority", "landmarks": "fan", "seed": 0, "n": 200,
    "date": "2026-11-22", "machine": "a processor", "seconds": 900.0, "clean": score(170),
    "units": {name: one.unit for name, one in CORRUPTIONS.items()},
    "corruptions": {
        name: [damaged(160 - 10 * number - severity) | {"amount": severity} for severity in range(1, 6)]
        for number, name in enumerate(CORRUPTIONS)
    },
    "landmark_noise": {"n": 200, **{
        name: [score(170 - int(100 * noise), noise=noise) for noise in (0.0, 0.1)] for name in ("features", "alignment")
    }},
}  # fmt: skip
FIGURES = {"ece": 0.031, "ece_ci95": [0.02, 0.04], "ece_if_perfect": 0.009, "nll": 0.5, "brier": 0.2} | score(170)
CALIBRATION = {
    "model": "mobile", "data": "ferplus", "split": "valid", "rule": "majority", "landmarks": "fan", "n": 200,
    "folds": 5,
    "method": "temperature", "temperature": 1.234, "before": FIGURES, "after": FIGURES | {"ece": 0.011},
    "target_accuracy": 0.95, "min_confidence": 0.61, "at_min_confidence": {
        "coverage": 0.8, "coverage_ci95": [0.75, 0.85], "accuracy": 0.96, "accuracy_ci95": [0.91, 0.98],
    },
    "reliability": {when: [score(170, low=14 / BINS, confidence=0.97)] for when in ("before", "after")},
    "curve": {
        when: {name: [0.5, 1.0] for name in ("coverage", "accuracy", "confidence")} for when in ("before", "after")
    },
}  # fmt: skip
LOOP = {"images_per_second": 300.0, "share_of_peak": 0.4}
TRAINING = {
    "date": "2026-11-22", "machine": "a processor", "threads": 2, "peak_conv_macs_per_second": 9e10,
    "rows": {"tiny": {"crop": 64, "batch": 64, "nkf": LOOP, "plain": LOOP | {"images_per_second": 75.0}, "ratio": 4.0}},
}  # fmt: skip
COMPARISON = {
    "repeats": 3, "images": 600, "difference": 0.05, "ci95": [0.04, 0.06], "run_ci95": [0.03, 0.07], "p": 1e-9,
    "p_holm": 2e-9, "verdict": "better",
}  # fmt: skip
ROW = {
    "row": "plain", "value": None, "repeats": ["seed-0", "seed-1", "seed-2"], "images": 600, "accuracy": 0.7,
    "run_mean": 0.7,
    "accuracy_ci95": [0.66, 0.74], "run_std": 0.01, "mean_class_recall": 0.5, "parameters": 220_000, "seconds": 180.0,
    "comparison": None,
}  # fmt: skip
CURVE = {
    "row": "plain", "runs": 3, "compared": 0, "images": 600, "accuracy": [0.7, 0.6],
    "ci95": [[0.66, 0.74], [0.55, 0.65]], "difference": [None, None], "run_ci95": [None, None],
}  # fmt: skip
BETTER = CURVE | {"row": "KF", "compared": 3, "difference": [0.05, 0.01], "run_ci95": [[0.03, 0.07], [-0.01, 0.03]]}
ABLATION = {
    "date": "2026-11-22", "data": ["ferplus"], "machines": ["a processor"],
    "base": {"network": {"backbone": "tiny"}, "crop_size": 64, "epochs": 2.0},
    "protocol": {"train": ["train", "valid"], "test": "test", "folds": 5, "choose": "last", "rule": "majority"},
    "repeats": [{"seed": seed, "fold": seed} for seed in range(3)],
    "studies": {"parts": {
        "title": "Parts", "reference": "plain", "axis": None,
        "rows": [ROW, ROW | {"row": "KF", "comparison": COMPARISON}],
        "noise": {"conditions": ["0", "0.1"], "rows": [CURVE, BETTER]}, "robustness": None,
    }},
}  # fmt: skip
RESUME = {
    "seed": 0, "steps": 176, "kills": [{"logged_step": 40, "checkpoint_step": 33}] * 5, "seconds": 300,
    "equal": {"last weights": True, "best weights": True, "log": False},
}  # fmt: skip
CHANCE = score(180, probability=0.85, probability_ci95=[0.8, 0.9], covered=0.1)
DELETION = {
    "model": "mobile", "data": "ferplus", "split": "valid", "rule": "majority", "landmarks": "fan", "seed": 0, "n": 200,
    "date": "2026-11-28", "machine": "a processor", "seconds": 800.0, "radius": 0.07,
    "fill_of_contributions": "blur", "fill_of_deletion": "mean colour of the crop",
    "orders": {
        "highest contribution": [CHANCE | score(120) | {"keypoints": count} for count in (1, 16)],
        "random": [CHANCE | {"keypoints": count} for count in (1, 16)],
        "lowest contribution": [CHANCE | score(190) | {"keypoints": count} for count in (1, 16)],
    },
    "differences": {
        "highest contribution": [
            {"keypoints": 1, "accuracy": -0.01, "accuracy_ci95": [-0.03, 0.01]},
            {"keypoints": 16, "accuracy": -0.3, "accuracy_ci95": [-0.4, -0.2]},
        ],
        "lowest contribution": [
            {"keypoints": count, "accuracy": 0.05, "accuracy_ci95": [-0.01, 0.11]} for count in (1, 16)
        ],
    },
    "by_expression": {"happiness": {"n": 90, "regions": {"brows": -0.125, "mouth": 1.5}}},
    "attention": {"rank_correlation": 0.25, "rank_correlation_ci95": [0.2, 0.3]},
}  # fmt: skip
SHOWN = {
    "n": 200, "missed": 10, "end_to_end": score(160), "crop": score(170), "difference": -0.05, "scenes": 100,
    "difference_ci95": [-0.08, -0.02], "false_faces": 2,
    "found": score(160, 190, difference=-0.01, difference_ci95=[-0.02, 0.0], crop_accuracy=0.85),
}  # fmt: skip
END_TO_END = {
    "model": "mobile", "data": "ferplus", "split": "valid", "rule": "majority", "seed": 0, "date": "2026-11-28",
    "machine": "a processor", "seconds": 900.0, "upright": SHOWN, "all": SHOWN | {"difference": -0.01, "n": 450},
    "groups": {"size": {"48": SHOWN}, "light": {"dark": SHOWN | {"n": 5, "missed": 5, "found": None}}},
}  # fmt: skip
FOLDER = {
    "model": "mobile", "n": 120, "faces": 230, "seed": 0, "date": "2026-11-28", "machine": "a processor",
    "seconds": 100.0, "cold_start_seconds": {"median": 0.9, "range": [0.85, 1.1], "n": 5},
    "throughput": {"1 worker, 1 thread": {"images_per_second": 12.34, "seconds": 9.7}},
    "stages_ms": {"decode": 2.0, "detect": 30.0, "judge": 3.0, "classify": 20.0},
    "floor_ms": {"decode": 1.5, "face": 25.0, "mobile": 18.0},
}  # fmt: skip
OVERFIT = {
    "seed": 0, "date": "2026-11-28", "machine": "a processor",
    "rows": {"POSTER++": {
        "faces": 8, "steps": 50, "first_loss": 2.1, "last_loss": 0.01, "accuracy_before": 0.125, "accuracy": 1.0,
        "seconds": 400.0,
    }},
}  # fmt: skip
DOCUMENTS = {
    "overfit": OVERFIT,
    "end_to_end": END_TO_END, "folder": FOLDER,
    "evaluation-mobile": EVALUATION, "ablation-tiny": ABLATION, "robustness-mobile": ROBUSTNESS,
    "calibration-mobile": CALIBRATION, "deletion": DELETION, "resume": RESUME, "training": TRAINING,
}  # fmt: skip


@pytest.mark.parametrize("name", results.COMMANDS)
def test_a_missing_file_is_told_with_its_command(name: str) -> None:
    others = {key: value for key, value in DOCUMENTS.items() if key != name}
    assert f"not run yet: `{results.COMMANDS[name]}`" in results.page(others)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_where_numbers_come_from_is_told(name: str) -> None:
    page = results.page({name: DOCUMENTS[name]})
    assert f"<sub>`{results.COMMANDS[name]}`" in page
    assert f"not run yet: `{results.COMMANDS[name]}`" not in page


@pytest.mark.parametrize(
    "text",
    [
        "| `mobile` | 200 | **85.00 %** (79.39–89.29) | 84.00 % (78.00–88.00) of 190 | 70.0 % | 1.23 % |",
        "| happiness | 50 | 60.0 % | 46.2–72.4 |",
        "ferplus valid, rule majority, landmarks of fan; seed 4; 81 s; 2026-11-22",
        "| nkf `mobile` — *measured here* | **85.00** (79.39–89.29), valid | no data |",
        "| NKF (So and Han, Sensors 2025) — *published* | 91.44 |",
        "backbone `tiny`, crops of 64 px, 2 epochs, rule majority. Measured on the one of 5 folds of train + valid",
        "| KF | 3 | 600 | 70.00 % (66.00–74.00) | 70.00 ± 1.00 | 50.0 % | +5.00 | +4.00 to +6.00 | +3.00 to +7.00 |",
        "| < 0.0001 | < 0.0001 | better | 0.22 M | 180 |",
        "- **KF** is better than plain: +5.00 points, +4.00 to +6.00 over 600 images, +3.00 to +7.00 over 3 runs.",
        "- **KF** against plain, over 3 runs: +5.00 points at 0 (+3.00 to +7.00).",
        "![Parts](results_ablation-tiny_parts_noise.png)",
        "seeds 0, 1, 2; 0.3 h of training",
        "is right on 85.00 % (79.39–89.29) of 200 images as they are",
        "| rotation | 6.5 % (1.0 to 5.0) |",
        "| 0.1 | 80.0 % (",
        "temperature 1.234",
        "| after | 1.10 % (2.00–4.00) | 0.90 % | 0.5000 | 0.2000 | 85.00 % (",
        "From confidence 0.610 on, 80.0 % (75.0–85.0) of the faces are answered, and 96.0 % (91.0–98.0)",
        "Of 200 images that `mobile` gets right",
        "| highest contribution | 60.0 % (53.1–66.5) | 60.0 % (53.1–66.5) |",
        "| highest contribution | −1.00 (−3.00 to +1.00) | −30.00 (−40.00 to −20.00) |",
        "| random | 0.850 (0.800–0.900) |",
        "- **highest contribution**: costs more expressions than random ones with 16 covered.",
        "- **lowest contribution**: not told apart from random ones.",
        "rank correlation of 0.25 (0.20 to 0.30)",
        "| happiness | 90 | −0.12 | +1.50 |",
        "A run of 176 steps on one core, killed 5 times",
        "Equal bit for bit: last weights, best weights. **Not equal: log.**",
        "| tiny | 64 px, 64 | 300 (40 %) | 75 (40 %) | 4.00 |",
        "−5.00 (−8.00 to −2.00). 5.0 % are missed; of those that are found the difference is −1.00 (−2.00 to +0.00)",
        "it is −1.00 (−8.00 to −2.00) of 450. Aimed at was a loss of one point at most: **not met** upright, **met**",
        "48 | 200 | 5.0 % | 80.0 % (73.9–85.0) | 85.0 % | −5.00 (−8.00 to −2.00) | −1.00 (−2.00 to +0.00) | 0.020 |",
        "| light: dark | 5 | 100.0 % |",
        "| 1 worker, 1 thread | 12.3 |",
        "| detect | 30.0 | 25.0 |\n| judge | 3.0 |  |\n| classify | 20.0 | 18.0 |\n| **all** | **55.0** | **44.5** |",
        "`nkf predict PHOTO` as a process of its own: 0.90 s, the median of 5 (0.85–1.10).",
    ],
)
def test_numbers_appear_with_their_intervals(text: str) -> None:
    assert text in results.page(DOCUMENTS)


def test_damage_is_ranked_by_what_it_costs() -> None:
    (line,) = [line for line in results.page(DOCUMENTS).splitlines() if line.startswith("From what costs most")]
    named = [line.index(name.replace("_", " ")) for name in CORRUPTIONS]
    assert named == sorted(named, reverse=True)


def test_the_pictures_of_the_page_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each once, under its name; what is in them is tested where they are made."""
    own = ("draw_robustness_pictures", "draw_calibration_pictures")  # call those that draw
    for module in (results, results.results_reliability):
        for name in [name for name in vars(module) if name.startswith("draw_") and name not in own]:
            monkeypatch.setattr(module, name, lambda _, file, name=name, **__: file.write_text(name))
    drawn = results.draw(DOCUMENTS, tmp_path)
    page = results.page(DOCUMENTS)
    assert len(drawn) == page.count("![") == 7
    for file in drawn:
        assert f"]({file.name})" in page
    assert sorted(file.read_text() for file in drawn) == sorted(
        [
            "draw_study",
            "draw_noise",
            "draw_robustness",
            "draw_landmark_noise",
            "draw_reliability",
            "draw_coverage",
            "draw_deletion",
        ]
    )


def test_the_page_in_the_repository_is_what_the_command_makes_now() -> None:
    documents = results.read(ROOT / "benchmarks" / "results")
    page = (ROOT / "docs" / "results.md").read_text()
    assert page == results.page(documents), "give python benchmarks/results.py again"
    shown = {part.partition(")")[0] for part in page.split("](")[1:] if part.partition(")")[0].endswith(".png")}
    assert shown == {file.name for file in (ROOT / "docs").glob("results_*.png")}
