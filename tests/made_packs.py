"""Small packs for tests of writing them, and what tells that two are the same."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nkf.data.pack import Sample
from nkf.data.pack_writer import PackWriter
from nkf.files import file_sha256

IDENTITY = {"source": "made up"}


class Killed(BaseException):
    """Stands for a kill at a place where a real one cannot be aimed at: no part of nkf catches it."""


def png(seed: int, shape: tuple[int, ...] = (8, 6, 3)) -> bytes:
    """A picture of noise."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def sample(number: int, **changes: Any) -> Sample:
    """A sample of train with a picture of its own."""
    return replace(Sample(f"{number}.png", "train", png(number), label="fear"), **changes)


def write(
    path: Path, count: int, *, start: int = 0, stop: BaseException | None = None, identity: Any = IDENTITY
) -> None:
    """Add samples from where an earlier run ended; `stop` is raised behind the last."""
    with PackWriter(path, {"dataset": "made up"}, identity=identity) as writer:
        for number in range(max(start, writer.notes.consumed), count):
            writer.add(sample(number))
        if stop is not None:
            raise stop


def sha256(folder: Path) -> dict[str, str]:
    """Digest of each file."""
    return {file.name: file_sha256(file) for file in sorted(folder.iterdir())}


def names(folder: Path) -> list[str]:
    """Names of what is in a folder."""
    return sorted(file.name for file in folder.iterdir())
