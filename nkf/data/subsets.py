"""Subsets of a dataset that others have published as lists of images: faces that are occluded, or turned away.

A list is a text file with a name at the start of each line, ended by a blank or a comma; empty lines and those that
start with ``#`` are none. Folders, the ending of an image file, and the ``_aligned`` of RAF-DB do not matter.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from nkf.data.listing import Entry, Listing, MetadataType
from nkf.data.sources import is_image, some
from nkf.errors import NkfError


@dataclass(slots=True)
class Subset:
    """A list of images; `missing` are those of its names that no image had so far."""

    file: Path
    names: frozenset[str]
    missing: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self.missing = set(self.names)


def read_subsets(files: Mapping[str, Path]) -> dict[str, Subset]:
    """Read lists of images.

    Args:
        files: name of the subset -> its list.

    Raises:
        NkfError: when a name is no identifier, or a list is unreadable or empty.
    """
    subsets = {}
    for name, file in files.items():
        if not name.isidentifier():
            raise NkfError(f"subset {name!r}: expected a name of letters, digits and _, such as occlusion")
        try:
            lines = file.read_text("utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a text file (UTF-8)"
            raise NkfError(f"{file}: {reason}; expected the list of subset {name}") from error
        tokens = (line.replace(",", " ").split()[:1] for line in lines if not line.lstrip().startswith("#"))
        subsets[name] = Subset(file, frozenset(_key(token) for found in tokens for token in found))
        if not subsets[name].names:
            raise NkfError(f"{file}: empty; expected the list of subset {name}, the name of an image in each line")
    return subsets


def add_subsets(listing: Listing, subsets: Mapping[str, Subset]) -> None:
    """Give the entries of a listing a text column ``subset_NAME``, "yes" or "no", for each subset.

    Raises:
        NkfError: when the dataset has such a column; when the entries are at their end, for a list that names none.
    """
    columns: dict[str, MetadataType] = {f"subset_{name}": "text" for name in subsets}
    clash = sorted(columns.keys() & listing.metadata.keys())
    if clash:
        raise NkfError(f"{listing.dataset}: has a column {clash[0]} of its own; name the subset otherwise")
    listing.metadata = {**listing.metadata, **columns}
    listing.entries = _marked(listing.entries, subsets, listing.warnings)


def _marked(entries: Iterable[Entry], subsets: Mapping[str, Subset], warnings: list[str]) -> Iterator[Entry]:
    for entry in entries:
        key = _key(entry.name)
        for subset in subsets.values():
            subset.missing.discard(key)
        marks = {f"subset_{name}": "yes" if key in subset.names else "no" for name, subset in subsets.items()}
        yield replace(entry, metadata={**entry.metadata, **marks})
    for name, subset in subsets.items():
        missing, count = sorted(subset.missing), len(subset.names)
        if len(missing) == count:
            raise NkfError(f"{subset.file}: names no image of the dataset ({some(missing)}); expected subset {name}")
        if missing:
            warnings.append(f"{subset.file}: {len(missing)} of {count} names are not in the dataset ({some(missing)})")


def _key(name: str) -> str:
    last = PurePosixPath(name.replace("\\", "/")).name
    return (PurePosixPath(last).stem if is_image(last) else last).removesuffix("_aligned")
