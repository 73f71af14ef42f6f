"""Read FER+ (Barsoum et al., ICMI 2016) in each layout in which it is passed on.

* Folders, as the reference code writes them: ``FER2013Train``, ``FER2013Valid``, ``FER2013Test``, each with PNG files
  and a ``label.csv`` without header: name, box, ten votes.
* Two tables: ``fer2013.csv`` with the pixels and ``fer2013new.csv`` with the votes, joined row by row.

The votes of the two label files differ in 1,602 of 35,710 images, so a pack says which one it has.
"""

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nkf.data.formats.folders import is_kaggle_fer2013
from nkf.data.labels import FERPLUS_COLUMNS, votes_from_ferplus
from nkf.data.listing import Entry, KnownCount, KnownCounts, LabelSource, Listing
from nkf.data.sources import (
    Children,
    FolderSource,
    Source,
    find_roots,
    is_image,
    is_printable,
    join,
    read_table,
    some,
)  # fmt: skip
from nkf.errors import NkfError

LabelFile = Literal["label_csv", "fer2013new"]

LICENCE = (
    "Labels: FER+, MIT licence, Microsoft. Images: FER-2013, collected from web search for a contest at ICML 2013 and "
    "passed on under its rules; the rights in the pictures were never cleared and the MIT licence does not cover them. "
    "Weights trained on this are research weights."
)
SPLIT_OF_FOLDER = {"FER2013Train": "train", "FER2013Valid": "valid", "FER2013Test": "test"}
FOLDER_OF_USAGE = {"Training": "FER2013Train", "PublicTest": "FER2013Valid", "PrivateTest": "FER2013Test"}
SIDE = 48


def _known(total: int, *by_class: int) -> KnownCount:
    return KnownCount(total, dict(zip(FERPLUS_COLUMNS, by_class, strict=False)))


# Counted from Microsoft's fer2013new.csv (one image a row, doubled names twice) and from the label.csv files that its
# generator writes. With label.csv and majority the literature's "28,236 train" is train and valid together.
KNOWN: Mapping[LabelFile, Mapping[LabelSource, Mapping[str, KnownCount]]] = {
    "fer2013new": {
        "majority": {
            "train": _known(25_060, 8740, 7287, 3149, 3014, 2100, 119, 532, 119),
            "valid": _known(3_199, 1182, 865, 415, 351, 287, 24, 62, 13),
            "test": _known(3_153, 1090, 893, 396, 384, 273, 18, 83, 16),
        },
        "argmax10": {
            "train": _known(28_389, 10309, 7528, 3562, 3515, 2467, 191, 652, 165),
            "valid": _known(3_553, 1335, 899, 456, 412, 319, 34, 74, 24),
            "test": _known(3_546, 1262, 928, 444, 444, 325, 23, 93, 27),
        },
        "argmax8": {
            "train": _known(28_559, 10388, 7539, 3588, 3549, 2478, 194, 656, 167),
            "valid": _known(3_579, 1347, 899, 459, 418, 320, 36, 75, 25),
            "test": _known(3_573, 1278, 929, 446, 448, 326, 23, 94, 29),
        },
    },
    "label_csv": {
        "majority": {
            "train": _known(25_045, 8733, 7284, 3136, 3022, 2098, 116, 536, 120),
            "valid": _known(3_191, 1180, 862, 411, 348, 289, 25, 60, 16),
            "test": _known(3_137, 1083, 892, 394, 382, 269, 16, 86, 15),
        },
        "argmax10": {"train": _known(28_385), "valid": _known(3_555), "test": _known(3_545)},
        "argmax8": {"train": _known(28_556), "valid": _known(3_579), "test": _known(3_573)},
    },
}


@dataclass(frozen=True, slots=True)
class FerplusLabel:
    """One row of a label file.

    Attributes:
        folder: a key of `SPLIT_OF_FOLDER`.
        name: file name of the image, empty where there is none.
        votes: (10,) counts in the order of `VOTE_COLUMNS`.
        box_xyxy: (4,) face box in pixels, where the file has one.
    """

    folder: str
    name: str
    votes: NDArray[np.uint8]
    box_xyxy: NDArray[np.float32] | None = None


def list_ferplus(source: Source, *, fer2013new: Path | None = None) -> Listing:
    """List the images of FER+ with their votes.

    Args:
        source: holds the folder layout or the two tables, at its top or deeper; where it holds both, folders win.
        fer2013new: a ``fer2013new.csv`` whose votes replace those of the folders' ``label.csv``, joined by name.

    Raises:
        NkfError: when the source has neither layout, or a table has a broken row.
    """
    folders = _find_folders(source)
    if folders:
        return _list_folders(source, folders, fer2013new)
    tables = find_roots(source, lambda _, __, children: {"fer2013.csv", "fer2013new.csv"} <= set(children.files))
    if tables:
        if fer2013new is not None:
            raise NkfError(f"{source.path}: has a fer2013new.csv of its own; leave out {fer2013new}")
        return _list_tables(source, join(tables[0], "fer2013.csv"), join(tables[0], "fer2013new.csv"))
    raise NkfError(f"{source.path}: {_what_else(source)}")


def _what_else(source: Source) -> str:
    """Say what a source without FER+ in it is, and what is expected."""
    expected = (
        f"expected {', '.join(SPLIT_OF_FOLDER)} (any of them) with a label.csv each, or fer2013.csv with fer2013new.csv"
    )
    if source.path.name in SPLIT_OF_FOLDER and source.has("label.csv"):
        return f"is one split of FER+; name the folder that holds it, {source.path.parent}"
    if find_roots(source, lambda _, __, children: "fer2013.csv" in children.files):
        return f"has fer2013.csv alone, with FER-2013's old labels; {expected}"
    if is_kaggle_fer2013(source):
        return f"is Kaggle's folder copy of FER-2013, without votes, its test merged of two splits; {expected}"
    return f"no FER+ data; {expected}"


def _listing(
    source: Source,
    layout: str,
    label_file: LabelFile,
    entries: Iterable[Entry],
    labels: Sequence[FerplusLabel],
    warnings: list[str],
    superseded: Sequence[FerplusLabel] = (),
) -> Listing:
    known: KnownCounts = KNOWN[label_file]
    return Listing(
        dataset="ferplus",
        licence=LICENCE,
        entries=entries,
        details={"layout": layout, "label_file": label_file},
        known=known,
        warnings=warnings,
        uncounted=[(SPLIT_OF_FOLDER[label.folder], label.votes) for label in superseded],
        total=len(labels),
    )


def _find_folders(source: Source) -> dict[str, str]:
    """Where each split's folder lies in the source, by its name."""
    found: dict[str, str] = {}

    def is_split(_: Source, folder: str, __: Children) -> bool:
        name = PurePosixPath(folder).name
        if name in SPLIT_OF_FOLDER and folder != found.setdefault(name, folder):
            raise NkfError(f"{source.path}: has {name} twice, in {found[name]} and in {folder}")
        return name in SPLIT_OF_FOLDER

    find_roots(source, is_split)
    return {folder: found[folder] for folder in SPLIT_OF_FOLDER if folder in found}


def _list_folders(source: Source, folders: dict[str, str], fer2013new: Path | None) -> Listing:
    if fer2013new is None:
        labels = [label for folder in folders.values() for label in _read_label_csv(source, folder)]
    else:
        beside = FolderSource(fer2013new.parent)
        labels = [
            label for label in _parse_fer2013new(beside, fer2013new.name) if label.name and label.folder in folders
        ]
    labels, superseded = _last_of_doubles(labels)
    warnings = _warn_of_doubles(labels, superseded)
    listed = {f"{folders[label.folder]}/{label.name}" for label in labels}
    stray = [name for name in _images_in(source, folders) if name not in listed]
    if stray:
        table = "label.csv" if fer2013new is None else fer2013new
        warnings.append(f"{source.path}: {len(stray)} images left out, not in {table} ({some(stray)})")
    entries = (_folder_entry(folders[label.folder], label) for label in labels)
    label_file: LabelFile = "label_csv" if fer2013new is None else "fer2013new"
    return _listing(source, "folders", label_file, entries, labels, warnings, superseded)


def _folder_entry(folder: str, label: FerplusLabel) -> Entry:
    return Entry(
        name=label.name,
        split=SPLIT_OF_FOLDER[label.folder],
        member=f"{folder}/{label.name}",
        folder=label.folder,
        votes=label.votes,
        box_xyxy=label.box_xyxy,
    )


def _images_in(source: Source, folders: dict[str, str]) -> Iterator[str]:
    for folder in folders.values():
        yield from (join(folder, name) for name in source.children(folder).files if is_image(name))


def _last_of_doubles(labels: list[FerplusLabel]) -> tuple[list[FerplusLabel], list[FerplusLabel]]:
    """Keep the last row of each name, as the reference code does, which writes the later picture over the earlier."""
    last: dict[tuple[str, str], FerplusLabel] = {}
    superseded = []
    for label in labels:
        before = last.pop((label.folder, label.name), None)
        if before is not None:
            superseded.append(before)
        last[label.folder, label.name] = label
    return list(last.values()), superseded


def _warn_of_doubles(labels: list[FerplusLabel], superseded: list[FerplusLabel]) -> list[str]:
    if not superseded:
        return []
    votes = {(label.folder, label.name): label.votes for label in labels}
    contradictory = [label.name for label in superseded if (votes[label.folder, label.name] != label.votes).any()]
    detail = f"; their votes differ: {some(contradictory)}" if contradictory else ""
    names = some([label.name for label in superseded])
    return [f"{len(superseded)} names are listed twice, the last row counts: {names}{detail}"]


def _list_tables(source: Source, pixel_table: str, vote_table: str) -> Listing:
    """Join by row order: the number in an image's name is not the number of its row."""
    labels = list(_parse_fer2013new(source, vote_table))
    names, warnings = _unique_names([label for label in labels if label.name])
    entries = _join_tables(source, pixel_table, vote_table, labels, iter(names))
    return _listing(source, "csv", "fer2013new", entries, labels, warnings)


def _join_tables(
    source: Source, pixel_table: str, vote_table: str, labels: Sequence[FerplusLabel], names: Iterator[str]
) -> Iterator[Entry]:
    where = f"{source.path}: {vote_table}"
    images = _parse_fer2013(source, pixel_table)
    for row, label in enumerate(labels, 2):
        folder, pixels = next(images, ("", b""))
        if folder != label.folder:
            raise NkfError(
                f"{where}, line {row}: is of {label.folder}, but the same line of fer2013.csv of "
                f"{folder or 'no image'}; the two files have to go together row by row"
            )
        if label.name:
            yield Entry(
                name=next(names),
                split=SPLIT_OF_FOLDER[label.folder],
                member=f"{pixel_table}, line {row}",
                image_bytes=_encode_png(pixels),
                folder=label.folder,
                votes=label.votes,
            )
    if next(images, None) is not None:
        raise NkfError(f"{where}: fewer rows than fer2013.csv; the two files have to go together row by row")


def _unique_names(labels: Sequence[FerplusLabel]) -> tuple[list[str], list[str]]:
    """Rename all but the last image of each name, as in the folder layout the last one has it."""
    names: list[str] = []
    doubled: list[str] = []
    seen: dict[tuple[str, str], int] = {}
    for label in reversed(labels):
        key = (label.folder, label.name)
        seen[key] = seen.get(key, 0) + 1
        path = PurePosixPath(label.name)
        names.append(label.name if seen[key] == 1 else f"{path.stem}-{seen[key]}{path.suffix}")
        if seen[key] == 2:
            doubled.append(label.name)
    warning = f"{len(doubled)} names occur twice; the earlier image is renamed to NAME-2 ({some(doubled[::-1])})"
    return names[::-1], [warning] if doubled else []


def _read_label_csv(source: Source, folder: str) -> Iterator[FerplusLabel]:
    member = f"{folder}/label.csv"
    where = f"{source.path}: {member}"
    if not source.has(member):
        raise NkfError(f"{where}: missing; FER+ has a label.csv in each of its folders")
    line = 0
    for line, fields in read_table(source, member):
        if len(fields) != 2 + len(FERPLUS_COLUMNS):
            raise NkfError(f"{where}, line {line}: {len(fields)} fields, expected 12: name, box, ten votes")
        try:
            x0, y0, x1, y1 = (float(side) for side in fields[1].strip(" ()").split(","))
        except ValueError as error:
            raise NkfError(f"{where}, line {line}: box {fields[1]!r}, expected (x0, y0, x1, y1)") from error
        if not (0 <= x0 < x1 and 0 <= y0 < y1):
            raise NkfError(f"{where}, line {line}: box {fields[1]!r} is empty, expected (x0, y0, x1, y1)")
        name = _parse_name(fields[0], where, line)
        if not name:
            raise NkfError(f"{where}, line {line}: no image name")
        votes = _parse_votes(fields[2:], where, line)
        yield FerplusLabel(PurePosixPath(folder).name, name, votes, np.array([x0, y0, x1, y1], np.float32))
    if not line:
        raise NkfError(f"{where}: empty; expected a row for each image: name, box, ten votes")


def _parse_fer2013new(source: Source, table: str) -> Iterator[FerplusLabel]:
    """Every row of the table; rows whose image the annotators refused have an empty name."""
    rows, where = read_table(source, table), f"{source.path}: {table}"
    _, header = next(rows, (1, []))
    if [field.strip() for field in header[:3]] != ["Usage", "Image name", "neutral"] or len(header) != 12:
        raise NkfError(f"{where}, line 1: expected the header Usage,Image name,neutral,... of fer2013new.csv")
    for line, fields in rows:
        if len(fields) != len(header):
            raise NkfError(f"{where}, line {line}: {len(fields)} fields, expected 12: usage, name, ten votes")
        folder = _parse_usage(fields[0], where, line)
        yield FerplusLabel(folder, _parse_name(fields[1], where, line), _parse_votes(fields[2:], where, line))


def _parse_fer2013(source: Source, table: str) -> Iterator[tuple[str, bytes]]:
    """Folder that the row belongs to, and 48x48 grey bytes row by row."""
    rows, where = read_table(source, table), f"{source.path}: {table}"
    _, header = next(rows, (1, []))
    if [field.strip() for field in header] != ["emotion", "pixels", "Usage"]:
        raise NkfError(f"{where}, line 1: expected the header emotion,pixels,Usage of fer2013.csv")
    for line, fields in rows:
        try:
            pixels = bytes(map(int, fields[1].split()))
        except (ValueError, IndexError) as error:
            raise NkfError(f"{where}, line {line}: pixels have to be integers from 0 to 255") from error
        if len(fields) != 3 or len(pixels) != SIDE * SIDE:
            raise NkfError(f"{where}, line {line}: {len(pixels)} pixels, expected emotion, 48x48 pixels, usage")
        yield _parse_usage(fields[2], where, line), pixels


def _parse_usage(text: str, where: str, line: int) -> str:
    try:
        return FOLDER_OF_USAGE[text.strip()]
    except KeyError:
        raise NkfError(f"{where}, line {line}: usage {text!r}, expected one of {', '.join(FOLDER_OF_USAGE)}") from None


def _parse_name(text: str, where: str, line: int) -> str:
    name = text.strip()
    if name in (".", "..") or "/" in name or "\\" in name or not is_printable(name):
        raise NkfError(f"{where}, line {line}: image name {name!r}, expected a plain file name")
    return name


def _parse_votes(fields: list[str], where: str, line: int) -> NDArray[np.uint8]:
    try:
        votes = np.array([bytes([int(field)])[0] for field in fields])  # bytes refuses what is not in 0 ... 255
    except ValueError as error:
        raise NkfError(f"{where}, line {line}: votes {','.join(fields):.100}, expected ten whole numbers") from error
    return votes_from_ferplus(votes[None])[0]


def _encode_png(pixels: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.frombytes("L", (SIDE, SIDE), pixels).save(buffer, "PNG")
    return buffer.getvalue()
