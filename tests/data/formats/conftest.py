"""Sources that are written for a test."""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from nkf.data.formats.affectnet import list_affectnet
from nkf.data.listing import Entry, Listing
from nkf.data.sources import Children, FolderSource


class WatchedSource(FolderSource):
    """Counts how often each method is called with which name."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.calls: Counter[tuple[str, str]] = Counter()

    def children(self, folder: str = "") -> Children:
        self.calls["children", folder] += 1
        return super().children(folder)

    def has(self, name: str) -> bool:
        self.calls["has", name] += 1
        return super().has(name)

    def read(self, name: str, limit: int = 1 << 20) -> bytes:
        self.calls["read", name] += 1
        return super().read(name, limit)


@pytest.fixture
def watched(tmp_path: Path) -> Callable[[Mapping[str, str | bytes]], WatchedSource]:
    """Return a function that writes files into the test's folder and opens that as a source."""

    def write(files: Mapping[str, str | bytes]) -> WatchedSource:
        for name, data in files.items():
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data.encode() if isinstance(data, str) else data)
        return WatchedSource(tmp_path)

    return write


@pytest.fixture
def affectnet(
    watched: Callable[[Mapping[str, str | bytes]], WatchedSource],
) -> Callable[..., tuple[Listing, list[Entry]]]:
    """Return a function that writes files and lists them; entries are iterated to the end."""

    def list_files(files: Mapping[str, str | bytes], **options: bool) -> tuple[Listing, list[Entry]]:
        listing = list_affectnet(watched(files), **options)
        return listing, list(listing.entries)

    return list_files
