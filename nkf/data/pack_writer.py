"""Write a pack in parts, so that an import which was killed goes on where its last part ends.

While it is written the pack is ``NAME.partial``:

    import.json        what is being imported; another import may not go on here
    part-00000.arrow   rows of one part, with notes about the source's entries behind them
    images-00000.bin   image files; what lies behind the last part's end is cut off when an import goes on

A part is complete when it has its name, for it is renamed when it is whole and on the disk. At the end the parts become
``rows.arrow``, the folder gets its final name, and then what is no longer needed in it goes.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from nkf import __version__
from nkf.data.labels import EXPRESSIONS
from nkf.data.listing import SPLITS
from nkf.data.pack import COLUMNS, LANDMARK_SOURCES, MANIFEST_SCHEMA, Sample, pixels_md5, refuse_doubles, shard_name
from nkf.data.pack_parts import Notes, check_sizes, cut_off, part_files, readable_parts, tidy
from nkf.data.tables import Columns, ColumnType, Table, TableWriter, require_pyarrow
from nkf.errors import NkfError
from nkf.files import file_sha256, replacing
from nkf.images import ImageRGB, decode_image

PART_ROWS = 2048  # what a kill costs at most: seconds without landmarks, half a minute with
PART_BYTES = 256 << 20
SHARD_BYTES = 1 << 30
HOPELESS = 200  # so many images, not one of them readable: the rest will not be either
THREADS = 4  # to decode with: Pillow and hashlib work outside Python's lock, and reading waits for the disk


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded image, and what a pack notes of it.

    Attributes:
        image_rgb: (H, W, 3) uint8, upright.
        bytes_md5: of the file.
        pixels_md5: of the upright pixels, see `nkf.data.pack.pixels_md5`.
    """

    image_rgb: ImageRGB
    bytes_md5: str
    pixels_md5: str

    @classmethod
    def decode(cls, data: bytes, name: str) -> "Picture":
        """Decode an image file.

        Raises:
            ImageError: when it cannot be decoded; `name` is what the message calls it.
        """
        image_rgb = decode_image(data, name)
        return cls(image_rgb, hashlib.md5(data).hexdigest(), pixels_md5(image_rgb))

    def without_pixels(self) -> "Picture":
        """The same, but its image is black, and takes no memory."""
        return replace(self, image_rgb=np.broadcast_to(np.uint8(0), self.image_rgb.shape))


class PackWriter:
    """Write samples into a new pack: ``with PackWriter(path, manifest) as pack: pack.add(sample)``.

    Nothing appears under `path` unless the block ends without an error. What an interrupted block has written stays in
    ``NAME.partial`` if `identity` is given, and the next writer of the same identity goes on from it: `notes` and
    `written` tell where. Where nothing was written but an index of the source, one of another identity starts anew.

    Attributes:
        path: folder of the pack.
        partial: folder while it is written.
        manifest: may be added to until the end of the block.
        metadata: metadata columns; taken from the first sample unless given before it.
        notes: of all that has been added or skipped, earlier runs included.
        split_by: at the end, makes the split of each row out of the finished rows; None keeps those of the samples.
        describe: at the end, makes more for the manifest out of the finished rows.

    Raises:
        NkfError: when `path` exists already, or cannot be written; when the first images are all unreadable.
    """

    def __init__(
        self,
        path: Path,
        manifest: Mapping[str, Any],
        *,
        metadata: Columns | None = None,
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        require_pyarrow()
        if (path / "import.json").exists() and (path / "manifest.json").exists():
            with suppress(OSError):
                tidy(path)  # the last run ended before it had done so
        if path.exists():
            raise NkfError(f"{path}: exists already; name a new folder for the pack")
        self.path = path
        self.manifest = dict(manifest)
        self.metadata = metadata
        self.notes = Notes()
        self.split_by: Callable[[Table], NDArray[np.str_]] | None = None
        self.describe: Callable[[Table], Mapping[str, Any]] | None = None
        self.partial = path.with_name(path.name + ".partial")
        self._identity = identity
        self._hopeless = False
        self._rows: list[dict[str, Any]] = []
        self._part_notes = Notes()
        self._images: BinaryIO | None = None
        self._shard, self._offset, self._part_bytes = 0, 0, 0

    def __enter__(self) -> Self:
        with self._writing():
            self.partial.mkdir(parents=True, exist_ok=True)
            found = {file.name for file in self.partial.iterdir()}
        if found and not found & {"import.json", "lock"}:
            raise NkfError(f"{self.partial}: is in the way and no import made it; rename it, or name another pack")
        self._lock()
        try:
            with self._writing():
                self._resume()
        except BaseException:
            self._held.release()
            raise
        return self

    @property
    def parts(self) -> list[Path]:
        """The complete parts, in order."""
        return part_files(self.partial)

    def written(self) -> Iterator[Table]:
        """The rows of complete parts."""
        return (Table(part) for part in self.parts)

    def add(self, sample: Sample, picture: Picture | None = None) -> None:
        """Append one image.

        Args:
            sample: the image.
            picture: its decoded form, if the caller has it.

        Raises:
            ImageError: when the image can't be decoded; the pack is as it was before.
        """
        picture = picture or Picture.decode(sample.image_bytes, sample.name)
        row = self._row(sample, picture)
        shared = self._rows and self._rows[-1]["bytes_md5"] == picture.bytes_md5  # the next face of one photo
        row |= {key: self._rows[-1][key] for key in ("shard", "offset", "length")} if shared else self._store(sample)
        self._rows.append(row)
        self._advance()

    def skip(self, message: str) -> None:
        """Note that an entry gives no row.

        Raises:
            NkfError: when none of the first `HOPELESS` entries gave one.
        """
        self._advance(skipped=[message])
        if self.notes.consumed == len(self.notes.skipped) == HOPELESS:
            self._hopeless = True
            raise NkfError(f"{self.path}: none of the first {HOPELESS} images is readable ({self.notes.skipped[0]})")

    def drop(self, **what: Any) -> None:
        """Note that an entry gives no row because its picture must not be in train; see `Notes.dropped`."""
        self._advance(dropped=[what])

    def _advance(self, **notes: list[Any]) -> None:
        for total in (self.notes, self._part_notes):
            total.add(Notes(1, **notes))
        if len(self._rows) >= PART_ROWS or self._part_bytes >= PART_BYTES:
            self._end_part()

    def _row(self, sample: Sample, picture: Picture) -> dict[str, Any]:
        if sample.landmarks_source not in LANDMARK_SOURCES:
            raise ValueError(f"landmarks_source {sample.landmarks_source!r}: not one of {LANDMARK_SOURCES}")
        if self.metadata is None:
            self.metadata = {name: _type_of(value) for name, value in sample.metadata.items()}
        height, width = picture.image_rgb.shape[:2]
        row = {name: getattr(sample, name) for name in COLUMNS if hasattr(sample, name)}
        if sample.landmarks_px is not None:
            row["landmarks_px"] = np.asarray(sample.landmarks_px, np.float32).ravel()
        found = {"width": width, "height": height, "bytes_md5": picture.bytes_md5, "pixels_md5": picture.pixels_md5}
        return row | found | dict(sample.metadata)

    def _store(self, sample: Sample) -> dict[str, int]:
        place = {"shard": self._shard, "offset": self._offset, "length": len(sample.image_bytes)}
        with self._writing():
            if self._images is None:
                self._images = self._shard_file(self._shard).open("ab")
            self._images.write(sample.image_bytes)
        self._offset += len(sample.image_bytes)
        self._part_bytes += len(sample.image_bytes)
        return place

    def _shard_file(self, number: int) -> Path:
        return self.partial / shard_name(number)

    def _end_part(self) -> None:
        """Write the rows since the last part; from then on they survive a kill."""
        if not self._part_notes.consumed:
            return
        with self._writing():
            if self._images is not None:
                self._images.flush()
                os.fsync(self._images.fileno())  # before the part that tells of them
            end = {"shard": self._shard, "offset": self._offset}
            part = self.partial / f"part-{len(self.parts):05}.arrow"
            notes = {name: getattr(self._part_notes, name) for name in Notes.__slots__}
            with replacing(part) as partial, TableWriter(partial, self.columns, notes | {"end": end}) as table:
                table.write(self._rows)
        self._rows, self._part_notes, self._part_bytes = [], Notes(), 0
        if self._offset >= SHARD_BYTES:
            self._close_shard()
            self._shard, self._offset = self._shard + 1, 0

    @property
    def columns(self) -> Columns:
        """All columns of the pack."""
        return {**COLUMNS, **(self.metadata or {})}

    def _close_shard(self) -> None:
        if self._images is not None:
            self._images.close()
            self._images = None

    def _lock(self) -> None:
        """Keep a second import out of the folder; the system frees the lock when this process dies."""
        from filelock import FileLock, Timeout

        self._held = FileLock(self.partial / "lock")
        try:
            self._held.acquire(timeout=0)
        except Timeout as error:
            raise NkfError(f"{self.path}: another import is writing this pack; wait for it, or name another") from error
        except OSError as error:
            raise NkfError(f"{self.path}: cannot be written ({error.strerror or error})") from error

    def _resume(self) -> None:
        marker = self.partial / "import.json"
        identity = json.dumps(self._identity, sort_keys=True)
        same = self._identity is not None and marker.exists() and marker.read_text() == identity
        if self._identity is not None and marker.exists() and not same and self.parts:
            raise NkfError(
                f"{self.partial}: holds another import that was interrupted; "
                "finish that with the same command, or remove the folder"
            )
        if not same:
            marker.unlink(missing_ok=True)  # first: a kill must not leave it with some of the parts
            for file in self.partial.iterdir():
                if file.name != "lock":
                    shutil.rmtree(file) if file.is_dir() else file.unlink()
            with replacing(marker) as partial:
                partial.write_text(identity)
        ends: dict[int, int] = {}
        for part in readable_parts(self.partial):
            notes = part.notes
            self.notes.add(Notes(notes["consumed"], notes["skipped"], notes["dropped"]))
            self._shard, self._offset = notes["end"]["shard"], notes["end"]["offset"]
            ends[self._shard] = self._offset
            self.metadata = {name: kind for name, kind in part.columns.items() if name not in COLUMNS}
        if self._offset == 0:
            ends.pop(self._shard, None)  # not one image in it
        cut_off(self.partial, ends)
        if self._offset >= SHARD_BYTES:
            self._shard, self._offset = self._shard + 1, 0
        for file in self.partial.glob("*.*.partial"):  # of a part that was being written when the last run ended
            file.unlink()

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        refused = kind is not None and issubclass(kind, NkfError)
        try:
            self._close_shard_and_part(kind)
            if kind is None:
                self._finish()
                with self._writing():
                    self.partial.rename(self.path)  # with all that is in it: until then the next run could go on
                    tidy(self.path)
        except NkfError:
            refused = True
            raise
        finally:
            nothing_to_go_on_from = not self.parts and not (self.partial / "index-done.json").exists()
            if self._identity is None or self._hopeless or (refused and nothing_to_go_on_from):
                shutil.rmtree(self.partial, ignore_errors=True)
            self._held.release()

    def _close_shard_and_part(self, kind: type[BaseException] | None) -> None:
        try:
            if kind is None:
                self._end_part()  # from here on nothing is buffered
        finally:
            with suppress(OSError):  # no space for what is; the next run would cut it off
                self._close_shard()

    def _finish(self) -> None:
        """Join the parts; all that is made here can be made again."""
        if not any(len(part) for part in self.written()):
            self._hopeless = True
            first = f" ({self.notes.skipped[0]})" if self.notes.skipped else ""
            raise NkfError(f"{self.path}: the source holds no readable image to pack{first}")
        with self._writing():
            rows = self.partial / "rows.arrow"
            with TableWriter(rows, self.columns) as table:
                for part in self.written():
                    table.copy(part)
            check_names(Table(rows, mapped=False), self.path)
            if self.split_by is not None:
                resplit(rows, self.columns, self.split_by(Table(rows, mapped=False)))
            more = self.describe(Table(rows, mapped=False)) if self.describe is not None else {}
            write_manifest(self.partial, {**self.manifest, **more})

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:  # no permission, no space left
            raise NkfError(f"{self.path}: cannot be written ({error.strerror or error})") from error


def resplit(rows: Path, columns: Columns, splits: Sequence[str] | NDArray[np.str_]) -> None:
    """Rewrite a table of rows with other splits."""
    with replacing(rows) as partial, TableWriter(partial, columns) as table:
        table.copy(Table(rows, mapped=False), split=list(splits))


def check_names(rows: Table, path: Path) -> None:
    """Refuse a pack in which a name comes twice in one split."""
    splits, names = rows.column("split"), rows.column("name")
    for split in SPLITS:
        refuse_doubles(names[splits == split], f"{path}: {split}")


def write_manifest(folder: Path, manifest: Mapping[str, Any], shards: Sequence[Any] | None = None) -> None:
    """Write ``manifest.json`` for the rows and images of a folder, with their hashes; `shards` if these are known.

    Raises:
        NkfError: when the image files do not end where the rows say.
    """
    rows = Table(folder / "rows.arrow", mapped=False)
    counts = Counter(rows.column("split").tolist())
    if shards is None:
        files = sorted(folder.glob("images-*.bin"))
        check_sizes(rows, files)
        shards = [{"file": f.name, "bytes": f.stat().st_size, "sha256": file_sha256(f)} for f in files]
    content = {"schema": MANIFEST_SCHEMA, "nkf_version": __version__, "classes": EXPRESSIONS, **manifest}
    content |= {
        "images": len(rows),
        "images_by_split": {split: counts[split] for split in SPLITS if split in counts},
        "rows_sha256": file_sha256(folder / "rows.arrow"),
        "shards": shards,
    }
    with replacing(folder / "manifest.json") as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n")


def _type_of(value: Any) -> ColumnType:
    """The column type of a metadata value."""
    if isinstance(value, np.ndarray) and value.ndim:
        return "float32", value.size
    if isinstance(value, bool | int | np.integer):
        return "integer"
    return "number" if isinstance(value, float | np.floating) else "text"
