"""Figures of merit of probabilities against loops, scikit-learn and simulation."""

import numpy as np
import pytest
from sklearn.metrics import log_loss

from nkf import reliability
from nkf.reliability import Curve


@pytest.fixture
def answers() -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (600, 4) and labels that follow them."""
    generator = np.random.default_rng(1)
    probabilities = generator.dirichlet(np.full(4, 0.5), 600)
    return probabilities, np.array([generator.choice(4, p=row) for row in probabilities])


def test_likelihood_and_brier_score_agree_with_others(answers: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, labels = answers
    ours = reliability.negative_log_likelihood(probabilities, labels)
    assert ours.mean() == pytest.approx(log_loss(labels, probabilities))
    by_hand = [sum((p - (c == label)) ** 2 for c, p in enumerate(row)) for row, label in zip(*answers, strict=True)]
    np.testing.assert_allclose(reliability.brier_score(probabilities, labels), by_hand)


def test_a_label_of_no_probability_has_a_finite_likelihood() -> None:
    loss = reliability.negative_log_likelihood(np.array([[1, 0]], np.float32), np.array([1]))
    assert 87 < loss[0] < 88  # of the smallest normal float32


@pytest.mark.parametrize(
    ("confidence", "right", "bins", "expected"),
    [
        ([0.9, 0.9, 0.9, 0.9], [1, 1, 1, 0], 1, 0.15),
        ([0.95, 0.55], [1, 0], 10, (0.05 + 0.55) / 2),
        ([0.5, 0.6], [1, 0], 2, (0.5 + 0.6) / 2),  # 0.5 is in the lower bin; in one bin the two were 0.05
        ([0.51, 0.6], [1, 0], 2, abs(0.49 - 0.6) / 2),
        ([1.0, 0.0], [1, 0], 15, 0),  # the ends are in bins
    ],
)
def test_calibration_error_by_hand(confidence: list[float], right: list[int], bins: int, expected: float) -> None:
    arrays = np.array(confidence), np.array(right, bool)
    numbers = reliability.confidence_bins(arrays[0], bins)
    assert reliability.expected_calibration_error(*arrays, numbers) == pytest.approx(expected)


def test_calibration_error_against_a_loop(answers: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, labels = answers
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    total = 0.0
    for number in range(15):
        here = (confidence > number / 15) & (confidence <= (number + 1) / 15)
        if here.any():
            total += here.sum() / 600 * abs(right[here].mean() - confidence[here].mean())
    assert reliability.expected_calibration_error(confidence, right) == pytest.approx(total)


def test_weights_count_as_often_as_repeated_images(answers: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, labels = answers
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    times = np.arange(600) % 4
    repeated = reliability.expected_calibration_error(confidence.repeat(times), right.repeat(times))
    weighted = reliability.expected_calibration_error(confidence, right, weights=times.astype(float))
    assert weighted == pytest.approx(repeated)


def test_bins_of_equal_mass() -> None:
    numbers = reliability.confidence_bins(np.array([0.9, 0.1, 0.99, 0.98, 0.97, 0.2]), 3, equal_mass=True)
    np.testing.assert_array_equal(numbers, [1, 0, 2, 2, 1, 0])


def test_perfect_probabilities_have_the_error_that_is_told(answers: tuple[np.ndarray, np.ndarray]) -> None:
    confidence = answers[0].max(axis=1)
    generator = np.random.default_rng(9)
    errors = [
        reliability.expected_calibration_error(confidence, generator.random(600) < confidence) for _ in range(200)
    ]
    assert reliability.error_of_perfect(confidence) == pytest.approx(np.mean(errors), rel=0.1)


@pytest.mark.parametrize("copies", [1, 9])
def test_interval_of_a_mean_knows_that_copies_tell_nothing_new(copies: int) -> None:
    values = np.random.default_rng(0).normal(size=400)
    groups, repeated = np.arange(400).repeat(copies), values.repeat(copies)
    low, high = reliability.bootstrap_interval(lambda w: float(w @ repeated / w.sum()), groups)
    spread = 1.96 * values.std() / np.sqrt(400)
    assert (low, high) == pytest.approx((values.mean() - spread, values.mean() + spread), abs=0.1 * spread)


@pytest.mark.parametrize(
    ("confidence", "right", "expected"),
    [
        ([0.9, 0.5, 0.7], [1, 0, 1], Curve([1 / 3, 2 / 3, 1], [1, 1, 2 / 3], [0.9, 0.7, 0.5])),
        ([0.5, 0.9, 0.5], [1, 0, 1], Curve([1 / 3, 1], [0, 2 / 3], [0.9, 0.5])),  # equal ones only together
    ],
)
def test_coverage_curve(confidence: list[float], right: list[int], expected: Curve) -> None:
    curve = reliability.coverage_curve(np.array(confidence), np.array(right, bool))
    for ours, theirs in zip(curve, expected, strict=True):
        np.testing.assert_allclose(ours, theirs)


@pytest.mark.parametrize(
    ("right", "accuracy", "expected"),
    [
        ([1, 1, 0, 1], 0.7, 0.0),  # all together
        ([1, 1, 0, 0], 0.6, 0.7),  # the last place that reaches it
        ([1, 0, 1, 0], 0.6, 0.7),  # not the first one, below which it was lower
        ([1, 1, 0, 0], 1.0, 0.8),
        ([0, 0, 0, 0], 0.5, None),
    ],
)
def test_least_confidence(right: list[int], accuracy: float, expected: float | None) -> None:
    confidence = np.array([0.9, 0.8, 0.7, 0.6])
    assert reliability.least_confidence(confidence, np.array(right, bool), accuracy) == expected


def test_risk_under_coverage_is_the_mean_error_rate_of_all_places(answers: tuple[np.ndarray, np.ndarray]) -> None:
    right = np.array([1, 1, 0, 1], bool)
    curve = reliability.coverage_curve(np.array([0.9, 0.8, 0.7, 0.6]), right)
    assert reliability.risk_under_coverage(curve) == pytest.approx((0 + 0 + 1 / 3 + 1 / 4) / 4)
