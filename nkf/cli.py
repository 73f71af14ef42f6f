"""The command ``nkf``: a table of functions, whose signatures and docstrings are the options and the help.

What a command imports that takes time, it imports in its body.
"""

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from nkf.cli_data import DATA_COMMANDS
from nkf.cli_study import STUDY_COMMANDS
from nkf.cli_video import VIDEO_COMMANDS
from nkf.commandline import CommandTable, leave, run
from nkf.progress import track
from nkf.runtime import Device
from nkf.weights import DEFAULT_FAN, DEFAULT_MODEL

File = Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
Folder = Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")]
OutFolder = Annotated[Path, tyro.conf.arg(metavar="DIR", help_behavior_hint="")]
Number = Annotated[float | None, tyro.conf.arg(help_behavior_hint="")]
Pixels = Annotated[int | None, tyro.conf.arg(metavar="PIXELS", help_behavior_hint="")]
Name = Annotated[str, tyro.conf.arg(metavar="NAME")]
ModelName = Annotated[str, tyro.conf.arg(metavar="NAME", help_behavior_hint="")]
PackFolder = Annotated[Path, tyro.conf.arg(metavar="PACK", help_behavior_hint="")]
ConfigFile = Annotated[Path, tyro.conf.arg(metavar="CONFIG", help_behavior_hint="")]
Packs = Annotated[tuple[Path, ...], tyro.conf.arg(metavar="PACK...", help_behavior_hint="")]
Settings = Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE...", help_behavior_hint="")]
Paths = Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="INPUT...", help_behavior_hint="")]
InsAndOut = Annotated[tuple[Path, ...], tyro.conf.arg(metavar="INPUT... OUT_DIR", help_behavior_hint="")]


def predict(
    inputs: Paths = (),
    /,
    *,
    model: Name = DEFAULT_MODEL,
    detector: Name = "auto",
    min_face: Pixels = None,
    min_confidence: Number = None,
    device: Device = "auto",
    workers: int = 0,
    json: File = None,
    jsonl: File = None,
    csv: File = None,
    parquet: File = None,
    annotate: Folder = None,
    explain: Folder = None,
    resume: bool = False,
) -> int:
    """Find the faces in photos and tell their expressions.

    Prints a line for each face, with "uncertain" where no expression is probable enough, and what is wrong with a face
    of low quality: it is small, blurred, turned away, or its landmarks are not to be trusted. Files appear when all is
    done; until then what is done is in a journal beside the first of them, from which --resume goes on. Exit code 0:
    all done (no face in a photo is a result); 1: some inputs could not be read or drawn, each has a line on standard
    error, and a row with status "error" if it could not be read; 2: the command is wrong, nothing is written.

    Examples:
      nkf predict photo.jpg
      nkf predict photo.jpg holiday/ --json result.json --annotate annotated
      nkf predict 'archive/**/*.jpg' --parquet result.parquet --resume
      nkf predict faces/ --detector none --csv - > faces.csv
      find . -name '*.png' -print0 | nkf predict - --jsonl -

    Args:
        inputs: image files, folders (searched with their subfolders), patterns, or - for a list of files on stdin
        model: expression network: a packaged name (see "nkf models"), a run folder, or a weights file
        detector: auto (our own, nkf), nkf, centerface, or none (each image is one face already)
        min_face: look for smaller faces too, from so many pixels on (24 or more); takes longer
        min_confidence: 0 to 1, below which an expression is uncertain; by default the model's own (see "nkf models")
        device: where the networks run; auto takes CUDA if it is available
        workers: batches of photos worked on at once; 0 takes as many as there are cores
        json: write a list with one object an image ("-": to standard output); missing folders are made
        jsonl: write one JSON object a line and image ("-": to standard output, each as soon as it is done)
        csv: write a table with one row a face ("-": to standard output)
        parquet: write such a table with typed columns, and the landmarks
        annotate: write each image with boxes, landmarks and expressions into this folder; it is made if missing
        explain: write pictures of which keypoints carried each expression, and numbers into JSON; takes time
        resume: go on with a run that was stopped; give the same command again
    """
    from nkf.cli_predict import PredictOutputs, PredictSettings, predict_all

    outputs = PredictOutputs(json, jsonl, csv, parquet, annotate, explain)
    settings = PredictSettings(model, detector, device, min_confidence, min_face)
    return predict_all(inputs, outputs, settings, workers=workers, resume=resume)


def align(
    paths: InsAndOut = (),
    /,
    *,
    size: int = 112,
    largest: bool = False,
    detector: Name = "auto",
    device: Device = "auto",
) -> int:
    """Cut the faces out of photos, upright and at one size, and write their landmarks.

    Writes OUT_DIR/crops, with the subfolders of an input folder, and OUT_DIR/landmarks.csv with one row a face: status,
    crop, box, 68 landmarks in pixels of the upright photo, and the matrix from there to the crop. A crop of an earlier
    run is replaced, any other file never. Exit code 0: all done (no face in a photo is a result); 1: some inputs could
    not be read, or crops not written, each has a row with status "error" and a line on standard error; 2: the command
    is wrong, nothing is written.

    Examples:
      nkf align photo.jpg aligned
      nkf align photos/ more/ aligned --size 224 --largest
      nkf align faces/ aligned --detector none

    Args:
        paths: image files, and folders that are searched for images (with their subfolders); last the folder to write
        size: side of a crop in pixels, 8 to 4096
        largest: only the largest face of each photo
        detector: auto (our own, nkf), nkf, centerface, or none (each image is one face already)
        device: where the networks run; auto takes CUDA if it is available
    """
    from nkf.cli_align import align_all

    return align_all(paths, size=size, largest=largest, detector=detector, device=device)


def models(name: ModelName = "", /) -> None:
    """List the models in the package and the systems that can be trained, or show the model card of one.

    Models of kind nkf can be given as --model; those of kind fan find the landmarks, of kind detector the faces.
    Systems without figures have no weights here: 'nkf train' trains them with the configuration that is named.

    Examples:
      nkf models
      nkf models mobile

    Args:
        name: a packaged name, a run folder, or a weights file
    """
    from rich.console import Console

    if name:
        from rich.markdown import Markdown

        from nkf.cards import model_card

        card = model_card(name)
        if sys.stdout.isatty():
            Console().print(Markdown(card))
        else:
            print(card)
        return
    from rich.table import Table
    from rich.text import Text

    from nkf.systems import SYSTEMS
    from nkf.weights import packaged_models

    header = ("name", "kind", "input", "parameters", "MMACs", "classes or paper", "figures", "trained on, or by")
    table = Table(*header, box=None, pad_edge=False)
    for name, info in packaged_models().items():
        data = "\n".join(f"{entry['source']}: {entry['licence']}" for entry in info.training.get("data", []))
        sizes = (f"{info.input_size}", f"{info.parameters:,}", f"{(info.macs or 0) / 1e6:,.0f}")
        texts = (", ".join(info.classes), _as_lines(info.metrics), data)
        table.add_row(name, info.kind, *sizes, *(Text(text) for text in texts))
    table.add_section()
    for system in SYSTEMS:
        sizes = (f"{system.crop_size}", f"{system.parameters:,}", f"{system.macs / 1e6:,.0f}")
        texts = (system.paper, "", f"nkf train configs/{system.config}")
        table.add_row(system.name, system.kind, *sizes, *(Text(text) for text in texts))
    Console(width=None if sys.stdout.isatty() else 180).print(table)


def train(
    config: ConfigFile,
    /,
    *,
    data: Packs = (),
    pretrained: File = None,
    out: Folder = None,
    name: str | None = None,
    seed: int | None = None,
    set: Settings = (),
    max_minutes: float = float("inf"),
    device: Device = "auto",
) -> None:
    """Train a network, or go on with a run that was stopped.

    Writes the run folder: config.yaml, log.jsonl, last/ and best/. On a CPU, a run that is killed and started again
    ends with the same weights as an unbroken one.

    Examples:
      nkf train configs/mobile.yaml
      nkf train configs/mobile-start.yaml --data data/ferplus --pretrained weights.safetensors --max-minutes 30
      nkf train configs/mobile.yaml --name small --set epochs=1 network.sigma=0.1 augment.erase=0
      torchrun --standalone --nproc-per-node 2 -m nkf train configs/cuda/base.yaml

    Args:
        config: YAML file
        data: packs, instead of those in the configuration
        pretrained: starting weights of the backbone, instead of those in the configuration
        out: run folder; by default runs/NAME
        name: of the model and the run, instead of the one in the configuration
        seed: instead of the one in the configuration
        set: settings instead of those in the configuration
        max_minutes: stop after so long; the same command goes on
        device: where to train; auto takes CUDA if it is available
    """
    from nkf.config import load_config, override
    from nkf.runtime import torch_device

    settings = override(load_config(config), set, data=data or None, pretrained=pretrained, name=name, seed=seed)
    run = out or Path("runs") / settings.name
    place = torch_device(device)  # without torch this says what to install
    from nkf import distributed
    from nkf.train import train as run_training

    summary = run_training(settings, run, device=place, max_minutes=max_minutes, progress=track)
    if not distributed.is_main():
        return
    told = {key: f"{value:.4g}" if isinstance(value, float) else str(value) for key, value in summary.items()}
    print(f"{run}:", ", ".join(f"{key} {value}" for key, value in told.items()))
    if not summary["finished"]:
        print("not finished: the same command goes on")


def evaluate(
    data: PackFolder,
    /,
    *,
    out: OutFolder,
    split: Literal["train", "valid", "test"] = "valid",
    model: Name = DEFAULT_MODEL,
    rule: Literal["majority", "argmax8", "argmax10", "distribution"] = "majority",
    landmarks: Literal["fan", "pack"] = "fan",
    device: Device = "auto",
) -> None:
    """Measure an expression network on a split of a pack.

    Writes evaluation.json, predictions.csv and confusion.png.

    Example:
      nkf evaluate data/ferplus --split valid --out results/mobile

    Args:
        data: the pack
        out: folder for the results
        split: which images
        model: a packaged name, a run folder, or a weights file
        rule: how votes become labels
        landmarks: fan finds them with our networks, pack takes those that were imported
        device: where the networks run
    """
    from nkf.evaluate import evaluate as measure

    result = measure(data, split, out, model=model, rule=rule, landmarks=landmarks, device=device, progress=track)
    low, high = result.accuracy_ci95
    print(f"{result.model} on {result.data} {split} ({rule}): accuracy {result.accuracy:.2%}", end="")
    print(f" [{low:.2%}, {high:.2%}], mean of the classes {result.mean_class_accuracy:.2%}, {result.n} images")
    if result.accuracy_leakfree is not None:
        print(f"without copies of training images: {result.accuracy_leakfree:.2%}, {result.n_leakfree} images")
    for column, values in result.groups.items():
        shown = (f"{value} {row['accuracy']:.2%} ({row['n']})" for value, row in values.items())
        print(f"{column}: " + ", ".join(shown))
    print(f"written to {out}")


def evaluate_landmarks(
    data: Packs,
    /,
    *,
    out: OutFolder,
    model: Name = DEFAULT_FAN,
    split: Literal["train", "valid", "test"] = "train",
    which: Literal["held_out", "all"] = "held_out",
    limit: int | None = None,
    passes: Literal["auto", 1, 2] = "auto",
    outlines: bool = False,
    device: Device = "auto",
) -> None:
    """Measure a face alignment network on faces with known landmarks.

    Each face gives one random loose crop: turned up to 60°, scaled up to 30 %, shifted up to 15 %; then crops of one
    rotation, small, blurred and dark faces. Errors are over the distance of the outer eye corners. Writes
    landmarks.json, faces.csv, cumulative.png, calibration.png, cases.png (best, median, worst) and random.png.

    Example:
      nkf evaluate-landmarks data/ferplus data/faces --out results/landmarks

    Args:
        data: packs with landmarks
        out: folder for the results
        model: a packaged name, a run folder, or a weights file
        split: which images
        which: the faces that landmark training holds out, or all
        limit: number of faces for all but the first row
        passes: crops that the network sees of each face: 1, 2, or as many as it needs
        outlines: leave the people's pictures out of the files, so that these can be published
        device: where the network runs
    """
    from nkf.evaluate_landmarks import evaluate_landmarks as measure

    options: dict[str, Any] = {"split": split, "which": which, "limit": limit, "passes": passes, "outlines": outlines}
    result = measure(data, out, model=model, device=device, progress=track, **options)
    rows = result["conditions"] | {"loose, inner 51": result["inner"]} | result["groups"] | result["subsets"]
    print(f"{'':28} {'faces':>6} {'error':>7} {'95 % interval':>16} {'median':>7} {'>10 %':>7}")
    for name, row in rows.items():
        low, high = row["mean_ci95"]
        print(f"{name:28} {row['n']:6} {row['mean']:7.2%} {low:7.2%} - {high:6.2%} {row['median']:7.2%}", end=" ")
        print(f"{row['failures']:7.2%}")
    print("points within the distance for 50, 80, 90, 95 %:", *(f"{v:.1%}" for v in result["coverage"].values()))
    print(f"written to {out}")


def export(
    model: Name,
    /,
    *,
    out: OutFolder,
    name: str | None = None,
    evaluation: File = None,
    calibration: File = None,
) -> None:
    """Write a network as ONNX and safetensors, with its sidecar, in float16.

    Fails if ONNX Runtime and torch disagree by more than 1e-4 in a probability.

    Example:
      nkf export runs/mobile --out exported --evaluation results/evaluation.json

    Args:
        model: a run folder, a packaged name, or a .safetensors file
        out: folder for NAME.onnx, NAME.safetensors and NAME.json
        name: NAME; by default that of the model
        evaluation: evaluation.json of this model; its figures go into the sidecar
        calibration: calibration.json of this model; the exported network gives calibrated probabilities
    """
    from nkf.runtime import torch_device

    torch_device("cpu")  # without torch this says what to install
    from nkf.export import export as write
    from nkf.export import read_calibration, read_figures
    from nkf.weights import find_weights

    about = find_weights(model, (".safetensors",))[1].name
    metrics = read_figures(evaluation, about) if evaluation else {}
    fitted = read_calibration(calibration, about) if calibration else None
    info = write(model, out, name=name, metrics=metrics, calibration=fitted)
    print(*(out / file for file in info.sha256), out / f"{info.name}.json", sep="\n")


def _as_lines(values: dict[str, Any]) -> str:
    """Write nested figures as indented lines, four digits each; tables such as a confusion matrix are left out."""
    lines = []
    for key, value in values.items():
        if isinstance(value, list) and any(isinstance(row, list) for row in value):
            continue
        if isinstance(value, dict):
            lines.append(f"{key}:\n" + textwrap.indent(_as_lines(value), "  "))
        elif isinstance(value, list):
            lines.append(f"{key} {' to '.join(f'{number:.4g}' for number in value)}")
        else:
            lines.append(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}")
    return "\n".join(lines)


COMMANDS: CommandTable = {
    "predict": predict,
    **VIDEO_COMMANDS,
    "align": align,
    "models": models,
    "train": train,
    "evaluate": evaluate,
    "evaluate-landmarks": evaluate_landmarks,
    "export": export,
    **STUDY_COMMANDS,
    "data": DATA_COMMANDS,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: what follows ``nkf``; by default that of this process.
    """
    code = run(COMMANDS, arguments)
    return leave(code) if arguments is None else code
