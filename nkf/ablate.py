"""Ablations: a grid of configurations, each trained and measured several times, from a budget of minutes at a time.

A run is an ordinary run folder, OUT/ROW/seed-S or OUT/ROW/fold-F-seed-S, with what it predicted for the images that
it is measured on. Repeats come one after the other, each with all rows: whenever a grid is stopped, its rows have
(nearly) equally many runs, on the same images, with the same seeds.

    OUT/grid.yaml                    the grid
    OUT/ROW/REPEAT/measured.npz      rows of the pack, labels, probabilities
    OUT/ROW/REPEAT/noise.json        accuracy on the same images with noise on the landmarks
    OUT/ROW/REPEAT/robustness.json   accuracy on the same images, damaged; only where the grid asks for it

`nkf.ablation_tables` makes tables of them.
"""

import json
import math
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor, nn

from nkf.ablation_grid import Grid, Repeat, folder_name, load_grid
from nkf.config import TrainConfig
from nkf.corruptions import CORRUPTIONS
from nkf.errors import NkfError
from nkf.files import replacing
from nkf.machine import machine
from nkf.models import TorchModel, load_model
from nkf.models.backbone import FeatureMaps
from nkf.models.nkf import NKF
from nkf.progress import Progress, no_progress
from nkf.recipes.expression import ExpressionRecipe
from nkf.robustness import corrupted_crops, noise_curve
from nkf.run_log import training_seconds
from nkf.train import train
from nkf.views import BATCH
from nkf.weights import find_weights

SEVERITY = 3  # of the damage that `Grid.robustness` asks for


@dataclass(frozen=True, slots=True)
class Run:
    """One cell of the grid."""

    row: str
    repeat: Repeat
    config: TrainConfig
    folder: Path
    images: int | None = None  # see `Grid`

    @property
    def measured(self) -> Path:
        """What was predicted, a `Measured`."""
        return self.folder / "measured.npz"

    @property
    def noise(self) -> Path:
        """Accuracy by noise on the landmarks, for `read_damage`."""
        return self.folder / "noise.json"

    @property
    def robustness(self) -> Path:
        """Accuracy by damage of the pictures, for `read_damage`."""
        return self.folder / "robustness.json"


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
            with file.open("rb") as stream, np.load(stream, allow_pickle=False) as content:
                return cls(content["rows"], content["labels"], content["probabilities"])
        except (OSError, KeyError, ValueError, EOFError, RuntimeError, BadZipFile, zlib.error) as error:
            # RuntimeError: an encrypted archive, or one of a later version (NotImplementedError)
            raise NkfError(f"{file}: not what an ablation measured ({error}); remove it to measure again") from error


def grid_runs(grid: Grid, out: Path, studies: Sequence[str] = ()) -> list[Run]:
    """List the runs, repeat by repeat; only those of some studies' rows where these are named."""
    for name in studies:
        if name not in grid.studies:
            raise NkfError(f"no study {name!r}; there are {', '.join(grid.studies)}")
    rows = [row for row in grid.rows if not studies or any(row in grid.studies[name].rows for name in studies)]
    return [
        Run(row, repeat, grid.config(row, repeat), out / folder_name(row) / repeat.name, grid.images)
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
        NkfError: when the folder belongs to another grid, data are unusable, or a training diverges.
    """
    deadline = time.monotonic() + 60 * max_minutes
    _claim(grid, out)
    for run in grid_runs(grid, out, studies):
        try:
            finished = _finish(run, grid, device, deadline, progress)
        except NkfError as error:
            raise NkfError(f"row {run.row!r}, {run.repeat.name}: {error}") from error
        if finished:
            yield run


def _finish(run: Run, grid: Grid, device: str, deadline: float, progress: Progress) -> bool:
    """Do what a run lacks; False where the time ends before."""
    if not run.measured.exists():
        if time.monotonic() >= deadline:
            return False
        own = _own_minutes(run, grid, device, progress)
        left = (deadline - time.monotonic()) / 60
        summary = train(run.config, run.folder, device=device, max_minutes=min(left, own), progress=progress)
        if not summary["finished"] and left <= own:
            return False
        measure(run, device).write(run.measured)
    reads_landmarks = run.config.network.system == "nkf"
    if reads_landmarks and not _holds(run.noise, [f"{noise:g}" for noise in grid.noises]):
        if time.monotonic() > deadline:
            return False
        write_damage(run.noise, measure_noise(run, grid.noises, device), device)
    if grid.robustness and not _holds(run.robustness, ["clean", *CORRUPTIONS]):
        if time.monotonic() > deadline:
            return False
        write_damage(run.robustness, measure_robustness(run, device), device)
    return True


def _own_minutes(run: Run, grid: Grid, device: str, progress: Progress) -> float:
    """What is left of the minutes that the grid gives each training."""
    if grid.minutes is None:
        return math.inf
    ExpressionRecipe(run.config, torch.device(device), progress)  # cuts its crops before the clock runs
    logged = (run.folder / "log.jsonl").exists()  # not of a run that was stopped in its first steps
    trained = training_seconds(run.folder) if logged else None
    return max(0.0, grid.minutes - (trained or 0) / 60)


def _holds(file: Path, conditions: Sequence[str]) -> bool:
    """Whether all conditions were measured; more may be asked for than when the file was written."""
    return not conditions or (file.exists() and read_damage(file)["accuracy"].keys() >= set(conditions))


def measure(run: Run, device: str = "cpu") -> Measured:
    """Predict, with a run's kept weights, the images that it is measured on, from the pack's landmarks."""
    recipe, network = _network(run, device)
    rows, labels, faces = recipe.measured(run.images)
    return Measured(rows, labels, recipe.probabilities(network, faces))


def measure_noise(run: Run, noises: Sequence[float], device: str = "cpu") -> dict[str, float]:
    """Accuracy on the same images, by the noise on the landmarks that features are read at; the crops stay."""
    network, crops, landmarks_px, labels = _measured_crops(run, device)
    right = np.zeros(len(noises))
    for start in range(0, len(labels), BATCH):
        batch = slice(start, start + BATCH)
        curve = noise_curve(network, crops[batch], landmarks_px[batch], labels[batch], noises, seed=start)
        right += [point["accuracy"] * point["n"] for point in curve]
    return {f"{noise:g}": round(count) / len(labels) for noise, count in zip(noises, right, strict=True)}


def _remember_maps(network: NKF) -> None:
    """Let a network compute the maps of the same crops once: nearly all of its work, whatever the landmarks are."""
    parts = [(network.backbone, "forward")] + ([(network.fan, "feature_maps")] if network.fan is not None else [])
    for part, name in parts:
        setattr(part, name, _remembering(getattr(part, name)))


def _remembering(compute: Callable[[Tensor], FeatureMaps]) -> Callable[[Tensor], FeatureMaps]:
    last: list[tuple[Tensor, FeatureMaps]] = []

    def answer(crops: Tensor) -> FeatureMaps:
        if not last or not torch.equal(last[0][0], crops):
            last[:] = [(crops, compute(crops))]
        return last[0][1]

    return answer


def measure_robustness(run: Run, device: str = "cpu") -> dict[str, float]:
    """Accuracy on the same images as they are (``clean``), and under each damage of `nkf.corruptions`."""
    network, crops, landmarks_px, labels = _measured_crops(run, device)
    shares = {"clean": noise_curve(network, crops, landmarks_px, labels, [0.0])[0]["accuracy"]}
    for name in CORRUPTIONS:
        damaged, moved = corrupted_crops(crops, landmarks_px, name, SEVERITY)
        shares[name] = noise_curve(network, damaged, moved, labels, [0.0])[0]["accuracy"]
    return shares


def _measured_crops(
    run: Run, device: str
) -> tuple[TorchModel, NDArray[np.uint8], NDArray[np.float32], NDArray[np.int64]]:
    """The network that a run kept, crops (N, S, S, 3), their landmarks (N, 68, 2), and labels (N,)."""
    recipe, network = _network(run, device)
    _, labels, faces = recipe.measured(run.images)
    crops = faces.images_uint8(np.arange(len(faces))).cpu().numpy()
    if isinstance(network, NKF):
        _remember_maps(network)
    return TorchModel(network, device, probabilities=False), crops, faces.landmarks_px.cpu().numpy(), labels


def _network(run: Run, device: str) -> tuple[ExpressionRecipe, nn.Module]:
    """What a run was trained by, and the network that it kept."""
    # Where the last weights count, those in best/ are older if the grid's minutes ended the run between validations.
    kept = run.folder / "last" / "model.safetensors" if run.config.protocol.choose == "last" else run.folder
    file, info = find_weights(str(kept), (".safetensors",))
    return ExpressionRecipe(run.config, torch.device(device)), load_model(file, info).to(device)


def write_damage(file: Path, shares: Mapping[str, float], device: str) -> None:
    """Write accuracies by condition, and the processor that measured them."""
    content = {"schema": 1, "accuracy": shares, "machine": machine(device)}
    with replacing(file) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n")


def read_damage(file: Path) -> dict[str, Any]:
    """Read what `write_damage` wrote.

    Raises:
        NkfError: when it is no such file.
    """
    try:
        content: dict[str, Any] = json.loads(file.read_text())
        {name: float(share) for name, share in content["accuracy"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise NkfError(f"{file}: not what an ablation measured ({error}); remove it to measure again") from error
    return content


def _claim(grid: Grid, out: Path) -> None:
    """Note the grid in its folder, or check that it is the folder's: more rows, repeats and studies may come."""
    file = out / "grid.yaml"
    if file.exists():
        before = load_grid(file)
        changed = [row for row in before.rows if row in grid.rows and before.rows[row] != grid.rows[row]]
        differs = [name for name in ("base", "minutes", "images") if getattr(before, name) != getattr(grid, name)]
        if changed or differs:
            what = f"row {changed[0]}" if changed else differs[0]
            raise NkfError(f"{out}: holds runs of another grid ({what} differs); choose another --out, or remove it")
    out.mkdir(parents=True, exist_ok=True)
    with replacing(file) as partial:
        partial.write_text(yaml.safe_dump(grid.model_dump(mode="json"), sort_keys=False))
