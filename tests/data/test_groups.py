"""Groups of linked rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nkf.data.groups import group_numbers, linked_rows, picture_keys
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


def test_missing_numbers_link_nothing() -> None:
    assert group_numbers([np.array([1, np.nan, 1, np.nan])], 4).tolist() == [0, 1, 0, 3]


def test_texts_that_agree_in_different_columns_link_nothing() -> None:
    assert len(set(group_numbers([np.array(["x", ""]), np.array(["", "x"])], 2).tolist())) == 2


def test_a_long_chain() -> None:
    """Row k is linked with k + 1 by one column or the other."""
    count = 2001
    numbers = np.arange(count)
    keys = [(numbers // 2).astype(str), ((numbers + 1) // 2).astype(str)]
    assert set(group_numbers(keys, count).tolist()) == {0}


ROWS: list[dict[str, Any]] = [
    {"subject": "Ann", "pixels_md5": "0", "width": 4, "height": 9, "group": 1},
    {"subject": "Bob", "pixels_md5": "1", "width": 6, "height": 6, "group": None},
    {"subject": None, "pixels_md5": "1", "width": 6, "height": 6, "group": None},
    {"subject": "Ann", "pixels_md5": "2", "width": 6, "height": 6, "group": 2},
    {"subject": None, "pixels_md5": "1", "width": 4, "height": 9, "group": 2},
]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (("subject", "photo"), [0, 1, 1, 0, 4]),
        (("group",), [0, 1, 1, 3, 3]),
        (("subject", "group"), [0, 1, 1, 0, 0]),
        ((), [0, 1, 1, 3, 4]),
    ],
)
def test_linked_rows(tmp_path: Path, columns: tuple[str, ...], expected: list[int]) -> None:
    """Copies of a picture are linked in any case; those of another size are none, though their MD5 is the same."""
    kinds: Columns = {
        "subject": "text", "pixels_md5": "text", "width": "integer", "height": "integer", "group": "integer",
    }  # fmt: skip
    with TableWriter(tmp_path / "rows.arrow", kinds) as table:
        table.write(ROWS)
    rows = Table(tmp_path / "rows.arrow")
    assert linked_rows(rows, columns).tolist() == expected
    assert picture_keys(rows).tolist() == ["0 4x9", "1 6x6", "1 6x6", "2 6x6", "1 4x9"]
    assert linked_rows(rows).tolist() == [0, 1, 1, 0, 4]  # people and photos
