"""Tables of an ablation, from the saved numbers of its runs alone: who is better than whom, and is that shown?

Two things vary, and each has its own interval. The *images*: rows are compared on the same images, and the interval
and McNemar's test tell whether the difference would stay on others like them, for these trained networks. The *runs*:
another seed, or another part of the data to train on, gives another network; the interval over runs is Student's, from
one difference for each repeat. A row is called better or worse only where both exclude zero, over at least three
repeats, and the p-value holds after Holm's adjustment for the rows of the study. Folds share most of their training
images, so that the interval over runs is somewhat too narrow.
"""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nkf.ablate import Measured, Run, grid_runs, read_damage
from nkf.ablation_grid import Grid, Study
from nkf.ablation_text import FEWEST_RUNS, tables_markdown
from nkf.config import TrainConfig, load_config, validated
from nkf.errors import NkfError
from nkf.files import replacing
from nkf.metrics import (
    confusion_matrix,
    example_sums,
    holm,
    mcnemar,
    paired_difference,
    recall_by_class,
    sign_test,
    t_interval,
    wilson_interval,
)
from nkf.report_tables import draw_noise, draw_study
from nkf.run_log import training_seconds
from nkf.weights import read_info

LEVEL = 0.05
Interval = tuple[float, float]
Verdict = Literal["better", "worse", "no difference shown", "too few runs"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A row against its study's reference, in the repeats that both have.

    Attributes:
        repeats: that both have.
        images: different images in them.
        difference: of the accuracies; above zero where the row is better.
        ci95: of the difference: images vary, these networks stay.
        run_ci95: of the mean difference of a repeat: runs vary; None for a single one.
        p: McNemar's exact test, or a sign test over images where repeats measured the same ones.
        p_holm: adjusted for the comparisons of the study.
    """

    repeats: int
    images: int
    difference: float
    ci95: Interval
    run_ci95: Interval | None
    p: float
    p_holm: float
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class RowResult:
    """One row of a study's table. Fractions are in [0, 1], intervals 95 %; None where nothing has run.

    Attributes:
        value: of the one number in which the rows of the study differ, if that is all they differ in.
        repeats: names of the finished ones.
        images: different images that were measured.
        accuracy: of all answers pooled.
        accuracy_ci95: Wilson's, with images as the units that vary: the scatter of the runs is not in it.
        run_mean: mean of the runs' accuracies.
        run_std: their standard deviation.
        parameters: of the network, FAN's too where it reads FAN's maps; None without a sidecar.
        seconds: that training took, median of the runs; on a machine that does other work too it is noisy.
        comparison: with the reference; None for itself.
    """

    row: str
    value: float | None
    repeats: tuple[str, ...]
    images: int
    accuracy: float | None
    accuracy_ci95: Interval | None
    run_mean: float | None
    run_std: float | None
    mean_class_recall: float | None
    parameters: int | None
    seconds: float | None
    comparison: Comparison | None


Costs = tuple[int | None, float | None]  # `RowResult.parameters`, `RowResult.seconds`
Results = Mapping[str, Mapping[str, Measured]]  # row -> name of a repeat -> what was measured


def analyse(grid: Grid, out: Path) -> dict[str, Any]:
    """Make the tables of what has run so far.

    Args:
        grid: what was run.
        out: folder of `nkf.ablate.ablate`; gets ``ablation.json``, ``tables.md``, a STUDY.png for each study that has
            a run, and STUDY-noise.png where landmark noise was measured.

    Returns:
        What ``ablation.json`` holds.

    Raises:
        NkfError: when a run is of another configuration, or two rows were measured on different images.
    """
    runs = [run for run in grid_runs(grid, out) if run.measured.exists()]
    for run in runs:
        _check(run)
    results: dict[str, dict[str, Measured]] = {row: {} for row in grid.rows}
    for run in runs:
        results[run.row][run.repeat.name] = Measured.read(run.measured)
    costs = {row: training_costs([run.folder for run in runs if run.row == row]) for row in grid.rows}
    base = validated({**grid.base, "name": "base"}, "base")
    document = {
        "schema": 1,
        "date": time.strftime("%Y-%m-%d"),
        "data": [path.name for path in base.data],
        "base": base.model_dump(mode="json", include={"network", "crop_size", "epochs", "batch_size", "targets"}),
        "protocol": base.protocol.model_dump(mode="json", exclude={"expected", "metric", "fold"}),
        "repeats": [repeat.model_dump() for repeat in grid.repeats],
        "machines": sorted({read_damage(file)["machine"] for run in damage_files(runs).values() for _, file in run}),
        "studies": {
            name: study_document(grid, study, results, costs) | damage_document(study, runs, results)
            for name, study in grid.studies.items()
        },
    }
    document = json.loads(json.dumps(document, allow_nan=False))  # the same as when it is read again
    _write(document, out)
    return document


def _check(run: Run) -> None:
    """Refuse numbers that another configuration gave."""
    file = run.folder / "config.yaml"
    if load_config(file) != run.config:
        raise NkfError(f"{file}: is not what the grid says of row {run.row!r}; remove the folder to run it again")


def study_document(grid: Grid, study: Study, results: Results, costs: Mapping[str, Costs]) -> dict[str, Any]:
    """One study: ``title``, ``reference``, ``axis`` (the field that the rows differ in, or None) and ``rows``."""
    axis, values = study_axis({row: grid.config(row, grid.repeats[0]) for row in study.rows})
    rows = [row_result(row, values.get(row), results[row], costs[row]) for row in study.rows]
    compared = {
        row: compare(row, results[row], study.reference, results[study.reference])
        for row in study.rows
        if row != study.reference and results[row].keys() & results[study.reference].keys()
    }
    judged = dict(zip(compared, with_verdicts(list(compared.values())), strict=True))
    rows = [replace(row, comparison=judged.get(row.row)) for row in rows]
    document = {"title": study.title, "reference": study.reference, "axis": axis}
    return document | {"rows": [asdict(row) for row in rows]}


def study_axis(configs: Mapping[str, TrainConfig]) -> tuple[str | None, dict[str, float]]:
    """Find the one number in which some configurations differ: its name and its value by row, or None and nothing."""
    flat = {row: _flat(config.model_dump(mode="json", exclude={"name"})) for row, config in configs.items()}
    fields = {field for fields in flat.values() for field in fields}
    different = [field for field in fields if len({repr(content.get(field)) for content in flat.values()}) > 1]
    if len(different) != 1:
        return None, {}
    values: dict[str, Any] = {row: content.get(different[0]) for row, content in flat.items()}
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values.values()):
        return None, {}
    return different[0], values


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Fields of fields as one level: "network.sigma"."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def row_result(row: str, value: float | None, repeats: Mapping[str, Measured], costs: Costs) -> RowResult:
    """Pool the finished repeats of a row."""
    if not repeats:
        return RowResult(row, value, (), 0, None, None, None, None, None, None, None, None)
    labels, predicted, examples = _pooled(repeats.values())
    right = labels == predicted
    images = len(np.unique(examples))
    classes = next(iter(repeats.values())).probabilities.shape[1]
    recalls = recall_by_class(confusion_matrix(labels, predicted, classes))
    accuracies = [float(one.right.mean()) for one in repeats.values()]
    return RowResult(
        row,
        value,
        tuple(repeats),
        images,
        float(right.mean()),
        wilson_interval(float(right.mean()) * images, images),
        float(np.mean(accuracies)),
        float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else None,
        float(np.nanmean(recalls)),
        *costs,
        None,
    )


def _pooled(parts: Iterable[Measured]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Labels, predicted classes and rows of the pack of several repeats, one after the other."""
    joined = [(one.labels, one.probabilities.argmax(axis=1), one.rows) for one in parts]
    labels, predicted, rows = (np.concatenate(arrays) for arrays in zip(*joined, strict=True))
    return labels, predicted, rows


def compare(
    row: str, results: Mapping[str, Measured], reference: str, references: Mapping[str, Measured]
) -> Comparison:
    """Compare two rows in the repeats that both have; `p_holm` and `verdict` are still those of a single comparison.

    Raises:
        NkfError: when a repeat of one was measured on other images than the other's.
    """
    shared = [name for name in results if name in references]
    for name in shared:
        if not np.array_equal(results[name].rows, references[name].rows):
            raise NkfError(f"rows {row!r} and {reference!r}: measured on different images in {name}")
    mine, theirs = ([one[name].right for name in shared] for one in (results, references))
    right, wrong = np.concatenate(mine), np.concatenate(theirs)
    examples = np.concatenate([results[name].rows for name in shared])
    images = len(np.unique(examples))
    difference, interval = paired_difference(right, wrong, examples)
    if images == len(examples):
        p = mcnemar(right, wrong)
    else:
        gains = example_sums(right.astype(np.int64) - wrong, examples)
        p = sign_test(int((gains > 0).sum()), int((gains < 0).sum()))
    by_run = t_interval([float(a.mean() - b.mean()) for a, b in zip(mine, theirs, strict=True)])
    return Comparison(len(shared), images, difference, interval, by_run, p, p, "too few runs")


def with_verdicts(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Adjust the p-values of a study's comparisons, and judge each."""
    adjusted = holm([one.p for one in comparisons])
    return [replace(one, p_holm=p, verdict=_verdict(one, p)) for one, p in zip(comparisons, adjusted, strict=True)]


def _verdict(one: Comparison, p_holm: float) -> Verdict:
    if one.repeats < FEWEST_RUNS or one.run_ci95 is None:
        return "too few runs"
    (low, high), (run_low, run_high) = one.ci95, one.run_ci95
    if p_holm < LEVEL and min(low, run_low) > 0:
        return "better"
    return "worse" if p_holm < LEVEL and max(high, run_high) < 0 else "no difference shown"


def training_costs(runs: Sequence[Path]) -> Costs:
    """What the runs of a row took."""
    sidecars = [run / kept / "model.json" for run in runs for kept in ("best", "last")]
    parameters = next((read_info(file).parameters for file in sidecars if file.exists()), None)
    times = [seconds for run in runs if (seconds := training_seconds(run)) is not None]
    return parameters, float(np.median(times)) if times else None


def damage_document(study: Study, runs: Sequence[Run], results: Results) -> dict[str, Any]:
    """How the rows of a study stand wrong landmarks and damaged pictures, where their runs were asked.

    Returns:
        ``noise`` and ``robustness``, each None or ``conditions`` with ``rows``: `row`, `runs`, `images`, and for each
        condition ``accuracy``, ``ci95``, and ``difference`` to the reference with ``run_ci95``, over the `compared`
        repeats that both have.
    """
    document = {}
    for name, there in damage_files(runs).items():
        shares = {(run.row, run.repeat.name): read_damage(file)["accuracy"] for run, file in there}
        document[name] = _curves(study, shares, results)
    return document


def damage_files(runs: Sequence[Run]) -> dict[str, list[tuple[Run, Path]]]:
    """The files that are there, by kind."""
    files = {"noise": [(run, run.noise) for run in runs], "robustness": [(run, run.robustness) for run in runs]}
    return {name: [(run, file) for run, file in pairs if file.exists()] for name, pairs in files.items()}


Shares = Mapping[tuple[str, str], Mapping[str, float]]  # (row, name of a repeat) -> condition -> accuracy


def _curves(study: Study, shares: Shares, results: Results) -> dict[str, Any] | None:
    """Pool the repeats; conditions are those of all of the study's runs."""
    mine = {key: value for key, value in shares.items() if key[0] in study.rows}
    if not mine:
        return None
    first = next(iter(mine.values()))
    conditions = [name for name in first if all(name in share for share in mine.values())]
    rows = []
    for row in study.rows:
        repeats = {repeat: share for (of, repeat), share in mine.items() if of == row}
        if repeats:
            references = {repeat: share for (of, repeat), share in shares.items() if of == study.reference != row}
            counted = {repeat: results[row][repeat] for repeat in repeats}
            rows.append({"row": row} | _curve(conditions, repeats, references, counted))
    return {"conditions": conditions, "rows": rows}


def _curve(
    conditions: Sequence[str],
    repeats: Mapping[str, Mapping[str, float]],
    references: Mapping[str, Mapping[str, float]],
    counted: Mapping[str, Measured],
) -> dict[str, Any]:
    """One row's accuracy by condition, and its difference to the reference in the repeats that both have."""
    sizes = np.array([len(counted[repeat].rows) for repeat in repeats])
    images = len(np.unique(np.concatenate([counted[repeat].rows for repeat in repeats])))
    accuracy = [float(np.average([share[name] for share in repeats.values()], weights=sizes)) for name in conditions]
    shared = [one for one in repeats if one in references]
    gains = {name: [repeats[one][name] - references[one][name] for one in shared] for name in conditions}
    return {
        "runs": len(repeats),
        "compared": len(shared),
        "images": images,
        "accuracy": accuracy,
        "ci95": [wilson_interval(share * images, images) for share in accuracy],
        "difference": [float(np.mean(gains[name])) if gains[name] else None for name in conditions],
        "run_ci95": [t_interval(gains[name]) for name in conditions],
    }


def _write(document: dict[str, Any], out: Path) -> None:
    """Write the document, the tables and the pictures that are made from it."""
    with replacing(out / "ablation.json") as partial:
        partial.write_text(json.dumps(document, indent=1) + "\n")
    with replacing(out / "tables.md") as partial:
        partial.write_text(tables_markdown(document))
    for name, study in document["studies"].items():
        if any(row["repeats"] for row in study["rows"]):
            with replacing(out / f"{name}.png") as partial:
                draw_study(study, partial)
        if study["noise"]:
            with replacing(out / f"{name}-noise.png") as partial:
                draw_noise(study["noise"], partial)
