"""What has to be the same for an import to go on after a kill: the call, and the files that the index was made of."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nkf.data.sources import file_stamp
from nkf.errors import NkfError


def stamp(path: Path) -> list[str | int]:
    """Where a file is, and whether it is still the same; a folder's time says nothing about what lies deep in it."""
    return [str(path.resolve()), *file_stamp(path)]


def describe(function: Callable[..., Any]) -> str:
    """Name of a function, and what `functools.partial` has bound to it."""
    if isinstance(function, partial):
        told = [repr(value) for value in function.args]
        told += [f"{name}={value!r}" for name, value in sorted(function.keywords.items())]
        return f"{function.func.__name__}({', '.join(told)})"
    return getattr(function, "__name__", type(function).__name__)


def files_bound(function: Callable[..., Any]) -> dict[str, list[int]]:
    """Stamps of the files that `functools.partial` has bound to a function, by their full names."""
    if not isinstance(function, partial):
        return {}
    files = [value for value in (*function.args, *function.keywords.values()) if isinstance(value, Path)]
    return {str(file.resolve()): file_stamp(file) for file in files}


def refuse_changed(source: Path, stamps: Mapping[str, Sequence[int]], folder: Path) -> None:
    """Raise `NkfError` when a file is not as it was when the index was made of it.

    Args:
        source: where names are relative to; full names are not.
        stamps: name -> `file_stamp`.
        folder: of the unfinished pack.
    """
    for name, known in stamps.items():
        if file_stamp(source / name) != known:
            remedy = f"remove the folder {folder} to start anew"
            raise NkfError(f"{source / name}: the label table changed since the import began; {remedy}")
