"""Make a pack out of a dataset: list its images, read them, find the faces' landmarks, compare the counts.

What each dataset looks like is known to the modules in `nkf.data.formats`; here is what they have in common. An
unreadable image is reported and skipped; a broken label table is refused. An import that was killed goes on when it is
started again. Of all images no more than a few hundred megabytes are in memory at once; what grows with their number
are hashes of the images outside of train, and at the end the columns of numbers and short texts.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from nkf import __version__
from nkf.data.counts import (
    ImportReport,
    count_classes,
    count_rows,
    differences,
    find_leaks,
    read_md5_list,
    votes_of,
)
from nkf.data.groups import linked_rows
from nkf.data.identity import describe, files_bound, refuse_changed, stamp
from nkf.data.index import Index, metadata_columns, write_index
from nkf.data.labels import VOTE_COLUMNS
from nkf.data.listing import MAX_COORDINATE, SPLITS, Entry, Listing, known_to_json
from nkf.data.pack import Pack, Sample, class_numbers
from nkf.data.pack_parts import Notes
from nkf.data.pack_writer import THREADS, PackWriter, Picture
from nkf.data.sources import Source, open_source
from nkf.data.splitting import stratified_groups
from nkf.data.subsets import add_subsets, read_subsets
from nkf.data.tables import Columns, Table
from nkf.data.teacher import TeacherLandmarks
from nkf.errors import ImageError, NkfError
from nkf.geometry import Points
from nkf.images import ImageRGB
from nkf.progress import Progress, no_progress

READ_AHEAD = 64  # images in a batch
BATCH_BYTES = 256 << 20  # or so many bytes of files and of pixels to search, if they are reached before
TOLD_SINGLY = 20  # unreadable images that get a line each in the report

ListDataset = Callable[[Source], Listing]
LandmarkWord = Literal["auto", "dataset", "search", "none"]


class FindFaces(Protocol):
    """Find the landmarks of one face in each image."""

    def __call__(
        self, images: Sequence[ImageRGB], boxes_xyxy: Sequence[NDArray[np.floating] | None], shows: str, /
    ) -> list[Points | None]:
        """Return (68, 2) in pixels of each image, or None where no face is found.

        Args:
            images: upright, (H, W, 3) uint8 each.
            boxes_xyxy: where the face is, or None.
            shows: what an image without a box is: ``face``, or ``photo`` with the face somewhere in it.
        """
        ...


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """What is the same for all datasets.

    Attributes:
        landmarks: ``auto`` takes the dataset's and searches for those that it lacks, ``dataset`` does not search,
            ``search`` ignores those of the dataset, ``none`` imports none; or a teacher's NPZ (`TeacherLandmarks`).
            None is ``auto`` where `find_faces` is given, else ``dataset``.
        find_faces: what ``auto`` and ``search`` search with: a `nkf.finder.LandmarkFinder`, which the command line
            takes (its default is ``auto``), or another.
        drop_leaks: leave out train images whose pixels are also in valid, in test, or in `leak_md5`.
        leak_md5: list of pixel MD5s, one a line.
        valid_share: share of train that becomes valid: seeded, stratified; the images of a person, of a photo, and
            copies of a picture stay together.
        seed: of that choice.
        licence: terms of the images, where the dataset does not tell them.
        subsets: name -> list of images that become the metadata column ``subset_NAME``, see `nkf.data.subsets`.
    """

    landmarks: Path | LandmarkWord | None = None
    find_faces: FindFaces | None = None
    drop_leaks: bool = False
    leak_md5: Path | None = None
    valid_share: float = 0.0
    seed: int = 0
    licence: str = ""
    subsets: Mapping[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.landmarks is None:
            object.__setattr__(self, "landmarks", "dataset" if self.find_faces is None else "auto")

    def identity(self) -> dict[str, Any]:
        """What has to be the same for an import to go on; the others only act at its end."""
        files = [stamp(file) for file in (self.landmarks, self.leak_md5) if isinstance(file, Path)]
        told = {name: str(getattr(self, name)) for name in ("landmarks", "drop_leaks", "leak_md5")}
        subsets = {name: stamp(file) for name, file in self.subsets.items()}
        return told | {"searches": self.find_faces is not None, "files": files, "subsets": subsets}


def import_dataset(
    list_dataset: ListDataset,
    source: Path,
    out: Path,
    options: ImportOptions | None = None,
    *,
    progress: Progress = no_progress,
) -> ImportReport:
    """Import a dataset.

    Args:
        list_dataset: one of `nkf.data.formats`, such as `list_rafdb`, its options bound by `functools.partial`.
        source: folder or zip of the dataset.
        out: folder of the new pack. Nothing is there before the import is complete; until then it is ``NAME.partial``,
            from which the same call goes on after a kill.
        options: what is the same for all datasets.
        progress: shows how far it is.

    Raises:
        NkfError: when the source, a label table or an option is unusable, such as `valid_share` where valid exists.
    """
    options, source, out = options or ImportOptions(), Path(source), Path(out)
    _refuse_unusable(options, source, out)
    listed = read_md5_list(options.leak_md5) if options.leak_md5 else frozenset()
    subsets = read_subsets(options.subsets)
    teacher = TeacherLandmarks(options.landmarks) if isinstance(options.landmarks, Path) else None
    identity = {"source": stamp(source), "reader": describe(list_dataset), "nkf": __version__}
    with open_source(source) as files, PackWriter(out, {}, identity=identity | options.identity()) as pack:
        if not Index.exists(pack.partial):
            files.opened.update(files_bound(list_dataset))
            listing = list_dataset(files)
            add_subsets(listing, subsets)
            write_index(listing, pack.partial, progress, files.warnings, files.opened)
        index = Index(pack.partial)
        refuse_changed(source, index.opened, pack.partial)
        if options.valid_share and index.count("valid"):
            raise NkfError(f"{source}: has a valid split of its own; leave out valid_share")
        pack.metadata = _metadata(index.listing, teacher)
        importer = _Importer(files, pack, index.listing.shows, options, teacher, listed)
        importer.run(index, progress)
        if options.valid_share:
            pack.split_by = partial(_carve, share=options.valid_share, seed=options.seed)
        pack.manifest |= _manifest(index.listing, source, options, pack.notes)
        pack.describe = partial(
            _describe_rows, listed=listed, dropped=[row["pixels_md5"] for row in pack.notes.dropped]
        )
    warnings = [*index.listing.warnings, *_first_of(pack.notes.skipped)]
    return _report(Pack(out), warnings)


def _refuse_unusable(options: ImportOptions, source: Path, out: Path) -> None:
    if not 0 <= options.valid_share < 1:
        raise NkfError(f"valid_share {options.valid_share}: expected a share from 0 to below 1")
    if options.seed < 0:
        raise NkfError(f"seed {options.seed}: expected a whole number from 0")
    if not isinstance(options.landmarks, Path) and options.landmarks not in get_args(LandmarkWord):
        words = ", ".join(get_args(LandmarkWord))
        raise NkfError(f"landmarks {options.landmarks!r}: expected one of {words}, or the path of a teacher's NPZ")
    if options.landmarks in ("auto", "search") and options.find_faces is None:
        raise NkfError(f"landmarks {options.landmarks!r}: needs find_faces, such as a nkf.finder.LandmarkFinder")
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise NkfError(f"{out}: lies in the folder that is imported; name one outside of {source}")


def _first_of(skipped: Sequence[str]) -> list[str]:
    more = len(skipped) - TOLD_SINGLY
    return [*skipped[:TOLD_SINGLY], *([f"... and {more:,} more unreadable images"] if more > 0 else [])]


@dataclass(frozen=True, slots=True)
class _Read:
    """An entry and its image: `picture` is an error where there is none, and black unless it `is_searched`."""

    entry: Entry
    data: bytes
    picture: Picture | ImageError
    is_searched: bool

    @property
    def held_bytes(self) -> int:
        pixels = self.picture.image_rgb.nbytes if self.is_searched and isinstance(self.picture, Picture) else 0
        return len(self.data) + pixels


@dataclass(slots=True)
class _Importer:
    """Read the images of an index into a pack."""

    files: Source
    pack: PackWriter
    shows: str
    options: ImportOptions
    teacher: TeacherLandmarks | None
    listed_md5: frozenset[str]

    def run(self, index: Index, progress: Progress) -> None:
        done = self.pack.notes.consumed
        forbidden = set(self.listed_md5)
        for table in self.pack.written():
            forbidden |= set(table.column("pixels_md5")[table.column("split") != "train"].tolist())
        if self.teacher is not None and all(self.teacher.row(entry) is None for entry in index.entries()):
            raise NkfError(f"{self.teacher.path}: names none of these images; expected the landmarks of this dataset")
        entries = progress(index.entries(done), "Importing", len(index) - done)
        with ThreadPoolExecutor(THREADS) as pool:
            self._add_all(iter(entries), pool, forbidden)

    def _add_all(self, entries: Iterator[Entry], pool: Executor, forbidden: set[str]) -> None:
        """Read images in threads, a few ahead of the batch that is searched; that ends when enough bytes are held."""
        waiting: deque[Future[_Read]] = deque()
        batch: list[_Read] = []
        while True:
            waiting.extend(pool.submit(self._read, entry) for entry in islice(entries, THREADS - len(waiting)))
            if not waiting:
                break
            batch.append(waiting.popleft().result())
            if len(batch) >= READ_AHEAD or sum(read.held_bytes for read in batch) >= BATCH_BYTES:
                self._add(batch, forbidden)
                batch = []
        self._add(batch, forbidden)

    def _add(self, batch: Sequence["_Read"], forbidden: set[str]) -> None:
        for read, points in zip(batch, self._search(batch), strict=True):
            entry, picture = read.entry, read.picture
            if isinstance(picture, ImageError):
                self.pack.skip(f"skipped {picture}")
                continue
            if entry.split != "train":
                forbidden.add(picture.pixels_md5)
            elif self.options.drop_leaks and picture.pixels_md5 in forbidden:
                votes = None if entry.votes is None else entry.votes.tolist()
                self.pack.drop(pixels_md5=picture.pixels_md5, label=entry.label, votes=votes)
                continue
            self.pack.add(self._sample(entry, read.data, points), picture)

    def _read(self, entry: Entry) -> "_Read":
        is_searched = self.options.find_faces is not None and (
            self.options.landmarks == "search"
            or (self.options.landmarks == "auto" and usable_landmarks(entry.landmarks_px) is None)
        )
        try:
            data = self.files.read(entry.member) if entry.image_bytes is None else entry.image_bytes
            picture = Picture.decode(data, f"{self.files.path}: {entry.member}")
        except ImageError as error:
            return _Read(entry, b"", error, False)
        return _Read(entry, data, picture if is_searched else picture.without_pixels(), is_searched)

    def _search(self, batch: Sequence["_Read"]) -> list[Points | None]:
        """Landmarks that neither the dataset nor a teacher has."""
        result: list[Points | None] = [None] * len(batch)
        chosen = [k for k, read in enumerate(batch) if read.is_searched]
        images = [read.picture.image_rgb for read in batch if read.is_searched and isinstance(read.picture, Picture)]
        if chosen and self.options.find_faces is not None:
            found = self.options.find_faces(images, [batch[k].entry.box_xyxy for k in chosen], self.shows)
            for k, points in zip(chosen, found, strict=True):
                result[k] = usable_landmarks(points)
        return result

    def _sample(self, entry: Entry, data: bytes, searched: Points | None) -> Sample:
        metadata: Mapping[str, Any] = entry.metadata
        points, source = searched, "fan"
        if self.teacher is not None:
            points, source = usable_landmarks(self.teacher.landmarks_px(entry)), "teacher"
            metadata = {**metadata, **self.teacher.metadata(entry)}
        elif points is None and self.options.landmarks in ("auto", "dataset"):
            points, source = usable_landmarks(entry.landmarks_px), "dataset"
        return Sample(
            name=entry.name,
            split=entry.split,
            image_bytes=data,
            label=entry.label,
            votes=entry.votes,
            distribution=entry.distribution,
            box_xyxy=entry.box_xyxy,
            landmarks_px=points,
            landmarks_source="none" if points is None else source,
            file=entry.member,
            metadata=metadata,
        )


def usable_landmarks(points_px: Points | None) -> Points | None:
    """(68, 2) landmarks as they are, or None where they are no face's: not finite, all in one place, or far away."""
    if points_px is None or not np.isfinite(points_px).all() or np.abs(points_px).max() > MAX_COORDINATE:
        return None
    return points_px if np.ptp(points_px, axis=0).max() > 0 else None


def _metadata(listing: Listing, teacher: TeacherLandmarks | None) -> Columns:
    own, taught = metadata_columns(listing), teacher.columns() if teacher else {}
    if teacher and own.keys() & taught.keys():
        raise NkfError(f"{teacher.path}: tells {', '.join(own.keys() & taught.keys())}, as the dataset itself does")
    return own | taught


def _carve(rows: Table, *, share: float, seed: int) -> NDArray[np.str_]:
    """Move a share of train to valid."""
    splits = rows.column("split").astype("<U5")
    train = np.flatnonzero(splits == "train")
    labels = class_numbers(rows.column("votes"), rows.column("label"), "majority")[train]
    try:
        part = stratified_groups(labels, linked_rows(rows)[train], (1 - share, share), seed)
    except NkfError as error:
        raise NkfError(f"valid_share {share}: {error}; with another, or none, the import goes on at its end") from error
    splits[train[part == 1]] = "valid"
    return splits


def _manifest(listing: Listing, source: Path, options: ImportOptions, notes: Notes) -> dict[str, Any]:
    gone = [row["votes"] or [0] * len(VOTE_COLUMNS) for row in notes.dropped]
    labels = [row["label"] or "" for row in notes.dropped]
    splits = ["train"] * len(gone) + [split for split, _ in listing.uncounted]
    gone += [votes.tolist() for _, votes in listing.uncounted]
    labels += [""] * len(listing.uncounted)
    manifest = {
        "dataset": listing.dataset,
        "source": source.resolve().name,
        "licence": options.licence or listing.licence,
        "shows": listing.shows,
        "landmarks": "teacher" if isinstance(options.landmarks, Path) else options.landmarks,
        "valid_carved": {"share": options.valid_share, "seed": options.seed} if options.valid_share else None,
        "left_out": dict(listing.left_out),
        "images_skipped": len(notes.skipped),
        "leaks_dropped": len(notes.dropped),
        "known_counts": known_to_json(listing.known),
        "counts_not_in_pack": count_classes(np.array(splits, str), votes_of(gone), np.array(labels, str)),
    }
    assert not manifest.keys() & listing.details.keys(), "a detail must not replace what every manifest says"
    return manifest | listing.details


def _describe_rows(rows: Table, *, listed: frozenset[str], dropped: Sequence[str]) -> dict[str, Any]:
    leaks = find_leaks(rows.column("split"), rows.column("pixels_md5"), listed, dropped)
    found = int((rows.column("landmarks_source") != "none").sum())
    landmarks = {"landmarks_found": found, "landmarks_missing": len(rows) - found}
    return {"counts": count_rows(rows), "leaks_found": leaks, **landmarks}


def _report(pack: Pack, warnings: Sequence[str]) -> ImportReport:
    manifest = pack.manifest
    names = ("dataset", "counts", "left_out", "leaks_found", "leaks_dropped", "images_skipped")
    told = {name: manifest[name] for name in (*names, "landmarks_found", "landmarks_missing")}
    different = differences(pack)
    unequal = {difference.split for difference in different}
    known = {split for splits in manifest["known_counts"].values() for split in splits}
    return ImportReport(
        images=manifest["images_by_split"],
        warnings=(*warnings, *map(str, different)),
        splits_as_known=tuple(split for split in SPLITS if split in known - unequal),
        **told,
    )
