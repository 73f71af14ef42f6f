"""Folder-per-class data, the plainest way to bring one's own: ``train/happy/a.jpg``, or ``happy/a.jpg``.

Classes and splits are the names of folders, and only names that are known: nothing is read out of numbers or of the
order of the folders.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from nkf.data.formats.synonyms import (
    CALM,
    NUMBERS_DIFFER,
    OWN_TERMS,
    SPLIT_NAMES,
    SYNONYMS,
    canonical,
    known_classes,
    perhaps,
    split_of,
)
from nkf.data.labels import EXPRESSIONS
from nkf.data.listing import SPLITS, Entry, Listing, Problems
from nkf.data.sources import Children, Source, find_roots, is_image, join, some, walk, walk_images
from nkf.errors import NkfError

LAYOUT = "<split>/<class>/*.jpg with the splits train, valid, test, or <class>/*.jpg"

# Kaggle's folder copies of FER-2013 put PublicTest and PrivateTest, 3,589 images each, into one folder "test".
KAGGLE_TEST_IMAGES = 7178
KAGGLE_PREFIXES = ("PublicTest_", "PrivateTest_")
FER2013_CLASSES = frozenset(EXPRESSIONS) - {"contempt"}


@dataclass(frozen=True, slots=True)
class _Split:
    """One split: the folder that holds the class folders, and those with the class of each."""

    folder: str
    classes: Mapping[str, str]


def list_folders(
    source: Source,
    *,
    calm_is_neutral: bool = False,
    shows: Literal["face", "photo"] = "photo",
    licence: str = OWN_TERMS,
) -> Listing:
    """List images that lie in one folder a class, in split folders or all for training.

    Args:
        source: holds the folders, at its top or deeper; images may lie deeper below their class folder.
        calm_is_neutral: take a folder ``calm`` for neutral.
        shows: whether each image is one face, or a photo in which it has to be found.
        licence: terms of the data, for the manifest.

    Raises:
        NkfError: when folders have no known names, contradict each other or hold no image, and for Kaggle's merged test
            of FER-2013.
    """
    root = _find_root(source)
    folders, warnings = _split_folders(source, root)
    splits = {
        split: _Split(folder, _class_folders(source, folder, calm_is_neutral)) for split, folder in folders.items()
    }
    if "test" in splits and _is_merged_test(source, splits["test"].folder):
        raise NkfError(
            f"{_named(source, splits['test'].folder)}: Kaggle's merged test of FER-2013 (PublicTest and PrivateTest "
            "together), which is no official test; expected fer2013.csv with fer2013new.csv (nkf data import ferplus), "
            "or another folder name, such as valid, to use it as data of your own"
        )
    total = sum(1 for folder in _all_class_folders(splits) for _ in walk_images(source, folder))
    if not total:
        raise NkfError(f"{source.path}: no image in any of its class folders; expected {LAYOUT}")
    meant = {folder: label for split in splits.values() for folder, label in split.classes.items()}
    details = {
        "layout": "folders",
        "split_folders": ", ".join(f"{split} = {folder or '.'}" for split, folder in folders.items()),
        "class_folders": ", ".join(f"{folder} = {label}" for folder, label in sorted(meant.items())),
    }
    listing = Listing("folders", licence, (), shows=shows, details=details, warnings=warnings, total=total)
    listing.entries = _entries(source, root, splits, listing.warnings)
    return listing


def is_kaggle_fer2013(source: Source) -> bool:
    """Tell whether a source holds a copy of FER-2013 as folders whose "test" is PublicTest and PrivateTest in one."""
    return any(
        _is_merged_test(source, join(root, folder))
        for root in find_roots(source, _is_root)
        for folder in source.children(root).folders
        if split_of(folder) == "test"
    )


def _is_merged_test(source: Source, folder: str) -> bool:
    count = 0
    prefixes: set[str] = set()
    for member in walk_images(source, folder):
        count += 1
        prefixes.update(prefix for prefix in KAGGLE_PREFIXES if PurePosixPath(member).name.startswith(prefix))
    classes = {canonical(name) for name in source.children(folder).folders}
    return len(prefixes) == len(KAGGLE_PREFIXES) or (count == KAGGLE_TEST_IMAGES and classes == FER2013_CLASSES)


def _is_root(_: Source, __: str, children: Children) -> bool:
    return any(_is_class(name) or split_of(name) for name in children.folders)


def _is_class(name: str) -> bool:
    return canonical(name, calm_is_neutral=True) is not None


def _find_root(source: Source) -> str:
    """The one folder that holds split folders or class folders."""
    roots = find_roots(source, _is_root)
    if len(roots) > 1:
        raise NkfError(f"{source.path}: class or split folders in {len(roots)} places, {some(roots)}; name one of them")
    if roots:
        return roots[0]
    # A single number may be a wrapping folder, such as a year; classes are at least two.
    for folder in find_roots(source, lambda _, __, children: len(_numbers(children.folders)) > 1):
        _refuse_names(source, folder, source.children(folder).folders)
    top = source.children().folders
    found = f"; found only the folders {some(top)}" if top else ""
    hints = [perhaps(name, SYNONYMS) for name in top]
    raise NkfError(
        f"{source.path}: no class folders; expected {LAYOUT}, with the classes {known_classes()}{found}"
        + next(filter(None, hints), "")
    )


def _split_folders(source: Source, root: str) -> tuple[dict[str, str], list[str]]:
    """The folder of each split, in the order of `SPLITS`, and warnings of folders that are none."""
    names = source.children(root).folders
    found: dict[str, list[str]] = {split: [name for name in names if split_of(name) == split] for split in SPLITS}
    splits = [name for name in names if split_of(name)]
    if not splits:
        return {"train": root}, []
    classes = [name for name in names if _is_class(name)]
    if classes:
        raise NkfError(
            f"{_named(source, root)}: class folders ({some(classes)}) beside split folders ({some(splits)}); "
            "expected all class folders inside split folders, or no split folders"
        )
    for split, folders in found.items():
        if len(folders) > 1:
            raise NkfError(f"{_named(source, root)}: {len(folders)} folders for the split {split}, {some(folders)}")
    strangers = [name for name in names if not split_of(name)]
    for name in strangers:
        if next(walk_images(source, join(root, name)), None) is not None:
            raise NkfError(
                f"{_named(source, join(root, name))}: holds images beside split folders; expected only train, valid "
                f"and test there{perhaps(name, SPLIT_NAMES)}"
            )
    warnings = (
        [f"{_named(source, root)}: folders left out, they hold no image ({some(strangers)})"] if strangers else []
    )
    return {split: join(root, folders[0]) for split, folders in found.items() if folders}, warnings


def _class_folders(source: Source, top: str, calm_is_neutral: bool) -> dict[str, str]:
    """Class of each folder in one folder, in the order of their names."""
    classes: dict[str, str] = {}
    unknown = []
    for name in source.children(top).folders:
        label = canonical(name, calm_is_neutral=calm_is_neutral)
        if label is None:
            unknown.append(name)
        else:
            classes[name] = label
    if unknown:
        _refuse_names(source, top, unknown)
    if not classes:
        raise NkfError(f"{_named(source, top)}: no class folders in it; expected {LAYOUT}")
    for name, label in classes.items():
        for inner in source.children(join(top, name)).folders:
            # Deeper folders say nothing, but one with such a name does mean something: an image would get it wrong.
            if split_of(inner) or canonical(inner, calm_is_neutral=True) not in (None, label):
                raise NkfError(
                    f"{_named(source, join(join(top, name), inner))}: a {'split' if split_of(inner) else 'class'} "
                    f"folder inside the class folder {name}; expected {LAYOUT}"
                )
    return classes


def _numbers(names: Sequence[str]) -> list[str]:
    return [name for name in names if name.isdecimal()]


def _refuse_names(source: Source, top: str, names: Sequence[str]) -> None:
    """Raise the error that fits to folders whose names are no classes."""
    numbers = _numbers(names)
    if numbers:
        raise NkfError(
            f"{_named(source, top)}: class folders named by numbers ({some(numbers)}); rename them, as {NUMBERS_DIFFER}"
        )
    if [name.strip().lower() for name in names] == [CALM]:
        raise NkfError(
            f"{_named(source, join(top, names[0]))}: counts as neutral only when asked for (calm_is_neutral); "
            "otherwise leave the folder out"
        )
    hint = next(filter(None, (perhaps(name, SYNONYMS) for name in names)), "")
    raise NkfError(f"{_named(source, top)}: unknown class folders {some(names)}; expected {known_classes()}{hint}")


def _all_class_folders(splits: Mapping[str, _Split]) -> Iterator[str]:
    for split in splits.values():
        yield from (join(split.folder, name) for name in split.classes)


def _entries(source: Source, root: str, splits: Mapping[str, _Split], warnings: list[str]) -> Iterator[Entry]:
    problems = Problems(str(source.path))
    no_image = "files left out, no images by their names"
    for top in dict.fromkeys((root, *(split.folder for split in splits.values()))):
        for file in source.children(top).files:
            problems.add("images left out, in no class folder" if is_image(file) else no_image, join(top, file))
    for split, found in splits.items():
        for folder, label in found.classes.items():
            none = True
            for member in walk(source, join(found.folder, folder)):
                if not is_image(member):
                    problems.add(no_image, member)
                    continue
                none = False
                name = member.removeprefix(f"{found.folder}/") if found.folder else member
                yield Entry(name=name, split=split, member=member, label=label)
            if none:
                problems.add("class folders without an image", join(found.folder, folder))
    warnings += problems.warnings()


def _named(source: Source, folder: str) -> str:
    """A folder of a source, for a message."""
    return f"{source.path}: {folder}" if folder else str(source.path)
