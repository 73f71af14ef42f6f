"""What lies in the folder of a pack while it is written: parts, and images, which may be more or fewer than theirs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import truncate
from pathlib import Path
from typing import Any

import numpy as np

from nkf.data.pack import shard_name
from nkf.data.tables import Table
from nkf.errors import NkfError


@dataclass(slots=True)
class Notes:
    """What the parts tell beside their rows; adds up over the parts.

    Attributes:
        consumed: entries of the source that are done, whether they gave a row or not.
        skipped: one line for each image that could not be read.
        dropped: train images that were left out as leaks: ``pixels_md5``, ``label``, ``votes``.
    """

    consumed: int = 0
    skipped: list[str] = field(default_factory=list)
    dropped: list[dict[str, Any]] = field(default_factory=list)

    def add(self, more: "Notes") -> None:
        """Add those of further entries."""
        self.consumed += more.consumed
        self.skipped += more.skipped
        self.dropped += more.dropped


def part_files(folder: Path) -> list[Path]:
    """The complete parts, in order."""
    return sorted(folder.glob("part-*.arrow"))


def readable_parts(folder: Path) -> Iterator[Table]:
    """Open the parts; the last one, if the machine went down before it was on the disk, is removed instead.

    Raises:
        NkfError: when an earlier one is damaged.
    """
    for part in (parts := part_files(folder)):
        try:
            yield Table(part)
        except NkfError as error:
            if part != parts[-1]:
                raise NkfError(f"{error}; remove {folder} and import again") from error
            part.unlink()


def cut_off(folder: Path, ends: Mapping[int, int]) -> None:
    """Remove images that lie behind the end of the last part.

    Args:
        folder: of the pack.
        ends: shard -> bytes that the parts tell of, in order.

    Raises:
        NkfError: when there are fewer, since the disk lost what was written last.
    """
    for number, end in ends.items():
        file = folder / shard_name(number)
        _refuse_size(file, end, at_least=True)
        if number == max(ends):
            truncate(file, end)
    told = [shard_name(number) for number in ends]
    for file in folder.glob("images-*.bin"):
        if file.name not in told:
            file.unlink()


def check_sizes(rows: Table, files: Sequence[Path]) -> None:
    """Raise `NkfError` when image files do not end where the rows say.

    Args:
        rows: of the pack.
        files: its image files, in order.
    """
    shard = rows.column("shard")
    ends = np.zeros(max(shard.max(initial=-1) + 1, len(files)), np.int64)
    np.maximum.at(ends, shard, rows.column("offset") + rows.column("length"))
    for number, end in enumerate(ends.tolist()):
        _refuse_size(rows.path.with_name(shard_name(number)), end)


def _refuse_size(file: Path, expected: int, *, at_least: bool = False) -> None:
    size = file.stat().st_size if file.exists() else 0
    if size < expected or (size > expected and not at_least):
        remedy = f"remove {file.parent} and import again"
        raise NkfError(f"{file}: damaged, {size} bytes, expected {expected}; {remedy}")


def tidy(folder: Path) -> None:
    """Remove from a finished pack what only its import needed; what tells that this is to be done goes last."""
    for file in (*part_files(folder), *folder.glob("index-*"), folder / "lock", folder / "import.json"):
        file.unlink(missing_ok=True)
