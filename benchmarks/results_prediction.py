"""The sections of docs/results.md about prediction, from what end_to_end.py and folder.py of this folder saved."""

from collections.abc import Mapping
from typing import Any

from nkf.ablation_text import between, interval, percent, points, table

Document = Mapping[str, Any]

END_TO_END, FOLDER = "end_to_end", "folder"  # names of the files
COMMANDS = {
    END_TO_END: "python benchmarks/end_to_end.py",
    FOLDER: "python benchmarks/folder.py",
}
TITLES = {END_TO_END: "## From photo to label", FOLDER: "## Speed of prediction"}
GROUPS = {
    "size": "size of an upright face picture, px",
    "rotation": "rotation either way, degrees",
    "light": "light",
    "faces": "faces in a scene",
    "small": "size below what is aimed at, px",
}
_TARGET = 0.01  # largest loss that is aimed at


def end_to_end_parts(of: Document) -> list[str]:
    """What is lost between a face picture alone and the same face in a scene, by condition."""
    upright, everything = of["upright"], of["all"]
    lead = (
        f"FERPlus {of['split']} faces pasted into grey scenes of 640x480 over pictures without faces; `{of['model']}`"
        " with our own detector and aligner, beside the same network shown the picture alone (as `nkf evaluate` does)."
        " A face that is not found is wrong. *Difference* is paired, in points; *of found faces* leaves the misses out."
    )
    verdict = (
        f"Upright faces of 48 px and more: {percent(upright['end_to_end']['accuracy'])}"
        f" ({interval(upright['end_to_end']['accuracy_ci95'])}) of {upright['n']:,} from photo to label,"
        f" {percent(upright['crop']['accuracy'])} from the picture alone; difference {points(upright['difference'])}"
        f" ({between(upright['difference_ci95'])}). {percent(upright['missed'] / upright['n'], 1)} are missed; of those"
        f" that are found the difference is {points(upright['found']['difference'])}"
        f" ({between(upright['found']['difference_ci95'])}). With those turned, in other light and beside others it is"
        f" {points(everything['difference'])} ({between(everything['difference_ci95'])}) of {everything['n']:,}."
        f" Aimed at was a loss of one point at most: **{_met(upright)}** upright, **{_met(everything)}** with all."
    )
    header = [
        "", "faces", "missed", "photo to label", "picture alone", "difference", "difference of found faces",
        "false faces a scene",
    ]  # fmt: skip
    rows = [_condition("48 px and more: upright", upright), _condition("48 px and more: all conditions", everything)]
    for group, members in of["groups"].items():
        rows += [_condition(f"{GROUPS[group]}: {name}", figures) for name, figures in members.items()]
    return [lead, verdict, table(header, rows)]


def _met(of: Document) -> str:
    return "met" if of["difference"] >= -_TARGET else "not met"


def _condition(name: str, of: Document) -> list[str]:
    found = of.get("found")
    return [
        name,
        f"{of['n']:,}",
        percent(of["missed"] / of["n"], 1),
        f"{percent(of['end_to_end']['accuracy'], 1)} ({interval(of['end_to_end']['accuracy_ci95'], 1)})",
        percent(of["crop"]["accuracy"], 1),
        f"{points(of['difference'])} ({between(of['difference_ci95'])})",
        f"{points(found['difference'])} ({between(found['difference_ci95'])})" if found else "",
        f"{of['false_faces'] / of['scenes']:.3f}",
    ]


def folder_parts(of: Document) -> list[str]:
    """Images a second, what each stage takes beside the bare networks, and the cold start."""
    cold = of["cold_start_seconds"]
    low, high = cold["range"]
    rows = [[name, f"{row['images_per_second']:.1f}"] for name, row in of["throughput"].items()]
    floor = of["floor_ms"]
    beside = {"decode": "decode", "detect": "face", "landmarks": "fan", "classify": of["model"]}
    stages = [
        [stage, f"{value:.1f}", f"{floor[beside[stage]]:.1f}" if beside.get(stage) in floor else ""]
        for stage, value in of["stages_ms"].items()
    ]
    stages.append(["**all**", f"**{sum(of['stages_ms'].values()):.1f}**", f"**{sum(floor.values()):.1f}**"])
    lead = (
        f"{of['n']:,} JPEG photos of 640x480 with {of['faces']:,} faces found in them, from file to expressions; the"
        " best of the rounds, by turns."
    )
    told = (
        "The stages in one pass on one thread, beside the floor: the bare ONNX Runtime calls with the same inputs, and"
        " Pillow's decoding."
    )
    start = (
        f"`nkf predict PHOTO` as a process of its own: {cold['median']:.2f} s, the median of {cold['n']}"
        f" ({low:.2f}–{high:.2f})."
    )
    header = ["stage", "ms an image", "floor, ms"]
    return [lead, table(["", "images/s"], rows), told, table(header, stages), start]


PARTS = {END_TO_END: end_to_end_parts, FOLDER: folder_parts}


def what(name: str, of: Document) -> str:
    """What the numbers of a file are about, for the line under its section."""
    if name == FOLDER:
        return f"`{of['model']}`, {of['n']:,} photos"
    return f"{of['data']} {of['split']}, rule {of['rule']}, {of['groups']['size']['48']['n']:,} faces of each size"
