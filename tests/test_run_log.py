"""What logs tell, against numbers by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from nkf.errors import NkfError
from nkf.run_log import learning, training_seconds


def write(folder: Path, lines: list[dict[str, Any]], tail: str = "") -> Path:
    (folder / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines) + tail)
    return folder


def line(step: int, time: float, loss: float = 1.0) -> dict[str, Any]:
    return {"time": time, "step": step, "loss": loss, "learning_rate": 0.1}


# Half a second a step; a pause of a day between 60 and 80; a validation after step 100.
STEADY = [line(20, 10), line(40, 20), line(60, 30), line(80, 86430), line(100, 86440), {"time": 86500, "step": 100}]


def test_pauses_and_validations_do_not_count(tmp_path: Path) -> None:
    assert training_seconds(write(tmp_path, STEADY)) == pytest.approx(50)
    assert learning(tmp_path)["ms_a_step"] == pytest.approx(500)


def test_what_a_kill_cut_is_not_looked_at(tmp_path: Path) -> None:
    assert training_seconds(write(tmp_path, STEADY, '{"time": 86450, "st')) == pytest.approx(50)
    assert learning(tmp_path)["steps"] == 100


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_lines_tell_nothing(tmp_path: Path, count: int) -> None:
    assert training_seconds(write(tmp_path, STEADY[:count])) is None
    with pytest.raises(NkfError, match=r": too few steps in its log to tell what it learnt; give it more minutes$"):
        learning(tmp_path)


def test_a_step_that_is_logged_twice_counts_once(tmp_path: Path) -> None:
    assert learning(write(tmp_path, [line(20, 10), line(20, 11), line(40, 20), line(60, 30)]))["ms_a_step"] == 500
    with pytest.raises(NkfError, match="too few steps"):
        learning(write(tmp_path, [line(40, 10), line(40, 11)]))


@pytest.mark.parametrize(("count", "first", "last"), [(5, 10, 6), (20, 9.5, -8.5), (39, 9, -27)])
def test_losses_are_means_of_first_and_last_tenth(tmp_path: Path, count: int, first: float, last: float) -> None:
    losses = [line(20 * n + 20, 10 * n, 10 - n) for n in range(count)]
    told = learning(write(tmp_path, losses))
    assert (told["steps"], told["first_loss"], told["last_loss"]) == (20 * count, first, last)


@pytest.mark.parametrize(
    "content",
    [
        "no log\n",
        '{"step": 1}\n',
        "[1]\n",
        '{"step": "x", "time": 1}\n',
        '{"step": Infinity, "time": 1}\n',
        '{"step": 1' + "0" * 310 + ', "time": 1}\n',
        '{"step": 1, "time": 1, "loss": {}}\n',
        "[" * 100_000 + "\n",
        None,
    ],
)
def test_a_damaged_log_is_one_line(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "log.jsonl").write_text(content)
    for read in (training_seconds, learning):
        with pytest.raises(NkfError, match=r"log\.jsonl: no log of a training run \(.*\); remove the folder"):
            read(tmp_path)
