"""Images beside a table of one's own: a CSV, TSV or Parquet file with a row for each face.

Columns are known by their names, in upper or lower case:

    path                          the image, relative to the table's folder; has to be there
    label                         name of a class
    neutral, happiness, ...       votes: whole numbers, at least two of the classes; also unknown, not_a_face (or nf)
    p_neutral, p_happiness, ...   shares with the sum 1; classes without a column have none
    split                         train, valid or test; without the column all rows are train
    x0, y0, x1, y1                box of the face in pixels
    lm00_x, lm00_y ... lm67_y     landmarks in pixels, under the names that ``nkf align`` writes
    subject, photo, group         text; rows that share one of them stay in one split when splits are made
    any other                     metadata

Of label, votes and shares one has to be there; a label beside votes counts where nobody voted. A row with shares and
without a label gets as label the class with the largest share, or none where several are the largest.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nkf.data.formats.synonyms import (
    NUMBERS_DIFFER,
    OWN_TERMS,
    SPLIT_NAMES,
    SYNONYMS,
    canonical,
    known_classes,
    perhaps,
    split_of,
)
from nkf.data.formats.table_files import Cells, Table, find_table, folder_of, open_table
from nkf.data.labels import EXPRESSIONS, VOTE_COLUMNS
from nkf.data.listing import MAX_COORDINATE, Entry, Listing, MetadataType, Problems
from nkf.data.sources import Source, is_printable, join, some
from nkf.errors import NkfError
from nkf.geometry import NUM_LANDMARKS, Points

BOX = ("x0", "y0", "x1", "y1")
LANDMARKS = tuple(f"lm{point:02}_{axis}" for point in range(NUM_LANDMARKS) for axis in "xy")
SHARE_PREFIX = "p_"
NO_EXPRESSION = {"unknown": "unknown", "not_a_face": "not_a_face", "nf": "not_a_face"}
MAX_VOTES = np.iinfo(np.uint8).max
SUM_TOLERANCE = 0.01  # shares are often written with two digits
# Names that a pack or a shard gives a meaning of its own.
RESERVED = frozenset({
    "name", "votes", "distribution", "box_xyxy", "landmarks_px", "landmarks_source", "pixels_md5", "bytes_md5", "width",
    "height", "shard", "offset", "length", "member", "folder", "image",
})  # fmt: skip
# Columns of one type in any table. All others of a text file stay text: "007" is no 7, and an age may be "20-29".
KNOWN_TYPES: Mapping[str, MetadataType] = {
    "valence": "number", "arousal": "number", "yaw": "number", "subject": "text", "photo": "text", "group": "text",
}  # fmt: skip
_BARE_NUMBER = re.compile(r"[-+]?\d+(\.0*)?")
_METADATA_NAME = re.compile(r"\w[\w .()-]*")  # becomes part of a file name


class _BadRow(Exception):
    """What is wrong with a row; becomes an `NkfError` that says where."""


@dataclass(frozen=True, slots=True)
class _Columns:
    """Positions in a row; None or empty for what the table does not have.

    `votes` maps a position in `VOTE_COLUMNS`, `shares` one in `EXPRESSIONS`, to one in the row.
    """

    names: Sequence[str]
    path: int
    label: int | None
    split: int | None
    votes: Mapping[int, int]
    shares: Mapping[int, int]
    box: Sequence[int]
    landmarks: Sequence[int]
    metadata: Mapping[str, int]
    types: Mapping[str, MetadataType]


def list_table(
    source: Source,
    table: str | None = None,
    *,
    shows: Literal["face", "photo"] = "photo",
    licence: str = OWN_TERMS,
) -> Listing:
    """List the images of a table.

    Args:
        source: holds the table and the images.
        table: name of the table in the source; by default the only one at the top, or in the one folder there.
        shows: whether each image, or the box of its row, is one face, or a photo in which it has to be found.
        licence: terms of the data, for the manifest.

    Raises:
        NkfError: when there is no such table, or it lacks columns or has contradictory ones; and while the entries are
            iterated, for the first row that cannot be understood.
    """
    try:
        name = find_table(source) if table is None else _safe(table)
    except _BadRow as error:
        raise NkfError(f"{source.path}: table {error}") from error
    opened = open_table(source, name)
    columns = _find_columns(opened)
    details = {"layout": "table", "label_file": name}
    listing = Listing("table", licence, (), shows, details, metadata=columns.types, total=opened.total)
    listing.warnings += _nearly_known(opened, columns)
    listing.entries = _entries(opened, columns, folder_of(name), listing.warnings)
    return listing


def _find_columns(table: Table) -> _Columns:
    names = [name.strip().lower() for name in table.header]
    at = _positions(table, names)
    votes = _class_columns(table, at, "") | {NO_EXPRESSION[name]: at[name] for name in NO_EXPRESSION if name in at}
    if not votes.keys() & set(EXPRESSIONS):
        votes = {}  # a column "unknown" alone is no vote
    shares = _class_columns(table, at, SHARE_PREFIX)
    _check_labels(table, names, votes, shares)
    used = {"path", "label", "split", *BOX, *LANDMARKS, *(names[at] for at in (*votes.values(), *shares.values()))}
    metadata = {name: position for name, position in at.items() if name not in used}
    for name in metadata:
        if name in RESERVED or not _METADATA_NAME.fullmatch(name):
            why = "a name that packs use themselves" if name in RESERVED else "not fit for a file name"
            raise NkfError(f"{table.where}: column {name!r} is {why}; rename it or leave it out")
    return _Columns(
        names=names,
        path=at["path"],
        label=at.get("label"),
        split=at.get("split"),
        votes={VOTE_COLUMNS.index(name): position for name, position in votes.items()},
        shares={EXPRESSIONS.index(name): position for name, position in shares.items()},
        box=_all_or_none(table, at, BOX),
        landmarks=_all_or_none(table, at, LANDMARKS),
        metadata=metadata,
        types={name: KNOWN_TYPES.get(name, table.types[position]) for name, position in metadata.items()},
    )


def _positions(table: Table, names: Sequence[str]) -> dict[str, int]:
    at: dict[str, int] = {}
    for position, name in enumerate(names):
        if not name:
            raise NkfError(f"{table.where}: column {position + 1} has no name; name it or leave it out")
        if name in at:
            raise NkfError(f"{table.where}: two columns {name!r}; expected each name once, upper or lower case")
        at[name] = position
    if len(names) == 1 and ";" in names[0]:
        raise NkfError(f"{table.where}: fields separated by semicolons; expected commas, or tabs in a file *.tsv")
    if "path" not in at:
        raise NkfError(f"{table.where}: no column path; found {some(names, 10)}")
    return at


def _class_columns(table: Table, at: Mapping[str, int], prefix: str) -> dict[str, int]:
    """Position of the column of each class, for the columns whose name is a prefix and a class."""
    columns: dict[str, int] = {}
    for name, position in at.items():
        label = canonical(name.removeprefix(prefix)) if name.startswith(prefix) else None
        if label is not None and label in columns:
            raise NkfError(f"{table.where}: two columns for {label}, {name!r} is the second; expected one")
        if label is not None:
            columns[label] = position
    return columns


def _check_labels(table: Table, names: Sequence[str], votes: Mapping[str, int], shares: Mapping[str, int]) -> None:
    if len(votes.keys() & set(EXPRESSIONS)) == 1:
        raise NkfError(f"{table.where}: votes for {next(iter(votes))} alone; expected columns for two classes or more")
    if {"not_a_face", "nf"} <= set(names) and votes:
        raise NkfError(f"{table.where}: two columns for not_a_face, the other is nf; expected one")
    if votes and shares:
        raise NkfError(f"{table.where}: both votes (neutral, ...) and shares (p_neutral, ...); expected one of them")
    if not votes and not shares and "label" not in names:
        raise NkfError(
            f"{table.where}: no labels; expected a column label, or votes in columns neutral, happiness, ..., or "
            f"shares in columns p_neutral, p_happiness, ...; found {some(names, 10)}"
        )


def _all_or_none(table: Table, at: Mapping[str, int], names: Sequence[str]) -> list[int]:
    missing = [name for name in names if name not in at]
    if 0 < len(missing) < len(names):
        raise NkfError(
            f"{table.where}: columns {some(missing)} missing; expected all {len(names)} of {names[0]} ... {names[-1]}, "
            "or none"
        )
    return [] if missing else [at[name] for name in names]


def _nearly_known(table: Table, columns: _Columns) -> list[str]:
    """Warnings of metadata columns that are probably misspelt: a lost column "split" would make all rows train."""
    known = ("path", "label", "split", *EXPRESSIONS, *(SHARE_PREFIX + name for name in EXPRESSIONS))
    hints = {name: perhaps(name, known, nearness=0.8) for name in columns.metadata if name not in KNOWN_TYPES}
    return [f"{table.where}: column {name!r} is taken for metadata{hint}" for name, hint in hints.items() if hint]


def _entries(table: Table, columns: _Columns, folder: str, warnings: list[str]) -> Iterator[Entry]:
    names = _Names()
    problems = Problems(table.where)
    for number, cells in table.rows():
        try:
            path = _safe(_text(cells[columns.path]))
            split = _split(cells, columns)
            box = _box(cells, columns)
            distribution = _distribution(cells, columns)
            label = None if columns.label is None else _label(cells[columns.label])
            entry = Entry(
                name=names.unique(split, path, box),
                split=split,
                member=join(folder, path),
                label=label or _likeliest(distribution),
                votes=_votes(cells, columns),
                distribution=distribution,
                box_xyxy=box,
                landmarks_px=_landmarks(cells, columns),
                metadata=_metadata(cells, columns),
            )
        except _BadRow as error:
            raise NkfError(f"{table.where}, {table.unit} {number}: {error}") from error
        if entry.label is None and entry.votes is None:
            why = "" if entry.distribution is None else ", several classes have the largest share"
            problems.add(f"rows without a label{why}", entry.name)
        yield entry
    warnings += problems.warnings()


class _Names:
    """Names of faces: the path, and a number from the second face of a photo on.

    Holds hashes instead of the paths themselves, of which there may be a million.
    """

    def __init__(self) -> None:
        self._faces: Counter[int] = Counter()
        self._boxes: set[int] = set()

    def unique(self, split: str, path: str, box: NDArray[np.float32] | None) -> str:
        photo, whole = hash((split, path)), hash((split, path, None))
        this = whole if box is None else hash((split, path, *box.tolist()))
        if self._faces[photo] and (this in self._boxes or whole in self._boxes or box is None):
            boxes = "without a box of its own" if box is None or whole in self._boxes else "with the same box"
            raise _BadRow(f"path {path!r} again in {split}, {boxes}; expected one row for each face")
        self._faces[photo] += 1
        self._boxes.add(this)
        count = self._faces[photo]
        return path if count == 1 else f"{path}#{count}"


def _text(cell: Any) -> str:
    return "" if cell is None else str(cell)


def _safe(path: str) -> str:
    """A path below the folder it is relative to, or an error."""
    parts = PurePosixPath(path).parts
    outside = not parts or ".." in parts or parts[0].startswith("/") or parts[0].endswith(":")
    if outside or "\\" in path or not is_printable(path):
        raise _BadRow(f"path {path!r}, expected a relative file name with / between folders")
    return PurePosixPath(path).as_posix()


def _split(cells: Cells, columns: _Columns) -> str:
    if columns.split is None:
        return "train"
    name = _text(cells[columns.split])
    split = split_of(name)
    if split is None:
        raise _BadRow(f"split {name!r}, expected one of {', '.join(SPLIT_NAMES)}{perhaps(name, SPLIT_NAMES)}")
    return split


def _label(cell: Any) -> str | None:
    name = _text(cell).strip()
    if not name:
        return None
    label = canonical(name)
    if label is None and _BARE_NUMBER.fullmatch(name):
        raise _BadRow(f"label {name!r}: {NUMBERS_DIFFER}")
    if label is None:
        raise _BadRow(f"label {name!r}, expected one of {known_classes()}{perhaps(name, SYNONYMS)}")
    return label


def _votes(cells: Cells, columns: _Columns) -> NDArray[np.uint8] | None:
    """(10,) counts; an empty cell is no vote, and None is a row without any."""
    votes = np.zeros(len(VOTE_COLUMNS), np.uint8)
    for vote, position in columns.votes.items():
        count = _number(cells[position], columns.names[position], "a whole number of votes") or 0
        if count != int(count) or not 0 <= count <= MAX_VOTES:
            hint = "; shares belong in columns p_neutral, p_happiness, ..." if 0 < count < 1 else ""
            raise _BadRow(f"{columns.names[position]} {count:g}, expected a whole number from 0 to {MAX_VOTES}{hint}")
        votes[vote] = int(count)
    return votes if votes.any() else None


def _distribution(cells: Cells, columns: _Columns) -> NDArray[np.float32] | None:
    """(8,) shares with the sum 1; None where all cells are empty."""
    shares = np.zeros(len(EXPRESSIONS))
    empty = True
    for expression, position in columns.shares.items():
        share = _number(cells[position], columns.names[position], "a share")
        if share is not None and share < 0:
            raise _BadRow(f"{columns.names[position]} {share:g}, expected a share from 0 to 1")
        shares[expression] = share or 0
        empty = empty and share is None
    if empty:
        return None
    if abs(shares.sum() - 1) > SUM_TOLERANCE:
        raise _BadRow(f"shares with the sum {shares.sum():.4g}, expected 1")
    return (shares / shares.sum()).astype(np.float32)


def _likeliest(distribution: NDArray[np.float32] | None) -> str | None:
    """The one class with the largest share, or None."""
    largest = [] if distribution is None else np.flatnonzero(distribution == distribution.max()).tolist()
    return EXPRESSIONS[largest[0]] if len(largest) == 1 else None


def _box(cells: Cells, columns: _Columns) -> NDArray[np.float32] | None:
    sides = _numbers(cells, columns, columns.box, "box")
    if sides is not None and not (sides[0] < sides[2] and sides[1] < sides[3]):
        raise _BadRow(f"box {', '.join(f'{side:g}' for side in sides)} is empty, expected x0 < x1 and y0 < y1")
    return sides


def _landmarks(cells: Cells, columns: _Columns) -> Points | None:
    numbers = _numbers(cells, columns, columns.landmarks, "landmarks")
    if numbers is None:
        return None
    points = numbers.reshape(-1, 2)
    if (points == points[0]).all():
        raise _BadRow("landmarks that are all one point, expected those of a face")
    return points


def _numbers(cells: Cells, columns: _Columns, positions: Sequence[int], what: str) -> NDArray[np.float32] | None:
    """Numbers of cells that are filled together; None where all of them are empty."""
    numbers = [_number(cells[position], columns.names[position], "pixels") for position in positions]
    filled = [number for number in numbers if number is not None]
    if filled and len(filled) < len(numbers):
        empty = columns.names[positions[numbers.index(None)]]
        raise _BadRow(f"{what} with an empty {empty}, expected all {len(numbers)} numbers or none")
    for number, position in zip(filled, positions, strict=False):
        if abs(number) > MAX_COORDINATE:
            name = columns.names[position]
            raise _BadRow(
                f"{name} {number:,.10g}, expected pixels from -{MAX_COORDINATE:,.0f} to {MAX_COORDINATE:,.0f}"
            )
    return np.array(filled, np.float32) if filled else None


def _number(cell: Any, name: str, expected: str) -> float | None:
    """A finite number, or None for an empty cell."""
    text = _text(cell).strip()
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or "_" in text:  # Python reads 1_000, nobody else does
        raise _BadRow(f"{name} {text!r}, expected {expected}")
    return number


def _metadata(cells: Cells, columns: _Columns) -> dict[str, Any]:
    return {name: _value(cells[at], name, columns.types[name]) for name, at in columns.metadata.items()}


def _value(cell: Any, name: str, kind: MetadataType) -> Any:
    """A value of its column's type, None for an empty cell."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return None  # a NaN is how some programs leave a cell of a Parquet file empty
    if kind == "text":
        whole = isinstance(cell, float) and cell.is_integer()  # so do they write integers when some are missing
        return str(int(cell) if whole else cell).strip() or None
    if isinstance(kind, int):
        return [math.nan if value is None else value for value in cell]
    return int(cell) if kind == "integer" else _number(cell, name, "a number")
