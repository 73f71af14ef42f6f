"""Systems beside each other: what the table says of those that have run, and of the one that has not."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from nkf.ablate import Measured, Run, ablate, grid_runs, measure_robustness
from nkf.ablation_grid import Grid
from nkf.compare import BATCHES, compare, comparison_table, fresh_network, measure_start
from nkf.config import NetworkConfig
from nkf.corruptions import CORRUPTIONS
from nkf.data.dataset import load_crops
from nkf.data.labels import EXPRESSIONS
from nkf.data.pack import Pack
from nkf.errors import NkfError
from nkf.models import count_parameters, create_model, save_model
from nkf.recipes.expression import ExpressionRecipe
from nkf.train import _start
from nkf.weights import WeightsInfo

ROWS: dict[str, dict[str, Any]] = {
    "NKF": {},
    "EAC": {"network": {"system": "eac", "trunk": "tiny"}, "loss": "eac", "crop_size": 48},
    "EfficientFace": {"network": {"system": "efficientface"}, "loss": "label_distribution", "crop_size": 64},
    "later": {"network": {"backbone": "tiny", "strides": []}, "crop_size": 48},
}


def save_teacher(file: Path) -> str:
    """A network that says something else of every face."""
    architecture = NetworkConfig(backbone="tiny", keypoint_channels=16).architecture()
    torch.manual_seed(2)
    network = create_model("nkf", architecture, 8)
    nn.init.normal_(network.classifier.weight, std=2)  # type: ignore[union-attr, arg-type]
    info = WeightsInfo(
        name="teacher", kind="nkf", architecture=architecture, classes=EXPRESSIONS, input_size=64, mean=(0.5,) * 3,
        std=(0.5,) * 3, parameters=count_parameters(network), nkf_version="0",
    )  # fmt: skip
    save_model(network, file, info)
    return str(file)


def grid_of(pack: Path, teacher: str, **changes: Any) -> Grid:
    base = {
        "name": "compare",
        "task": "expression",
        "data": [str(pack)],
        "network": {"backbone": "tiny", "keypoint_channels": 16},
        "crop_size": 32,
        "protocol": {"name": "own", "choose": "last", "test": "valid"},
        "limit": 16,
        "epochs": 2,
        "batch_size": 4,
        "warmup_steps": 0,
        "evaluations": 1,
    }
    fields: dict[str, Any] = {
        "base": base,
        "repeats": [{"seed": 0}],
        "rows": ROWS | {"EfficientFace": ROWS["EfficientFace"] | {"teacher": teacher}, "no system": {"epochs": 1}},
        "studies": {"systems": {"title": "Systems", "rows": list(ROWS), "reference": "NKF"}},
        "noises": [0.0],
    }
    return Grid.model_validate(fields | changes)


@pytest.fixture(scope="module")
def compared(mini_pack: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Grid, Path, list[Run], dict[str, Any]]:
    """Three of four systems have run: the grid, its folder, the runs, and what `compare` told."""
    out = tmp_path_factory.mktemp("compare")
    grid = grid_of(mini_pack, save_teacher(out / "teacher.safetensors"))
    going = ablate(grid, out, studies=["systems"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nkf.train.LOG_EVERY", 2)  # steps, of eight
        runs = [next(going) for _ in range(3)]
    return grid, out, runs, compare(grid, out, rounds=1)


def row_of(document: dict[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in document["rows"] if row["row"] == name)


def test_costs_are_of_all_systems(compared: tuple[Grid, Path, list[Run], dict[str, Any]]) -> None:
    _, out, _, document = compared
    assert json.loads((out / "compare.json").read_text()) == document
    assert [row["row"] for row in document["rows"]] == list(ROWS)
    assert [row["system"] for row in document["rows"]] == ["nkf", "eac", "efficientface", "nkf"]
    assert [row["crop_size"] for row in document["rows"]] == [32, 48, 64, 48]
    eac = create_model("eac", {"trunk": "tiny"}, 8)
    assert row_of(document, "EAC")["parameters"] == row_of(document, "EAC")["trainable"] == count_parameters(eac)
    # Both have the same trunk and size of crops, and no landmarks are read: a linear layer is all of the difference.
    heads = [row_of(document, name)["macs"] for name in ("EAC", "later")]
    assert heads[0] > 1e6
    assert abs(heads[0] - heads[1]) < 0.02 * heads[0]
    for row in document["rows"]:
        assert all(0 < row[f"ms_{batch}"] < 10_000 for batch in BATCHES)


def test_what_has_run_is_told_with_its_start_and_how_it_learnt(
    compared: tuple[Grid, Path, list[Run], dict[str, Any]],
) -> None:
    _, _, runs, document = compared
    for run in runs:
        row, measured = row_of(document, run.row), Measured.read(run.measured)
        assert row["accuracy"] == measured.right.mean()
        assert len(measured.rows) == 16
        lines = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
        losses = [line["loss"] for line in lines if "loss" in line]
        learnt = row["learning"]
        assert (learnt["steps"], learnt["first_loss"], learnt["last_loss"]) == (8, losses[0], losses[-1])
        assert learnt["ms_a_step"] > 0
        assert learnt["start"] == json.loads((run.folder / "start.json").read_text())["accuracy"]
        assert 0 <= learnt["start"] <= 1
    assert row_of(document, "NKF")["comparison"] is None
    eac, nkf = (Measured.read(run.measured).right for run in (runs[1], runs[0]))
    assert row_of(document, "EAC")["comparison"]["difference"] == pytest.approx(eac.mean() - nkf.mean())


def test_a_system_that_has_not_run_has_its_costs_alone(
    compared: tuple[Grid, Path, list[Run], dict[str, Any]],
) -> None:
    _, out, _, document = compared
    later = row_of(document, "later")
    assert (later["repeats"], later["accuracy"], later["learning"], later["comparison"]) == ([], None, None, None)
    header, rule, *lines = (out / "compare.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in (header, *lines)]
    assert {len(row) for row in cells} == {15}
    assert rule.count("|") == 16
    table = {name: dict(zip(cells[0], row, strict=True)) for name, row in zip(("", *ROWS), cells, strict=True)}
    assert [table[name]["system"] for name in ROWS] == list(ROWS)
    assert (table["later"]["runs"], table["later"]["accuracy (95 %)"]) == ("0", "not run yet")
    assert (table["later"]["loss"], table["later"]["crop"]) == ("", "48")
    assert table["later"]["weights"] == f"{later['parameters'] / 1e6:.2f} M"
    assert table["EAC"]["accuracy (95 %)"].startswith(f"{100 * row_of(document, 'EAC')['accuracy']:.2f} % (")
    assert table["EAC"]["steps"] == "8"
    assert (table["NKF"]["difference"], table["EAC"]["difference"] != "") == ("", True)


def test_the_start_is_measured_once(
    compared: tuple[Grid, Path, list[Run], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, out, _, document = compared
    monkeypatch.setattr("nkf.compare.measure_start", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr("nkf.compare.measure_costs", lambda *_, **__: {row["row"]: row for row in document["rows"]})
    again = compare(grid, out)
    assert [row["learning"] for row in again["rows"]] == [row["learning"] for row in document["rows"]]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_start_is_of_the_weights_that_training_starts_with(
    compared: tuple[Grid, Path, list[Run], dict[str, Any]], number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the seed, whether or not a teacher was built before."""
    run, states = compared[2][number], []

    def answer(_: ExpressionRecipe, model: nn.Module, faces: Any) -> Any:
        states.append(model.state_dict())
        assert not model.training
        return np.eye(8, dtype=np.float32)[np.full(len(faces), EXPRESSIONS.index("happiness"))]

    monkeypatch.setattr(ExpressionRecipe, "probabilities", answer)
    torch.manual_seed(99)
    assert measure_start(run) == 0.5  # every second face is happy
    started: dict[str, Tensor] = _start(ExpressionRecipe(run.config, torch.device("cpu"))).model.state_dict()
    assert all(torch.equal(value, states[0][name]) for name, value in started.items())


def test_noise_on_landmarks_is_for_those_that_read_them(
    compared: tuple[Grid, Path, list[Run], dict[str, Any]],
) -> None:
    assert [run.noise.exists() for run in compared[2]] == [True, False, False]


def test_damage_is_measured_of_every_system(
    compared: tuple[Grid, Path, list[Run], dict[str, Any]],
) -> None:
    run = compared[2][1]
    shares = measure_robustness(run)
    assert shares.keys() == {"clean", *CORRUPTIONS}
    assert shares["clean"] == Measured.read(run.measured).right.mean()


def test_measured_networks_saw_the_crops_of_their_size(
    compared: tuple[Grid, Path, list[Run], dict[str, Any]], mini_pack: Path
) -> None:
    run = compared[2][2]
    measured, crops = Measured.read(run.measured), load_crops(Pack(mini_pack), "aligned", 64)
    network = fresh_network(run.config)
    network.load_state_dict(load_file(run.folder / "last" / "model.safetensors"))
    with torch.no_grad():
        logits = network(torch.from_numpy(crops.images[measured.rows]).permute(0, 3, 1, 2) / 255, None)
    np.testing.assert_allclose(measured.probabilities, logits.softmax(dim=1), atol=1e-5)


def test_a_grid_without_systems_is_refused(mini_pack: Path, tmp_path: Path) -> None:
    study = {"title": "Parts", "rows": ["NKF", "later"], "reference": "NKF"}
    grid = grid_of(mini_pack, "none", studies={"parts": study})
    with pytest.raises(NkfError, match=r"^the grid has no study 'systems', whose rows are compared; there are parts$"):
        compare(grid, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_several_runs_are_one_row() -> None:
    row = {
        "row": "A", "repeats": ["seed-0", "seed-1"], "accuracy": 0.625, "accuracy_ci95": [0.5, 0.75], "seconds": 720.4,
        "comparison": {"difference": -0.0125, "ci95": [-0.03, 0.005]},
        "learning": {"steps": 310.0, "ms_a_step": 2319.6, "first_loss": 2.07, "last_loss": 1.1, "start": 0.125},
        "crop_size": 112, "parameters": 71_850_399, "macs": 7_856_965_632, "ms_1": 148.96, "ms_32": 120.0,
    }  # fmt: skip
    assert comparison_table([row]).splitlines()[-1] == (
        "| A | 2 | 62.50 % (50.00–75.00) | 12.5 % | −1.25 | −3.00 to +0.50 | 2.070 → 1.100 | 310 | 2320 | 720 | 112 "
        "| 71.85 M | 7.857 | 149.0 | 120.0 |"
    )


def test_rows_of_the_comparison_are_those_of_the_study(
    compared: tuple[Grid, Path, list[Run], dict[str, Any]],
) -> None:
    grid, out, _, document = compared
    assert "no system" in grid.rows
    assert not (out / "no-system").exists()
    assert {run.row for run in grid_runs(grid, out, ["systems"])} == {row["row"] for row in document["rows"]}
