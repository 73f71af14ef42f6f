"""Packs in parts so small that a test can look at their borders."""

import pytest

from nkf.data import pack_writer


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of two rows."""
    monkeypatch.setattr(pack_writer, "PART_ROWS", 2)


@pytest.fixture
def small_shards(small_parts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part in an images file of its own."""
    monkeypatch.setattr(pack_writer, "SHARD_BYTES", 1)
