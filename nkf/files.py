"""Write files whole or not at all, and know them again."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Yield a temporary path beside `file`; it becomes `file` if the block ends without an exception, else it goes."""
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")  # two processes may write the same file
    try:
        yield partial
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def real_path(path: Path) -> Path:
    """Absolute path without links; where these lead in a circle, as far as they lead (`Path.resolve` would raise)."""
    return Path(os.path.realpath(path))


def printable(path: str) -> str:
    """A path as valid Unicode, for what takes nothing else: a replacement character for each byte that is not."""
    return path.encode(errors="surrogateescape").decode(errors="replace")


def file_sha256(file: Path) -> str:
    """Hex SHA-256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
