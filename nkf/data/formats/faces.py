"""Face pictures without labels: all images of a folder or zip."""

from collections.abc import Iterator
from pathlib import PurePosixPath

from nkf.data.listing import Entry, Listing, Problems
from nkf.data.sources import Source, is_image, walk
from nkf.errors import NkfError
from nkf.images import IMAGE_SUFFIXES

LICENCE = "Not told by the files: the terms are those of the place they come from."


def list_faces(source: Source) -> Listing:
    """List all images of a source, each one face; all are of train, named by their path below what they have in common.

    Raises:
        NkfError: when there is none.
    """
    problems = Problems(str(source.path))
    top = ""
    while len(children := source.children(top).folders) == 1 and not source.children(top).files:
        top = f"{top}/{children[0]}" if top else children[0]
    first = next((name for name in walk(source, top) if is_image(name)), None)
    if first is None:
        raise NkfError(f"{source.path}: no image files; expected some of {', '.join(sorted(IMAGE_SUFFIXES))}")
    listing = Listing(dataset="faces", licence=LICENCE, entries=())

    def entries() -> Iterator[Entry]:
        for name in walk(source, top):
            if is_image(name):
                yield Entry(name=PurePosixPath(name).relative_to(top).as_posix(), split="train", member=name)
            else:
                problems.add("files left out, no images by their names", name)
        listing.warnings += problems.warnings()

    listing.entries = entries()
    return listing
