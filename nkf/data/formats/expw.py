"""Read ExpW (Zhang et al., IJCV 2018): whole photos, and one row a face in ``label/label.lst``.

Blank-separated: photo, number of the face in it, box top, left, right, bottom (in this order), confidence of the box,
expression code.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from nkf.data.listing import Entry, KnownCount, Listing, Problems
from nkf.data.sources import Source, find_root, is_printable, join, read_table, some
from nkf.errors import NkfError

LICENCE = (
    "ExpW: given out by the Multimedia Laboratory of CUHK without a licence text that we could find; for research "
    "only, ask its authors before any other use."
)
LABEL_OF_CODE = {
    "0": "anger",
    "1": "disgust",
    "2": "fear",
    "3": "happiness",
    "4": "sadness",
    "5": "surprise",
    "6": "neutral",
}
KNOWN = KnownCount(
    91_793,
    {
        "anger": 3_671,
        "disgust": 3_995,
        "fear": 1_088,
        "happiness": 30_537,
        "sadness": 10_559,
        "surprise": 7_060,
        "neutral": 34_883,
    },
)
PHOTO_FOLDERS = ("image/origin", "image")
PROBED = 20  # photos looked for before any row is used
COLUMNS = "photo, face number, top, left, right, bottom, confidence, code from 0 to 6"


@dataclass(frozen=True, slots=True)
class _Face:
    photo: str
    number: int  # of the face in the photo
    box_xyxy: tuple[float, float, float, float]
    confidence: float
    label: str

    @property
    def name(self) -> str:
        return f"{self.photo}#{self.number}"


def list_expw(source: Source, *, min_confidence: float = 0.0) -> Listing:
    """List the faces of ExpW, in the order of its table; those of one photo follow each other as they do there.

    Args:
        source: the dataset.
        min_confidence: leave out faces whose box has less, in the unit of the table.

    Raises:
        NkfError: when the table or all the photos looked for are missing, or a row is broken.
    """
    if not math.isfinite(min_confidence):
        raise NkfError(f"min_confidence {min_confidence}: expected a number in the unit of the table")
    root = find_root(source, ("label/label.lst",), "label/label.lst, and photos in image/origin/")
    table = join(root, "label/label.lst")
    listing = Listing(
        "expw",
        LICENCE,
        entries=(),
        shows="photo",
        details={
            "layout": "whole photos, one box a face",
            "label_file": "label.lst",
            "min_confidence": f"{min_confidence:g}",
            "protocol": "no official split, all in train; all faces of a photo have to stay in one split",
        },
        metadata={"photo": "text", "face_confidence": "number"},
        known={"label": {"train": KNOWN}} if min_confidence == 0 else {},
    )
    # All rows are read before any image is: a broken one should not come up after an hour.
    faces = _usable(_read_faces(source, table), min_confidence, listing, Problems(f"{source.path}: {table}"))
    if not faces:
        raise NkfError(f"{source.path}: {table}: no face to import; expected rows of {COLUMNS}")
    folder = _find_photos(source, root, table, faces)
    listing.total = len(faces)
    listing.entries = (_entry(face, folder) for face in faces)
    return listing


def _entry(face: _Face, folder: str) -> Entry:
    return Entry(
        name=face.name,
        split="train",
        member=join(folder, face.photo),
        label=face.label,
        box_xyxy=np.array(face.box_xyxy, np.float32),
        metadata={"photo": face.photo, "face_confidence": face.confidence},
    )


def _usable(faces: Iterable[_Face], min_confidence: float, listing: Listing, problems: Problems) -> list[_Face]:
    """Those with a box, enough confidence and a name of their own; the others are told to the listing."""
    kept: dict[str, _Face] = {}
    for face in faces:
        left, top, right, bottom = face.box_xyxy
        if face.confidence < min_confidence:
            listing.left_out["confidence of the box too low"] += 1
        elif not (left < right and top < bottom):
            listing.left_out["empty box"] += 1
            problems.add("faces left out, their boxes are empty", face.name)
        elif face.name in kept:
            listing.left_out["the same face again"] += 1
            problems.add("faces left out that are listed twice, the first row counts", face.name)
        else:
            kept[face.name] = face
    listing.warnings += problems.warnings()
    return list(kept.values())


def _find_photos(source: Source, root: str, table: str, faces: list[_Face]) -> str:
    photos = list(dict.fromkeys(face.photo for face in faces))[:PROBED]
    for folder in (join(root, folder) for folder in PHOTO_FOLDERS):
        if any(source.has(join(folder, photo)) for photo in photos):
            return folder
    raise NkfError(
        f"{source.path}: none of the first photos of {table} is there ({some(photos)}); expected them in "
        + " or ".join(f"{join(root, folder)}/" for folder in PHOTO_FOLDERS)
    )


def _read_faces(source: Source, table: str) -> Iterator[_Face]:
    for line, row in read_table(source, table, " "):
        where = f"{source.path}: {table}, line {line}"
        fields = [field for field in row if field]
        try:
            photo, number, *box, confidence, code = fields
            top, left, right, bottom = map(_finite, box)
            face = _Face(photo, int(number), (left, top, right, bottom), _finite(confidence), LABEL_OF_CODE[code])
        except (ValueError, KeyError) as error:
            raise NkfError(f"{where}: {' '.join(fields)!a:.200}, expected {COLUMNS}") from error
        if photo in (".", "..") or "/" in photo or "\\" in photo or not is_printable(photo):
            raise NkfError(f"{where}: photo {photo!a}, expected a plain file name")
        yield face


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number
