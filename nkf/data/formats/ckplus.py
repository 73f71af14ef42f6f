"""Read CK+ (Lucey et al., CVPRW 2010): sequences of a subject's face from neutral to the peak of an expression.

* As published: ``cohn-kanade-images/S005/001/*.png``, ``Emotion/S005/001/*_emotion.txt`` (327 of 593 sequences have
  one; it belongs to the last frame), ``Landmarks/S005/001/*_landmarks.txt``.
* A popular copy of 981 pictures, 48x48, in class folders: the last three frames of each labelled sequence.

Not read: ``FACS`` with the action units of each sequence, and the sequences without an emotion file.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from nkf.data.listing import Entry, KnownCount, KnownCounts, Listing, Problems
from nkf.data.sources import Children, Source, find_roots, is_image, join, read_table, some
from nkf.errors import NkfError
from nkf.geometry import NUM_LANDMARKS, Points

LICENCE = (
    "CK+: under a research agreement on request, non-commercial; not to be passed on, and only pictures of those "
    "subjects who agreed to it may be printed. Weights trained on it serve evaluation only."
)
LABEL_OF_CODE = {
    0: "neutral",  # in the scheme, though no file carries it
    1: "anger",
    2: "contempt",
    3: "disgust",
    4: "fear",
    5: "happiness",
    6: "sadness",
    7: "surprise",
}
LABEL_OF_FOLDER = {
    "anger": "anger",
    "contempt": "contempt",
    "disgust": "disgust",
    "fear": "fear",
    "happy": "happiness",
    "sadness": "sadness",
    "surprise": "surprise",
}
SEQUENCES = {
    "anger": 45,
    "contempt": 18,
    "disgust": 59,
    "fear": 25,
    "happiness": 69,
    "sadness": 28,
    "surprise": 83,
}
USUAL_FRAMES = 3  # every sequence has that many; the copy in class folders has no more
IMAGES, EMOTIONS, LANDMARKS = "cohn-kanade-images", "Emotion", "Landmarks"
EXPECTED = (
    f"{IMAGES}/ and {EMOTIONS}/ with folders S005/001, or the folders {', '.join(LABEL_OF_FOLDER)} with names such as "
    "S010_004_00000017.png"
)
PROTOCOL = "no official split, all in train; folds have to keep all pictures of a subject together (nkf data split)"

MAX_COORDINATE = 10_000  # pixels; pictures have 640 x 490

_COPIED_NAME = re.compile(r"(S\d{3})_(\d{3})_(\d{8})\.png", re.ASCII)
_FRAME_NAME = re.compile(r".*_(\d{1,8})\.\w+", re.ASCII)
_EMOTION_NAME = re.compile(r".*_(\d{1,8})_emotion\.txt", re.ASCII)
_LANDMARK_NAME = re.compile(r".*_(\d{1,8})_landmarks\.txt", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Frame:
    number: int  # as in the file name
    name: str
    member: str


@dataclass(frozen=True, slots=True)
class _Sequence:
    """Frames of one sequence in the order of their numbers: those that show its label, and maybe a neutral one."""

    subject: str
    number: str
    label: str
    peak: list[_Frame]
    neutral: _Frame | None = None

    def pictures(self) -> list[tuple[_Frame, str, str]]:
        """Frame, label and phase."""
        before = [(self.neutral, "neutral", "neutral")] if self.neutral else []
        return before + [(frame, self.label, "peak") for frame in self.peak]


def list_ckplus(source: Source, *, frames: int = 3, neutral: bool = True) -> Listing:
    """List frames of those sequences of CK+ that have a label.

    Args:
        source: the dataset.
        frames: how many of the last frames of a sequence show its expression.
        neutral: also take the first frame of each sequence, as neutral; the copy in class folders has none.

    Raises:
        NkfError: when the source has neither layout, or an emotion file is broken.
    """
    if frames < 1:
        raise NkfError(f"frames {frames}, expected at least 1")
    listing = Listing(
        "ckplus",
        LICENCE,
        entries=(),
        details={"protocol": PROTOCOL},
        metadata={"subject": "text", "sequence": "text", "frame": "integer", "phase": "text"},
    )
    images, emotions = _find_folder(source, IMAGES), _find_folder(source, EMOTIONS)
    landmarks = None
    if images and emotions:
        landmarks = _find_folder(source, LANDMARKS)
        sequences = _list_published(source, images, emotions, listing, frames, neutral)
        listing.details["landmarks_are"] = "the dataset's active appearance models, 68 points" if landmarks else "none"
    elif images or emotions:
        raise NkfError(f"{source.path}: has no folder {EMOTIONS if images else IMAGES}; expected {EXPECTED}")
    else:
        sequences = _list_copy(source, listing, frames)
    listing.known = _known_counts(frames, neutral and images is not None)
    listing.total = sum(len(sequence.pictures()) for sequence in sequences)
    listing.entries = _entries(source, sequences, landmarks, listing)
    return listing


def _find_folder(source: Source, name: str) -> str | None:
    """Each part of the dataset comes in a zip of its own, so they need not lie side by side."""
    roots = find_roots(source, lambda _, __, children: name in children.folders)
    if len(roots) > 1:
        raise NkfError(f"{source.path}: {name} is there {len(roots)} times, in {some(roots)}; name one of them")
    if not roots:
        return None
    folder = join(roots[0], name)
    while name in source.children(folder).folders:  # unpacked into a folder named like the zip
        folder = join(folder, name)
    return folder


def _known_counts(frames: int, neutral: bool) -> KnownCounts:
    if frames > USUAL_FRAMES:
        return {}
    by_class = {label: sequences * frames for label, sequences in SEQUENCES.items()}
    if neutral:
        by_class["neutral"] = sum(SEQUENCES.values())
    return {"label": {"train": KnownCount(sum(by_class.values()), by_class)}}


def _entries(source: Source, sequences: list[_Sequence], landmarks: str | None, listing: Listing) -> Iterator[Entry]:
    problems = Problems(str(source.path))
    for sequence in sequences:
        files = _landmark_files(source, f"{landmarks}/{sequence.subject}/{sequence.number}") if landmarks else {}
        for frame, label, phase in sequence.pictures():
            file = files.get(frame.number)
            points = _read_landmarks(source, file) if file else None
            if file and points is None:
                problems.add("landmark files that are not 68 lines of x and y", file)
            yield Entry(
                name=frame.name,
                split="train",
                member=frame.member,
                label=label,
                landmarks_px=points,
                metadata={
                    "subject": sequence.subject,
                    "sequence": sequence.number,
                    "frame": frame.number,
                    "phase": phase,
                },
            )
    listing.warnings += problems.warnings()


def _list_published(
    source: Source, images: str, emotions: str, listing: Listing, frames: int, neutral: bool
) -> list[_Sequence]:
    problems = Problems(str(source.path))
    sequences = []
    for whole in _labelled_sequences(source, images, emotions, listing, problems):
        first = whole.peak[0] if neutral and len(whole.peak) > frames else None
        if len(whole.peak) < frames + neutral:
            lack = "a neutral image" if neutral else f"{frames} images"
            problems.add(f"sequences shorter than {frames + neutral} images, too short for {lack}", _name(whole))
        sequences.append(replace(whole, peak=whole.peak[-frames:], neutral=first))
    listing.warnings += problems.warnings()
    if not sequences:
        raise NkfError(f"{source.path}: {emotions}: no emotion file of a sequence with images; expected {EXPECTED}")
    listing.shows = "photo"
    listing.details |= {
        "layout": "sequences",
        "label": "emotion file of the sequence",
        "frames": f"the last {frames}" + (", and the first as neutral" if neutral else ""),
    }
    return sequences


def _labelled_sequences(
    source: Source, images: str, emotions: str, listing: Listing, problems: Problems
) -> Iterator[_Sequence]:
    """Sequences with a label, `peak` holding all their frames."""
    for subject, number in _sequence_names(source, images, emotions):
        folder = f"{emotions}/{subject}/{number}"
        name = f"{subject}/{number}"
        # By folder, since the readme itself writes other names than the files have.
        files = [file for file in source.children(folder).files if file.endswith(".txt")]
        labels = {_read_label(source, join(folder, file)) for file in files}
        frames, strange = _find_frames(source, f"{images}/{subject}/{number}", name)
        if strange:
            problems.add("sequences with images left out, without a frame number in their names", name)
        if not files:
            listing.left_out["sequence without an emotion file"] += 1
        elif not frames:
            problems.add("sequences left out, with an emotion file but without images", name)
            listing.left_out["sequence without images"] += 1
        elif len(labels) > 1:
            problems.add("sequences left out, their emotion files contradict each other", name)
            listing.left_out["sequence with contradictory emotion files"] += 1
        else:
            if len(files) > 1:
                problems.add("sequences with more than one emotion file, with the same code", name)
            last = _EMOTION_NAME.fullmatch(files[-1])
            if last and int(last[1]) != frames[-1].number:
                problems.add("sequences that end at another image than their emotion file tells", name)
            yield _Sequence(subject, number, labels.pop(), frames)


def _sequence_names(source: Source, images: str, emotions: str) -> list[tuple[str, str]]:
    """Subject and number of each sequence that has a folder in either tree."""
    names = {
        (subject, number)
        for tree in (images, emotions)
        for subject in source.children(tree).folders
        for number in source.children(join(tree, subject)).folders
    }
    return sorted(names)


def _read_label(source: Source, file: str) -> str:
    """Class of an emotion file, which holds one number such as ``3.0000000e+00``."""
    fields = [field for _, row in read_table(source, file, " ") for field in row if field]
    try:
        (code,) = map(float, fields)
        if not code.is_integer():
            raise ValueError(code)
        return LABEL_OF_CODE[int(code)]
    except (ValueError, KeyError) as error:
        found = " ".join(fields)[:40]
        raise NkfError(
            f"{source.path}: {file}: {found!a}, expected one whole number from 0 to 7 such as 3.0000000e+00"
        ) from error


def _find_frames(source: Source, folder: str, sequence: str) -> tuple[list[_Frame], bool]:
    """Frames of a sequence in their order, and whether there are images of other names."""
    images = [file for file in source.children(folder).files if is_image(file)]
    matches = [match for match in map(_FRAME_NAME.fullmatch, images) if match]
    frames = [_Frame(int(match[1]), f"{sequence}/{match[0]}", join(folder, match[0])) for match in matches]
    return sorted(frames, key=lambda frame: (frame.number, frame.name)), len(frames) < len(images)


def _landmark_files(source: Source, folder: str) -> dict[int, str]:
    """Frame number -> file."""
    matches = map(_LANDMARK_NAME.fullmatch, source.children(folder).files)
    return {int(match[1]): join(folder, match[0]) for match in matches if match}


def _read_landmarks(source: Source, file: str) -> Points | None:
    """(68, 2) in pixels, or None where the file holds something else."""
    try:
        rows = [[float(field) for field in row if field] for _, row in read_table(source, file, " ") if any(row)]
        points = np.array(rows, np.float64)
    except (NkfError, ValueError):
        return None
    if points.shape != (NUM_LANDMARKS, 2) or not (np.abs(points) < MAX_COORDINATE).all():  # also for NaN
        return None
    return points


def _name(sequence: _Sequence) -> str:
    return f"{sequence.subject}/{sequence.number}"


def _list_copy(source: Source, listing: Listing, frames: int) -> list[_Sequence]:
    roots = find_roots(source, _has_class_folders)
    if not roots:
        raise NkfError(f"{source.path}: not CK+; expected {EXPECTED}")
    if len(roots) > 1:
        raise NkfError(
            f"{source.path}: class folders in {some(roots)}; expected one set of them, since a split that is not by "
            "subject cannot be used; name one of the folders"
        )
    sequences: dict[tuple[str, str, str], list[_Frame]] = defaultdict(list)
    problems = Problems(str(source.path))
    for folder, file in _copied_files(source, roots[0]):
        member = join(roots[0], f"{folder}/{file}")
        match = _COPIED_NAME.fullmatch(file)
        if match:
            key = match[1], match[2], LABEL_OF_FOLDER[folder.lower()]
            sequences[key].append(_Frame(int(match[3]), f"{folder}/{file}", member))
        else:
            listing.left_out["name that is not one of the dataset's"] += 1
            problems.add("images left out, expected names such as S010_004_00000017.png", member)
    listing.warnings += problems.warnings()
    listing.shows = "face"
    listing.details |= {
        "layout": "48x48 re-upload of 981 pictures",
        "label": "class folder",
        "frames": f"the last {frames} of those there",
    }
    return [
        _Sequence(subject, number, label, sorted(found, key=lambda frame: frame.number)[-frames:])
        for (subject, number, label), found in sequences.items()
    ]


def _has_class_folders(source: Source, folder: str, children: Children) -> bool:
    """Class folders alone would fit many datasets, so one of their files has to have a name of CK+."""
    return any(
        _COPIED_NAME.fullmatch(file)
        for name in children.folders
        if name.lower() in LABEL_OF_FOLDER
        for file in source.children(join(folder, name)).files
    )


def _copied_files(source: Source, root: str) -> Iterator[tuple[str, str]]:
    """Class folder and file of each image."""
    for folder in source.children(root).folders:
        files = [file for file in source.children(join(root, folder)).files if is_image(file)]
        if files and folder.lower() not in LABEL_OF_FOLDER:
            raise NkfError(f"{source.path}: {join(root, folder)} is no class, expected {', '.join(LABEL_OF_FOLDER)}")
        yield from ((folder, file) for file in files)
