import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix

from nkf import metrics


@pytest.fixture
def answers() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(3)
    labels = generator.integers(0, 5, 400)
    return labels, np.where(generator.random(400) < 0.6, labels, generator.integers(0, 5, 400))


def test_agrees_with_scikit_learn(answers: tuple[np.ndarray, np.ndarray]) -> None:
    labels, predicted = answers
    assert metrics.accuracy(labels, predicted) == pytest.approx(accuracy_score(labels, predicted))
    assert metrics.mean_class_accuracy(labels, predicted, 5) == pytest.approx(
        balanced_accuracy_score(labels, predicted)
    )
    np.testing.assert_array_equal(metrics.confusion_matrix(labels, predicted, 5), confusion_matrix(labels, predicted))


def test_class_without_examples_has_no_recall_and_does_not_count() -> None:
    labels, predicted = np.array([0, 0, 1]), np.array([0, 2, 1])
    recalls = metrics.recall_by_class(metrics.confusion_matrix(labels, predicted, 3))
    np.testing.assert_array_equal(recalls, [0.5, 1.0, np.nan])
    assert metrics.mean_class_accuracy(labels, predicted, 3) == 0.75


@pytest.mark.parametrize(
    ("successes", "trials", "expected"),
    [
        # Newcombe, Statistics in Medicine 1998, table I, method 3.
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_wilson_interval_equals_published_values(successes: int, trials: int, expected: tuple[float, float]) -> None:
    assert metrics.wilson_interval(successes, trials) == pytest.approx(expected, abs=5e-5)


def test_interval_without_trials_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one trial"):
        metrics.wilson_interval(0, 0)
