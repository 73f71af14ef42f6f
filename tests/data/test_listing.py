"""Entries that cannot be, and warnings about many files in a line."""

from typing import Any

import pytest

from nkf.data.listing import Entry, Problems


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"split": "dev"}, "split 'dev', expected one of train, valid, test"),
        ({"split": "train", "label": "happy"}, "label 'happy', expected one of neutral, happiness, "),
    ],
)
def test_entries_that_cannot_be(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Entry(name="a", member="a", **fields)


def test_problems_are_a_line_for_each_kind() -> None:
    problems = Problems("data/x")
    assert problems.warnings() == []
    for number in range(1234):
        problems.add("broken", f"{number}.jpg")
        if number < 4:
            problems.add("odd", f"{number}.png")
    assert problems.warnings() == [
        "data/x: broken: 1,234 (0.jpg, 1.jpg, 2.jpg, 3.jpg, ...)",
        "data/x: odd: 4 (0.png, 1.png, 2.png, 3.png)",
    ]
