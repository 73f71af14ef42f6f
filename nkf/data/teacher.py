"""Read a file of landmarks that a teacher found in a dataset's images beforehand (``.npz``)."""

import io
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nkf.data.listing import Entry
from nkf.data.pack import COLUMNS
from nkf.data.tables import ColumnType
from nkf.errors import NkfError
from nkf.geometry import NUM_LANDMARKS, Points

_OWN_KEYS = ("name", "split", "found", "landmarks68")


class TeacherLandmarks:
    """Landmarks by image name, and whatever else the file tells about each image.

    The file holds ``name`` (N,) strings, ``found`` (N,) bool, ``landmarks68`` (N, 68, 2) in pixels of each image, and
    ``split`` (N,), the folder of the image, where names alone are not unique. Every further array with N rows becomes
    metadata, for example ``mesh_pca`` (N, 64).

    Raises:
        NkfError: when the file is unreadable or lacks one of these.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        columns = _load(path)
        missing = [key for key in ("name", "found", "landmarks68") if key not in columns]
        if missing:
            raise NkfError(
                f"{path}: lacks {', '.join(missing)}; expected a landmark file with name, found, landmarks68"
            )
        count = columns["name"].size
        shapes = {"name": (count,), "split": (count,), "found": (count,), "landmarks68": (count, NUM_LANDMARKS, 2)}
        for key, shape in shapes.items():
            if key in columns and columns[key].shape != shape:
                raise NkfError(f"{path}: {key} has shape {columns[key].shape}, expected {shape}")
        if columns["landmarks68"].dtype.kind not in "fiu":
            raise NkfError(f"{path}: landmarks68 is of type {columns['landmarks68'].dtype}, expected numbers")
        self._landmarks_px = columns["landmarks68"].astype(np.float32)
        self._found = columns["found"].astype(bool) & np.isfinite(self._landmarks_px).all(axis=(1, 2))
        self._metadata = {
            key: column
            for key, column in columns.items()
            if key not in _OWN_KEYS and key.isidentifier() and _is_metadata(column, count)
        }
        clash = [key for key in self._metadata if key in COLUMNS]
        if clash:
            raise NkfError(f"{path}: {', '.join(clash)}: every pack has a column of that name; expected another name")
        self._by_folder = "split" in columns
        folders = columns["split"] if self._by_folder else np.full(count, "")
        self._row = {key: row for row, key in enumerate(zip(folders.tolist(), columns["name"].tolist(), strict=True))}
        if len(self._row) < count:
            raise NkfError(f"{path}: {count - len(self._row)} names occur twice; expected one row an image")

    def row(self, entry: Entry) -> int | None:
        """Row of an image in the file, or None."""
        return self._row.get((entry.folder if self._by_folder else "", entry.name))

    def landmarks_px(self, entry: Entry) -> Points | None:
        """(68, 2) in pixels of the image, or None where the teacher found no face."""
        row = self.row(entry)
        return self._landmarks_px[row] if row is not None and self._found[row] else None

    def columns(self) -> dict[str, ColumnType]:
        """Types of the further columns."""
        return {key: _column_type(column) for key, column in self._metadata.items()}

    def metadata(self, entry: Entry) -> Mapping[str, Any]:
        """Further columns of an image; nothing where the file does not have it."""
        row = self.row(entry)
        return {} if row is None else {key: column[row].tolist() for key, column in self._metadata.items()}


def _load(path: Path) -> dict[str, NDArray[Any]]:
    try:
        archive = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)  # of a path it would leave the file open
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise NkfError(f"{path}: one array only; expected an .npz with name, found, landmarks68")
        with archive:
            return {key: archive[key] for key in archive.files}
    except OSError as error:
        raise NkfError(f"{path}: {error.strerror or error}") from error
    except (ValueError, EOFError, KeyError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise NkfError(f"{path}: not a readable .npz ({error}); expected name, found, landmarks68") from error


def _is_metadata(column: NDArray[Any], count: int) -> bool:
    return column.ndim > 0 and len(column) == count and column.dtype.kind in ("USfiub" if column.ndim == 1 else "fiub")


def _column_type(column: NDArray[Any]) -> ColumnType:
    if column.ndim > 1:
        return "float32", int(np.prod(column.shape[1:]))
    return {"U": "text", "S": "text", "f": "number"}.get(column.dtype.kind, "integer")  # type: ignore[return-value]
