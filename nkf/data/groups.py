"""Which images belong together: those of one person, of one photo, or with the same pixels."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nkf.data.tables import Table

LINKS = ("subject", "photo", "pixels_md5")  # columns


def linked_rows(rows: Table, columns: Sequence[str] = LINKS) -> NDArray[np.int64]:
    """(N,) number of the group of each row of a pack.

    Args:
        rows: of the pack.
        columns: rows with the same text in one of them are in one group; those that the pack lacks do not count.
    """
    return group_numbers([rows.column(name) for name in columns if name in rows.columns], len(rows))


def group_numbers(keys: Sequence[NDArray[np.str_]], count: int) -> NDArray[np.int64]:
    """Number the groups of rows that are linked, directly or through others.

    Args:
        keys: (N,) texts each; equal texts link two rows, "" links none.
        count: N.
    """
    groups = np.arange(count)
    links = [_inverse(key) for key in keys]
    while True:
        before = groups.copy()
        for inverse in links:
            first = np.full(count, count)
            np.minimum.at(first, inverse, groups)
            groups = first[inverse]
        if (groups == before).all():
            return groups


def _inverse(key: NDArray[np.str_]) -> NDArray[np.int64]:
    """(N,) number of each row's text; texts "" get a number each."""
    _, inverse = np.unique(key, return_inverse=True)
    empty = np.flatnonzero(key == "")
    inverse[empty] = len(key) + np.arange(len(empty))
    return np.unique(inverse, return_inverse=True)[1]
