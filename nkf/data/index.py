"""The list of a dataset's images, kept on disk while they are imported.

A dataset is listed once: going on after a kill, the images come from here and not from a million small files again.
Images of test come first, then valid, then train, so that train can do without what the others have.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from nkf.data.labels import EXPRESSIONS, VOTE_COLUMNS
from nkf.data.listing import SPLITS, Entry, Listing, MetadataType, known_from_json, known_to_json
from nkf.data.pack import COLUMNS, refuse_doubles
from nkf.data.tables import Columns, ColumnType, Table, TableWriter
from nkf.errors import NkfError
from nkf.files import replacing
from nkf.geometry import NUM_LANDMARKS
from nkf.progress import Progress

BATCH = 2048
MAX_TEXT = 1000  # characters; in memory each text of a column takes as much space as its longest
MAX_INTEGER = 2**63 - 1
ORDER = SPLITS[::-1]
_COLUMNS: Columns = {
    "name": "text",
    "member": "text",
    "image_bytes": "bytes",
    "folder": "text",
    "label": "text",
    "votes": ("uint8", len(VOTE_COLUMNS)),
    "distribution": ("float32", len(EXPRESSIONS)),
    "box_xyxy": ("float32", 4),
    "landmarks_px": ("float32", 2 * NUM_LANDMARKS),
}


def write_index(
    listing: Listing,
    folder: Path,
    progress: Progress,
    warnings: Sequence[str] = (),
    opened: Mapping[str, Sequence[int]] | None = None,
) -> None:
    """Write a listing's entries into ``index-SPLIT.arrow``, and last, what it says of them, ``index-done.json``.

    Args:
        listing: of the dataset.
        folder: for the files.
        progress: shows how far it is.
        warnings: of the source; they may grow while it is listed, and come before the listing's own.
        opened: what `Source.opened` tells; may grow too.

    Raises:
        NkfError: when a name comes twice in a split, or an entry does not fit into a table.
    """
    metadata = metadata_columns(listing)
    columns = {**_COLUMNS, **{f"meta_{name}": kind for name, kind in metadata.items()}}
    with ExitStack() as stack:
        tables = {
            split: stack.enter_context(TableWriter(_file(folder, split), columns, {"split": split})) for split in ORDER
        }
        entries_left = iter(progress(listing.entries, "Listing", listing.total or 0))
        while entries := list(islice(entries_left, BATCH)):
            for split, table in tables.items():
                rows = [_row(entry, listing) for entry in entries if entry.split == split]
                if rows:
                    table.write(rows)
    for split in ORDER:
        names = Table(_file(folder, split), mapped=False).column("name")
        refuse_doubles(names, f"{listing.dataset}: {split}")
    with replacing(folder / "index-done.json") as partial, partial.open("w") as stream:
        stream.write(json.dumps(_about(listing, warnings, opened or {})))
        stream.flush()
        os.fsync(stream.fileno())


def _about(listing: Listing, warnings: Sequence[str], opened: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    return {
        "dataset": listing.dataset,
        "licence": listing.licence,
        "shows": listing.shows,
        "details": listing.details,
        "metadata": listing.metadata,
        "warnings": [*warnings, *listing.warnings],
        "left_out": listing.left_out,
        "known": known_to_json(listing.known),
        "uncounted": [(split, votes.tolist()) for split, votes in listing.uncounted],
        "opened": dict(opened),
    }


class Index:
    """Read what `write_index` wrote.

    Attributes:
        listing: of the dataset; its entries are all of the index.
        opened: files that the listing was made of, see `Source.opened`.

    Raises:
        NkfError: when it is damaged.
    """

    def __init__(self, folder: Path) -> None:
        try:
            content: dict[str, Any] = json.loads((folder / "index-done.json").read_text())
        except (OSError, ValueError) as error:
            raise NkfError(f"{folder}: damaged (index-done.json); remove it to start anew") from error
        self.opened: dict[str, list[int]] = content["opened"]
        self._tables = {split: Table(_file(folder, split), mapped=False) for split in ORDER}
        self.listing = Listing(
            **{key: content[key] for key in ("dataset", "licence", "shows", "details", "metadata", "warnings")},
            entries=self.entries(),
            known=known_from_json(content["known"]),
            left_out=Counter(content["left_out"]),
            uncounted=[(split, np.array(votes, np.uint8)) for split, votes in content["uncounted"]],
            total=len(self),
        )

    @staticmethod
    def exists(folder: Path) -> bool:
        """Tell whether the index of a folder is complete."""
        return (folder / "index-done.json").exists()

    def __len__(self) -> int:
        return sum(map(len, self._tables.values()))

    def count(self, split: str) -> int:
        """Number of entries of one split."""
        return len(self._tables[split])

    def entries(self, start: int = 0) -> Iterator[Entry]:
        """Entries in the index's order, from a number on."""
        for split, table in self._tables.items():
            if start < len(table):
                yield from (_entry(split, row) for row in table.rows(start))
            start = max(0, start - len(table))


def metadata_columns(listing: Listing) -> dict[str, ColumnType]:
    """The columns of a dataset's metadata.

    Raises:
        NkfError: when one has the name of a column that every pack has.
    """
    clash = [name for name in listing.metadata if name in COLUMNS]
    if clash:
        raise NkfError(f"{listing.dataset}: a metadata column cannot be called {', '.join(clash)}")
    return {name: _column_type(kind) for name, kind in listing.metadata.items()}


def _column_type(kind: MetadataType) -> ColumnType:
    return ("float32", kind) if isinstance(kind, int) else kind


def _file(folder: Path, split: str) -> Path:
    return folder / f"index-{split}.arrow"


def _row(entry: Entry, listing: Listing) -> dict[str, Any]:
    texts = {"its name": entry.name, "its file": entry.member}
    texts |= {name: value for name, value in entry.metadata.items() if listing.metadata.get(name) == "text"}
    for name, value in texts.items():
        if value is not None and len(value) > MAX_TEXT:
            raise NkfError(f"{_what(entry, listing)}: {name} has {len(value):,} characters, at most {MAX_TEXT:,} fit")
    for name, value in entry.metadata.items():
        if listing.metadata.get(name) == "integer" and value is not None and not -MAX_INTEGER <= value <= MAX_INTEGER:
            raise NkfError(f"{_what(entry, listing)}: {name} {value}, expected a whole number of at most 63 bits")
    row = {name: getattr(entry, name) for name in _COLUMNS}
    return row | {f"meta_{name}": value for name, value in entry.metadata.items()}


def _what(entry: Entry, listing: Listing) -> str:
    return f"{listing.dataset}: {entry.split}, {entry.name[:100]!r}"


def _entry(split: str, row: dict[str, Any]) -> Entry:
    fields = {name: row[name] for name in _COLUMNS}
    if fields["landmarks_px"] is not None:
        fields["landmarks_px"] = fields["landmarks_px"].reshape(NUM_LANDMARKS, 2)
    metadata = {name.removeprefix("meta_"): value for name, value in row.items() if name.startswith("meta_")}
    return Entry(split=split, metadata=metadata, **fields)
