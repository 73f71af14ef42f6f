"""Expression classes, and the rules that turn annotators' votes into labels (Barsoum et al., ICMI 2016)."""

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

EXPRESSIONS = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt")
NOT_EXPRESSIONS = ("unknown", "not_a_face")
VOTE_COLUMNS = EXPRESSIONS + NOT_EXPRESSIONS  # order of the ten vote counts in a pack

LabelRule = Literal["majority", "argmax8", "argmax10", "distribution"]
LABEL_RULES: tuple[LabelRule, ...] = get_args(LabelRule)
DROPPED = -1

# The column order of FER+'s own files. argmax ties go to the first column *of the file*.
FERPLUS_COLUMNS = (
    "neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt", "unknown", "not_a_face",
)  # fmt: skip
_FILE_ORDER = np.array([VOTE_COLUMNS.index(name) for name in FERPLUS_COLUMNS])


def votes_from_ferplus(file_votes: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Reorder (N, 10) votes from the column order of FER+'s files to `VOTE_COLUMNS`."""
    votes = np.zeros(file_votes.shape, np.uint8)
    votes[:, _FILE_ORDER] = file_votes
    return votes


def labels_from_votes(votes: NDArray[np.integer], rule: LabelRule) -> NDArray[np.int64]:
    """Decide one label for each image.

    ``majority`` is FER+'s reference rule: classes with a single vote lose it; the largest class wins if it has more
    than half of what remains over all ten columns. ``argmax10`` takes the largest of the ten columns, ``argmax8`` the
    largest of the eight expressions; ties go to the first column of FER+'s files. ``distribution`` keeps and labels
    the same images as ``majority`` (its soft targets come from `distribution_from_votes`).

    Args:
        votes: (N, 10) counts in the order of `VOTE_COLUMNS`.
        rule: one of `LABEL_RULES`.

    Returns:
        (N,) index into `EXPRESSIONS`, or `DROPPED` where the rule gives no expression.
    """
    in_file_order = votes[:, _FILE_ORDER].astype(np.int64)
    if rule == "argmax8":
        in_file_order = in_file_order[:, : len(EXPRESSIONS)]
        decided = in_file_order.max(axis=1) > 0
    elif rule == "argmax10":
        decided = in_file_order.max(axis=1) > 0
    elif rule in ("majority", "distribution"):
        in_file_order = np.where(in_file_order == 1, 0, in_file_order)
        decided = 2 * in_file_order.max(axis=1) > in_file_order.sum(axis=1)
    else:
        raise ValueError(f"unknown label rule {rule!r}; known: {', '.join(LABEL_RULES)}")
    winner = _FILE_ORDER[in_file_order.argmax(axis=1)]
    return np.where(decided & (winner < len(EXPRESSIONS)), winner, DROPPED)


def distribution_from_votes(votes: NDArray[np.integer]) -> NDArray[np.float32]:
    """Normalise the eight expression votes: (N, 10) -> (N, 8) float32, rows sum to 1 (to 0 where nobody voted)."""
    expression_votes = votes[:, : len(EXPRESSIONS)].astype(np.float32)
    return expression_votes / np.maximum(expression_votes.sum(axis=1, keepdims=True), 1)
