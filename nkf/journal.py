"""The journal of a long run: what is done so far, so that a run that was stopped can go on.

Outputs appear whole or not at all, so a run that is killed has none. Beside the first of them lies its journal, a text
file with one line for each input that is done. ``--resume`` reads it and goes on; when all is done, the outputs are
written from it, and it is removed.

    line 1     the settings of the run: going on with others would mix two answers in one file
    line n+1   [what the outputs hold of input n, what went wrong besides or null]
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Self

from nkf.errors import NkfError

SUFFIX = ".journal"
_HEAD = b'{"journal"'  # how every journal begins


class Entry(NamedTuple):
    """What is known of one input: its `document`, and a `problem` that is no part of it, such as a picture that could
    not be written.
    """

    document: dict[str, Any]
    problem: str | None


class Journal:
    """The journal of a run: ``with Journal(file, settings, resume=True) as journal: journal.add(document)``.

    It stays where it is until `remove`, whatever happens.
    """

    def __init__(self, file: Path, settings: dict[str, Any], *, resume: bool, block: int = 1) -> None:
        """Describe a journal; it is opened by ``with``.

        Args:
            file: made, with the folders above it.
            settings: plain values that a resumed run must share.
            resume: go on with a journal that is there; without one, start anew.
            block: inputs that are worked on together. Only whole blocks of a journal are kept, so that the rest
                falls into the same blocks again and gives the same numbers.
        """
        self.file = file
        self.count = 0
        self._settings = {"journal": 1} | json.loads(json.dumps(settings))
        self._resume, self._block = resume, block
        self._stream: BinaryIO

    count: int
    """Number of inputs that are done."""

    def __enter__(self) -> Self:
        goes_on = self._resume and self.file.exists()
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            if not goes_on and self.file.exists():
                with self.file.open("rb") as stream:
                    self._read_settings(stream)  # what is no journal stays
                self.file.unlink()  # another run that still writes it keeps its own
            self._stream = self.file.open("r+b" if goes_on else "x+b")
        except OSError as error:
            raise NkfError(f"{self.file}: cannot be written ({error.strerror})") from error
        try:
            _lock(self._stream, self.file)
            before = self._read_settings(self._stream) if goes_on else None
            if before is None:
                self._stream.truncate(0)
                self._append(self._settings)
            else:
                self._keep_whole_blocks(before)
        except BaseException:
            if not goes_on:
                self.remove()
            self._stream.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    def add(self, document: dict[str, Any], problem: str | None = None) -> None:
        """Note that an input is done. It survives the end of this process."""
        self._append([document, problem])
        self.count += 1

    def __iter__(self) -> Iterator[Entry]:
        """Read all entries, in order; memory holds one at a time."""
        self._stream.seek(0)
        self._stream.readline()
        for _ in range(self.count):
            yield Entry(*json.loads(self._stream.readline()))

    def remove(self) -> None:
        """Remove the file: all is written. One that another run has put in its place stays."""
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(self._stream.fileno()), self.file.stat()):
                self.file.unlink()
        self._stream.close()

    def _append(self, content: Any) -> None:
        self._stream.seek(0, 2)
        self._stream.write(json.dumps(content, allow_nan=False).encode() + b"\n")
        self._stream.flush()

    def _read_settings(self, stream: BinaryIO) -> dict[str, Any] | None:
        """Read the first line; None of a journal that was stopped before that was whole."""
        line = stream.readline()
        if not line.endswith(b"\n") and _HEAD.startswith(line[: len(_HEAD)]):
            return None
        settings = _parsed(line)
        if not isinstance(settings, dict) or "journal" not in settings:
            raise NkfError(f"{self.file}: no journal of nkf; remove it, or write somewhere else")
        return settings

    def _keep_whole_blocks(self, settings: dict[str, Any]) -> None:
        different = sorted(
            key for key in settings.keys() | self._settings.keys() if settings.get(key) != self._settings.get(key)
        )
        if different:
            raise NkfError(f"{self.file}: of a run with another {', '.join(different)}; run without --resume")
        end, whole = self._stream.tell(), self._stream.tell()
        entries = 0
        while isinstance(_parsed(line := self._stream.readline()), list):
            entries, end = entries + 1, end + len(line)
            if entries % self._block == 0:
                self.count, whole = entries, end
        self._stream.truncate(whole)


def _parsed(line: bytes) -> Any:
    """What a line holds, None if it is not whole: a kill leaves such a one at the end."""
    if not line.endswith(b"\n"):
        return None
    with contextlib.suppress(ValueError):
        return json.loads(line)
    return None


def _lock(stream: BinaryIO, file: Path) -> None:
    """Keep two runs from going on with one journal, where the system has such locks."""
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        return
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise NkfError(f"{file}: another run is writing it; wait for it, or write somewhere else") from error
