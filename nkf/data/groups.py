"""Which images belong together: those of one person, of one photo, or with the same pixels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nkf.data.tables import Table

LINKS = ("subject", "photo")  # metadata columns whose equal values never come into two splits


def linked_rows(rows: Table, columns: Sequence[str] = LINKS) -> NDArray[np.int64]:
    """(N,) number of the group of each row of a pack; copies of a picture are always in one.

    Args:
        rows: of the pack.
        columns: rows with the same value in one of them are in one group; those that the pack lacks do not count.
    """
    keys = [rows.column(name) for name in columns if name in rows.columns]
    return group_numbers([*keys, picture_keys(rows)], len(rows))


def picture_keys(rows: Table) -> NDArray[np.str_]:
    """(N,) "MD5 WIDTHxHEIGHT" of each row's picture, equal for equal pictures: the MD5 alone does not tell the size."""
    columns = (rows.column(name).tolist() for name in ("pixels_md5", "width", "height"))
    return np.array([picture_key(*of_row) for of_row in zip(*columns, strict=True)], str)


def picture_key(pixels_md5: str, width: int, height: int) -> str:
    """One of `picture_keys`."""
    return f"{pixels_md5} {width}x{height}"


def group_numbers(keys: Sequence[NDArray[Any]], count: int) -> NDArray[np.int64]:
    """Number the groups of rows that are linked, directly or through others.

    Args:
        keys: (N,) texts or numbers each; equal ones link two rows, "" and NaN link none.
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


def _inverse(key: NDArray[Any]) -> NDArray[np.int64]:
    """(N,) number of each row's value; "" and NaN get a number each."""
    _, inverse = np.unique(key, return_inverse=True)
    empty = np.flatnonzero(key == "" if key.dtype.kind == "U" else key != key)
    inverse[empty] = len(key) + np.arange(len(empty))
    return np.unique(inverse, return_inverse=True)[1]
