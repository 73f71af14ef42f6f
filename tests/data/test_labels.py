"""The rules that turn votes into labels: one row of votes a case."""

import numpy as np
import pytest

from nkf.data.labels import (
    DROPPED,
    EXPRESSIONS,
    FERPLUS_COLUMNS,
    LABEL_RULES,
    VOTE_COLUMNS,
    LabelRule,
    distribution_from_votes,
    labels_from_votes,
    votes_from_ferplus,
)

# Case: votes by name; label under majority, under argmax10, under argmax8 ("" where the rule drops the image).
CASES: dict[str, tuple[dict[str, int], str, str, str]] = {
    "unanimous": ({"fear": 10}, "fear", "fear", "fear"),
    "single votes are removed": (
        {"sadness": 5, "neutral": 1, "happiness": 1, "surprise": 1, "anger": 1, "disgust": 1},
        "sadness",
        "sadness",
        "sadness",
    ),
    "single votes of unknown and not a face too": (
        {"anger": 2, "unknown": 1, "not_a_face": 1, "neutral": 1, "fear": 1},
        "anger",
        "anger",
        "anger",
    ),
    "exactly half": ({"happiness": 5, "neutral": 3, "surprise": 2}, "", "happiness", "happiness"),
    "just more than half": ({"happiness": 5, "neutral": 4, "surprise": 1}, "happiness", "happiness", "happiness"),
    "tie goes to the first column of the file": ({"sadness": 5, "surprise": 5}, "", "surprise", "surprise"),
    "another tie": ({"disgust": 3, "anger": 3, "fear": 3, "contempt": 1}, "", "anger", "anger"),
    "tie with unknown": ({"contempt": 5, "unknown": 5}, "", "contempt", "contempt"),
    "unknown wins": ({"unknown": 6, "surprise": 4}, "", "", "surprise"),
    "not a face wins": ({"not_a_face": 8, "disgust": 2}, "", "", "disgust"),
    "only not a face": ({"not_a_face": 10}, "", "", ""),
    "unknown and not a face": ({"unknown": 5, "not_a_face": 5}, "", "", ""),
    "single votes alone": (dict.fromkeys(VOTE_COLUMNS, 1), "", "neutral", "neutral"),
    "no votes": ({}, "", "", ""),
    "unknown counts in the sum": ({"neutral": 4, "unknown": 4, "fear": 2}, "", "neutral", "neutral"),
    "nine votes": ({"neutral": 5, "happiness": 4}, "neutral", "neutral", "neutral"),
    "more votes than annotators fit a byte": ({"neutral": 200, "happiness": 200}, "", "neutral", "neutral"),
}


def vote_row(votes: dict[str, int]) -> np.ndarray:
    return np.array([[votes.get(name, 0) for name in VOTE_COLUMNS]], np.uint8)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("rule", "column"), [("majority", 1), ("distribution", 1), ("argmax10", 2), ("argmax8", 3)])
def test_rule(case: str, rule: LabelRule, column: int) -> None:
    expected = CASES[case][column]
    (label,) = labels_from_votes(vote_row(CASES[case][0]), rule)  # type: ignore[arg-type]
    assert (EXPRESSIONS[label] if label != DROPPED else "") == expected


@pytest.mark.parametrize("rule", LABEL_RULES)
def test_rules_take_many_rows_at_once(rule: LabelRule) -> None:
    rows = [vote_row(case[0]) for case in CASES.values()]
    singly = np.concatenate([labels_from_votes(row, rule) for row in rows])
    np.testing.assert_array_equal(labels_from_votes(np.concatenate(rows), rule), singly)


@pytest.mark.parametrize("rule", LABEL_RULES)
def test_rules_take_no_rows(rule: LabelRule) -> None:
    assert labels_from_votes(np.zeros((0, 10), np.uint8), rule).shape == (0,)


def test_unknown_rule() -> None:
    with pytest.raises(ValueError, match="unknown label rule 'loudest'; known: majority, argmax8, argmax10, distr"):
        labels_from_votes(np.zeros((1, 10), np.uint8), "loudest")  # type: ignore[arg-type]


def test_columns_are_reordered_by_name() -> None:
    file_votes = np.arange(10)[None]
    votes = votes_from_ferplus(file_votes)
    assert dict(zip(VOTE_COLUMNS, votes[0], strict=True)) == dict(zip(FERPLUS_COLUMNS, range(10), strict=True))


@pytest.mark.parametrize(
    ("votes", "expected"),
    [
        ({"neutral": 5, "fear": 5}, {"neutral": 0.5, "fear": 0.5}),
        ({"neutral": 1, "anger": 3, "unknown": 4, "not_a_face": 2}, {"neutral": 0.25, "anger": 0.75}),
        ({"unknown": 10}, {}),
    ],
)
def test_distribution(votes: dict[str, int], expected: dict[str, float]) -> None:
    row = distribution_from_votes(vote_row(votes))
    assert row.dtype == np.float32
    np.testing.assert_allclose(row, [[expected.get(name, 0) for name in EXPRESSIONS]])
