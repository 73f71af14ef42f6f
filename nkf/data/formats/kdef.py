"""Read KDEF (Lundqvist, Flykt, Öhman 1998): ``AF01ANFL.JPG``, session, sex, number, expression, angle.

Straight pictures have an angle of one letter, ``AF01ANS.JPG``. A few published files are misnamed.
"""

import re
from pathlib import PurePosixPath

from nkf.data.listing import Entry, KnownCount, Listing, Problems
from nkf.data.sources import Source, is_image, some, walk
from nkf.errors import NkfError

LICENCE = (
    "KDEF: free for non-commercial scientific research, never to be passed on; only a fixed list of its pictures may "
    "be shown in publications. Weights trained on it serve evaluation only."
)
LABEL_OF_LETTERS = {
    "AF": "fear",
    "AN": "anger",
    "DI": "disgust",
    "HA": "happiness",
    "NE": "neutral",
    "SA": "sadness",
    "SU": "surprise",
}
SEX_OF_LETTER = {"F": "female", "M": "male"}
ANGLE_OF_LETTERS = {"S": "straight", "HL": "half left", "HR": "half right", "FL": "full left", "FR": "full right"}
PICTURES_PER_CLASS_AND_ANGLE = 140  # 70 people in two sessions
EXPECTED = "names such as AF01ANFL.JPG or AF01ANS.JPG (session, sex, number 01-35, expression, angle)"

_STEM = re.compile(
    rf"(?P<session>[AB])(?P<sex>[FM])(?P<number>0[1-9]|[12]\d|3[0-5])"
    rf"(?P<expression>{'|'.join(LABEL_OF_LETTERS)})(?P<angle>{'|'.join(ANGLE_OF_LETTERS)})",
    re.ASCII,
)


def list_kdef(source: Source, *, angles: tuple[str, ...] = ("S", "HL", "HR", "FL", "FR")) -> Listing:
    """List the pictures of KDEF, at any depth of the source.

    Args:
        source: the dataset.
        angles: keys of `ANGLE_OF_LETTERS`, the angles to take.

    Raises:
        NkfError: when an angle is unknown, or no picture has a name of this dataset and one of the angles.
    """
    unknown = [angle for angle in angles if angle not in ANGLE_OF_LETTERS]
    if unknown or not angles:
        raise NkfError(f"angles {some(unknown) or 'are empty'}, expected some of {', '.join(ANGLE_OF_LETTERS)}")
    taken = [letters for letters in ANGLE_OF_LETTERS if letters in angles]
    per_class = PICTURES_PER_CLASS_AND_ANGLE * len(taken)
    by_class = dict.fromkeys(LABEL_OF_LETTERS.values(), per_class)
    listing = Listing(
        "kdef",
        LICENCE,
        entries=(),
        shows="photo",
        details={
            "layout": "file names",
            "label_file": "letters in the file name",
            "angles": ", ".join(ANGLE_OF_LETTERS[letters] for letters in taken),
            "protocol": "no official split, all in train; a subject is in both sessions and has to stay in one split",
        },
        metadata={"subject": "text", "session": "text", "sex": "text", "angle": "text"},
        known={"label": {"train": KnownCount(sum(by_class.values()), by_class)}},
    )
    found = _match_names(source, listing, taken)
    listing.total = len(found)
    listing.entries = (_entry(member, match) for member, match in found)
    return listing


def _entry(member: str, match: re.Match[str]) -> Entry:
    return Entry(
        name=PurePosixPath(member).name,
        split="train",
        member=member,
        label=LABEL_OF_LETTERS[match["expression"]],
        metadata={
            "subject": match["sex"] + match["number"],
            "session": match["session"],
            "sex": SEX_OF_LETTER[match["sex"]],
            "angle": ANGLE_OF_LETTERS[match["angle"]],
        },
    )


def _match_names(source: Source, listing: Listing, angles: list[str]) -> list[tuple[str, re.Match[str]]]:
    """File and the parts of its name, for each picture once; what is left out is told to the listing."""
    found: dict[str, tuple[str, re.Match[str]]] = {}
    problems = Problems(str(source.path))
    for member in filter(is_image, walk(source)):
        path = PurePosixPath(member)
        match = _STEM.fullmatch(path.stem)
        if match is None or path.suffix.lower() != ".jpg":
            listing.left_out["name that is not one of the dataset's"] += 1
            problems.add(f"images left out, expected {EXPECTED}", member)
        elif match["angle"] not in angles:
            listing.left_out["angle not asked for"] += 1
        elif path.stem in found:
            listing.left_out["the same picture again"] += 1
            problems.add("pictures left out that are there twice, the first counts", member)
        else:
            found[path.stem] = member, match
    if not found:
        other_angles = listing.left_out["angle not asked for"]
        others = f" of these angles, but {other_angles} of others" if other_angles else f"; expected {EXPECTED}"
        raise NkfError(f"{source.path}: no KDEF pictures{others}")
    listing.warnings += problems.warnings()
    return list(found.values())
