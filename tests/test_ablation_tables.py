"""Tables of made-up runs, against numbers worked out by other means."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import balanced_accuracy_score

from nkf.ablate import Measured, grid_runs, write_damage
from nkf.ablation_grid import Grid
from nkf.ablation_tables import Comparison, analyse, study_axis, with_verdicts
from nkf.ablation_text import damage_words, study_table, study_words
from nkf.config import save_config
from nkf.errors import NkfError
from nkf.metrics import wilson_interval

CLASSES = 3
N = 400  # images in all


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes time and is not looked at."""
    for name in ("draw_study", "draw_noise"):
        monkeypatch.setattr(f"nkf.ablation_tables.{name}", lambda _, file: file.touch())


def make_grid(repeats: int = 3, rows: Sequence[str] = ("plain", "good", "same"), **changes: Any) -> Grid:
    fields: dict[str, Any] = {
        "base": {"name": "small", "task": "expression", "data": ["packs/faces"]},
        "repeats": [{"seed": seed} for seed in range(repeats)],
        "rows": {row: {"network": {"sigma": 0.01 * number}} for number, row in enumerate(rows)},
        "studies": {"parts": {"title": "Parts", "rows": list(rows), "reference": "plain"}},
    }
    return Grid.model_validate(fields | changes)


def answers(accuracy: float, seed: int, rows: np.ndarray) -> Measured:
    """Right for about that share of the images, those with the same images for all."""
    generator = np.random.default_rng(7)
    labels, hardness = generator.integers(0, CLASSES, N)[rows], generator.random(N)[rows]
    noise = np.random.default_rng(seed).normal(0, 0.1, len(rows))
    right = hardness + noise < accuracy
    probabilities = np.eye(CLASSES, dtype=np.float32)[np.where(right, labels, (labels + 1) % CLASSES)]
    return Measured(rows, labels, probabilities)


ACCURACIES = {"plain": 0.5, "good": 0.65, "same": 0.5, "bad": 0.3}


def fill(grid: Grid, out: Path, parts: int = 1) -> dict[tuple[str, str], Measured]:
    """Runs as the trainer leaves them; with several parts each repeat measures another part of the images."""
    made = {}
    for number, run in enumerate(grid_runs(grid, out)):
        run.folder.mkdir(parents=True)
        save_config(run.config, run.folder / "config.yaml")
        lines = [{"time": 1000 + 2.0 * step, "step": step, "loss": 1} for step in (20, 40, 60)]
        lines += [{"time": 9000 + 2.0 * step, "step": step, "loss": 1} for step in (80, 100)]  # after a pause
        lines += [{"time": 9500, "step": 100, "accuracy": 1}]
        (run.folder / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        rows = np.arange(N)[run.repeat.seed % parts :: parts]
        made[run.row, run.repeat.name] = answers(ACCURACIES[run.row], number, rows)
        made[run.row, run.repeat.name].write(run.measured)
    return made


def row_of(document: dict[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in document["studies"]["parts"]["rows"] if row["row"] == name)


@pytest.mark.usefixtures("no_plots")
def test_folds_are_pooled_and_compared_by_mcnemar(tmp_path: Path) -> None:
    grid = make_grid(4)
    made = fill(grid, tmp_path, parts=4)
    document = analyse(grid, tmp_path)
    row, names = row_of(document, "good"), [repeat.name for repeat in grid.repeats]
    mine, theirs = ([made[name, repeat] for repeat in names] for name in ("good", "plain"))
    right, wrong = (np.concatenate([one.right for one in parts]) for parts in (mine, theirs))
    labels = np.concatenate([one.labels for one in mine])
    predicted = np.concatenate([one.probabilities.argmax(axis=1) for one in mine])
    accuracies = [one.right.mean() for one in mine]
    assert (row["images"], row["repeats"]) == (N, names)
    assert row["accuracy"] == pytest.approx(right.mean())
    assert row["accuracy_ci95"] == pytest.approx(wilson_interval(right.sum(), N))
    assert (row["run_mean"], row["run_std"]) == pytest.approx((np.mean(accuracies), np.std(accuracies, ddof=1)))
    assert row["mean_class_recall"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    one = row["comparison"]
    gained, lost = int((right & ~wrong).sum()), int((wrong & ~right).sum())
    assert one["p"] == pytest.approx(stats.binomtest(gained, gained + lost).pvalue)
    assert one["difference"] == pytest.approx((gained - lost) / N)
    spread = 1.959964 * np.sqrt(gained + lost - (gained - lost) ** 2 / N) / N
    assert one["ci95"] == pytest.approx([one["difference"] - spread, one["difference"] + spread])
    gains = [a.right.mean() - b.right.mean() for a, b in zip(mine, theirs, strict=True)]
    expected = stats.t.interval(0.95, 3, loc=np.mean(gains), scale=stats.sem(gains))
    assert one["run_ci95"] == pytest.approx(expected)
    other = row_of(document, "same")["comparison"]
    assert sorted([one["p_holm"], other["p_holm"]]) == pytest.approx(
        sorted([min(1, 2 * one["p"]), max(min(1, 2 * one["p"]), other["p"])])
    )
    assert (one["verdict"], other["verdict"]) == ("better", "no difference shown")


@pytest.mark.usefixtures("no_plots")
def test_images_that_several_repeats_measured_count_once(tmp_path: Path) -> None:
    """The same answers three times tell no more than once."""
    grid = make_grid(3, ("plain", "bad"))
    fill(grid, tmp_path)
    for run in grid_runs(grid, tmp_path):
        answers(ACCURACIES[run.row], 1 + (run.row == "bad"), np.arange(N)).write(run.measured)
    thrice = row_of(analyse(grid, tmp_path), "bad")
    once = row_of(analyse(make_grid(1, ("plain", "bad")), tmp_path), "bad")
    assert thrice["images"] == once["images"] == N
    assert thrice["accuracy_ci95"] == pytest.approx(once["accuracy_ci95"])
    for name in ("difference", "ci95", "p"):
        assert thrice["comparison"][name] == pytest.approx(once["comparison"][name])
    assert (thrice["comparison"]["verdict"], once["comparison"]["verdict"]) == ("worse", "too few runs")


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ((0.15, 0.15, 0.15), "better"),
        ((-0.15, -0.15, -0.15), "worse"),
        ((0.15, 0.15), "too few runs"),
        ((0.4, 0.05, 0.02), "no difference shown"),  # sure over images, not over runs
        ((0.01, 0.01, 0.01), "no difference shown"),
    ],
)
def test_a_verdict_needs_images_and_runs(gains: Sequence[float], verdict: str, tmp_path: Path) -> None:
    grid = make_grid(len(gains), ("plain", "good"))
    fill(grid, tmp_path, parts=len(gains))
    for run in grid_runs(grid, tmp_path):
        gain = gains[run.repeat.seed] if run.row == "good" else 0.0
        answers(0.5 + gain, run.repeat.seed, np.arange(N)[run.repeat.seed :: len(gains)]).write(run.measured)
    assert row_of(analyse(grid, tmp_path), "good")["comparison"]["verdict"] == verdict


def test_intervals_on_two_sides_of_zero_show_nothing() -> None:
    one = Comparison(3, 100, 0.1, (0.05, 0.15), (-0.2, -0.1), 0.001, 0.001, "too few runs")
    assert with_verdicts([one])[0].verdict == "no difference shown"


@pytest.mark.usefixtures("no_plots")
def test_only_repeats_that_both_rows_have_are_compared(tmp_path: Path) -> None:
    grid = make_grid(3, ("plain", "good"))
    fill(grid, tmp_path)
    grid_runs(grid, tmp_path)[0].measured.unlink()  # plain, first repeat
    document = analyse(grid, tmp_path)
    row = row_of(document, "good")
    assert (len(row["repeats"]), row["comparison"]["repeats"]) == (3, 2)
    assert row["comparison"]["verdict"] == "too few runs"
    assert "2 of three runs, so no claim" in study_words(document["studies"]["parts"])


def test_rows_that_have_not_run_are_told(tmp_path: Path) -> None:
    grid = make_grid(3)
    document = analyse(grid, tmp_path)
    assert study_table(document["studies"]["parts"]).count("not run") == 3
    assert (tmp_path / "tables.md").read_text().count("not run") == 3
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.usefixtures("no_plots")
def test_training_time_leaves_out_pauses(tmp_path: Path) -> None:
    grid = make_grid(1)
    fill(grid, tmp_path)
    assert row_of(analyse(grid, tmp_path), "good")["seconds"] == pytest.approx(200)


def test_document_and_pictures_are_written(tmp_path: Path) -> None:
    """Of a sweep over a number too, with noise, of which only the conditions that all runs have are shown."""
    grid = make_grid(2, studies={
        name: {"title": name, "rows": rows, "reference": "plain"}
        for name, rows in (("parts", ["plain", "good"]), ("others", ["plain", "same", "good"]))
    })  # fmt: skip
    fill(grid, tmp_path, parts=2)
    for run in grid_runs(grid, tmp_path):
        shares = {"0": ACCURACIES[run.row], "0.1": ACCURACIES[run.row] - 0.1 - 0.02 * run.repeat.seed}
        write_damage(run.noise, shares | ({"0.2": 0.1} if run.repeat.seed else {}), "cpu")
    document = analyse(grid, tmp_path)
    assert json.loads((tmp_path / "ablation.json").read_text()) == document
    assert {file.name for file in tmp_path.glob("*.png")} == {
        f"{name}{kind}.png" for name in ("parts", "others") for kind in ("", "-noise")
    }
    study = document["studies"]["parts"]
    assert study["axis"] == "network.sigma"
    assert study["robustness"] is None
    assert study["noise"]["conditions"] == ["0", "0.1"]
    row = study["noise"]["rows"][1]
    assert (row["row"], row["runs"], row["compared"], row["images"]) == ("good", 2, 2, N)
    assert row["accuracy"] == pytest.approx([0.65, 0.54])
    assert row["ci95"][1] == pytest.approx(wilson_interval(0.54 * N, N))
    assert row["difference"] == pytest.approx([0.15, 0.15])
    assert len(document["machines"]) == 1
    text = (tmp_path / "tables.md").read_text()
    assert f"{100 * row_of(document, 'good')['accuracy']:.2f} %" in text
    assert "| good | 2 | 400 | 65.0 % (" in text
    assert "| good (sigma 0.01) | 2 | 400 |" in text


@pytest.mark.usefixtures("no_plots")
def test_a_damaged_log_is_one_line(tmp_path: Path) -> None:
    grid = make_grid(1)
    fill(grid, tmp_path)
    (tmp_path / "good" / "seed-0" / "log.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(NkfError, match=r"good/seed-0/log\.jsonl: no log of a training run \('time'\); remove"):
        analyse(grid, tmp_path)


@pytest.mark.parametrize(("runs", "told"), [(3, "over 3 runs: −10.00 points at 0.1 (−12.00 to −8.00)."), (2, "")])
def test_words_on_noise_need_three_runs_of_both_rows(runs: int, told: str) -> None:
    """However many the row has of its own."""
    one = {"difference": [0.0, -0.1], "run_ci95": [[-0.01, 0.01], [-0.12, -0.08]], "runs": 5}
    rows = [one | {"row": "plain", "compared": 0}, one | {"row": "good", "compared": runs}]
    words = damage_words({"reference": "plain"}, {"conditions": ["0", "0.1"], "rows": rows})
    assert words == (f"- **good** against plain, {told}" if told else "")


def test_axis_is_the_one_number_that_differs() -> None:
    changes: dict[str, Any] = {"b": {"epochs": 9}, "c": {"network": {"backbone": "tiny"}}}
    changes |= {"a": {}, "d": {"epochs": 2, "network": {"sigma": 0.0}}}
    grid = Grid.model_validate(make_grid(1).model_dump() | {"rows": changes, "studies": {}})
    configs = {row: grid.config(row, grid.repeats[0]) for row in grid.rows}
    assert study_axis({row: configs[row] for row in "ab"}) == ("epochs", {"a": 3.0, "b": 9.0})
    assert study_axis({row: configs[row] for row in "ac"}) == (None, {})
    assert study_axis({row: configs[row] for row in "ad"}) == (None, {})


def test_runs_of_another_configuration_are_refused(tmp_path: Path) -> None:
    grid = make_grid(1)
    fill(grid, tmp_path)
    other = Grid.model_validate(grid.model_dump() | {"rows": {**grid.rows, "plain": {"epochs": 7}}})
    with pytest.raises(NkfError, match=r"plain/seed-0/config\.yaml: is not what the grid says of row 'plain'"):
        analyse(other, tmp_path)


def test_rows_measured_on_different_images_are_refused(tmp_path: Path) -> None:
    grid = make_grid(1, ("plain", "good"))
    fill(grid, tmp_path)
    answers(0.5, 0, np.arange(N - 1)).write(grid_runs(grid, tmp_path)[1].measured)
    with pytest.raises(NkfError, match="rows 'good' and 'plain': measured on different images in seed-0"):
        analyse(grid, tmp_path)
