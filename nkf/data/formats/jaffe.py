"""Read JAFFE (Lyons et al., FG 1998): one flat folder of ``KA.AN1.39.tiff``, subject . expression + number . index.

Not read: the table of 60 observers' mean ratings on six adjectives.
"""

import re
from pathlib import PurePosixPath

from nkf.data.listing import Entry, Listing, Problems
from nkf.data.sources import Source, is_image, walk
from nkf.errors import NkfError

LICENCE = (
    "JAFFE: given out on request for non-commercial scientific research; the pictures must not be passed on. Weights "
    "trained on it serve evaluation only."
)
LABEL_OF_LETTERS = {
    "AN": "anger",
    "DI": "disgust",
    "FE": "fear",
    "HA": "happiness",
    "NE": "neutral",
    "SA": "sadness",
    "SU": "surprise",
}
EXPECTED = "names such as KA.AN1.39.tiff (subject . expression and number . index)"

# Some copies have one name with a doubled dot; some shorten the ending.
_NAME = re.compile(rf"([A-Z]{{2}})\.({'|'.join(LABEL_OF_LETTERS)})(\d)\.+(\d{{1,3}})\.(?:tiff|tif|TIFF|TIF)", re.ASCII)


def list_jaffe(source: Source) -> Listing:
    """List the pictures of JAFFE, at any depth of the source.

    Raises:
        NkfError: when none has a name of this dataset.
    """
    listing = Listing(
        "jaffe",
        LICENCE,
        entries=(),
        shows="photo",
        details={
            "layout": "flat folder",
            "label_file": "letters in the file name",
            "protocol": "no official split, all in train; results are reported leaving one subject out in turn",
        },
        metadata={"subject": "text", "index": "integer"},
    )
    found = _match_names(source, listing)
    listing.total = len(found)
    listing.entries = (
        Entry(
            name=PurePosixPath(member).name,
            split="train",
            member=member,
            label=LABEL_OF_LETTERS[match[2]],
            metadata={"subject": match[1], "index": int(match[4])},
        )
        for member, match in found
    )
    return listing


def _match_names(source: Source, listing: Listing) -> list[tuple[str, re.Match[str]]]:
    """File and the parts of its name, for each picture once; what else there is goes to the listing's warnings."""
    found: dict[tuple[str, ...], tuple[str, re.Match[str]]] = {}
    problems = Problems(str(source.path))
    for member in filter(is_image, walk(source)):
        match = _NAME.fullmatch(PurePosixPath(member).name)
        if match is None:
            listing.left_out["name that is not one of the dataset's"] += 1
            problems.add(f"images left out, expected {EXPECTED}", member)
        elif match.groups() in found:
            listing.left_out["the same picture again"] += 1
            problems.add("pictures left out that are there twice, the first counts", member)
        else:
            found[match.groups()] = member, match
    if not found:
        raise NkfError(f"{source.path}: no JAFFE pictures; expected {EXPECTED}")
    listing.warnings += problems.warnings()
    return list(found.values())
