import numpy as np
import pytest
from scipy import stats
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


def test_figures_of_answers() -> None:
    expected = {"n": 20, "accuracy": 0.0, "accuracy_ci95": pytest.approx((0, 0.1611), abs=5e-5)}
    assert metrics.accuracy_figures(np.zeros(20, bool)) == expected
    assert metrics.accuracy_figures(np.arange(8) < 6)["accuracy"] == 0.75


def test_interval_without_trials_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one trial"):
        metrics.wilson_interval(0, 0)


@pytest.mark.parametrize(("more", "fewer"), [(0, 0), (1, 0), (7, 7), (12, 3), (60, 40), (3000, 2800)])
def test_sign_test_equals_scipys(more: int, fewer: int) -> None:
    expected = stats.binomtest(more, more + fewer).pvalue if more + fewer else 1
    assert metrics.sign_test(more, fewer) == metrics.sign_test(fewer, more) == pytest.approx(expected)


def test_mcnemar_looks_at_discordant_answers_alone() -> None:
    first, second = np.zeros(500, bool), np.zeros(500, bool)
    first[:30], second[20:35], second[100:104] = True, True, True  # 20 only the first, 9 only the second
    assert metrics.mcnemar(first, second) == pytest.approx(stats.binomtest(9, 29).pvalue)


def test_interval_of_a_difference_holds_the_truth_in_95_percent() -> None:
    """Examples are asked twice; their answers go together, and those of the two classifiers too."""
    generator = np.random.default_rng(0)
    inside = 0
    for _ in range(1500):
        hardness = np.tile(generator.random(120), 2)
        first, second = (generator.random(240) * 0.5 + hardness < bar for bar in (0.8, 0.7))
        _, (low, high) = metrics.paired_difference(first, second, np.tile(np.arange(120), 2))
        inside += low < 0.1 < high
    assert 0.935 < inside / 1500 < 0.965


def test_interval_of_a_difference_by_hand() -> None:
    first, second = np.array([1, 1, 1, 0, 0, 1, 0, 1], bool), np.array([1, 0, 0, 0, 1, 0, 0, 1], bool)
    difference, interval = metrics.paired_difference(first, second)  # three gained, one lost
    spread = 1.959964 * np.sqrt(4 - 4 / 8) / 8
    assert difference == 0.25
    assert interval == pytest.approx((0.25 - spread, 0.25 + spread))


@pytest.mark.parametrize("values", [(1.0, 2.0), (0.1, 0.4, 0.2), (3.0, 1.0, 2.0, 7.0, 5.0, 4.0), tuple(range(40))])
def test_t_interval_equals_scipys(values: tuple[float, ...]) -> None:
    expected = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    assert metrics.t_interval(values) == pytest.approx(expected)


def test_t_interval_needs_two_values() -> None:
    assert metrics.t_interval([1.0]) is None


def test_holm_adjusts_in_order_and_never_above_one() -> None:
    assert metrics.holm([0.01, 0.04, 0.03, 0.9]) == pytest.approx([0.04, 0.09, 0.09, 0.9])
    assert metrics.holm([0.6, 0.5]) == [1, 1]
    assert metrics.holm([]) == []
