"""Verdicts on faces: each problem alone, and what tells a face from something else."""

import json
from pathlib import Path

import numpy as np
import pytest

from nkf import quality
from nkf.geometry import MEAN_SHAPE
from nkf.images import warp_similarity
from nkf.pose import MEAN_SHAPE_3D
from nkf.quality import QualityLimits, face_probability, face_size, find_problems, relative_spread, sharpness

LANDMARKS = MEAN_SHAPE * 100
CERTAIN = np.full(68, 0.5)
LIMITS = QualityLimits()


@pytest.fixture(scope="module")
def sharp_crop():
    return np.random.default_rng(0).integers(0, 256, (28, 28, 3), np.uint8).repeat(4, axis=0).repeat(4, axis=1)


def turned(yaw_deg):
    angle = np.radians(yaw_deg)
    x = MEAN_SHAPE_3D @ [np.cos(angle), 0, -np.sin(angle)]
    return np.stack([x, MEAN_SHAPE_3D[:, 1]], axis=1) * 60 + 80


def test_a_good_face_has_no_problems(sharp_crop):
    assert find_problems(LANDMARKS, CERTAIN, sharp_crop, LIMITS) == ()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"landmarks_px": MEAN_SHAPE * 15, "spread_px": CERTAIN * 0.1}, "small"),
        ({"crop": np.full((112, 112, 3), 90, np.uint8)}, "blurred"),
        ({"landmarks_px": turned(80)}, "turned"),
        ({"spread_px": CERTAIN * 20}, "landmarks"),
    ],
)
def test_each_problem_is_found_alone(sharp_crop, change, problem):
    good = {"landmarks_px": LANDMARKS, "spread_px": CERTAIN, "crop": sharp_crop}
    assert find_problems(**(good | change), limits=LIMITS) == (problem,)


def test_landmarks_in_one_place_are_every_problem(sharp_crop):
    nowhere = np.full((68, 2), 5.0)
    assert find_problems(nowhere, CERTAIN, sharp_crop, LIMITS) == ("small", "turned", "landmarks")


def test_limits_can_be_set(sharp_crop):
    strict = QualityLimits(min_size_px=500)
    assert find_problems(LANDMARKS, CERTAIN, sharp_crop, strict) == ("small",)


def test_sharpness_falls_with_blur_and_ignores_light_and_contrast(sharp_crop):
    dim = (sharp_crop * 0.3 + 40).astype(np.uint8)
    assert sharpness(dim) == pytest.approx(sharpness(sharp_crop), rel=0.02)
    matrix = np.array([[1.0, 0, 0], [0, 1, 0]])
    smooth = sharp_crop.astype(float)
    for _ in range(4):
        smooth = (smooth + np.roll(smooth, 3, axis=0) + np.roll(smooth, 3, axis=1) + np.roll(smooth, -3, axis=1)) / 4
    assert sharpness(smooth.astype(np.uint8)) < 0.7 * sharpness(sharp_crop)
    assert sharpness(warp_similarity(sharp_crop, matrix, 112)) == pytest.approx(sharpness(sharp_crop), rel=0.05)
    assert sharpness(np.full((112, 112, 3), 7, np.uint8)) == 0


def test_relative_spread_is_over_the_size_of_the_face():
    assert face_size(LANDMARKS) == pytest.approx(np.ptp(LANDMARKS[:, 0]))
    assert relative_spread(LANDMARKS, CERTAIN) == pytest.approx(0.5 / face_size(LANDMARKS))
    assert relative_spread(LANDMARKS * 3, CERTAIN * 3) == pytest.approx(relative_spread(LANDMARKS, CERTAIN))
    assert relative_spread(np.zeros((68, 2)), CERTAIN) == np.inf


def test_face_probability_rises_with_the_score_and_falls_with_the_spread():
    scores = [face_probability(score, 0.02) for score in (0.0, 0.3, 0.6, 0.9, 1.0)]
    spreads = [face_probability(0.8, spread) for spread in (0.0, 0.01, 0.03, 0.1, np.inf)]
    assert scores == sorted(scores)
    assert spreads == sorted(spreads, reverse=True)
    assert scores[-1] > 0.9
    assert spreads[-1] < 0.1


def test_the_regression_is_the_one_whose_figures_are_told():
    file = Path(__file__).parents[1] / "benchmarks" / "results" / "quality.json"
    fitted = json.loads(file.read_text())["rejection"]
    shipped = (quality._INTERCEPT, quality._PER_LOGIT, quality._PER_LOG_SPREAD)
    assert shipped == pytest.approx((fitted["intercept"], *fitted["per_logit_and_log_spread"]), abs=6e-4)
