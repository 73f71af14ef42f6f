"""The commands that study networks: grids of runs, robustness, calibration, reports, a teacher's answers."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from nkf.commandline import CommandTable
from nkf.errors import NkfError
from nkf.progress import track
from nkf.report import require_matplotlib
from nkf.runtime import Device, torch_device
from nkf.weights import DEFAULT_MODEL

Folder = Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")]
OutFolder = Annotated[Path, tyro.conf.arg(metavar="DIR", help_behavior_hint="")]
OutFile = Annotated[Path, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
PackFolder = Annotated[Path, tyro.conf.arg(metavar="PACK", help_behavior_hint="")]
OtherPack = Annotated[Path | None, tyro.conf.arg(metavar="PACK", help_behavior_hint="")]
GridFile = Annotated[Path, tyro.conf.arg(metavar="GRID", help_behavior_hint="")]
RunFolder = Annotated[Path, tyro.conf.arg(metavar="RUN", help_behavior_hint="")]
Name = Annotated[str, tyro.conf.arg(metavar="NAME")]
Names = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME...")]
Model = Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME")]
Split = Literal["train", "valid", "test"]
Rule = Literal["majority", "argmax8", "argmax10", "distribution"]
Landmarks = Literal["fan", "pack"]


def ablate(
    grid: GridFile,
    /,
    *,
    out: OutFolder,
    studies: Names = (),
    max_minutes: float = float("inf"),
    device: Device = "auto",
) -> None:
    """Train and measure the rows of a grid, repeat by repeat, and make the tables.

    What is finished is not done again, what was stopped goes on; rows and repeats may be added to the file. Writes a
    run folder for each row and repeat, and from their saved numbers ablation.json, tables.md and a plot of each study.
    Rows are compared on the same images (McNemar's test) and over repeats.

    Examples:
      nkf ablate configs/ablation/parts.yaml --out runs/ablation-tiny --max-minutes 60
      nkf ablate configs/ablation/parts.yaml --out runs/ablation-tiny --studies parts sigma

    Args:
        grid: YAML file with base, rows, repeats and studies
        out: folder of the runs and the tables
        studies: only the rows of these
        max_minutes: stop after so long, and make the tables of what is there; 0 makes the tables alone
        device: where to train; auto takes CUDA if it is available
    """
    require_matplotlib()  # before hours of training, not after
    place = torch_device(device)  # without torch this says what to install
    from nkf.ablate import Measured, grid_runs
    from nkf.ablate import ablate as run_grid
    from nkf.ablation_grid import load_grid
    from nkf.ablation_tables import analyse

    content = load_grid(grid)
    count = len(grid_runs(content, out, studies))
    done = 0
    for run in run_grid(content, out, studies=studies, device=place, max_minutes=max_minutes, progress=track):
        done += 1
        accuracy = Measured.read(run.measured).right.mean()
        print(f"{done}/{count} {run.row}, {run.repeat.name}: accuracy {accuracy:.2%}", flush=True)
    analyse(content, out)
    print((out / "tables.md").read_text(), end="")
    print(f"written to {out}")
    if done < count:
        print(f"not finished: {count - done} runs are left, the same command goes on")


def compare(
    grid: GridFile,
    /,
    *,
    out: OutFolder,
    max_minutes: float = float("inf"),
    rounds: int = 10,
    device: Device = "auto",
) -> None:
    """Train systems on the same images with the same budget and seeds, and make the table of what they reach and cost.

    The grid is one of 'nkf ablate' with a study "systems"; its field "minutes" stops each training after so long. What
    is finished is not done again, what was stopped goes on. Weights, multiply-adds and latency are of all systems, of
    those that have not run yet too. Writes compare.json and compare.md beside what 'nkf ablate' writes.

    Examples:
      nkf compare configs/compare/cpu.yaml --out runs/compare-cpu
      nkf compare configs/compare/cpu.yaml --out runs/compare-cpu --max-minutes 0

    Args:
        grid: YAML file with base, rows, repeats and studies
        out: folder of the runs and the tables
        max_minutes: train for so long in all; 0 makes the table alone
        rounds: times that latency is measured
        device: where to train and to measure; auto takes CUDA if it is available
    """
    require_matplotlib()  # before hours of training, not after
    place = torch_device(device)
    from nkf.ablate import Measured, grid_runs
    from nkf.ablate import ablate as run_grid
    from nkf.ablation_grid import load_grid
    from nkf.compare import STUDY
    from nkf.compare import compare as make_table

    content = load_grid(grid)
    count = len(grid_runs(content, out, [STUDY]))
    done = 0
    for run in run_grid(content, out, studies=[STUDY], device=place, max_minutes=max_minutes, progress=track):
        done += 1
        accuracy = Measured.read(run.measured).right.mean()
        print(f"{done}/{count} {run.row}, {run.repeat.name}: accuracy {accuracy:.2%}", flush=True)
    make_table(content, out, device=place, rounds=rounds)
    print((out / "compare.md").read_text(), end="")
    print(f"written to {out}")
    if done < count:
        print(f"not finished: {count - done} runs are left, the same command goes on")


def robustness(
    data: PackFolder,
    /,
    *,
    out: OutFolder,
    model: Name = DEFAULT_MODEL,
    split: Split = "valid",
    rule: Rule = "majority",
    landmarks: Landmarks = "fan",
    limit: int | None = None,
    colour: bool = False,
    seed: int = 0,
    device: Device = "auto",
) -> None:
    """Measure how an expression network stands damaged pictures and wrong landmarks, or the loss of colour.

    Each kind of damage has five severities, relative to the size of the face. Writes robustness.json, robustness.csv,
    robustness.png and landmark_noise.png; with --colour only colour.json.

    Examples:
      nkf robustness data/ferplus --out results/robustness --limit 500
      nkf robustness data/fairface --colour --split train --out results/colour

    Args:
        data: the pack
        out: folder for the results
        model: a packaged name, a run folder, or a weights file
        split: which images
        rule: how votes become labels
        landmarks: fan finds them in each damaged picture, pack moves the imported ones along
        limit: number of images, drawn at random; by default all
        colour: compare the answers for colour pictures and for their grey versions instead; no labels are needed
        seed: of the damage, and of that choice
        device: where the networks run
    """
    from nkf.robustness import colour_agreement, measure_robustness

    if colour:
        found = colour_agreement(
            data, out, model=model, split=split, landmarks=landmarks, limit=limit, seed=seed, device=device,
            progress=track,
        )  # fmt: skip
        low, high = found["agreement_ci95"]
        print(f"{found['model']}: the same answer in colour and in grey for {found['agreement']:.2%}", end=" ")
        print(f"[{low:.2%}, {high:.2%}] of {found['n']} pictures\nwritten to {out}")
        return
    result = measure_robustness(
        data, out, model=model, split=split, rule=rule, landmarks=landmarks, limit=limit, seed=seed, device=device,
        progress=track,
    )  # fmt: skip
    print(f"{result['model']}: clean accuracy {result['clean']['accuracy']:.2%}, {result['n']} images")
    print(f"{'accuracy at severity':20}" + "".join(f"{severity:8}" for severity in range(1, 6)))
    for name, rows in result["corruptions"].items():
        print(f"{name:20}" + "".join(f"{row['accuracy']:8.1%}" for row in rows))
    print(f"written to {out}")


def calibrate(
    data: PackFolder,
    /,
    *,
    out: OutFolder,
    model: Name = DEFAULT_MODEL,
    split: Split = "valid",
    rule: Rule = "majority",
    landmarks: Landmarks = "fan",
    method: Literal["auto", "temperature", "class_bias"] = "auto",
    target_accuracy: float = 0.95,
    device: Device = "auto",
) -> None:
    """Fit what makes a network's probabilities honest, and the confidence below which it had better not answer.

    Fitted and judged on different folds of the split. Writes calibration.json, reliability.png and coverage.png; "nkf
    export --calibration" puts it into the network.

    Example:
      nkf calibrate data/ferplus --model runs/mobile --out results/calibration

    Args:
        data: the pack
        out: folder for the results
        model: a packaged name, a run folder, or a weights file
        split: which images; not those that are reported later
        rule: how votes become labels
        landmarks: fan finds them with our networks, pack takes those that were imported
        method: temperature changes no answer; class_bias may; auto takes class_bias where it is clearly better
        target_accuracy: that the answers above the confidence threshold are to reach
        device: where the networks run
    """
    from nkf.calibration import calibrate as fit

    result = fit(
        data, out, model=model, split=split, rule=rule, landmarks=landmarks, method=method,
        target_accuracy=target_accuracy, device=device, progress=track,
    )  # fmt: skip
    print(f"{result['model']}: {result['method']}, temperature {result['temperature']:.3f}, {result['n']} images")
    print(f"{'':8} {'accuracy':>9} {'ECE':>7} {'95 % interval':>16} {'NLL':>7} {'Brier':>7}")
    for name in ("before", "after"):
        row = result[name]
        low, high = row["ece_ci95"]
        print(f"{name:8} {row['accuracy']:9.2%} {row['ece']:7.2%} {low:7.2%} - {high:6.2%}", end=" ")
        print(f"{row['nll']:7.4f} {row['brier']:7.4f}")
    kept = result["at_min_confidence"]
    if kept["accuracy"] is None:
        print(f"no confidence from which on {target_accuracy:.0%} of the answers are right")
    else:
        print(f"confidence of {result['min_confidence']:.3f} and more: {kept['coverage']:.1%} of the faces,", end=" ")
        print(f"{kept['accuracy']:.1%} right")
    print(f"written to {out}")


def report(
    run: RunFolder,
    /,
    *,
    out: OutFile,
    data: OtherPack = None,
    worst: int = 24,
    pictures: bool = True,
    device: Device = "auto",
) -> None:
    """Write a run's report: one HTML file with curves, confusion, worst mistakes as pictures.

    It holds pictures of people out of the dataset, unless told otherwise: keep it to yourself.

    Example:
      nkf report runs/mobile --out mobile.html

    Args:
        run: run folder of "nkf train"
        out: HTML file
        data: the pack, where it is not where the run's configuration says
        worst: number of mistakes to show
        pictures: with the pictures of the mistakes
        device: where the network runs
    """
    if out.is_dir():
        raise NkfError(f"{out}: a folder, expected a name for the HTML file")
    from nkf.run_report import write_run_report

    write_run_report(run, out, data=data, worst=worst, pictures=pictures, device=device, progress=track)
    print(f"written to {out}")


def soft_labels(data: PackFolder, /, *, out: OutFile, model: Model = (), device: Device = "auto") -> None:
    """Write what one or several networks say of every face of a pack, to train others with.

    The mean of their probabilities for the face and its mirror image, in a file that "soft_labels" and "unlabelled" of
    a configuration take.

    Examples:
      nkf soft-labels data/ferplus --model runs/large --out runs/large/ferplus.safetensors
      nkf soft-labels data/faces --model runs/a --model runs/b --out faces.safetensors

    Args:
        data: the pack
        out: file, .safetensors
        model: a packaged name, a run folder, or a weights file; may be given several times; by default mobile
        device: where the networks run
    """
    place = torch_device(device)
    from nkf.soft_labels import make_soft_labels

    print(make_soft_labels(data, model or (DEFAULT_MODEL,), out, device=place, progress=track))


STUDY_COMMANDS: CommandTable = {
    "ablate": ablate,
    "compare": compare,
    "robustness": robustness,
    "calibrate": calibrate,
    "report": report,
    "soft-labels": soft_labels,
}
