"""Check a pack: is it whole, are its counts the known ones, is nothing of what is tested in what is trained on?"""

import csv
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nkf.data.counts import ClassCounts, count_rows, differences, find_leaks
from nkf.data.labels import DROPPED, EXPRESSIONS
from nkf.data.listing import SPLITS
from nkf.data.pack import Pack
from nkf.data.pack_writer import THREADS, Picture
from nkf.data.sheets import contact_sheet
from nkf.data.similar import near_duplicates, perceptual_hash
from nkf.errors import NkfError
from nkf.files import file_sha256, replacing
from nkf.progress import Progress, no_progress
from nkf.report import draw_balance, require_matplotlib

READ_AHEAD = 256  # rows
SHEET_FACES = 60
LISTED = 5  # examples in a line

Pair = tuple[str, str, str]  # kind of likeness; SPLIT/NAME twice


@dataclass(slots=True)
class CheckReport:
    """What a check found.

    Attributes:
        pack: folder.
        images: number of rows.
        images_by_split: the same by split.
        counts: as in the manifest, counted again.
        problems: one line each: what makes results on this pack wrong.
        warnings: one line each: what is worth a look.
        pairs: images of different splits that show the same picture, or nearly.
        unreadable: names of rows whose image cannot be decoded.
    """

    pack: str
    images: int
    images_by_split: dict[str, int]
    counts: ClassCounts = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    schema: int = 1


@dataclass(frozen=True, slots=True)
class _Digests:
    """What the images themselves say, read anew: a row each; "" and zeros where one is unreadable."""

    bytes_md5: NDArray[np.str_]
    pixels_md5: NDArray[np.str_]
    hashes: NDArray[np.uint8]


def check_pack(
    path: Path, out: Path | None = None, *, against: Sequence[Path] = (), progress: Progress = no_progress
) -> CheckReport:
    """Check a pack, every image of it.

    Args:
        path: the pack.
        out: folder for check.json, duplicates.csv, balance.png, a sheet-CLASS.png for each class, and a
            sheet-near-duplicates.png if there are any; None writes nothing.
        against: packs whose valid and test images must not be in this one's train.
        progress: shows how far it is.

    Raises:
        NkfError: when it is no pack, or the folder cannot be written.
    """
    if out is not None:
        require_matplotlib()
        if out.exists() and not out.is_dir():
            raise NkfError(f"{out}: a file, expected a folder for the results")
    pack, others = Pack(path), [Pack(other) for other in against]
    by_split = {split: int((pack.splits == split).sum()) for split in SPLITS if split in pack.splits}
    report = CheckReport(str(path), len(pack), by_split, count_rows(pack.table))
    names = np.char.add(np.char.add(pack.splits, "/"), pack.names)
    report.problems += _damaged_files(pack) + differences(pack)
    digests = _digest(pack, report, names, progress)
    _check_copies(pack, digests, names, report)
    _check_near_copies(pack, digests, names, report)
    for other in others:
        _check_against(pack, other, report)
    _check_subjects(pack, report)
    _check_labels(pack, digests, report)
    _check_boxes(pack, report)
    if out is not None:
        _write(pack, report, out, names)
    return report


def _damaged_files(pack: Pack) -> list[str]:
    expected = {"rows.arrow": pack.manifest.get("rows_sha256")}
    told = pack.manifest.get("shards", [])
    expected |= {file.name: shard.get("sha256") for file, shard in zip(pack.shard_files, told, strict=True)}
    damaged = []
    for name, digest in expected.items():
        file = pack.path / name
        if not file.is_file():
            damaged.append(f"{file}: missing")
        elif file_sha256(file) != digest:
            damaged.append(f"{file}: changed since the import, its SHA-256 is not the one in manifest.json")
    return damaged


def _digest(pack: Pack, report: CheckReport, names: NDArray[np.str_], progress: Progress) -> _Digests:
    """Decode every image."""
    count = len(pack)
    bytes_md5, pixels_md5 = np.full(count, "", "<U32"), np.full(count, "", "<U32")
    hashes: list[NDArray[np.uint8] | None] = []
    for row, found in enumerate(progress(_read_all(pack), "Checking", count)):
        if isinstance(found, NkfError):
            report.unreadable.append(str(names[row]))
            hashes.append(None)
            continue
        picture, similar = found
        bytes_md5[row], pixels_md5[row] = picture.bytes_md5, picture.pixels_md5
        hashes.append(similar)
    if report.unreadable:
        report.problems.append(f"{len(report.unreadable)} unreadable images: {_some(report.unreadable)}")
    readable = bytes_md5 != ""
    changed = names[readable & (bytes_md5 != pack.column("bytes_md5"))]
    if len(changed):
        report.problems.append(f"{len(changed)} images are not those that were imported: {_some(changed)}")
    other = names[readable & (bytes_md5 == pack.column("bytes_md5")) & (pixels_md5 != pack.column("pixels_md5"))]
    if len(other):
        report.warnings.append(f"{len(other)} images decode to other pixels than at the import: {_some(other)}")
    nothing = np.zeros_like(next((h for h in hashes if h is not None), np.zeros(8, np.uint8)))
    return _Digests(bytes_md5, pixels_md5, np.stack([nothing if h is None else h for h in hashes]))


def _read_all(pack: Pack) -> Iterator[tuple[Picture, NDArray[np.uint8]] | NkfError]:
    def read(row: int) -> tuple[Picture, NDArray[np.uint8]] | NkfError:
        try:
            picture = Picture.decode(pack.image_bytes(row), "")
        except NkfError as error:  # a broken image, or a missing shard
            return error
        return picture, perceptual_hash(picture.image_rgb)

    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(pack), READ_AHEAD):
            yield from pool.map(read, range(start, min(start + READ_AHEAD, len(pack))))


def _check_copies(pack: Pack, digests: _Digests, names: NDArray[np.str_], report: CheckReport) -> None:
    """Leaks: the same file, or the same pixels, in two splits."""
    kinds = (("byte-identical", digests.bytes_md5), ("pixel-identical", digests.pixels_md5))
    for kind, column in kinds:
        for pair, count in find_leaks(pack.splits, column).items():
            if count:
                report.problems.append(f"{count} images are in two splits ({pair}), {kind}")
    report.pairs += [("same pixels", *pair) for pair in _pairs(pack.splits, digests.pixels_md5, names)]


def _pairs(splits: NDArray[np.str_], keys: NDArray[np.str_], names: NDArray[np.str_]) -> list[tuple[str, str]]:
    """For each image, the first one with the same key in an earlier split."""
    first: dict[tuple[str, str], str] = {}
    for split, key, name in zip(splits.tolist(), keys.tolist(), names.tolist(), strict=True):
        first.setdefault((split, key), name)
    return [
        (name, first[earlier, key])
        for split, key, name in zip(splits.tolist(), keys.tolist(), names.tolist(), strict=True)
        for earlier in SPLITS[: SPLITS.index(split)]
        if key and (earlier, key) in first
    ]


def _check_near_copies(pack: Pack, digests: _Digests, names: NDArray[np.str_], report: CheckReport) -> None:
    groups = np.array([SPLITS.index(split) for split in pack.splits])
    readable = np.flatnonzero(digests.bytes_md5 != "")
    similar = near_duplicates(digests.hashes[readable], groups[readable])
    if similar.note:
        report.warnings.append(similar.note)
    new = [(a, b) for a, b in readable[similar.pairs].tolist() if digests.pixels_md5[a] != digests.pixels_md5[b]]
    if new:
        report.warnings.append(f"{len(new)} pairs of images in two splits are nearly the same, {_affected(new, pack)}")
    report.pairs += [("similar", str(names[a]), str(names[b])) for a, b in new]


def _affected(pairs: Sequence[tuple[int, int]], pack: Pack) -> str:
    """How many images of which split are in pairs."""
    rows = {row for pair in pairs for row in pair}
    return ", ".join(f"{count} of {split}" for split, count in Counter(str(pack.splits[row]) for row in rows).items())


def _check_against(pack: Pack, other: Pack, report: CheckReport) -> None:
    tested = other.column("pixels_md5")[other.splits != "train"]
    copies = pack.names[(pack.splits == "train") & np.isin(pack.column("pixels_md5"), tested)]
    if len(copies):
        report.problems.append(f"{len(copies)} train images are in valid or test of {other.path}: {_some(copies)}")


def _check_subjects(pack: Pack, report: CheckReport) -> None:
    for key, what in (("subject", "people"), ("photo", "photos")):
        column = pack.metadata(key)
        if column is None:
            continue
        of_split = {split: set(column[pack.splits == split].tolist()) - {""} for split in SPLITS}
        for later, earlier in (("valid", "train"), ("test", "train"), ("test", "valid")):
            shared = sorted(of_split[later] & of_split[earlier])
            if shared:
                report.problems.append(f"{len(shared)} {what} are in {later} and in {earlier}: {_some(shared)}")


def _check_labels(pack: Pack, digests: _Digests, report: CheckReport) -> None:
    labels = pack.labels()
    if (labels == DROPPED).all():
        return
    for split in dict.fromkeys(pack.splits.tolist()):
        present = set(labels[pack.splits == split].tolist())
        absent = [name for k, name in enumerate(EXPRESSIONS) if k in set(labels.tolist()) and k not in present]
        if absent:
            report.warnings.append(f"{split} has no image of {', '.join(absent)}")
    known = (labels != DROPPED) & (digests.pixels_md5 != "")
    order = np.argsort(digests.pixels_md5[known], kind="stable")
    key, label = digests.pixels_md5[known][order], labels[known][order]
    starts = np.flatnonzero(np.r_[True, key[1:] != key[:-1]]) if len(key) else np.zeros(0, int)
    several = np.diff(np.r_[starts, len(key)]) > 1
    differ = np.maximum.reduceat(label, starts) != np.minimum.reduceat(label, starts) if len(starts) else several
    if (several & differ).any():
        count, total = int((several & differ).sum()), int(several.sum())
        report.warnings.append(f"{count} of {total} pictures that come several times have several labels")


def _check_boxes(pack: Pack, report: CheckReport) -> None:
    boxes = pack.column("box_xyxy")
    size = np.stack([pack.column("width"), pack.column("height")], axis=1)
    outside = (boxes[:, 2:] <= 0).any(axis=1) | (boxes[:, :2] >= size).any(axis=1)  # NaN compares as false
    outside |= (boxes[:, 2:] <= boxes[:, :2]).any(axis=1)
    if outside.any():
        names = _some(pack.names[outside])
        report.problems.append(f"{int(outside.sum())} boxes are empty or outside their images: {names}")


def _write(pack: Pack, report: CheckReport, out: Path, names: NDArray[np.str_]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / "check.json") as file:
        file.write_text(json.dumps(asdict(report), indent=1) + "\n")
    with replacing(out / "duplicates.csv") as file, file.open("w", newline="") as stream:
        csv.writer(stream).writerows([("kind", "image", "copy"), *report.pairs])
    if report.counts:
        with replacing(out / "balance.png") as file:
            draw_balance(
                next(iter(report.counts.values())), file, title=str(pack.manifest.get("dataset", pack.path.name))
            )
    labels = pack.labels()
    for number, name in enumerate(EXPRESSIONS):
        rows = np.flatnonzero(labels == number)
        if len(rows):
            draw_sheet(
                pack, choose(rows, SHEET_FACES), out / f"sheet-{name}.png", title=f"{name}: {len(rows):,} images"
            )
    position = {name: row for row, name in enumerate(names.tolist())}
    near = [position[name] for kind, *pair in report.pairs if kind == "similar" for name in pair]
    file = out / "sheet-near-duplicates.png"
    file.unlink(missing_ok=True)  # of an earlier check
    if near:
        title = f"{len(near) // 2:,} pairs that are nearly the same"
        draw_sheet(pack, near[: 2 * SHEET_FACES], file, title=title, overlays=False)


def choose(rows: NDArray[np.int64], count: int, seed: int = 0) -> list[int]:
    """A random, seeded choice of rows, in their order."""
    chosen = np.random.default_rng(seed).permutation(len(rows))[:count]
    return [int(row) for row in rows[np.sort(chosen)]]


def draw_sheet(pack: Pack, rows: Sequence[int], file: Path, *, title: str, overlays: bool = True) -> None:
    """Draw images of a pack as a PNG, with their boxes and landmarks or without; unreadable ones are left out."""
    pictures, kept = [], []
    for row in rows:
        try:
            pictures.append(pack.image(row))
            kept.append(row)
        except NkfError:
            continue
    boxes = pack.column("box_xyxy")
    sheet = contact_sheet(
        pictures,
        [f"{pack.splits[row]}/{pack.names[row]}" for row in kept],
        title=title,
        landmarks_px=[pack.landmarks_px[row] for row in kept] if overlays else None,  # what is not finite is not drawn
        boxes_xyxy=[boxes[row] for row in kept] if overlays else None,
    )
    with replacing(file) as partial:
        sheet.save(partial, "PNG")


def _some(names: Sequence[str] | NDArray[np.str_]) -> str:
    return ", ".join(map(str, names[:LISTED])) + (", ..." if len(names) > LISTED else "")
