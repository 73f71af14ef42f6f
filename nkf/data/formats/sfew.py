"""Read SFEW 2.0 (Dhall et al., ICCVW 2011): frames of films, ``Train/Angry/*.png`` and ``Val/Angry/*.png``.

The organisers' aligned faces lie in ``Train_Aligned_Faces`` and ``Val_Aligned_Faces``, without those that their tracker
missed. The labels of ``Test`` were never given out, so everybody reports on Val; it becomes the split ``test`` here.
"""

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Literal, get_args

from nkf.data.listing import Entry, KnownCount, Listing, Problems
from nkf.data.sources import Source, find_root, is_image, join, some, walk_images
from nkf.errors import NkfError

SfewImages = Literal["original", "aligned"]

LICENCE = (
    "SFEW 2.0: frames of cinema films, given out under the signed licence of the EmotiW challenge, for research only "
    "and not to be passed on. Weights trained on it serve evaluation only."
)
LABEL_OF_FOLDER = {  # in small letters, as copies differ
    "angry": "anger",
    "disgust": "disgust",
    "fear": "fear",
    "happy": "happiness",
    "neutral": "neutral",
    "sad": "sadness",
    "surprise": "surprise",
}
CLASS_FOLDERS = ", ".join(name.capitalize() for name in LABEL_OF_FOLDER)
SPLIT_OF_FOLDER = {"Train": "train", "Val": "test"}
UNLABELLED = "Test"
ENDING_OF_ALIGNED = "_Aligned_Faces"
KNOWN = {"train": KnownCount(958), "test": KnownCount(436)}  # of the original images


def list_sfew(source: Source, *, images: SfewImages = "original") -> Listing:
    """List the labelled pictures of SFEW 2.0, train first.

    Args:
        source: the dataset.
        images: whole frames, or the organisers' aligned faces.

    Raises:
        NkfError: when neither Train nor Val of these images is there, or has a folder that is no class.
    """
    if images not in get_args(SfewImages):
        raise NkfError(f"images {images!r}, expected one of {', '.join(get_args(SfewImages))}")
    ending = ENDING_OF_ALIGNED if images == "aligned" else ""
    folders = [folder + ending for folder in SPLIT_OF_FOLDER]
    root = find_root(source, folders, f"{' and '.join(folders)} with the folders {CLASS_FOLDERS}")
    listing = Listing(
        "sfew",
        LICENCE,
        entries=(),
        shows="photo" if images == "original" else "face",
        details={
            "layout": f"class folders in {' and '.join(folders)}",
            "label_file": "class folders",
            "crop": images,
            "test_split_is": "the official Val set",
        },
        known={"label": KNOWN} if images == "original" else {},
    )
    found = {folder: _list_classes(source, join(root, folder + ending), listing) for folder in SPLIT_OF_FOLDER}
    if not any(found.values()):
        raise NkfError(f"{source.path}: no images in {' or '.join(folders)}, expected some in {CLASS_FOLDERS}")
    if images == "aligned":
        for folder, members in found.items():
            _count_missing_faces(source, join(root, folder), members, listing)
    unlabelled = sum(1 for _ in walk_images(source, join(root, UNLABELLED + ending)))
    if unlabelled:
        listing.left_out["picture of Test, whose labels are not public"] = unlabelled
    listing.total = sum(map(len, found.values()))
    listing.entries = _entries(found)
    return listing


def _entries(found: dict[str, list[str]]) -> Iterator[Entry]:
    for folder, members in found.items():
        for member in members:
            path = PurePosixPath(member)
            yield Entry(
                name=f"{path.parent.name}/{path.name}",
                split=SPLIT_OF_FOLDER[folder],
                member=member,
                label=LABEL_OF_FOLDER[path.parent.name.lower()],
            )


def _list_classes(source: Source, folder: str, listing: Listing) -> list[str]:
    """The images in the class folders of one split."""
    children = source.children(folder)
    unknown = [name for name in children.folders if name.lower() not in LABEL_OF_FOLDER]
    if unknown:
        raise NkfError(f"{source.path}: {folder}: {some(unknown)} is no class, expected {CLASS_FOLDERS}")
    problems = Problems(f"{source.path}: {folder}")
    for name in filter(is_image, children.files):
        listing.left_out["image outside the class folders"] += 1
        problems.add("images left out, in no class folder", name)
    listing.warnings += problems.warnings()
    members = [
        join(join(folder, name), file)
        for name in children.folders
        for file in source.children(join(folder, name)).files
        if is_image(file)
    ]
    if not members:
        listing.warnings.append(f"{source.path}: {folder}: no images; expected some in {CLASS_FOLDERS}")
    return members


def _count_missing_faces(source: Source, folder: str, aligned: list[str], listing: Listing) -> None:
    """Compare aligned faces with the frames of the same split, by class and name without ending."""
    frames = {_key(member): member for member in walk_images(source, folder)}
    where = f"{source.path}: {folder}"
    if not frames:
        listing.warnings.append(f"{where}: not there, so the faces without an aligned picture cannot be counted")
        return
    found = set(map(_key, aligned))
    problems = Problems(where)
    for key, member in frames.items():
        if key not in found:
            listing.left_out[f"frame of {folder} without an aligned face"] += 1
            problems.add("frames without an aligned face", member)
    listing.warnings += problems.warnings()


def _key(member: str) -> tuple[str, str]:
    path = PurePosixPath(member)
    return path.parent.name.lower(), path.stem
