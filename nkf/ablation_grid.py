"""What an ablation runs: a grid of configurations and repeats, read from YAML."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from nkf.config import TrainConfig, merged, read_yaml, validated
from nkf.errors import NkfError
from nkf.network_config import StrictModel


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
    reference: str = Field(description="one of the rows, that the others are tested against")


class Grid(StrictModel):
    """What `load_grid` reads."""

    base: Mapping[str, Any] = Field(description="fields of a TrainConfig, or its file")
    repeats: tuple[Repeat, ...] = Field(min_length=1)
    rows: Mapping[str, Mapping[str, Any]] = Field(description="name -> fields that differ from the base's")
    studies: Mapping[str, Study] = Field(default_factory=dict)
    noises: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        default=(0.0, 0.02, 0.05, 0.1, 0.15, 0.2),
        description="standard deviations of the noise on the landmarks, over the distance of the eye centres",
    )
    minutes: float | None = Field(
        default=None, gt=0, description="stop each training after so long, wherever it is; by default it is finished"
    )
    images: int | None = Field(default=None, ge=1, description="measure on the first so many; by default on all")
    robustness: bool = Field(default=False, description="measure on damaged pictures too, each damage at severity 3")

    @model_validator(mode="after")
    def _own_names(self) -> Self:
        folders: dict[str, str] = {}
        for row in self.rows:
            if (other := folders.setdefault(folder_name(row), row)) != row or not folder_name(row):
                raise ValueError(f"rows: {row!r} and {other!r} would share the folder {folder_name(row)!r}; rename one")
            if given := {"name", "seed"} & self.rows[row].keys():
                what = " and ".join(sorted(given))
                raise ValueError(f"rows: {row!r} sets {what}, which its name and the repeat tell")
        for name in self.studies:
            if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
                raise ValueError(f"studies: {name!r} names a file; use letters, digits, - and _")
        return self

    @model_validator(mode="after")
    def _known_rows(self) -> Self:
        for name, study in self.studies.items():
            for row in study.rows:
                if row not in self.rows:
                    raise ValueError(f"studies: {name}: no row {row!r}; there are {', '.join(self.rows)}")
            if study.reference not in study.rows:
                raise ValueError(f"studies: {name}: the reference {study.reference!r} is none of its rows")
        return self

    def config(self, row: str, repeat: Repeat) -> TrainConfig:
        """Complete configuration of one run.

        Raises:
            NkfError: when a field of the row is unknown or out of range, or the task is not to tell expressions.
        """
        content = merged(self.base, self.rows[row]) | {"name": folder_name(row), "seed": repeat.seed}
        if repeat.fold is not None:
            content = merged(content, {"protocol": {"fold": repeat.fold}})
        config = validated(content, f"row {row}")
        if config.task != "expression":
            raise NkfError(f"row {row}: task {config.task}; an ablation is of expression networks")
        return config


def load_grid(file: Path) -> Grid:
    """Read a grid from YAML; ``base`` may be the path of a configuration, from where the command runs.

    Raises:
        NkfError: when it is unreadable, names an unknown key, or a row is no valid configuration.
    """
    content = read_yaml(file)
    if isinstance(content, Mapping) and isinstance(content.get("base"), str):
        content = {**content, "base": read_yaml(Path(content["base"]))}
    try:
        grid = validated(content, str(file), Grid)
        for row in grid.rows:
            grid.config(row, grid.repeats[0])
    except RecursionError as error:
        raise NkfError(f"{file}: a part of it that holds itself, by an alias (*NAME)") from error
    return grid


def folder_name(row: str) -> str:
    """Name of a row as a folder and a run: "KF + RKFA" gives "kf-rkfa"."""
    return re.sub(r"[^a-z0-9.]+", "-", row.lower()).strip("-")
