"""Read FER+ (Barsoum et al., ICMI 2016) in each layout in which it is passed on.

* Folders, as the reference code writes them: ``FER2013Train``, ``FER2013Valid``, ``FER2013Test``, each with PNG files
  and a ``label.csv`` without header: name, box, ten votes.
* Two tables: ``fer2013.csv`` with the pixels and ``fer2013new.csv`` with the votes, joined row by row.

The votes of the two label files differ in 1,602 of 35,710 images, so a pack says which one it has.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nkf.data.labels import FERPLUS_COLUMNS, votes_from_ferplus
from nkf.data.sources import MAX_TABLE_BYTES, Entry, Source, some
from nkf.errors import ImageError, NkfError
from nkf.images import IMAGE_SUFFIXES
from nkf.progress import Progress, no_progress

LabelFile = Literal["label_csv", "fer2013new"]

SPLIT_OF_FOLDER = {"FER2013Train": "train", "FER2013Valid": "valid", "FER2013Test": "test"}
FOLDER_OF_USAGE = {"Training": "FER2013Train", "PublicTest": "FER2013Valid", "PrivateTest": "FER2013Test"}
SIDE = 48

Row = tuple[int, list[str]]  # line number in the file, fields


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


@dataclass(frozen=True, slots=True)
class FerplusListing:
    """What a FER+ source holds, its images not read yet.

    Attributes:
        layout: ``folders`` or ``csv``.
        label_file: where the votes come from, ``label_csv`` or ``fer2013new``.
        entries: the labelled images, train first.
        warnings: one line each.
        superseded: labels of earlier rows with a name that comes again; the known counts include them.
    """

    layout: Literal["folders", "csv"]
    label_file: LabelFile
    entries: list[Entry]
    warnings: list[str]
    superseded: list[FerplusLabel]


def list_ferplus(source: Source, fer2013new: Path | None = None, progress: Progress = no_progress) -> FerplusListing:
    """List the images of a FER+ source with their votes.

    Args:
        source: holds the folder layout or the two tables, at its top or deeper; where it holds both, folders win.
        fer2013new: a ``fer2013new.csv`` whose votes replace those of the folders' ``label.csv``, joined by name.
        progress: shows how far the reading of the tables is; folders are listed in a moment.

    Raises:
        NkfError: when the source has neither layout, or a table has a broken row.
    """
    folders = _find_folders(source)
    if folders:
        return _list_folders(source, folders, fer2013new)
    tables = {PurePosixPath(name).name: name for name in source.names}
    if "fer2013.csv" in tables and "fer2013new.csv" in tables:
        if fer2013new is not None:
            raise NkfError(f"{source.path}: has a fer2013new.csv of its own; leave out {fer2013new}")
        return _list_tables(source, tables["fer2013.csv"], tables["fer2013new.csv"], progress)
    if source.path.name in SPLIT_OF_FOLDER and "label.csv" in source.names:
        raise NkfError(f"{source.path}: is one split of FER+; name the folder that holds it, {source.path.parent}")
    raise NkfError(
        f"{source.path}: no FER+ data; expected {', '.join(SPLIT_OF_FOLDER)} (any of them) with a label.csv each, "
        "or fer2013.csv with fer2013new.csv"
    )


def _find_folders(source: Source) -> dict[str, PurePosixPath]:
    """Where each split's folder lies in the source, by its name."""
    found: dict[str, PurePosixPath] = {}
    for parent in sorted({PurePosixPath(name).parent for name in source.names}):
        if parent.name in SPLIT_OF_FOLDER and parent != found.setdefault(parent.name, parent):
            raise NkfError(f"{source.path}: has {parent.name} twice, in {found[parent.name]} and in {parent}")
    return {folder: found[folder] for folder in SPLIT_OF_FOLDER if folder in found}


def _list_folders(source: Source, folders: dict[str, PurePosixPath], fer2013new: Path | None) -> FerplusListing:
    if fer2013new is None:
        labels = [label for folder in folders.values() for label in _read_label_csv(source, folder)]
    else:
        rows = _read_csv(_read_file(fer2013new), str(fer2013new))
        labels = [label for label in _parse_fer2013new(rows, str(fer2013new)) if label.name and label.folder in folders]
    labels, superseded = _last_of_doubles(labels)
    warnings = _warn_of_doubles(labels, superseded)
    listed = {f"{folders[label.folder]}/{label.name}" for label in labels}
    stray = [name for name in _images_in(source, folders) if name not in listed]
    if stray:
        table = "label.csv" if fer2013new is None else fer2013new
        warnings.append(f"{source.path}: {len(stray)} images left out, not in {table} ({some(stray)})")
    entries = [_folder_entry(source, folders[label.folder], label) for label in labels]
    label_file: LabelFile = "label_csv" if fer2013new is None else "fer2013new"
    return FerplusListing("folders", label_file, entries, warnings, superseded)


def _folder_entry(source: Source, folder: PurePosixPath, label: FerplusLabel) -> Entry:
    member = f"{folder}/{label.name}"
    return Entry(
        name=label.name,
        split=SPLIT_OF_FOLDER[label.folder],
        file=f"{source.path}: {member}",
        read=partial(source.read, member),
        folder=label.folder,
        votes=label.votes,
        box_xyxy=label.box_xyxy,
    )


def _images_in(source: Source, folders: dict[str, PurePosixPath]) -> Iterator[str]:
    parents = set(folders.values())
    for name in source.names:
        path = PurePosixPath(name)
        if path.suffix.lower() in IMAGE_SUFFIXES and path.parent in parents:
            yield name


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


def _list_tables(source: Source, pixel_table: str, vote_table: str, progress: Progress) -> FerplusListing:
    """Join by row order: the number in an image's name is not the number of its row."""
    pixel_rows = _read_csv(_read_member(source, pixel_table), f"{source.path}: {pixel_table}")
    vote_file = f"{source.path}: {vote_table}"
    labels = list(_parse_fer2013new(_read_csv(_read_member(source, vote_table), vote_file), vote_file))
    images = _parse_fer2013(pixel_rows, f"{source.path}: {pixel_table}")
    joined: list[tuple[FerplusLabel, bytes]] = []
    for row, label in enumerate(progress(labels, "Reading", len(labels)), 2):
        folder, pixels = next(images, ("", b""))
        if folder != label.folder:
            raise NkfError(
                f"{vote_file}, line {row}: is of {label.folder}, but the same line of fer2013.csv of "
                f"{folder or 'no image'}; the two files have to go together row by row"
            )
        if label.name:
            joined.append((label, _encode_png(pixels)))
    if next(images, None) is not None:
        raise NkfError(f"{vote_file}: fewer rows than fer2013.csv; the two files have to go together row by row")
    names, warnings = _unique_names([label for label, _ in joined])
    entries = [
        Entry(
            name=name,
            split=SPLIT_OF_FOLDER[label.folder],
            file=f"{source.path}: {name}",
            read=partial(bytes, png),
            folder=label.folder,
            votes=label.votes,
        )
        for name, (label, png) in zip(names, joined, strict=True)
    ]
    return FerplusListing("csv", "fer2013new", entries, warnings, [])


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


def _read_label_csv(source: Source, folder: PurePosixPath) -> Iterator[FerplusLabel]:
    member = f"{folder}/label.csv"
    where = f"{source.path}: {member}"
    if member not in source.names:
        raise NkfError(f"{where}: missing; FER+ has a label.csv in each of its folders")
    line = 0
    for line, fields in _read_csv(_read_member(source, member), where):
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
        yield FerplusLabel(folder.name, name, votes, np.array([x0, y0, x1, y1], np.float32))
    if not line:
        raise NkfError(f"{where}: empty; expected a row for each image: name, box, ten votes")


def _parse_fer2013new(rows: Iterator[Row], where: str) -> Iterator[FerplusLabel]:
    """Every row of the table; rows whose image the annotators refused have an empty name."""
    _, header = next(rows, (1, []))
    if [field.strip() for field in header[:3]] != ["Usage", "Image name", "neutral"] or len(header) != 12:
        raise NkfError(f"{where}, line 1: expected the header Usage,Image name,neutral,... of fer2013new.csv")
    for line, fields in rows:
        if len(fields) != len(header):
            raise NkfError(f"{where}, line {line}: {len(fields)} fields, expected 12: usage, name, ten votes")
        folder = _parse_usage(fields[0], where, line)
        yield FerplusLabel(folder, _parse_name(fields[1], where, line), _parse_votes(fields[2:], where, line))


def _parse_fer2013(rows: Iterator[Row], where: str) -> Iterator[tuple[str, bytes]]:
    """Folder that the row belongs to, and 48x48 grey bytes row by row."""
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
    if name in (".", "..") or "/" in name or "\\" in name or not name.isprintable():
        raise NkfError(f"{where}, line {line}: image name {name!r}, expected a plain file name")
    return name


def _parse_votes(fields: list[str], where: str, line: int) -> NDArray[np.uint8]:
    try:
        votes = np.array([bytes([int(field)])[0] for field in fields])  # bytes refuses what is not in 0 ... 255
    except ValueError as error:
        raise NkfError(f"{where}, line {line}: votes {','.join(fields)}, expected ten whole numbers") from error
    return votes_from_ferplus(votes[None])[0]


def _read_csv(data: bytes, where: str) -> Iterator[Row]:
    reader = csv.reader(io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", newline=""))
    try:
        yield from ((reader.line_num, fields) for fields in reader if fields)
    except UnicodeDecodeError as error:
        raise NkfError(f"{where}: not a text table (UTF-8)") from error
    except csv.Error as error:
        raise NkfError(f"{where}, line {reader.line_num}: not a csv table ({error})") from error


def _read_member(source: Source, member: str) -> bytes:
    try:
        return source.read(member, MAX_TABLE_BYTES)
    except ImageError as error:
        raise NkfError(str(error)) from error


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise NkfError(f"{path}: {error.strerror}") from error


def _encode_png(pixels: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.frombytes("L", (SIDE, SIDE), pixels).save(buffer, "PNG")
    return buffer.getvalue()
