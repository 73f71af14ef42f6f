"""Look at single images of a pack."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nkf.data.check import choose, draw_sheet
from nkf.data.labels import EXPRESSIONS, LABEL_RULES, VOTE_COLUMNS
from nkf.data.pack import Pack
from nkf.errors import NkfError

MAX_DRAWN = 2000  # the sheet has 200 rows then, some 23,000 pixels


def describe_image(pack: Pack, name: str, split: str | None = None) -> str:
    """All that a pack knows of an image, as JSON; a list if several splits have one of that name.

    Raises:
        NkfError: when there is none.
    """
    rows = _named(pack, name, split)
    found = [_as_json(next(pack.table.rows(int(row))), pack, int(row)) for row in rows]
    lines = [",\n".join(f' "{key}": {json.dumps(value)}' for key, value in image.items()) for image in found]
    objects = [f"{{\n{text}\n}}" for text in lines]
    return objects[0] if len(objects) == 1 else f"[{', '.join(objects)}]"


def draw_some(
    pack: Pack, file: Path, *, name: str | None, split: str | None, label: str | None, count: int, seed: int
) -> int:
    """Draw some images with their boxes and landmarks as a PNG; returns how many.

    Args:
        pack: the pack.
        file: PNG to write.
        name: only those of this name.
        split: only those of this split.
        label: only those of this class, under the rule ``majority``.
        count: how many at most, chosen at random.
        seed: of the choice.

    Raises:
        NkfError: when none is left to be drawn, or an option is unusable.
    """
    if label is not None and label not in EXPRESSIONS:
        raise NkfError(f"label {label!r}: choose one of {', '.join(EXPRESSIONS)}")
    if not 1 <= count <= MAX_DRAWN:
        raise NkfError(f"count {count}: expected 1 to {MAX_DRAWN}")
    if seed < 0:
        raise NkfError(f"seed {seed}: expected a whole number from 0")
    rows = np.arange(len(pack)) if name is None else _named(pack, name, split)
    if split is not None:
        rows = rows[pack.splits[rows] == split]
    if label is not None:
        rows = rows[pack.labels()[rows] == EXPRESSIONS.index(label)]
    if not len(rows):
        raise NkfError(f"{pack.path}: no such image")
    chosen = choose(rows, count, seed)
    what = ", ".join(filter(None, (str(pack.manifest.get("dataset", "")), split, label)))
    draw_sheet(pack, chosen, file, title=f"{what}: {len(chosen):,} of {len(rows):,} images")
    return len(chosen)


def _named(pack: Pack, name: str, split: str | None) -> NDArray[np.int64]:
    rows = np.flatnonzero(pack.names == name)
    rows = rows if split is None else rows[pack.splits[rows] == split]
    if not len(rows):
        raise NkfError(f"{pack.path}: no image called {name!r}{f' in {split}' if split else ''}")
    return rows


def _as_json(row: dict[str, Any], pack: Pack, number: int) -> dict[str, Any]:
    told = {key: _short(value) if isinstance(value, np.ndarray) else value for key, value in row.items()}
    told = {key: value for key, value in told.items() if value is not None and key not in ("shard", "offset")}
    if row["votes"] is not None:
        told["votes"] = {name: int(count) for name, count in zip(VOTE_COLUMNS, row["votes"], strict=True) if count}
        labels = {rule: int(pack.labels(rule)[number]) for rule in LABEL_RULES if rule != "distribution"}
        told["label_by_rule"] = {rule: EXPRESSIONS[k] if k >= 0 else None for rule, k in labels.items()}
    if row["landmarks_px"] is not None:
        told["landmarks_px"] = _short(row["landmarks_px"].reshape(-1, 2))
    return told


def _short(array: NDArray[Any]) -> list[Any]:
    """Two decimals are enough to read; as float64, for in float32 they would not look so."""
    return np.round(array.astype(np.float64), 2).tolist()
