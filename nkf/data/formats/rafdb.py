"""Read the basic part of RAF-DB (Li, Deng and Du, CVPR 2017): seven expressions, one an image.

* ``EmoLabel/list_patition_label.txt`` (its own spelling; ``list_partition_label.txt`` is read too) has a row for each
  image, ``train_00001.jpg 5``. The prefix of the name is the split; there is no validation split.
* ``Image/aligned/train_00001_aligned.jpg``: the face, 100x100. ``Image/original/train_00001.jpg``: the photo.
* ``Annotation/manual/train_00001_manu_attri.txt``: five lines "x y", then sex, ethnic group and age group.
* ``Annotation/boundingbox/train_00001_boundingbox.txt``: the face in the photo, x0 y0 x1 y1.

Not kept: the five manual landmarks, and ``Annotation/auto`` with 37 automatic ones; packs have 68 points.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePosixPath
from typing import Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from nkf.data.listing import MAX_COORDINATE, Entry, KnownCount, Listing, MetadataType, Problems
from nkf.data.sources import Children, Source, find_roots, is_image, join, read_table, some
from nkf.errors import NkfError

LABEL_OF_CODE = {
    "1": "surprise",
    "2": "fear",
    "3": "disgust",
    "4": "happiness",
    "5": "sadness",
    "6": "anger",
    "7": "neutral",
}
SEX_OF_CODE = {"0": "male", "1": "female", "2": "unsure"}
ETHNIC_GROUP_OF_CODE = {"0": "Caucasian", "1": "African-American", "2": "Asian"}
AGE_GROUP_OF_CODE = {"0": "0-3", "1": "4-19", "2": "20-39", "3": "40-69", "4": "70+"}
METADATA: dict[str, MetadataType] = {"sex": "text", "ethnic_group": "text", "age_group": "text"}

LABEL_FILES = ("list_patition_label.txt", "list_partition_label.txt")
IMAGE_NAME = re.compile(r"(train|test)_[0-9]+\.jpg")
LANDMARKS = 5
MAX_TEXT_BYTES = 1 << 20
LICENCE = (
    "RAF-DB: for non-commercial research and education only. Neither the images nor data derived from them may be used "
    "commercially, and the images may not be passed on."
)
DETAIL_OF_IMAGES = {"aligned": "aligned (100x100, official)", "original": "original"}

# Counted from the rows of the list.
KNOWN_COUNTS = {
    "train": KnownCount(
        12_271,
        {
            "surprise": 1_290, "fear": 281, "disgust": 717, "happiness": 4_772, "sadness": 1_982, "anger": 705,
            "neutral": 2_524,
        },
    ),
    "test": KnownCount(
        3_068,
        {
            "surprise": 329, "fear": 74, "disgust": 160, "happiness": 1_185, "sadness": 478, "anger": 162,
            "neutral": 680,
        },
    ),
}  # fmt: skip

Images = Literal["aligned", "original"]
Value = TypeVar("Value")


def list_rafdb(source: Source, *, images: Literal["aligned", "original", "auto"] = "auto") -> Listing:
    """List the images of RAF-DB's basic part.

    Args:
        source: holds the folder ``basic``, or what is in it, at its top or deeper.
        images: which of the two pictures of each face; ``auto`` takes the aligned ones where they are there.

    Raises:
        NkfError: when this is not RAF-DB's basic part, the images asked for are absent, or the list has a broken row.
    """
    root = _find_root(source)
    label_file, warnings = _find_label_file(source, root)
    kind = _choose_images(source, root, images)
    labels, doubled = _read_labels(source, label_file)
    warnings += doubled
    folder = join(root, f"Image/{kind}")
    missing, mismatches = _match_images(source, folder, kind, labels, label_file)
    people, boxes = _find_annotations(source, root, kind)
    listing = Listing(
        dataset="rafdb",
        licence=LICENCE,
        entries=(),
        shows="face" if kind == "aligned" else "photo",
        details={
            "layout": "basic",
            "crop": DETAIL_OF_IMAGES[kind],
            "label_file": PurePosixPath(label_file).name,
        },
        metadata=METADATA if people else {},
        known={"label": KNOWN_COUNTS},
        warnings=warnings + mismatches,
        total=len(labels) - len(missing),
    )
    if missing:
        listing.left_out["no image file"] = len(missing)
    present = ((name, label) for name, label in labels.items() if name not in missing)
    listing.entries = _make_entries(present, folder, kind, people, boxes, listing.warnings)
    return listing


def _find_root(source: Source) -> str:
    """The one folder with the list; the compound part has a list of the same name and other codes."""

    def is_root(source: Source, folder: str, children: Children) -> bool:
        return _is_compound(source, folder) or bool(_label_files(source, folder, children))

    found = find_roots(source, is_root)
    roots = [folder for folder in found if not _is_compound(source, folder)]
    if found and not roots:
        raise NkfError(
            f"{source.path}: only the compound part of RAF-DB, which is another task; expected its basic part, the "
            f"folder basic with EmoLabel/{LABEL_FILES[0]}"
        )
    if not roots:
        raise NkfError(
            f"{source.path}: not RAF-DB; expected EmoLabel/{LABEL_FILES[0]} (or {LABEL_FILES[1]}) beside Image/aligned "
            "or Image/original"
        )
    if len(roots) > 1:
        raise NkfError(f"{source.path}: holds RAF-DB {len(roots)} times, in {some(roots)}; name one of them")
    return roots[0]


def _is_compound(source: Source, folder: str) -> bool:
    return (PurePosixPath(folder).name if folder else source.path.stem).lower() == "compound"


def _label_files(source: Source, folder: str, children: Children) -> list[str]:
    """The lists of a folder, in its EmoLabel or beside its Image, the official spelling first."""
    places = {"EmoLabel": source.children(join(folder, "EmoLabel")).files} if "EmoLabel" in children.folders else {}
    places[""] = children.files
    return [join(place, name) for place, files in places.items() for name in LABEL_FILES if name in files]


def _find_label_file(source: Source, root: str) -> tuple[str, list[str]]:
    first, *others = _label_files(source, root, source.children(root))
    warnings = [f"{source.path}: {join(root, first)} is read, {join(root, other)} is not" for other in others]
    return join(root, first), warnings


def _choose_images(source: Source, root: str, images: Literal["aligned", "original", "auto"]) -> Images:
    folder = join(root, "Image")
    children = source.children(folder)
    wanted: tuple[Images, ...] = ("aligned", "original") if images == "auto" else (images,)
    for kind in wanted:
        if kind in children.folders:
            return kind
    packed = [file for kind in wanted for file in children.files if file == f"{kind}.zip"]
    hint = f"; unpack {join(folder, packed[0])} there" if packed else ""
    raise NkfError(f"{source.path}: no {' or '.join(join(folder, kind) for kind in wanted)} with the images{hint}")


def _image_name(name: str, kind: Images) -> str:
    """File name of an image that the list calls by its original's name."""
    return f"{PurePosixPath(name).stem}_aligned.jpg" if kind == "aligned" else name


def _read_labels(source: Source, label_file: str) -> tuple[dict[str, str], list[str]]:
    """Name of the original image -> class, in the order of the list; and a line about names that come twice."""
    labels: dict[str, str] = {}
    doubled: dict[str, bool] = {}  # name -> whether its rows contradict each other
    for line, fields in read_table(source, label_file, delimiter=" "):
        name, *codes = " ".join(fields).split() or [""]
        where = f"{source.path}: {label_file}, line {line}"
        if not name:
            continue
        if not IMAGE_NAME.fullmatch(name) or len(codes) != 1:
            raise NkfError(
                f"{where}: {' '.join([name, *codes])!r:.100}, expected a name and a code, as train_00001.jpg 5"
            )
        if codes[0] not in LABEL_OF_CODE:
            raise NkfError(f"{where}: code {codes[0]!r:.100}, expected 1 to 7 (1 to 11 are those of the compound part)")
        label = LABEL_OF_CODE[codes[0]]
        before = labels.pop(name, None)
        if before is not None:
            doubled[name] = doubled.get(name, False) or before != label
        labels[name] = label
    if not labels:
        raise NkfError(f"{source.path}: {label_file}: empty; expected a row for each image, as train_00001.jpg 5")
    problems = Problems(f"{source.path}: {label_file}")
    for name, differs in doubled.items():
        problems.add(f"names listed more than once{' with other codes' if differs else ''}, the last row counts", name)
    return labels, problems.warnings()


def _match_images(
    source: Source, folder: str, kind: Images, labels: dict[str, str], label_file: str
) -> tuple[set[str], list[str]]:
    """Names of the list without an image, and a line for each way in which list and folder differ."""
    files = source.children(folder).files
    image_of = {name: _image_name(name, kind) for name in labels}
    present, listed = set(files), set(image_of.values())
    missing = {name: image for name, image in image_of.items() if image not in present}
    if len(missing) == len(labels):
        example = some(list(missing.values()), 1).removesuffix(", ...")
        raise NkfError(f"{source.path}: {folder} has none of the images of {label_file}; expected {example} and others")
    problems = Problems(f"{source.path}: {folder}")
    for image in missing.values():
        problems.add("images of the list that are missing", image)
    for file in files:
        if is_image(file) and file not in listed:
            problems.add("images left out, not in the list", file)
    return set(missing), problems.warnings()


class _Annotations(Generic[Value]):
    """A folder of small text files, one for each image, of which some may be missing or broken.

    Args:
        source: where they are.
        folder: theirs.
        suffix: what their names have after the stem of the original image's.
        expected: what they hold, for the warning about others.
        parse: makes a value of a text; raises `ValueError` or `KeyError` when it is another one.
    """

    def __init__(self, source: Source, folder: str, suffix: str, expected: str, parse: Callable[[str], Value]) -> None:
        self._source = source
        self._folder = folder
        self._suffix = suffix
        self._expected = expected
        self._parse = parse
        self._files = frozenset(source.children(folder).files)
        self._problems = Problems(f"{source.path}: {folder}")

    def read(self, stem: str) -> Value | None:
        """What the file of an image says; None without a usable one."""
        name = stem + self._suffix
        if name not in self._files:
            self._problems.add("files missing", name)
            return None
        try:
            return self._parse(self._source.read(join(self._folder, name), MAX_TEXT_BYTES).decode("utf-8-sig"))
        except (NkfError, ValueError, KeyError):
            self._problems.add(f"files not understood, expected {self._expected}", name)
            return None

    def warnings(self) -> list[str]:
        """A line about the missing files and one about the broken ones, if there were any."""
        return self._problems.warnings()


def _find_annotations(
    source: Source, root: str, kind: Images
) -> tuple[_Annotations[dict[str, str]] | None, _Annotations[NDArray[np.float32]] | None]:
    """The files on the people and, for photos, those with the face's box; None for a folder that is absent."""
    parent = join(root, "Annotation")
    folders = source.children(parent).folders
    people = boxes = None
    if "manual" in folders:
        expected = "five lines x y, then the codes of sex, ethnic group and age group, a line each"
        people = _Annotations(source, join(parent, "manual"), "_manu_attri.txt", expected, _parse_groups)
    if "boundingbox" in folders and kind == "original":
        expected = "four numbers x0 y0 x1 y1"
        boxes = _Annotations(source, join(parent, "boundingbox"), "_boundingbox.txt", expected, _parse_box)
    return people, boxes


def _make_entries(
    labels: Iterable[tuple[str, str]],
    folder: str,
    kind: Images,
    people: _Annotations[dict[str, str]] | None,
    boxes: _Annotations[NDArray[np.float32]] | None,
    warnings: list[str],
) -> Iterator[Entry]:
    for name, label in labels:
        stem, image = PurePosixPath(name).stem, _image_name(name, kind)
        groups = people.read(stem) if people else None
        yield Entry(
            name=image,
            split=stem.split("_")[0],
            member=join(folder, image),
            label=label,
            box_xyxy=boxes.read(stem) if boxes else None,
            metadata=groups or {},
        )
    for annotations in (people, boxes):
        warnings += annotations.warnings() if annotations else []


def _parse_groups(text: str) -> dict[str, str]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    *points, sex, ethnic_group, age_group = lines
    if [len(point.split()) for point in points] != [2] * LANDMARKS:
        raise ValueError("other lines than five landmarks")
    for point in points:
        tuple(map(float, point.split()))
    return {
        "sex": SEX_OF_CODE[sex],
        "ethnic_group": ETHNIC_GROUP_OF_CODE[ethnic_group],
        "age_group": AGE_GROUP_OF_CODE[age_group],
    }


def _parse_box(text: str) -> NDArray[np.float32]:
    x0, y0, x1, y1 = map(float, text.split())
    if not (x0 < x1 and y0 < y1 and max(map(abs, (x0, y0, x1, y1))) <= MAX_COORDINATE):
        raise ValueError("not the corners of a box")
    return np.array([x0, y0, x1, y1], np.float32)
