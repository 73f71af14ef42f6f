"""Grids of runs: what they hold, and that stopping and going on changes no number."""

import io
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from nkf.ablate import Measured, Run, ablate, grid_runs, measure, measure_noise, read_damage
from nkf.ablation_grid import Grid, Repeat, folder_name, load_grid
from nkf.corruptions import CORRUPTIONS
from nkf.data.dataset import load_crops
from nkf.data.pack import Pack
from nkf.errors import NkfError
from nkf.models import TorchModel, load_model
from nkf.robustness import noise_curve
from nkf.train import train
from nkf.weights import find_weights

GRIDS = sorted(
    file for file in (Path(__file__).parents[1] / "configs").glob("**/*.yaml") if "rows:" in file.read_text()
)

LANDMARKS = {"name": "points", "task": "landmarks", "data": ["faces"]}


def grid_of(pack: Path, **changes: Any) -> Grid:
    base = {
        "name": "small",
        "task": "expression",
        "data": [str(pack)],
        "network": {"backbone": "tiny", "keypoint_channels": 16},
        "crop_size": 32,
        "protocol": {"name": "own", "train": ["train", "valid"], "choose": "last", "folds": 2},
        "epochs": 1,
        "batch_size": 8,
        "warmup_steps": 0,
        "evaluations": 1,
    }
    fields: dict[str, Any] = {
        "base": base,
        "repeats": [{"fold": 0, "seed": 0}, {"fold": 1, "seed": 1}],
        "rows": {"global only": {"network": {"strides": []}}, "all": {}},
        "studies": {"parts": {"title": "Parts", "rows": ["global only", "all"], "reference": "global only"}},
        "noises": [0.0, 0.2],
    }
    return Grid.model_validate(fields | changes)


@pytest.fixture(scope="module")
def unbroken(mini_pack: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Grid, Path, list[Run]]:
    grid, out = grid_of(mini_pack), tmp_path_factory.mktemp("ablation") / "out"
    return grid, out, list(ablate(grid, out))


@pytest.mark.parametrize("file", GRIDS, ids=lambda file: file.stem)
def test_shipped_grids_are_valid(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parents[len(file.parts) - file.parts.index("configs") - 1])
    grid = load_grid(file)
    runs = grid_runs(grid, Path("out"))
    assert len({run.folder for run in runs}) == len(grid.rows) * len(grid.repeats)


def test_a_stopped_grid_goes_on_to_the_same_numbers(
    unbroken: tuple[Grid, Path, list[Run]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, out, runs = unbroken
    grid, runs = grid.model_copy(update={"repeats": grid.repeats[:1]}), runs[:2]
    monkeypatch.setattr("nkf.ablate.train", lambda *given, **options: train(*given, **(options | {"max_minutes": 0})))
    finished = [len(list(ablate(grid, tmp_path))) for _ in range(3)]
    assert finished == [0, 0, 2]  # a step of each run a call, and three steps make a run
    for file in [file for run in runs for file in (run.measured, run.folder / "last" / "model.safetensors")]:
        assert (tmp_path / file.relative_to(out)).read_bytes() == file.read_bytes()
    for run in runs:
        again = tmp_path / run.noise.relative_to(out)
        assert read_damage(again)["accuracy"] == read_damage(run.noise)["accuracy"]


def test_runs_come_repeat_by_repeat_and_measure_the_fold_that_they_left_out(
    unbroken: tuple[Grid, Path, list[Run]],
) -> None:
    _, out, runs = unbroken
    folders = [run.folder.relative_to(out).as_posix() for run in runs]
    assert folders == [f"{row}/fold-{n}-seed-{n}" for n in (0, 1) for row in ("global-only", "all")]
    rows = [Measured.read(run.measured).rows for run in runs]
    np.testing.assert_array_equal(rows[0], rows[1])
    assert sorted([*rows[0], *rows[2]]) == list(range(48))
    assert Measured.read(runs[0].measured).right.shape == rows[0].shape


def test_noise_and_damage_are_added_to_runs_that_lack_them(
    unbroken: tuple[Grid, Path, list[Run]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of runs that were measured before; nothing is trained again, and without noise it is what was measured."""
    grid, out, _ = unbroken
    shutil.copytree(out, tmp_path / "out")
    asked = grid.model_copy(update={"robustness": True, "repeats": grid.repeats[:1]})
    for run in grid_runs(grid, tmp_path / "out"):
        run.noise.unlink()
    monkeypatch.setattr("nkf.ablate.train", lambda *given, **options: pytest.fail("trained again"))
    assert list(ablate(asked, tmp_path / "out", max_minutes=0)) == []
    runs = list(ablate(asked, tmp_path / "out", studies=["parts"]))
    assert len(runs) == 2
    for run in runs:
        clean = Measured.read(run.measured).right.mean()
        assert (
            read_damage(run.noise)["accuracy"] == read_damage(out / run.noise.relative_to(tmp_path / "out"))["accuracy"]
        )
        assert list(read_damage(run.noise)["accuracy"]) == ["0", "0.2"]
        assert read_damage(run.noise)["accuracy"]["0"] == clean
        damaged = read_damage(run.robustness)["accuracy"]
        assert damaged.keys() == {"clean", *CORRUPTIONS}
        assert damaged["clean"] == clean


def test_what_reads_no_landmarks_stands_their_noise(unbroken: tuple[Grid, Path, list[Run]]) -> None:
    _, _, runs = unbroken
    shares = read_damage(next(run for run in runs if run.row == "global only").noise)["accuracy"]
    assert shares["0"] == shares["0.2"]


@pytest.mark.parametrize("number", [0, 1])
def test_remembered_maps_change_no_noise_curve(
    unbroken: tuple[Grid, Path, list[Run]], number: int, mini_pack: Path
) -> None:
    run = unbroken[2][number]
    measured, crops = Measured.read(run.measured), load_crops(Pack(mini_pack), "aligned", 32)
    network = TorchModel(load_model(*find_weights(str(run.folder), (".safetensors",))), "cpu", probabilities=False)
    faces = crops.images[measured.rows], crops.landmarks_px[measured.rows]
    curve = noise_curve(network, *faces, measured.labels, [0.0, 0.1, 3.0])
    assert measure_noise(run, [0.0, 0.1, 3.0]) == {f"{one['noise']:g}": one["accuracy"] for one in curve}


def test_measured_is_what_the_kept_network_says(unbroken: tuple[Grid, Path, list[Run]], mini_pack: Path) -> None:
    run = unbroken[2][1]
    measured = Measured.read(run.measured)
    crops = load_crops(Pack(mini_pack), "aligned", 32)
    network = load_model(*find_weights(str(run.folder), (".safetensors",)))
    with torch.no_grad():
        images = torch.from_numpy(crops.images[measured.rows]).permute(0, 3, 1, 2) / 255
        logits = network(images, torch.from_numpy(crops.landmarks_px[measured.rows]))
    np.testing.assert_allclose(measured.probabilities, logits.softmax(dim=1), atol=1e-5)
    np.testing.assert_array_equal(measured.labels, Pack(mini_pack).labels()[measured.rows])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": {"a": {"epoch": 2}}, "studies": {}}, r"row a: unknown key 'epoch'\. Perhaps you meant 'epochs'\?"),
        ({"studies": {"parts": {"title": "", "rows": ["all", "none"], "reference": "all"}}}, "no row 'none'"),
        ({"studies": {"a/b": {"title": "", "rows": ["all", "global only"], "reference": "all"}}}, "'a/b' names a file"),
        ({"rows": {"KF+": {}, "kf": {}}, "studies": {}}, "'kf' and 'KF\\+' would share the folder 'kf'"),
        ({"studies": {"a": {"title": "", "rows": ["all", "global only"], "reference": "KF"}}}, "'KF' is none of its"),
        ({"rows": {"a": {"seed": 2}}, "studies": {}}, "rows: 'a' sets seed, which its name and the repeat tell"),
        (
            {"base": LANDMARKS, "repeats": [{"seed": 0}]},
            "row all: task landmarks; an ablation is of",
        ),
        ({"noises": [-0.1]}, r"noises\.0: Input should be greater than or equal to 0"),
        ({"seeds": [1]}, "unknown key 'seeds'"),
    ],
)
def test_mistakes_in_a_grid_are_named(changes: dict[str, Any], message: str, mini_pack: Path, tmp_path: Path) -> None:
    content = grid_of(mini_pack).model_dump(mode="json") | changes
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(NkfError, match=message) as caught:
        load_grid(tmp_path / "grid.yaml")
    assert "\n" not in str(caught.value)


def test_a_folder_belongs_to_one_grid(unbroken: tuple[Grid, Path, list[Run]]) -> None:
    grid, out, _ = unbroken
    other = grid.model_copy(update={"rows": {**grid.rows, "all": {"epochs": 7}}})
    with pytest.raises(NkfError, match=r"out: holds runs of another grid \(row all differs\); choose another --out"):
        next(ablate(other, out))
    with pytest.raises(NkfError, match=r"out: holds runs of another grid \(minutes differs\); choose another --out"):
        next(ablate(grid.model_copy(update={"minutes": 3.0}), out))
    with pytest.raises(NkfError, match="no study 'sigma'; there are parts"):
        next(ablate(grid, out, studies=["sigma"]))


@pytest.mark.parametrize(
    ("log", "max_minutes", "given", "finished"),
    [
        (None, 60.0, 2.0, True),
        ("", 60.0, 2.0, True),  # stopped before the first line of its log
        ("missing", 60.0, 2.0, True),
        ("20 40 60", 60.0, 1.0, True),  # a minute of the two
        ('20 40 60 {"time":', 60.0, 1.0, True),  # a kill cut the last line
        ("20 40 60 80 100 120 140", 60.0, 0.0, True),  # a kill behind its time
        ("20 40 60", 0.5, 0.5, False),  # the whole command ends first
    ],
)
def test_minutes_stop_each_training(
    log: str | None,
    max_minutes: float,
    given: float,
    finished: bool,
    mini_pack: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grid = grid_of(mini_pack, minutes=2.0, repeats=[{"fold": 0, "seed": 0}], noises=[])
    run = grid_runs(grid, tmp_path)[0]
    if log is not None:
        run.folder.mkdir(parents=True)
    if log not in (None, "missing"):
        words = [f'{{"step": {word}, "time": {word}}}\n' if word.isdigit() else word for word in log.split()]
        (run.folder / "log.jsonl").write_text("".join(words))
    minutes = []

    def stop(*_: Any, max_minutes: float, **__: Any) -> dict[str, Any]:
        run.folder.mkdir(parents=True, exist_ok=True)
        minutes.append(max_minutes)
        return {"finished": False}

    monkeypatch.setattr("nkf.ablate.train", stop)
    monkeypatch.setattr("nkf.ablate.measure", lambda *_: Measured(np.arange(2), np.zeros(2, int), np.eye(2)))
    monkeypatch.setattr("nkf.ablate.grid_runs", lambda *_: [run])
    runs = list(ablate(grid, tmp_path, max_minutes=max_minutes))
    assert minutes == [pytest.approx(given, abs=0.02)]
    assert (len(runs) == 1, run.measured.exists()) == (finished, finished)


def test_the_first_images_may_be_enough(unbroken: tuple[Grid, Path, list[Run]], tmp_path: Path) -> None:
    grid, out, runs = unbroken
    (all_of_them, *_) = runs
    (few, *_) = grid_runs(grid.model_copy(update={"images": 3}), out)
    np.testing.assert_array_equal(measure(few).rows, Measured.read(all_of_them.measured).rows[:3])
    list(ablate(grid, tmp_path / "out", max_minutes=0))
    with pytest.raises(NkfError, match=r"out: holds runs of another grid \(images differs\); choose another --out"):
        list(ablate(grid.model_copy(update={"images": 3}), tmp_path / "out", max_minutes=0))


@pytest.mark.parametrize(("choose", "kept"), [("last", "last"), ("valid", "best")])
def test_a_run_that_minutes_ended_is_measured_by_its_last_weights_if_these_count(
    unbroken: tuple[Grid, Path, list[Run]], choose: str, kept: str, tmp_path: Path
) -> None:
    """The best ones of such a run are older. Here they are of another run, so that they can be told apart."""
    grid, out, _ = unbroken
    shutil.copytree(out, tmp_path / "out")
    run, other = (one for one in grid_runs(grid, tmp_path / "out") if one.row == "all")
    for part in ("model.safetensors", "model.json"):
        shutil.copy(other.folder / "best" / part, run.folder / "last" / part)
    protocol = run.config.protocol.model_copy(update={"choose": choose})
    measured = measure(replace(run, config=run.config.model_copy(update={"protocol": protocol})))
    crops = load_crops(Pack(run.config.data[0]), "aligned", 32)
    network = load_model(*find_weights(str(run.folder / kept / "model.safetensors"), (".safetensors",)))
    with torch.no_grad():
        images = torch.from_numpy(crops.images[measured.rows]).permute(0, 3, 1, 2) / 255
        logits = network(images, torch.from_numpy(crops.landmarks_px[measured.rows]))
    np.testing.assert_allclose(measured.probabilities, logits.softmax(dim=1), atol=1e-5)


def test_a_run_that_fails_is_named(mini_pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(*_: Any, **__: Any) -> None:
        raise NkfError("no finite loss")

    monkeypatch.setattr("nkf.ablate.train", diverge)
    with pytest.raises(NkfError, match=r"^row 'global only', fold-0-seed-0: no finite loss$"):
        list(ablate(grid_of(mini_pack), tmp_path))


def test_noise_that_is_asked_for_later_is_measured(
    unbroken: tuple[Grid, Path, list[Run]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, out, _ = unbroken
    shutil.copytree(out, tmp_path / "out")
    monkeypatch.setattr("nkf.ablate.measure_noise", lambda _, noises, __: {f"{noise:g}": 0.51 for noise in noises})
    (tmp_path / "out/all/fold-1-seed-1/noise.json").unlink()
    runs = list(ablate(grid, tmp_path / "out"))
    assert [read_damage(run.noise)["accuracy"] == {"0": 0.51, "0.2": 0.51} for run in runs] == [False] * 3 + [True]
    more = grid.model_copy(update={"noises": (0.0, 0.1)})
    for run in ablate(more, tmp_path / "out"):
        assert read_damage(run.noise)["accuracy"] == {"0": 0.51, "0.1": 0.51}


def zip_of_version(version: int) -> bytes:
    """An archive of one file that asks for a later version of the format."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("rows.npy", b"")
    content = bytearray(stream.getvalue())
    content[content.index(b"PK\x01\x02") + 6] = version  # in the directory at the end
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "read"),
    [
        (b"nothing", Measured.read),
        (b"PK\x03\x04 cut", Measured.read),
        (zip_of_version(80), Measured.read),
        (b"{}", read_damage),
        (b'{"accuracy": [1]}', read_damage),
        (b"[" * 100_000, read_damage),
        (b'{"accuracy": {"clean": 1' + b"0" * 400 + b"}}", read_damage),
        (b"\xff", read_damage),
    ],
)
def test_damaged_results_are_refused_in_one_line(content: bytes, read: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(NkfError, match=r"file: not what an ablation measured \(.*\); remove it to measure again$"):
        read(tmp_path / "file")


def test_a_grid_that_holds_itself(tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(
        "base: &a {network: *a}\nrepeats: [{seed: 0}, {seed: 1}]\nrows: {a: &b {network: *b}, b: {}}\n"
        "studies: {s: {title: t, reference: a, rows: [a, b]}}\n"
    )
    with pytest.raises(NkfError, match=r"grid\.yaml: a part of it that holds itself, by an alias \(\*NAME\)$"):
        load_grid(tmp_path / "grid.yaml")


def test_folder_names() -> None:
    assert [folder_name(row) for row in ("KF + RKFA", "sigma 0.01", "strides 4, 8, 16")] == [
        "kf-rkfa", "sigma-0.01", "strides-4-8-16",
    ]  # fmt: skip
    assert Repeat(seed=3).name == "seed-3"
