"""A pack: one folder that holds a dataset as nkf reads it.

    manifest.json     what it is: source, label file, classes, counts, licence, hashes
    images.bin        the image files, one after the other, in their original encoding
    NAME.npy          one column a file, one row an image (`COLUMNS`, and metadata columns named ``meta_NAME``)

A pack is written under a temporary name and renamed when it is whole.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nkf import __version__
from nkf.data.labels import DROPPED, EXPRESSIONS, VOTE_COLUMNS, LabelRule, distribution_from_votes, labels_from_votes
from nkf.errors import NkfError
from nkf.geometry import NUM_LANDMARKS, Points
from nkf.images import ImageRGB, decode_image

SPLITS = ("train", "valid", "test")
LANDMARK_SOURCES = ("none", "dataset", "teacher", "fan")
MANIFEST_SCHEMA = 1
HELD_OUT_SHARE = 10  # see `is_held_out`
COLUMNS = ("name", "split", "offset", "votes", "label", "box_xyxy", "landmarks_px", "landmarks_source", "pixels_md5")


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of a dataset, as an importer reads it.

    Attributes:
        name: file name, unique within its split.
        split: one of `SPLITS`.
        image_bytes: the file as it is.
        votes: (10,) counts in the order of `VOTE_COLUMNS`, or None.
        label: class name out of `EXPRESSIONS`, for datasets without votes, or None.
        box_xyxy: (4,) face box in pixels of the upright image, or None for the whole image.
        landmarks_px: (68, 2) in pixels of the upright image, or None where no face was found.
        landmarks_source: one of `LANDMARK_SOURCES`.
        metadata: further columns, for example the subject, or the teacher's mesh coefficients.
    """

    name: str
    split: str
    image_bytes: bytes
    votes: NDArray[np.uint8] | None = None
    label: str | None = None
    box_xyxy: NDArray[np.floating] | None = None
    landmarks_px: Points | None = None
    landmarks_source: str = "none"
    metadata: Mapping[str, Any] = field(default_factory=dict)


def pixels_md5(image_rgb: ImageRGB) -> str:
    """MD5 of the decoded pixels row by row; of one channel where the three are equal, as for a grey file."""
    first = image_rgb[..., 0]
    grey = bool((image_rgb == first[..., None]).all())
    return hashlib.md5(np.ascontiguousarray(first if grey else image_rgb).tobytes()).hexdigest()


class PackWriter:
    """Write samples into a new pack: ``with PackWriter(path, manifest) as pack: pack.add(sample)``.

    Nothing appears under `path` unless the block ends without an error.

    Raises:
        NkfError: when `path` exists already.
    """

    def __init__(self, path: Path, manifest: Mapping[str, Any]) -> None:
        if path.exists():
            raise NkfError(f"{path}: exists already; name a new folder for the pack")
        self.path = path
        self.manifest = dict(manifest)
        self._partial = path.with_name(path.name + ".partial")
        self._rows: list[dict[str, Any]] = []
        self._offset = 0

    def __enter__(self) -> Self:
        shutil.rmtree(self._partial, ignore_errors=True)
        with self._writing():
            self._partial.mkdir(parents=True)
            self._images = (self._partial / "images.bin").open("wb")
        self._sha256 = hashlib.sha256()
        return self

    def add(self, sample: Sample) -> None:
        """Append one image.

        Raises:
            ImageError: when the image can't be decoded; the pack is as it was before.
        """
        digest = pixels_md5(decode_image(sample.image_bytes, sample.name))
        nowhere = np.full((NUM_LANDMARKS, 2), np.nan, np.float32)
        self._rows.append({
            "name": sample.name,
            "split": SPLITS.index(sample.split),
            "offset": self._offset,
            "votes": np.zeros(len(VOTE_COLUMNS), np.uint8) if sample.votes is None else sample.votes,
            "label": DROPPED if sample.label is None else EXPRESSIONS.index(sample.label),
            "box_xyxy": np.full(4, np.nan, np.float32) if sample.box_xyxy is None else sample.box_xyxy,
            "landmarks_px": nowhere if sample.landmarks_px is None else sample.landmarks_px,
            "landmarks_source": LANDMARK_SOURCES.index(sample.landmarks_source),
            "pixels_md5": digest,
            **{f"meta_{key}": value for key, value in sample.metadata.items()},
        })  # fmt: skip
        with self._writing():
            self._images.write(sample.image_bytes)
        self._sha256.update(sample.image_bytes)
        self._offset += len(sample.image_bytes)

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        try:
            with self._writing():
                self._images.close()
                if kind is None and not self._rows:
                    raise NkfError(f"{self.path}: the source holds no image to pack")
                if kind is None:
                    self._write_columns()
                    self._write_manifest()
                    self._partial.rename(self.path)
        finally:
            shutil.rmtree(self._partial, ignore_errors=True)  # gone already after the renaming

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:  # no permission, no space left
            raise NkfError(f"{self.path}: cannot be written ({error.strerror or error})") from error

    def _write_columns(self) -> None:
        dtypes = {"split": np.uint8, "votes": np.uint8, "label": np.int8, "box_xyxy": np.float32,
                  "landmarks_px": np.float32, "landmarks_source": np.uint8}  # fmt: skip
        for key in self._rows[0]:
            if key != "offset":
                column = np.array([row[key] for row in self._rows], dtypes.get(key))
                np.save(self._partial / f"{key}.npy", column, allow_pickle=False)
        np.save(self._partial / "offset.npy", np.array([row["offset"] for row in self._rows] + [self._offset]))

    def _write_manifest(self) -> None:
        manifest = {"schema": MANIFEST_SCHEMA, "nkf_version": __version__, "classes": EXPRESSIONS, **self.manifest}
        manifest |= {"images": len(self._rows), "images_sha256": self._sha256.hexdigest()}
        (self._partial / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


class Pack:
    """Read a pack. Columns are memory-mapped arrays with one row an image.

    Attributes:
        path: the folder.
        manifest: what `PackWriter` was told, with ``schema``, ``classes``, ``images``, ``images_sha256``.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        try:
            manifest = json.loads((self.path / "manifest.json").read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise NkfError(f"{path}: no pack (manifest.json is unreadable); make one with 'nkf data import'") from error
        if not isinstance(manifest, dict) or not isinstance(manifest.get("images"), int):
            raise NkfError(f"{path}: damaged manifest.json (it does not tell the number of images); import again")
        if manifest.get("schema") != MANIFEST_SCHEMA:
            raise NkfError(f"{path}: pack schema {manifest.get('schema')}, this nkf reads {MANIFEST_SCHEMA}")
        self.manifest: dict[str, Any] = manifest

    def __len__(self) -> int:
        return int(self.manifest["images"])

    def column(self, key: str) -> NDArray[Any]:
        """One of `COLUMNS`, or ``meta_NAME``; never unpickles."""
        file = self.path / f"{key}.npy"
        try:
            column: NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise NkfError(f"{file}: unreadable column of a pack ({error})") from error
        rows = len(self) + (key == "offset")  # the last offset is the end of the last image
        if column.shape[:1] != (rows,):
            raise NkfError(f"{file}: damaged pack, column of shape {column.shape}, expected {rows} rows")
        return column

    @cached_property
    def names(self) -> NDArray[np.str_]:
        return self.column("name")

    @cached_property
    def landmarks_px(self) -> NDArray[np.float32]:
        """(N, 68, 2) in pixels of each image; NaN where no face was found."""
        return self.column("landmarks_px")

    def rows(self, split: str) -> NDArray[np.int64]:
        """Row numbers of one split, in the pack's order."""
        if split not in SPLITS:
            raise NkfError(f"split {split!r}: choose one of {', '.join(SPLITS)}")
        return np.flatnonzero(self.column("split") == SPLITS.index(split))

    def labels(self, rule: LabelRule = "majority") -> NDArray[np.int64]:
        """(N,) index into `EXPRESSIONS` under a vote rule, `DROPPED` where it gives none."""
        votes = self.column("votes")
        return np.where(votes.any(axis=1), labels_from_votes(votes, rule), self.column("label"))

    def distributions(self) -> NDArray[np.float32]:
        """(N, 8) share of each expression among the votes; one-hot where there is a label instead of votes."""
        one_hot = np.eye(len(EXPRESSIONS) + 1, len(EXPRESSIONS), dtype=np.float32)[self.column("label")]
        votes = self.column("votes")
        return np.where(votes.any(axis=1, keepdims=True), distribution_from_votes(votes), one_hot)

    @cached_property
    def _offsets(self) -> NDArray[np.int64]:
        return self.column("offset")

    @cached_property
    def _images(self) -> NDArray[np.uint8]:
        file = self.path / "images.bin"
        try:
            images = np.memmap(file, np.uint8, "r")
        except (OSError, ValueError) as error:  # missing or empty
            raise NkfError(f"{file}: unreadable images of a pack ({error})") from error
        if len(images) != self._offsets[-1]:
            raise NkfError(f"{file}: damaged pack, {len(images)} bytes, expected {self._offsets[-1]}")
        return images

    def image_bytes(self, row: int) -> bytes:
        """The file of one row as it was imported."""
        return self._images[self._offsets[row] : self._offsets[row + 1]].tobytes()

    def image(self, row: int) -> ImageRGB:
        """Decode one row: (H, W, 3) uint8, upright."""
        return decode_image(self.image_bytes(row), str(self.names[row]))


def is_held_out(pixels_md5: NDArray[np.str_]) -> NDArray[np.bool_]:
    """Choose the rows that training on landmarks never sees: about one in ten, copies of a picture together."""
    return np.array([int(digest[:8], 16) % HELD_OUT_SHARE == 0 for digest in pixels_md5], dtype=bool)
