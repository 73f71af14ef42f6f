"""The commands that study networks: what they ask of the library, what they print, and their mistakes in one line."""

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest

from nkf.ablate import Measured, grid_runs
from nkf.ablation_grid import Grid
from nkf.cli import main
from nkf.cli_study import STUDY_COMMANDS
from nkf.corruptions import CORRUPTIONS
from nkf.data.labels import LabelRule
from nkf.runtime import Device

Run = Callable[..., tuple[int, str, str]]
GRID = """\
base: {name: small, task: expression, data: [faces], network: {backbone: tiny}}
repeats: [{seed: 0}, {seed: 1}]
rows: {plain: {network: {strides: []}}, all: {}}
studies: {parts: {title: Parts, rows: [plain, all], reference: plain}}
"""


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that runs nkf in a folder with grid.yaml, and returns exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    Path("grid.yaml").write_text(GRID)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(list(arguments))
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Return a namespace that replaces a function of the library by an answer, and notes how it was called."""
    noted: dict[str, Any] = {}

    def answer(name: str, result: Any) -> None:
        def note(*given: Any, **options: Any) -> Any:
            noted.update(options, given=given)
            return result

        monkeypatch.setattr(name, note)

    return SimpleNamespace(answer=answer, noted=noted)


@pytest.mark.parametrize("command", STUDY_COMMANDS)
def test_help_tells_every_option_and_an_example(run: Run, command: str) -> None:
    code, out, err = run(command, "--help")
    assert (code, err) == (0, "")
    assert f"  nkf {command} " in out
    function = STUDY_COMMANDS[command]
    assert callable(function)
    for name, parameter in inspect.signature(function).parameters.items():
        option = name.replace("_", "-")
        assert parameter.kind is not parameter.KEYWORD_ONLY or re.search(f"--(no-)?{option}\\b", out)
        assert re.search(rf"^ +{name}: \S", inspect.getdoc(function) or "", re.MULTILINE)


def test_choices_are_those_of_the_library() -> None:
    parameters = inspect.signature(STUDY_COMMANDS["robustness"]).parameters  # type: ignore[arg-type]
    assert get_args(parameters["rule"].annotation) == get_args(LabelRule)
    assert get_args(parameters["device"].annotation) == get_args(Device)


def test_ablate_prints_runs_and_tables_and_what_is_left(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of four runs are done; the tables are made of them."""

    def done(grid: Grid, out: Path, **options: Any) -> Iterator[Any]:
        assert options["studies"] == ("parts",)
        assert (options["device"], options["max_minutes"]) == ("cpu", 3)
        for one in grid_runs(grid, out)[:2]:
            one.folder.mkdir(parents=True)
            Measured(np.arange(4), np.zeros(4, int), np.array([[1, 0]] * 3 + [[0, 1]])).write(one.measured)
            yield one

    def tables(_: Grid, out: Path) -> None:
        (out / "tables.md").write_text("the tables\n")

    monkeypatch.setattr("nkf.ablate.ablate", done)
    monkeypatch.setattr("nkf.ablation_tables.analyse", tables)
    given = ["ablate", "grid.yaml", "--out", "out", "--studies", "parts", "--max-minutes", "3", "--device", "cpu"]
    code, out, _ = run(*given)
    assert code == 0
    assert out.splitlines() == [
        "1/4 plain, seed-0: accuracy 75.00%",
        "2/4 all, seed-0: accuracy 75.00%",
        "the tables",
        "written to out",
        "not finished: 2 runs are left, the same command goes on",
    ]


def test_ablate_without_time_makes_the_tables_alone(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nkf.ablate.train", lambda *_, **__: pytest.fail("trained"))
    code, out, err = run("ablate", "grid.yaml", "--out", "out", "--max-minutes", "0", "--device", "cpu")
    assert (code, err) == (0, "")
    assert out.count("not run") == 2
    assert out.endswith("written to out\nnot finished: 4 runs are left, the same command goes on\n")
    assert {file.name for file in Path("out").iterdir()} == {"grid.yaml", "ablation.json", "tables.md"}


def test_ablate_asks_for_matplotlib_first(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nkf.report.find_spec", lambda _: None)
    assert run("ablate", "grid.yaml", "--out", "out") == (
        2,
        "",
        "nkf: drawing needs matplotlib: pip install matplotlib\n",
    )
    assert not Path("out").exists()


def test_compare_prints_runs_and_the_table_and_what_is_left(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("grid.yaml").write_text(GRID.replace("parts:", "systems:") + "minutes: 2\n")

    def done(grid: Grid, out: Path, **options: Any) -> Iterator[Any]:
        assert (options["studies"], options["device"], options["max_minutes"]) == (["systems"], "cpu", 3)
        assert grid.minutes == 2
        one = grid_runs(grid, out)[0]
        one.folder.mkdir(parents=True)
        Measured(np.arange(4), np.zeros(4, int), np.array([[1, 0]] * 3 + [[0, 1]])).write(one.measured)
        yield one

    def table(_: Grid, out: Path, **options: Any) -> None:
        assert options == {"device": "cpu", "rounds": 4}
        (out / "compare.md").write_text("the table\n")

    monkeypatch.setattr("nkf.ablate.ablate", done)
    monkeypatch.setattr("nkf.compare.compare", table)
    given = ["compare", "grid.yaml", "--out", "out", "--max-minutes", "3", "--rounds", "4", "--device", "cpu"]
    code, out, _ = run(*given)
    assert code == 0
    assert out.splitlines() == [
        "1/4 plain, seed-0: accuracy 75.00%",
        "the table",
        "written to out",
        "not finished: 3 runs are left, the same command goes on",
    ]


def test_robustness_prints_a_line_for_each_damage(run: Run, calls: SimpleNamespace) -> None:
    rows = [{"accuracy": 0.8 - 0.1 * severity} for severity in range(1, 6)]
    result = {"model": "net", "clean": {"accuracy": 0.875}, "n": 40, "corruptions": dict.fromkeys(CORRUPTIONS, rows)}
    calls.answer("nkf.robustness.measure_robustness", result)
    code, out, _ = run("robustness", "pack", "--out", "out", "--limit", "40", "--landmarks", "pack", "--seed", "3")
    assert code == 0
    assert calls.noted["given"] == (Path("pack"), Path("out"))
    assert {
        "limit": 40,
        "landmarks": "pack",
        "seed": 3,
        "model": "mobile",
        "split": "valid",
    }.items() <= calls.noted.items()
    first, header, *lines, last = out.splitlines()
    assert first == "net: clean accuracy 87.50%, 40 images"
    assert header.split()[-5:] == list("12345")
    assert [line.split()[0] for line in lines] == list(CORRUPTIONS)
    assert all(line.split()[1:] == ["70.0%", "60.0%", "50.0%", "40.0%", "30.0%"] for line in lines)
    assert len({len(line) for line in (header, *lines)}) == 1
    assert last == "written to out"


def test_colour_prints_the_agreement_with_its_interval(run: Run, calls: SimpleNamespace) -> None:
    result = {"model": "net", "agreement": 0.96, "agreement_ci95": [0.95, 0.97], "n": 900}
    calls.answer("nkf.robustness.colour_agreement", result)
    code, out, _ = run("robustness", "pack", "--colour", "--split", "train", "--out", "out")
    assert (code, calls.noted["split"]) == (0, "train")
    assert out == (
        "net: the same answer in colour and in grey for 96.00% [95.00%, 97.00%] of 900 pictures\nwritten to out\n"
    )


@pytest.mark.parametrize(
    ("kept", "told"),
    [
        ({"accuracy": 0.9534, "coverage": 0.801}, "confidence of 0.612 and more: 80.1% of the faces, 95.3% right"),
        ({"accuracy": None, "coverage": 0.0}, "no confidence from which on 90% of the answers are right"),
    ],
)
def test_calibrate_prints_before_and_after(
    run: Run, calls: SimpleNamespace, kept: dict[str, float | None], told: str
) -> None:
    figures = {"accuracy": 0.89, "ece": 0.05, "ece_ci95": [0.04, 0.0612], "nll": 0.4, "brier": 0.17}
    result = {
        "model": "net", "method": "temperature", "temperature": 1.25, "n": 300, "min_confidence": 0.612,
        "before": figures, "after": figures | {"ece": 0.0125}, "at_min_confidence": kept,
    }  # fmt: skip
    calls.answer("nkf.calibration.calibrate", result)
    code, out, _ = run("calibrate", "pack", "--out", "out", "--target-accuracy", "0.9", "--method", "temperature")
    assert code == 0
    assert (calls.noted["target_accuracy"], calls.noted["method"]) == (0.9, "temperature")
    lines = out.splitlines()
    assert lines[0] == "net: temperature, temperature 1.250, 300 images"
    assert lines[2].split() == ["before", "89.00%", "5.00%", "4.00%", "-", "6.12%", "0.4000", "0.1700"]
    assert lines[3].split()[2] == "1.25%"
    assert lines[4:] == [told, "written to out"]


def test_report_says_where_it_is(run: Run, calls: SimpleNamespace) -> None:
    calls.answer("nkf.run_report.write_run_report", None)
    assert run("report", "runs/a", "--out", "a.html", "--worst", "3") == (0, "written to a.html\n", "")
    assert calls.noted["given"] == (Path("runs/a"), Path("a.html"))
    assert (calls.noted["worst"], calls.noted["pictures"], calls.noted["data"]) == (3, True, None)


@pytest.mark.parametrize(
    ("options", "models"), [((), ("mobile",)), (("--model", "a", "--model", "runs/b"), ("a", "runs/b"))]
)
def test_soft_labels_take_several_models(
    run: Run, calls: SimpleNamespace, options: tuple[str, ...], models: tuple[str, ...]
) -> None:
    calls.answer("nkf.soft_labels.make_soft_labels", Path("soft.safetensors"))
    assert run("soft-labels", "pack", "--out", "soft.safetensors", *options)[:2] == (0, "soft.safetensors\n")
    assert calls.noted["given"] == (Path("pack"), models, Path("soft.safetensors"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("ablate none.yaml --out out", "none.yaml: No such file"),
        ("ablate grid.yaml --out out --studies part", "no study 'part'; there are parts"),
        ("ablate grid.yaml --out out --max-minutes soon", "max-minutes"),
        ("ablate grid.yaml", "--out"),
        ("compare grid.yaml --out out", "no study 'systems'; there are parts"),
        ("compare grid.yaml --out out --rounds few", "rounds"),
        ("robustness none --out out", "none: no pack"),
        ("robustness none --out out --colour", "none: no pack"),
        ("robustness none --out grid.yaml", "grid.yaml: a file, expected a folder for the results"),
        ("robustness none --out out --rule most", "rule"),
        ("calibrate none --out out", "none: no pack"),
        ("calibrate none --out out --target-accuracy 95", "target accuracy 95: expected a share between 0 and 1"),
        ("report none --out a.html", "none: no run folder (config.yaml is missing)"),
        ("report none --out .", ".: a folder, expected a name for the HTML file"),
        ("report none --out a.html --worst -1", "worst -1: expected a number of mistakes"),
        ("soft-labels none --out soft.safetensors", "none: no pack"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(run: Run, arguments: str, message: str) -> None:
    code, out, err = run(*arguments.split())
    assert (code, out) == (2, "")
    assert err.startswith("nkf: ")
    assert message in err
    assert err.count("\n") == 1
    assert [file.name for file in Path().iterdir()] == ["grid.yaml"]
