"""A pack: one folder that holds a dataset as nkf reads it.

    manifest.json      what it is: source, labels, classes, counts, licence, hashes
    rows.arrow         one row an image (`COLUMNS`, and the dataset's own metadata), an Arrow IPC file
    images-00000.bin   the image files, one after the other, in their original encoding; further ones from 1 GiB on
    cache/             crops for training, made when they are needed; may be deleted

Readers map the files into memory, so several processes share one copy. `nkf.data.pack_writer` makes packs.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nkf.data.labels import DROPPED, EXPRESSIONS, VOTE_COLUMNS, LabelRule, distribution_from_votes, labels_from_votes
from nkf.data.listing import SPLITS
from nkf.data.tables import Columns, Table
from nkf.errors import NkfError
from nkf.geometry import NUM_LANDMARKS, Points
from nkf.images import ImageRGB, decode_image

LANDMARK_SOURCES = ("none", "dataset", "teacher", "fan")
MANIFEST_SCHEMA = 2
MAX_OPEN_SHARDS = 256  # each mapped file takes one of the process's file handles
HELD_OUT_SHARE = 10  # see `is_held_out`
COLUMNS: Columns = {
    "name": "text",
    "split": "text",
    "label": "text",
    "votes": ("uint8", len(VOTE_COLUMNS)),
    "distribution": ("float32", len(EXPRESSIONS)),
    "box_xyxy": ("float32", 4),
    "landmarks_px": ("float32", 2 * NUM_LANDMARKS),
    "landmarks_source": "text",
    "file": "text",
    "width": "integer",
    "height": "integer",
    "bytes_md5": "text",
    "pixels_md5": "text",
    "shard": "integer",
    "offset": "integer",
    "length": "integer",
}


# What a manifest has to tell, and whether it does.
_NEEDED: dict[str, Callable[[Any], bool]] = {
    "images": lambda value: isinstance(value, int),
    "images_by_split": lambda value: (
        isinstance(value, dict) and all(split in SPLITS and isinstance(count, int) for split, count in value.items())
    ),
    "shards": lambda value: (
        isinstance(value, list)
        and all(isinstance(shard, dict) and isinstance(shard.get("bytes"), int) for shard in value)
    ),
}


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of a pack.

    Attributes:
        name: what the image is called, unique within its split.
        split: one of `SPLITS`.
        image_bytes: the file as it is.
        label: class name out of `EXPRESSIONS`, or None.
        votes: (10,) counts in the order of `VOTE_COLUMNS`, or None.
        distribution: (8,) shares in the order of `EXPRESSIONS`, or None.
        box_xyxy: (4,) face box in pixels of the upright image, or None.
        landmarks_px: (68, 2) in pixels of the upright image, or None where no face was found.
        landmarks_source: one of `LANDMARK_SOURCES`.
        file: where the image was in its source.
        metadata: further columns, for example the subject, or the teacher's mesh coefficients.
    """

    name: str
    split: str
    image_bytes: bytes
    label: str | None = None
    votes: NDArray[np.uint8] | None = None
    distribution: NDArray[np.float32] | None = None
    box_xyxy: NDArray[np.floating] | None = None
    landmarks_px: Points | None = None
    landmarks_source: str = "none"
    file: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


def pixels_md5(image_rgb: ImageRGB) -> str:
    """MD5 of the decoded pixels row by row; of one channel where the three are equal, as for a grey file."""
    first = image_rgb[..., 0]
    grey = bool((image_rgb == first[..., None]).all())
    return hashlib.md5(np.ascontiguousarray(first if grey else image_rgb).tobytes()).hexdigest()


class Pack:
    """Read a pack.

    Attributes:
        path: the folder.
        manifest: what the importer wrote, with ``schema``, ``classes``, ``images``, ``shards``.

    Raises:
        NkfError: when the folder is no pack, or a damaged one.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        try:
            manifest = json.loads((self.path / "manifest.json").read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise NkfError(f"{path}: no pack (manifest.json is unreadable); make one with 'nkf data import'") from error
        if not isinstance(manifest, dict) or not isinstance(manifest.get("schema"), int):
            raise NkfError(f"{path}: damaged manifest.json (it does not tell its schema); import again")
        if manifest["schema"] != MANIFEST_SCHEMA:
            raise NkfError(f"{path}: pack schema {manifest['schema']}, this nkf reads {MANIFEST_SCHEMA}; import again")
        missing = [name for name, is_right in _NEEDED.items() if not is_right(manifest.get(name))]
        if missing:
            raise NkfError(f"{path}: damaged manifest.json (it does not tell {', '.join(missing)}); import again")
        self.manifest: dict[str, Any] = manifest
        self._open_shard = lru_cache(MAX_OPEN_SHARDS)(self._map_shard)

    @cached_property
    def table(self) -> Table:
        """The rows as they are on disk."""
        table = Table(self.path / "rows.arrow")
        if len(table) != self.manifest.get("images"):
            raise NkfError(f"{table.path}: {len(table)} rows, but manifest.json says {self.manifest.get('images')!r}")
        missing = [name for name in COLUMNS if name not in table.columns]
        if missing:
            raise NkfError(f"{table.path}: damaged table, without the columns {', '.join(missing)}")
        return table

    def __len__(self) -> int:
        return len(self.table)

    def column(self, name: str) -> NDArray[Any]:
        """One column with a row an image, see `Table.column`."""
        return self.table.column(name)

    def metadata(self, name: str) -> NDArray[Any] | None:
        """A column that only some datasets have, such as ``subject``, or None."""
        return self.table.column(name) if name in self.metadata_names else None

    @property
    def metadata_names(self) -> list[str]:
        """Columns beside those that every pack has."""
        return [name for name in self.table.columns if name not in COLUMNS]

    @cached_property
    def names(self) -> NDArray[np.str_]:
        return self.column("name")

    @cached_property
    def splits(self) -> NDArray[np.str_]:
        return self.column("split")

    @cached_property
    def landmarks_px(self) -> NDArray[np.float32]:
        """(N, 68, 2) in pixels of each image; NaN where no face was found."""
        return self.column("landmarks_px").reshape(-1, NUM_LANDMARKS, 2)

    def rows(self, split: str) -> NDArray[np.int64]:
        """Row numbers of one split, in the pack's order."""
        if split not in SPLITS:
            raise NkfError(f"split {split!r}: choose one of {', '.join(SPLITS)}")
        return np.flatnonzero(self.splits == split)

    def labels(self, rule: LabelRule = "majority") -> NDArray[np.int64]:
        """(N,) index into `EXPRESSIONS`: what a rule makes of the votes, or the label; `DROPPED` for neither."""
        return class_numbers(self.column("votes"), self.column("label"), rule)

    def distributions(self) -> NDArray[np.float32]:
        """(N, 8) shares of the expressions: given, or of the votes, or one-hot by the label."""
        votes, given = self.column("votes"), self.column("distribution")
        one_hot = np.eye(len(EXPRESSIONS) + 1, len(EXPRESSIONS), dtype=np.float32)[_numbers(self.column("label"))]
        shares = np.where(votes.any(axis=1, keepdims=True), distribution_from_votes(votes), one_hot)
        return np.where(np.isfinite(given).all(axis=1, keepdims=True), given, shares)

    @cached_property
    def _places(self) -> NDArray[np.int64]:
        return np.stack([self.column(name) for name in ("shard", "offset", "length")], axis=1)

    def __reduce__(self) -> tuple[type["Pack"], tuple[Path]]:
        """Another process opens the pack anew."""
        return Pack, (self.path,)

    @property
    def shard_files(self) -> list[Path]:
        """The image files; their names are those of the format, whatever a manifest says."""
        return [self.path / shard_name(number) for number in range(len(self.manifest["shards"]))]

    def _map_shard(self, number: int) -> NDArray[np.uint8]:
        file = self.path / shard_name(number)
        try:
            expected = self.manifest["shards"][number]["bytes"]
        except IndexError as error:
            raise NkfError(
                f"{self.path}: damaged manifest.json (it does not tell of {file.name}); import again"
            ) from error
        try:
            images = np.memmap(file, np.uint8, "r")
        except (OSError, ValueError) as error:  # missing or empty
            raise NkfError(f"{file}: unreadable images of a pack ({error})") from error
        if len(images) != expected:
            raise NkfError(f"{file}: damaged pack, {len(images)} bytes, expected {expected}")
        return images

    def image_bytes(self, row: int) -> bytes:
        """The file of one row as it was imported."""
        shard, offset, length = self._places[row]
        return self._open_shard(int(shard))[offset : offset + length].tobytes()

    def image(self, row: int) -> ImageRGB:
        """Decode one row: (H, W, 3) uint8, upright."""
        return decode_image(self.image_bytes(row), f"{self.path}: {self.names[row]}")


def refuse_doubles(names: NDArray[np.str_], where: str) -> None:
    """Raise `NkfError` where a name comes twice among those of a split."""
    ordered = np.sort(names)
    doubled = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if len(doubled):
        raise NkfError(f"{where}: {len(doubled)} names come twice, such as {doubled[0]}")


def shard_name(number: int) -> str:
    """File of the images of one shard."""
    return f"images-{number:05}.bin"


def class_numbers(votes: NDArray[np.uint8], labels: NDArray[np.str_], rule: LabelRule) -> NDArray[np.int64]:
    """(N,) index into `EXPRESSIONS` of what a rule makes of the votes (N, 10), or of the label where there are none."""
    return np.where(votes.any(axis=1), labels_from_votes(votes, rule), _numbers(labels))


def _numbers(labels: NDArray[np.str_]) -> NDArray[np.int64]:
    names, inverse = np.unique(labels, return_inverse=True)
    return np.array([EXPRESSIONS.index(name) if name in EXPRESSIONS else DROPPED for name in names], int)[inverse]


def is_held_out(pixels_md5: NDArray[np.str_]) -> NDArray[np.bool_]:
    """Choose the rows that training on landmarks never sees: about one in ten, copies of a picture together."""
    return np.array([int(digest[:8], 16) % HELD_OUT_SHARE == 0 for digest in pixels_md5], dtype=bool)
