"""Groups of linked rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nkf.data.groups import group_numbers, linked_rows
from nkf.data.tables import Columns, Table, TableWriter


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["aabb"], "aabb"),
        (["abab"], "abab"),
        (["----"], "abcd"),  # an unknown person is nobody else
        (["a-a-", "-b-b"], "abab"),
        (["aabb", "-cc-"], "aaaa"),  # through the second and third row
        (["aabbccdd", "-aabbcc-"], "aaaaaaaa"),  # a chain
        (["abcdefgh", "--------"], "abcdefgh"),
        (["abcdabcd", "aabbcdef"], "aabbaabb"),
        ([], "abcd"),
    ],
)
def test_group_numbers(keys: list[str], expected: str) -> None:
    arrays = [np.array([letter.replace("-", "") for letter in key]) for key in keys]
    groups = group_numbers(arrays, len(expected))
    first = {number: expected[row] for row, number in reversed(list(enumerate(groups.tolist())))}
    assert "".join(first[number] for number in groups.tolist()) == expected
    assert len(set(groups.tolist())) == len(set(expected))


def test_no_rows() -> None:
    assert group_numbers([np.zeros(0, str)], 0).shape == (0,)


def test_texts_that_agree_in_different_columns_link_nothing() -> None:
    assert len(set(group_numbers([np.array(["x", ""]), np.array(["", "x"])], 2).tolist())) == 2


def test_a_long_chain() -> None:
    """Row k is linked with k + 1 by one column or the other."""
    count = 2001
    numbers = np.arange(count)
    keys = [(numbers // 2).astype(str), ((numbers + 1) // 2).astype(str)]
    assert set(group_numbers(keys, count).tolist()) == {0}


ROWS: list[dict[str, Any]] = [
    {"subject": "Ann", "pixels_md5": "0"},
    {"subject": "Bob", "pixels_md5": "1"},
    {"subject": None, "pixels_md5": "1"},
    {"subject": "Ann", "pixels_md5": "2"},
    {"subject": None, "pixels_md5": "3"},
]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (("subject", "photo", "pixels_md5"), [0, 1, 1, 0, 4]),
        (("subject",), [0, 1, 2, 0, 4]),
        (("pixels_md5",), [0, 1, 1, 3, 4]),
        (("photo",), [0, 1, 2, 3, 4]),
    ],
)
def test_linked_rows(tmp_path: Path, columns: tuple[str, ...], expected: list[int]) -> None:
    kinds: Columns = {"subject": "text", "pixels_md5": "text"}
    with TableWriter(tmp_path / "rows.arrow", kinds) as table:
        table.write(ROWS)
    assert linked_rows(Table(tmp_path / "rows.arrow"), columns).tolist() == expected
