"""Check a pack: is it whole, are its counts the known ones, is nothing of what is tested in what is trained on?"""

import csv
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
from numpy.typing import NDArray

from nkf.data.counts import ClassCounts, count_rows, differences, find_leaks
from nkf.data.groups import LINKS, picture_key, picture_keys
from nkf.data.labels import DROPPED, EXPRESSIONS
from nkf.data.listing import SPLITS
from nkf.data.pack import Pack
from nkf.data.pack_writer import THREADS, Picture
from nkf.data.sheets import SIDE, contact_sheet, shrink
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
    pictures: NDArray[np.str_]  # as `picture_keys`
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
    pack, others = Pack(path), [Pack(other) for other in against]
    if out is not None:
        _make_folder(out)  # before everything is decoded
    by_split = {split: int((pack.splits == split).sum()) for split in SPLITS if split in pack.splits}
    report = CheckReport(str(path), len(pack), by_split, count_rows(pack.table))
    names = np.char.add(np.char.add(pack.splits, "/"), pack.names)
    report.problems += _damaged_files(pack)
    for found in differences(pack):  # a split that is missing makes no results on the others wrong
        (report.warnings if found.how is None else report.problems).append(str(found))
    digests = _digest(pack, report, names, progress)
    _check_copies(pack, digests, names, report)
    _check_near_copies(pack, digests, names, report)
    for other in others:
        _check_against(pack, other, report)
    _check_links(pack, report)
    _check_labels(pack, digests, report)
    _check_boxes(pack, report)
    if out is not None:
        with _writing(out):
            _write(pack, report, out, names)
    return report


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise NkfError(
            f"{out}: cannot be written ({error.strerror or error}); name another folder with --out"
        ) from error


def _make_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise NkfError(f"{out}: a file, expected a folder for the results")
    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=out).close()


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
    bytes_md5, pictures = [""] * count, [""] * count
    hashes: list[NDArray[np.uint8] | None] = []
    for row, found in enumerate(progress(_read_all(pack), "Checking", count)):
        if isinstance(found, NkfError):
            report.unreadable.append(str(names[row]))
            hashes.append(None)
            continue
        picture, similar = found
        height, width = picture.image_rgb.shape[:2]
        bytes_md5[row], pictures[row] = picture.bytes_md5, picture_key(picture.pixels_md5, width, height)
        hashes.append(similar)
    if report.unreadable:
        report.problems.append(f"{len(report.unreadable)} unreadable images: {_some(report.unreadable)}")
    nothing = np.zeros_like(next((h for h in hashes if h is not None), np.zeros(8, np.uint8)))
    digests = _Digests(
        np.array(bytes_md5, str), np.array(pictures, str), np.stack([nothing if h is None else h for h in hashes])
    )
    readable, same = digests.bytes_md5 != "", digests.bytes_md5 == pack.column("bytes_md5")
    changed = names[readable & ~same]
    if len(changed):
        report.problems.append(f"{len(changed)} images are not those that were imported: {_some(changed)}")
    other = names[readable & same & (digests.pictures != picture_keys(pack.table))]
    if len(other):
        report.warnings.append(f"{len(other)} images decode to other pixels than at the import: {_some(other)}")
    return digests


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
    kinds = (("byte-identical", digests.bytes_md5), ("pixel-identical", digests.pictures))
    for kind, column in kinds:
        for pair, count in find_leaks(pack.splits, column).items():
            if count:
                report.problems.append(f"{count} images are in two splits ({pair}), {kind}")
    report.pairs += [("same pixels", *pair) for pair in _pairs(pack.splits, digests.pictures, names)]


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
    new = [(a, b) for a, b in readable[similar.pairs].tolist() if digests.pictures[a] != digests.pictures[b]]
    if new:
        report.warnings.append(f"{len(new)} pairs of images in two splits are nearly the same, {_affected(new, pack)}")
    report.pairs += [("similar", str(names[a]), str(names[b])) for a, b in new]


def _affected(pairs: Sequence[tuple[int, int]], pack: Pack) -> str:
    """How many images of which split are in pairs."""
    rows = {row for pair in pairs for row in pair}
    return ", ".join(f"{count} of {split}" for split, count in Counter(str(pack.splits[row]) for row in rows).items())


def _check_against(pack: Pack, other: Pack, report: CheckReport) -> None:
    tested = picture_keys(other.table)[other.splits != "train"]
    copies = pack.names[(pack.splits == "train") & np.isin(picture_keys(pack.table), tested)]
    if len(copies):
        report.problems.append(f"{len(copies)} train images are in valid or test of {other.path}: {_some(copies)}")


def _check_links(pack: Pack, report: CheckReport) -> None:
    for key, what in zip(LINKS, ("people", "photos"), strict=True):
        column = pack.metadata(key)
        if column is None:
            continue
        linked = (column != "") & (column == column)  # NaN is not itself
        of_split = {split: set(column[linked & (pack.splits == split)].tolist()) for split in SPLITS}
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
    labels_of: defaultdict[tuple[str, bytes], list[int]] = defaultdict(list)  # by the box too: a photo has many faces
    for picture, box, label in zip(digests.pictures.tolist(), pack.column("box_xyxy"), labels.tolist(), strict=True):
        if picture and label != DROPPED:
            labels_of[picture, box.tobytes()].append(label)
    several = [given for given in labels_of.values() if len(given) > 1]
    differ = [given for given in several if len(set(given)) > 1]
    if differ:
        report.warnings.append(f"{len(differ)} of {len(several)} pictures that come several times have several labels")


def _check_boxes(pack: Pack, report: CheckReport) -> None:
    boxes = pack.column("box_xyxy")
    size = np.stack([pack.column("width"), pack.column("height")], axis=1)
    outside = (boxes[:, 2:] <= 0).any(axis=1) | (boxes[:, :2] >= size).any(axis=1)  # NaN compares as false
    outside |= (boxes[:, 2:] <= boxes[:, :2]).any(axis=1)
    if outside.any():
        names = _some(pack.names[outside])
        report.problems.append(f"{int(outside.sum())} boxes are empty or outside their images: {names}")


def _write(pack: Pack, report: CheckReport, out: Path, names: NDArray[np.str_]) -> None:
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
            chosen = choose(rows, SHEET_FACES)
            title = f"{name}: {len(chosen)} of {len(rows):,} images"
            draw_sheet(pack, chosen, out / f"sheet-{name}.png", title=title)
    position = {name: row for row, name in enumerate(names.tolist())}
    near = [position[name] for kind, *pair in report.pairs if kind == "similar" for name in pair]
    file = out / "sheet-near-duplicates.png"
    file.unlink(missing_ok=True)  # of an earlier check
    if near:
        shown = near[: 2 * SHEET_FACES]
        title = f"{len(shown) // 2} of {len(near) // 2:,} pairs that are nearly the same"
        draw_sheet(pack, shown, file, title=title, overlays=False)


def choose(rows: NDArray[np.int64], count: int, seed: int = 0) -> list[int]:
    """A random, seeded choice of rows, in their order."""
    chosen = np.random.default_rng(seed).permutation(len(rows))[:count]
    return [int(row) for row in rows[np.sort(chosen)]]


def draw_sheet(pack: Pack, rows: Sequence[int], file: Path, *, title: str, overlays: bool = True) -> None:
    """Draw images of a pack as a PNG, with their boxes and landmarks or without; unreadable ones are left out."""
    corners, landmarks_px = pack.column("box_xyxy").reshape(-1, 2, 2), pack.landmarks_px
    pictures, captions, boxes, points = [], [], [], []
    for row in rows:
        try:
            picture, scale = shrink(pack.image(row), SIDE)  # at once: sixty whole photos need gigabytes
        except NkfError:
            continue
        pictures.append(picture)
        captions.append(f"{pack.splits[row]}/{pack.names[row]}")
        boxes.append((corners[row] * scale).ravel())
        points.append(landmarks_px[row] * scale)
    sheet = contact_sheet(
        pictures,
        captions,
        title=title,
        landmarks_px=points if overlays else None,  # what is not finite is not drawn
        boxes_xyxy=boxes if overlays else None,
    )
    with replacing(file) as partial:
        sheet.save(partial, "PNG")


def _some(names: Sequence[str] | NDArray[np.str_]) -> str:
    return ", ".join(map(str, names[:LISTED])) + (", ..." if len(names) > LISTED else "")
