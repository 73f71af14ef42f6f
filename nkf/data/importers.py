"""Make packs out of datasets: one function a source.

Each reads a folder or a zip, counts what it finds, compares it with what is known about the dataset, and writes a pack
only when all went well. An unreadable image is reported and skipped; a broken label table is refused.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nkf.data.check import ImportReport, compare_counts, count_classes, count_totals, find_leaks, read_md5_list
from nkf.data.ferplus import SPLIT_OF_FOLDER, FerplusListing, list_ferplus
from nkf.data.labels import VOTE_COLUMNS
from nkf.data.pack import SPLITS, PackWriter, Sample, pixels_md5
from nkf.data.sources import Entry, Source, open_source, some
from nkf.data.teacher import TeacherLandmarks
from nkf.errors import ImageError, NkfError
from nkf.geometry import Points
from nkf.images import IMAGE_SUFFIXES, ImageRGB, decode_image, whole_box
from nkf.progress import Progress, no_progress

FindLandmarks = Callable[[ImageRGB, NDArray[np.floating]], Points | None]  # (image, box_xyxy) -> (68, 2) pixels

FERPLUS_LICENCE = (
    "Labels: FER+, MIT licence, Microsoft. Images: FER-2013, collected from web search for a contest at ICML 2013 and "
    "passed on under its rules; the rights in the pictures were never cleared and the MIT licence does not cover them. "
    "Weights trained on this are research weights."
)
FACES_LICENCE = "Not told by the files: the terms are those of the place they come from."


def import_ferplus(
    source: Path,
    out: Path,
    *,
    landmarks: Path | FindLandmarks | None = None,
    fer2013new: Path | None = None,
    drop_leaks: bool = False,
    leak_md5: Path | None = None,
    progress: Progress = no_progress,
) -> ImportReport:
    """Import FER+, from its folders or its tables (see `nkf.data.ferplus`), or a zip of either.

    Args:
        source: folder or zip that holds the splits, or any of them, at its top or deeper.
        out: folder of the new pack.
        landmarks: ``.npz`` of a teacher's landmarks (see `TeacherLandmarks`), or a function that finds them.
        fer2013new: take the votes from this ``fer2013new.csv`` instead of the folders' ``label.csv``.
        drop_leaks: leave out train images whose pixels are also in valid, in test, or in `leak_md5`.
        leak_md5: list of pixel MD5s, one a line.
        progress: shows how far it is; `rich.progress.track` fits.

    Raises:
        NkfError: when the source, a table or an option is unusable; nothing is written.
    """
    writer = PackWriter(out, {"dataset": "ferplus", "source": source.resolve().name, "licence": FERPLUS_LICENCE})
    listed = read_md5_list(leak_md5) if leak_md5 else frozenset()
    finder = _landmarks_from(landmarks)
    with open_source(source) as files:
        listing = list_ferplus(files, fer2013new, progress)
        entries, digests, unreadable = _digest_all(listing.entries, progress)
        found, leaked = find_leaks([entry.split for entry in entries], digests, listed)
        warnings = listing.warnings + unreadable + _compare_with_known(listing, entries)
        if drop_leaks:
            entries = [entries[row] for row in np.flatnonzero(~leaked)]
        with writer as pack:
            added = _add_all(pack, entries, finder, progress)
            report = replace(
                _report(added),
                warnings=(*warnings, *added.warnings),
                leaks_found=found,
                leaks_dropped=int(leaked.sum()) if drop_leaks else 0,
                images_skipped=len(unreadable) + len(added.warnings),
            )
            pack.manifest |= {"layout": listing.layout, "label_file": listing.label_file, **_for_manifest(report)}
    return report


def import_faces(
    source: Path,
    out: Path,
    *,
    landmarks: Path | FindLandmarks | None = None,
    licence: str = FACES_LICENCE,
    progress: Progress = no_progress,
) -> ImportReport:
    """Import face images without labels, all into train.

    Args:
        source: folder, searched to any depth, or zip. Images are named by their path below what they have in common.
        out: folder of the new pack.
        landmarks: ``.npz`` of a teacher's landmarks (see `TeacherLandmarks`), or a function that finds them.
        licence: terms of the images, for the manifest and the sidecars of networks that are trained on them.
        progress: shows how far it is, for example `rich.progress.track`.

    Raises:
        NkfError: when the source or an option is unusable; nothing is written then.
    """
    writer = PackWriter(out, {"dataset": "faces", "source": source.resolve().name, "licence": licence})
    finder = _landmarks_from(landmarks)
    with open_source(source) as files:
        entries, warnings = _list_faces(files)
        with writer as pack:
            added = _add_all(pack, entries, finder, progress)
            report = replace(_report(added), warnings=(*warnings, *added.warnings))
            pack.manifest |= _for_manifest(report)
    return report


def _list_faces(source: Source) -> tuple[list[Entry], list[str]]:
    names = [name for name in source.names if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES]
    if not names:
        raise NkfError(f"{source.path}: no image files; expected some of {', '.join(sorted(IMAGE_SUFFIXES))}")
    others = sorted(set(source.names) - set(names))
    warnings = (
        [f"{source.path}: {len(others)} files left out, no images by their names ({some(others)})"] if others else []
    )
    common = _common_folder(names)
    entries = [
        Entry(
            name=PurePosixPath(name).relative_to(common).as_posix(),
            split="train",
            file=f"{source.path}: {name}",
            read=partial(source.read, name),
        )
        for name in names
    ]
    return entries, warnings


def _common_folder(names: Sequence[str]) -> PurePosixPath:
    parents = [PurePosixPath(name).parent.parts for name in (min(names), max(names))]
    depth = next((i for i, (a, b) in enumerate(zip(*parents, strict=False)) if a != b), min(map(len, parents)))
    return PurePosixPath(*parents[0][:depth])


@dataclass(slots=True)
class _Added:
    entries: list[Entry] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    landmarks_found: int = 0


def _landmarks_from(landmarks: Path | FindLandmarks | None) -> TeacherLandmarks | FindLandmarks | None:
    return TeacherLandmarks(landmarks) if isinstance(landmarks, Path) else landmarks


def _digest_all(entries: Sequence[Entry], progress: Progress) -> tuple[list[Entry], list[str], list[str]]:
    """Readable images, the MD5 of their pixels, and one warning for each unreadable one."""
    readable, digests, warnings = [], [], []
    for entry in progress(entries, "Checking", len(entries)):
        try:
            digests.append(pixels_md5(decode_image(entry.read(), entry.file)))
            readable.append(entry)
        except ImageError as error:
            warnings.append(f"skipped {error}")
    return readable, digests, warnings


def _add_all(
    pack: PackWriter, entries: Sequence[Entry], landmarks: TeacherLandmarks | FindLandmarks | None, progress: Progress
) -> _Added:
    if isinstance(landmarks, TeacherLandmarks) and not any(landmarks.row(entry) is not None for entry in entries):
        raise NkfError(f"{landmarks.path}: names none of these images; expected the landmarks of this dataset")
    added = _Added()
    for entry in progress(entries, "Importing", len(entries)):
        try:
            sample = _sample(entry, landmarks)
            pack.add(sample)
        except ImageError as error:
            added.warnings.append(f"skipped {error}")
            continue
        added.entries.append(entry)
        added.landmarks_found += sample.landmarks_px is not None
    return added


def _sample(entry: Entry, landmarks: TeacherLandmarks | FindLandmarks | None) -> Sample:
    data = entry.read()
    points: Points | None = None
    source = "fan"
    if isinstance(landmarks, TeacherLandmarks):
        points, source = landmarks.landmarks_px(entry), "teacher"
    elif landmarks is not None:
        image_rgb = decode_image(data, entry.file)
        points = landmarks(image_rgb, whole_box(image_rgb) if entry.box_xyxy is None else entry.box_xyxy)
    return Sample(
        name=entry.name,
        split=entry.split,
        image_bytes=data,
        votes=entry.votes,
        box_xyxy=entry.box_xyxy,
        landmarks_px=points,
        landmarks_source="none" if points is None else source,
        metadata=landmarks.metadata(entry) if isinstance(landmarks, TeacherLandmarks) else {},
    )


def _compare_with_known(listing: FerplusListing, entries: Sequence[Entry]) -> list[str]:
    """Warnings where the counts of the readable images are not those that are known."""
    counted = [(entry.split, entry.votes) for entry in entries if entry.votes is not None]
    counted += [(SPLIT_OF_FOLDER[label.folder], label.votes) for label in listing.superseded]
    splits, votes = zip(*counted, strict=True) if counted else ((), ())
    return compare_counts(listing.label_file, splits, np.reshape(votes, (-1, len(VOTE_COLUMNS))))


def _report(added: _Added) -> ImportReport:
    entries = added.entries
    splits = [entry.split for entry in entries]
    votes = np.array([entry.votes for entry in entries if entry.votes is not None], np.uint8)
    return ImportReport(
        images={split: splits.count(split) for split in SPLITS if split in splits},
        counts=count_classes(splits, votes) if votes.size else {},
        totals=count_totals(splits, votes) if votes.size else {},
        warnings=tuple(added.warnings),
        images_skipped=len(added.warnings),
        landmarks_found=added.landmarks_found,
        landmarks_missing=len(entries) - added.landmarks_found,
    )


def _for_manifest(report: ImportReport) -> dict[str, Any]:
    told = asdict(report)
    del told["warnings"]  # they name files of the machine that imports
    told["images_by_split"] = told.pop("images")  # "images" is the number of rows
    return told
