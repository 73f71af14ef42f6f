"""Ablations: a grid of configurations, each trained and measured several times, from a budget of minutes at a time.

A run is an ordinary run folder, OUT/ROW/seed-S or OUT/ROW/fold-F-seed-S, with what it predicted for the images that
it is measured on. Repeats come one after the other, each with all rows: whenever a grid is stopped, its rows have
(nearly) equally many runs, on the same images, with the same seeds.

    OUT/grid.yaml                  the grid
    OUT/ROW/REPEAT/measured.npz    rows of the pack, labels, probabilities
"""

import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from pydantic import Field, model_validator

from nkf.config import StrictModel, TrainConfig, read_yaml, validated
from nkf.errors import NkfError
from nkf.files import replacing
from nkf.models import load_model
from nkf.progress import Progress, no_progress
from nkf.recipes.expression import ExpressionRecipe
from nkf.train import train
from nkf.weights import find_weights


class Repeat(StrictModel):
    """One training of every row."""

    seed: int = Field(ge=0, description="of weights, order, augmentation and dropout")
    fold: int | None = Field(default=None, ge=0, description="left out of training, and measured on")

    @property
    def name(self) -> str:
        """Name of the run folder."""
        return f"seed-{self.seed}" if self.fold is None else f"fold-{self.fold}-seed-{self.seed}"


class Study(StrictModel):
    """Rows that are compared, in one table."""

    title: str
    rows: tuple[str, ...] = Field(min_length=2)
    reference: str = Field(description="row that the others are tested against")


class Grid(StrictModel):
    """What `load_grid` reads."""

    base: Mapping[str, Any] = Field(description="fields of a TrainConfig, or its file")
    repeats: tuple[Repeat, ...] = Field(min_length=1)
    rows: Mapping[str, Mapping[str, Any]] = Field(description="name -> fields that differ from the base's")
    studies: Mapping[str, Study] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _known_rows(self) -> Self:
        for name, study in self.studies.items():
            for row in (*study.rows, study.reference):
                if row not in self.rows:
                    raise ValueError(f"studies: {name}: no row {row!r}; there are {', '.join(self.rows)}")
        return self

    def config(self, row: str, repeat: Repeat) -> TrainConfig:
        """Complete configuration of one run.

        Raises:
            NkfError: when a field of the row is unknown or out of range.
        """
        content = _merged(self.base, self.rows[row]) | {"name": folder_name(row), "seed": repeat.seed}
        if repeat.fold is not None:
            content = _merged(content, {"protocol": {"fold": repeat.fold}})
        return validated(content, f"row {row}")


@dataclass(frozen=True, slots=True)
class Run:
    """One cell of the grid."""

    row: str
    repeat: Repeat
    config: TrainConfig
    folder: Path

    @property
    def measured(self) -> Path:
        """File that is there when the run is finished."""
        return self.folder / "measured.npz"


@dataclass(frozen=True, slots=True)
class Measured:
    """What a network predicted for N images.

    Attributes:
        rows: (N,) of the pack.
        labels: (N,) indices into the protocol's classes.
        probabilities: (N, C).
    """

    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float32]

    @property
    def right(self) -> NDArray[np.bool_]:
        """(N,) whether the most probable class is the label."""
        return self.probabilities.argmax(axis=1) == self.labels

    def write(self, file: Path) -> None:
        """Write an .npz, whole or not at all."""
        with replacing(file) as partial, partial.open("wb") as stream:
            np.savez_compressed(stream, rows=self.rows, labels=self.labels, probabilities=self.probabilities)

    @classmethod
    def read(cls, file: Path) -> "Measured":
        """Read what `write` wrote.

        Raises:
            NkfError: when it is no such file.
        """
        try:
            with np.load(file, allow_pickle=False) as content:
                return cls(content["rows"], content["labels"], content["probabilities"])
        except (OSError, KeyError, ValueError, EOFError) as error:
            raise NkfError(f"{file}: not what an ablation measured ({error}); remove it to measure again") from error


def load_grid(file: Path) -> Grid:
    """Read a grid from YAML; ``base`` may be the path of a configuration, from where the command runs.

    Raises:
        NkfError: when it is unreadable, names an unknown key, or a row is no valid configuration.
    """
    content = read_yaml(file)
    if isinstance(content, Mapping) and isinstance(content.get("base"), str):
        content = {**content, "base": read_yaml(Path(content["base"]))}
    grid = validated(content, str(file), Grid)
    for row in grid.rows:
        grid.config(row, grid.repeats[0])
    return grid


def grid_runs(grid: Grid, out: Path, studies: Sequence[str] = ()) -> list[Run]:
    """List the runs, repeat by repeat; only those of some studies' rows where these are named."""
    for name in studies:
        if name not in grid.studies:
            raise NkfError(f"no study {name!r}; there are {', '.join(grid.studies)}")
    rows = [row for row in grid.rows if not studies or any(row in grid.studies[name].rows for name in studies)]
    return [
        Run(row, repeat, grid.config(row, repeat), out / folder_name(row) / repeat.name)
        for repeat in grid.repeats
        for row in rows
    ]


def ablate(
    grid: Grid,
    out: Path,
    *,
    studies: Sequence[str] = (),
    device: str = "cpu",
    max_minutes: float = math.inf,
    progress: Progress = no_progress,
) -> Iterator[Run]:
    """Train and measure what is not there yet, one run after the other; what was stopped goes on.

    Args:
        grid: what to run.
        out: folder, made when missing; it belongs to one grid.
        studies: run the rows of these alone; by default all rows.
        device: a torch device.
        max_minutes: stop after so long; the next call goes on.
        progress: shows how far the preparation of the data is.

    Yields:
        Each run when it is finished, those of earlier calls too.

    Raises:
        NkfError: when the folder belongs to another grid, or data are unusable.
    """
    deadline = time.monotonic() + 60 * max_minutes
    _claim(grid, out)
    for run in grid_runs(grid, out, studies):
        if not run.measured.exists():
            left = (deadline - time.monotonic()) / 60
            if left <= 0:
                return
            summary = train(run.config, run.folder, device=device, max_minutes=left, progress=progress)
            if not summary["finished"]:
                return
            measure(run, device).write(run.measured)
        yield run


def measure(run: Run, device: str = "cpu") -> Measured:
    """Predict, with a run's kept weights, the images that it is measured on, from the pack's landmarks."""
    recipe = ExpressionRecipe(run.config, torch.device(device))
    file, info = find_weights(str(run.folder), (".safetensors",))
    model = load_model(file, info).to(device)
    rows, labels, faces = recipe.measured()
    return Measured(rows, labels, recipe.probabilities(model, faces))


def _claim(grid: Grid, out: Path) -> None:
    """Note the grid in its folder, or check that it is the folder's: more rows, repeats and studies may come."""
    file = out / "grid.yaml"
    if file.exists():
        before = load_grid(file)
        changed = [row for row in before.rows if row in grid.rows and before.rows[row] != grid.rows[row]]
        if before.base != grid.base or changed:
            what = f"row {changed[0]}" if changed else "base"
            raise NkfError(f"{out}: holds runs of another grid ({what} differs); choose another --out, or remove it")
    out.mkdir(parents=True, exist_ok=True)
    with replacing(file) as partial:
        partial.write_text(yaml.safe_dump(grid.model_dump(mode="json"), sort_keys=False))


def folder_name(row: str) -> str:
    """Name of a row as a folder and a run: "KF + RKFA" gives "kf-rkfa"."""
    return re.sub(r"[^a-z0-9.]+", "-", row.lower()).strip("-")


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Replace fields, and fields of fields; a protocol's name counts as its field ``name``."""
    result = dict(base)
    for key, value in changes.items():
        before = {"name": result[key]} if key == "protocol" and isinstance(result.get(key), str) else result.get(key)
        fields = isinstance(before, Mapping) and isinstance(value, Mapping)
        result[key] = _merged(before, value) if isinstance(before, Mapping) and fields else value
    return result
