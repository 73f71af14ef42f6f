"""Read AffectNet (Mollahosseini, Hasani and Mahoor, IEEE TAC 2017) in both releases, told apart by what is there.

* First, 2017: ``Manually_Annotated_file_lists/training.csv`` and ``validation.csv`` with a row for each image, the
  images below ``Manually_Annotated/Manually_Annotated_Images``, cut loosely around the face, whose box the row has.
* Second, 2021: ``train_set`` and ``val_set`` (``valid_set`` in some copies), each with ``images/<id>.jpg``, 224x224
  pixels around the face, and ``annotations/<id>_exp.npy``, ``_val.npy``, ``_aro.npy`` and ``_lnd.npy``.

The official test set was never given out, so everybody reports on the validation set: here it is the split ``test``.
"""

import hashlib
import io
import itertools
import math
import re
import tokenize
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nkf.data.labels import EXPRESSIONS
from nkf.data.listing import MAX_COORDINATE, Entry, KnownCount, Listing, MetadataType, Problems
from nkf.data.sources import Children, Row, Source, find_roots, is_image, is_printable, join, read_table, some
from nkf.errors import NkfError

LABEL_OF_CODE = {
    0: "neutral", 1: "happiness", 2: "sadness", 3: "surprise", 4: "fear", 5: "disgust", 6: "anger", 7: "contempt",
}  # fmt: skip
NO_EXPRESSION_OF_CODE = {8: "none", 9: "uncertain", 10: "no face"}  # first release only
METADATA: dict[str, MetadataType] = {"valence": "number", "arousal": "number"}
LANDMARKS = 68
NO_LANDMARKS = f"images without landmarks, expected {LANDMARKS} pairs x;y"
COLUMNS = (
    "subDirectory_filePath", "face_x", "face_y", "face_width", "face_height", "facial_landmarks", "expression",
    "valence", "arousal",
)  # fmt: skip
CODE_COLUMN = COLUMNS.index("expression")
MANUAL_LISTS = "Manually_Annotated_file_lists"
SPLIT_OF_LIST = {"training.csv": "train", "validation.csv": "test"}
MANUAL_IMAGES = "Manually_Annotated_Images"
AUTOMATIC_LIST = "Automatically_annotated_file_list/automatically_annotated.csv"
AUTOMATIC_IMAGES = "Automatically_Annotated_Images"
FIRST_FEW = 8  # rows whose images have to be there, one of them at least
SPLIT_OF_FOLDER = {"train_set": "train", "val_set": "test", "valid_set": "test"}
MAX_ANNOTATION_BYTES = 1 << 20
NPY_1_0 = b"\x93NUMPY\x01\x00"  # beginning of an npy file of version 1.0, as numpy writes nearly all

LICENCE = (
    "AffectNet: for non-commercial research and education under an agreement that each institution signs for itself; "
    "the images may not be passed on, and networks trained on them are for non-commercial use too."
)

# Train: of both releases, without the first release's row with a broken box. Validation: of the first and the second.
KNOWN_TRAIN = KnownCount(287_651, {
    "neutral": 74_874, "happiness": 134_415, "sadness": 25_459, "surprise": 14_090, "fear": 6_378, "disgust": 3_803,
    "anger": 24_882, "contempt": 3_750,
})  # fmt: skip
KNOWN_VALIDATION = {
    "first": KnownCount(4_000, dict.fromkeys(EXPRESSIONS, 500)),
    "second": KnownCount(3_999, dict.fromkeys(EXPRESSIONS, 500) | {"contempt": 499}),
}


def list_affectnet(source: Source, *, with_automatic: bool = False) -> Listing:
    """List the images of AffectNet that show an expression; its validation set is the split ``test``.

    Args:
        source: holds one release, or one split of it, at its top or deeper.
        with_automatic: add the first release's automatically annotated images to ``train``, and a metadata column
            ``annotation`` (manual or automatic).

    Raises:
        NkfError: when the source has neither release or both, or a folder that goes with a list is absent. `entries`
            raise it for a code or row that cannot be of AffectNet.
    """
    root, release = _find_release(source)
    listing = Listing(
        dataset="affectnet",
        licence=LICENCE,
        entries=(),
        details={"release": release, "test_split_is": "the official validation set"},
        metadata=METADATA,
        known={"label": {"train": KNOWN_TRAIN, "test": KNOWN_VALIDATION[release]}},
    )
    if release == "second":
        if with_automatic:
            raise NkfError(f"{source.path}: AffectNet's second release has no automatically annotated images")
        sets = _find_sets(source, root)
        listing.total = sum(len(found.images) for found in sets)
        listing.entries = _list_sets(source, sets, listing)
        return listing
    tables = _find_tables(source, root)
    if with_automatic:
        tables.insert(1 if tables[0].split == "train" else 0, _find_automatic(source, root))
        listing.metadata = METADATA | {"annotation": "text"}
        listing.known = {"label": {"test": KNOWN_VALIDATION[release]}}
    for table in tables:
        _require_images(source, table)
    listing.entries = _list_tables(source, tables, listing, tell_annotation=with_automatic)
    return listing


def _find_release(source: Source) -> tuple[str, str]:
    """Where which release starts."""

    def is_root(source: Source, folder: str, children: Children) -> bool:
        return _holds_first(children) or bool(_sets_of(source, folder, children))

    found: list[tuple[str, str]] = []
    for root in find_roots(source, is_root):
        children = source.children(root)
        if _holds_first(children):
            found.append((root, "first"))
        if _sets_of(source, root, children):
            found.append((root, "second"))
    if not found:
        raise NkfError(
            f"{source.path}: no AffectNet; expected {MANUAL_LISTS} with {' or '.join(SPLIT_OF_LIST)} (first release), "
            "or train_set or val_set with images and annotations in it (second release)"
        )
    places = [f"the {release} release in {root or 'its top folder'}" for root, release in found]
    if len(found) > 1:
        raise NkfError(
            f"{source.path}: holds AffectNet {len(found)} times, {' and '.join(places)}; expected one of them"
        )
    return found[0]


def _holds_first(children: Children) -> bool:
    beside = MANUAL_IMAGES in children.folders and any(name in SPLIT_OF_LIST for name in children.files)
    return beside or MANUAL_LISTS in children.folders


def _sets_of(source: Source, folder: str, children: Children) -> list[str]:
    """Folders of the second release that have anything of what they should have."""
    sets = [name for name in SPLIT_OF_FOLDER if name in children.folders]
    parts = {"images", "annotations"}
    return [name for name in sets if parts.intersection(source.children(join(folder, name)).folders)]


@dataclass(frozen=True, slots=True)
class _Table:
    """A list of the first release with the folder of its images."""

    file: str
    images: str
    split: str
    annotation: Literal["manual", "automatic"] = "manual"


def _find_tables(source: Source, root: str) -> list[_Table]:
    """The lists with their images' folder, train first."""
    children = source.children(root)
    lists = join(root, MANUAL_LISTS) if MANUAL_LISTS in children.folders else root
    files = [name for name in SPLIT_OF_LIST if name in source.children(lists).files]
    if not files:
        raise NkfError(f"{source.path}: {lists}: no {' or '.join(SPLIT_OF_LIST)} in it")
    images = _find_images(source, [join(root, f"Manually_Annotated/{MANUAL_IMAGES}"), join(root, MANUAL_IMAGES)])
    return [_Table(join(lists, name), images, SPLIT_OF_LIST[name]) for name in files]


def _find_automatic(source: Source, root: str) -> _Table:
    parent, file = join(root, "Automatically_Annotated"), join(root, AUTOMATIC_LIST)
    if not source.has(file):
        raise NkfError(f"{source.path}: no automatically annotated images; expected {file}")
    images = _find_images(source, [join(parent, AUTOMATIC_IMAGES), join(root, AUTOMATIC_IMAGES), parent])
    return _Table(file, images, "train", "automatic")


def _find_images(source: Source, candidates: Sequence[str]) -> str:
    for folder in candidates:
        children = source.children(folder)
        if children.folders or children.files:
            return folder
    raise NkfError(f"{source.path}: no images; expected them in {' or '.join(candidates)}")


def _require_images(source: Source, table: _Table) -> None:
    """Tell at once, not after the first hundred thousand warnings, when a list and a folder do not go together."""
    where = f"{source.path}: {table.file}"
    with closing(_read_rows(source, table.file)) as rows:
        names = [_safe_name(fields[0], f"{where}, line {line}") for line, fields in itertools.islice(rows, FIRST_FEW)]
    if not any(source.has(join(table.images, name)) for name in names):
        raise NkfError(f"{where}: its first images are not in {table.images}; expected {some(names, 2)}")


def _read_rows(source: Source, file: str) -> Generator[Row, None, None]:
    """Rows with their fields in the order of `COLUMNS`; some copies of the lists have a header, others not."""
    where = f"{source.path}: {file}"
    rows = read_table(source, file)
    order, width = list(range(len(COLUMNS))), len(COLUMNS)
    first = next(rows, None)
    if first and not re.fullmatch(r"\s*[+-]?[0-9]+\s*", "".join(first[1][CODE_COLUMN : CODE_COLUMN + 1])):
        columns = [name.strip() for name in first[1]]
        missing = [name for name in COLUMNS if name not in columns]
        if missing:
            raise NkfError(
                f"{where}, line {first[0]}: no column {', '.join(missing)}; expected the header {','.join(COLUMNS)}, "
                "or a row in this order with a code from 0 to 10"
            )
        order, width = [columns.index(name) for name in COLUMNS], len(columns)
        first = next(rows, None)
    if first is None:
        raise NkfError(f"{where}: empty; expected a row for each image")
    for line, fields in itertools.chain([first], rows):
        if len(fields) != width:
            raise NkfError(f"{where}, line {line}: {len(fields)} fields, expected {width}: {', '.join(COLUMNS)}")
        yield line, [fields[index] for index in order]


def _list_tables(source: Source, tables: Sequence[_Table], listing: Listing, tell_annotation: bool) -> Iterator[Entry]:
    seen: set[bytes] = set()  # digests: there may be a million long names
    for table in tables:
        where = f"{source.path}: {table.file}"
        problems = Problems(where)
        for line, (path, *box, landmarks, expression, valence, arousal) in _read_rows(source, table.file):
            name = _safe_name(path, f"{where}, line {line}")
            code = _parse_code(expression.strip(), 10, f"{where}, line {line}")
            if code in NO_EXPRESSION_OF_CODE:
                listing.left_out[NO_EXPRESSION_OF_CODE[code]] += 1
                continue
            example = f"line {line} {name}"
            box_xyxy = _parse_box(box)
            if box_xyxy is None:
                listing.left_out["broken box"] += 1
                problems.add("rows left out, their face box has no positive width and height", example)
                continue
            digest = hashlib.blake2b(f"{table.split}/{name}".encode(), digest_size=12).digest()
            if digest in seen:
                listing.left_out["listed before"] += 1
                problems.add("rows left out, an earlier row has the same image", example)
                continue
            seen.add(digest)
            metadata: dict[str, Any] = {
                "valence": _parse_affect(valence, problems, "valences that are no number", example),
                "arousal": _parse_affect(arousal, problems, "arousals that are no number", example),
            }
            yield Entry(
                name=name,
                split=table.split,
                member=join(table.images, name),
                label=LABEL_OF_CODE[code],
                box_xyxy=box_xyxy,
                landmarks_px=_parse_landmarks(landmarks.strip("; ").split(";"), problems, NO_LANDMARKS, example),
                metadata=metadata | ({"annotation": table.annotation} if tell_annotation else {}),
            )
        listing.warnings += problems.warnings()


def _safe_name(path: str, where: str) -> str:
    """A path of a table, without detours; it must not lead out of the images' folder."""
    name = PurePosixPath(path.strip())
    outside = not name.parts or name.parts[0][-1] in "/:" or ".." in name.parts or "\\" in path
    if outside or not is_printable(path):
        raise NkfError(f"{where}: image {path!r}, expected a path below the images' folder, as 12/name.jpg")
    return name.as_posix()


def _parse_box(fields: Sequence[str]) -> NDArray[np.float32] | None:
    """(4,) x0, y0, x1, y1 of a left, top, width and height; None when they are no box."""
    try:
        x, y, width, height = map(float, fields)
    except ValueError:
        return None
    in_reach = all(abs(value) <= MAX_COORDINATE for value in (x, y, width, height))  # false for NaN
    return np.array([x, y, x + width, y + height], np.float32) if in_reach and width > 0 and height > 0 else None


@dataclass(frozen=True, slots=True)
class _Set:
    """A folder of the second release with its images, in their order."""

    folder: str
    split: str
    images: Sequence[str]


def _find_sets(source: Source, root: str) -> list[_Set]:
    """The sets with their images, train first; each folder of images is listed once."""
    found = _sets_of(source, root, source.children(root))
    if len({SPLIT_OF_FOLDER[name] for name in found}) < len(found):
        raise NkfError(f"{source.path}: has both {' and '.join(found[-2:])}; expected one validation set")
    sets = []
    for name in found:
        folder = join(root, name)
        absent = {"images", "annotations"}.difference(source.children(folder).folders)
        if absent:
            raise NkfError(f"{source.path}: {folder}: no {absent.pop()} in it; expected images and annotations")
        images = filter(is_image, source.children(join(folder, "images")).files)
        sets.append(_Set(folder, SPLIT_OF_FOLDER[name], sorted(images, key=_number_of)))
        if not sets[-1].images:
            raise NkfError(f"{source.path}: {folder}/images: no image in it")
    return sets


def _number_of(name: str) -> tuple[bool, int, str]:
    """Sorts ids by their number, and what is no number behind them."""
    stem = PurePosixPath(name).stem
    is_number = stem.isascii() and stem.isdigit()
    return not is_number, int(stem) if is_number else 0, name


def _list_sets(source: Source, sets: Sequence[_Set], listing: Listing) -> Iterator[Entry]:
    for found in sets:
        problems = Problems(f"{source.path}: {found.folder}")
        for image in found.images:
            base = f"{found.folder}/annotations/{PurePosixPath(image).stem}"
            expression = _load_scalar(source, f"{base}_exp.npy")
            if expression is None:
                listing.left_out["no readable expression"] += 1
                problems.add("images left out, their _exp.npy is missing or unreadable", image)
                continue
            code = _parse_code(expression, 7, f"{source.path}: {base}_exp.npy")
            valence, arousal = (_load_scalar(source, f"{base}_{kind}.npy") for kind in ("val", "aro"))
            landmarks = _load_array(source, f"{base}_lnd.npy")
            yield Entry(
                name=image,
                split=found.split,
                member=f"{found.folder}/images/{image}",
                label=LABEL_OF_CODE[code],
                landmarks_px=_parse_landmarks(landmarks, problems, "_lnd.npy missing or unreadable", image),
                metadata={
                    "valence": _parse_affect(valence, problems, "_val.npy missing or unreadable", image),
                    "arousal": _parse_affect(arousal, problems, "_aro.npy missing or unreadable", image),
                },
            )
        listing.warnings += problems.warnings()


def _load_array(source: Source, name: str) -> NDArray[Any] | None:
    """Numbers or strings out of an npy file; None when it is missing or broken."""
    try:
        array = _read_npy(source.read(name, MAX_ANNOTATION_BYTES))
        if array.dtype.kind not in "iufUS" or array.size > 2 * LANDMARKS:
            return None
        array = array.astype(np.str_) if array.dtype.kind == "S" else array
        array.tolist()  # here and not later, for text that is not Unicode: a SystemError
    except (NkfError, ValueError, MemoryError, SyntaxError, tokenize.TokenError, SystemError):  # others: broken headers
        return None
    return array


def _read_npy(data: bytes) -> NDArray[Any]:
    if not data.startswith(NPY_1_0):
        return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    start = len(NPY_1_0) + 2 + int.from_bytes(data[len(NPY_1_0) : len(NPY_1_0) + 2], "little")
    shape, order, dtype = _read_npy_header(data[len(NPY_1_0) : start])
    return np.frombuffer(data, dtype, math.prod(shape), start).reshape(shape, order=order)


@lru_cache(maxsize=1024)
def _read_npy_header(header: bytes) -> tuple[tuple[int, ...], Literal["C", "F"], np.dtype[Any]]:
    """Shape, order and dtype; a million files have a few different headers, and each takes long to parse."""
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(io.BytesIO(header))
    if dtype.hasobject:
        raise ValueError("objects, which would have to be unpickled")
    return shape, "F" if is_fortran else "C", dtype


def _load_scalar(source: Source, name: str) -> str | None:
    """The text of the one value of an npy file, which is a number in some copies and a string in others."""
    array = _load_array(source, name)
    return None if array is None or array.size != 1 else str(array.item()).strip()


def _parse_code(text: str, highest: int, where: str) -> int:
    """A code of an expression; raises `NkfError` for what is none."""
    if not re.fullmatch("[0-9]{1,2}", text) or int(text) > highest:
        raise NkfError(f"{where}: expression {text!r}, expected a whole number from 0 to {highest}")
    return int(text)


def _parse_affect(text: str | None, problems: Problems, what: str, example: str) -> float | None:
    """A valence or arousal in [-1, 1]; None for others such as -2, not given, and with a warning for no number."""
    try:
        value = float(text or "")
    except ValueError:
        problems.add(what, example)
        return None
    return value if -1 <= value <= 1 else None


def _parse_landmarks(
    values: Sequence[str] | NDArray[Any] | None, problems: Problems, what: str, example: str
) -> NDArray[np.float32] | None:
    """(68, 2) in pixels; None with a warning for what is not 68 points."""
    try:
        numbers = np.array(() if values is None else values, np.float64)
    except ValueError:
        numbers = np.empty(0)
    if numbers.shape not in ((2 * LANDMARKS,), (LANDMARKS, 2)) or not (np.abs(numbers) <= MAX_COORDINATE).all():
        problems.add(what, example)
        return None
    return numbers.reshape(LANDMARKS, 2).astype(np.float32)
