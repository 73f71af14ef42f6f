"""Folder-per-class data: layouts, names of classes and splits, and what is refused."""

import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

import pytest

from nkf.data.formats.folders import FER2013_CLASSES, is_kaggle_fer2013, list_folders
from nkf.data.formats.synonyms import SYNONYMS, canonical
from nkf.data.labels import EXPRESSIONS
from nkf.data.listing import Listing
from nkf.data.sources import Children, Source, open_source
from nkf.errors import NkfError


def save_folder(path: Path, names: Iterable[str]) -> Path:
    for name in names:
        file = path / name
        if name.endswith("/"):
            file.mkdir(parents=True)
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"")
    return path


def save_zip(path: Path, names: Iterable[str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    return path


class FakeSource:
    """A tree of file names without files."""

    def __init__(self, names: Iterable[str]) -> None:
        self.path = Path("fake")
        self.warnings: list[str] = []
        self._tree: dict[str, tuple[set[str], set[str]]] = {"": (set(), set())}
        for name in names:
            *folders, file = name.split("/")
            top = ""
            for folder in folders:
                self._tree[top][0].add(folder)
                top = f"{top}/{folder}" if top else folder
                self._tree.setdefault(top, (set(), set()))
            self._tree[top][1].add(file)

    def children(self, folder: str = "") -> Children:
        folders, files = self._tree.get(folder, (set(), set()))
        return Children(sorted(folders), sorted(files))

    def has(self, name: str) -> bool:
        raise AssertionError("no file is looked at for a listing")

    def open(self, name: str) -> IO[bytes]:
        raise AssertionError("no file is looked at for a listing")

    def read(self, name: str, limit: int = 0) -> bytes:
        raise AssertionError("no file is looked at for a listing")


def rows(listing: Listing) -> list[tuple[str, str, str | None, str]]:
    return [(entry.split, entry.name, entry.label, entry.member) for entry in listing.entries]


@pytest.mark.parametrize(("name", "label"), SYNONYMS.items())
def test_synonyms(name: str, label: str) -> None:
    assert label in EXPRESSIONS
    assert canonical(name) == canonical(f" {name.upper()} ") == label


@pytest.mark.parametrize(
    ("label", "names"),
    [
        ("neutral", "neutral"),
        ("happiness", "happy happiness joy joyful"),
        ("sadness", "sad sadness"),
        ("surprise", "surprised surprise"),
        ("fear", "afraid fearful fear scared"),
        ("disgust", "disgusted disgust"),
        ("anger", "angry anger"),
        ("contempt", "contempt contemptuous"),
    ],
)
def test_every_class_has_its_names(label: str, names: str) -> None:
    assert {name for name, meant in SYNONYMS.items() if meant == label} == set(names.split())


@pytest.mark.parametrize("name", ["", "1_happy", "happy faces", "happy-ish", "calm", "3", "none"])
def test_no_guessing(name: str) -> None:
    assert canonical(name) is None


def test_calm_when_asked_for() -> None:
    assert canonical("Calm", calm_is_neutral=True) == "neutral"
    assert canonical("cal", calm_is_neutral=True) is None


@pytest.mark.parametrize("save", [save_folder, save_zip])
@pytest.mark.parametrize("top", ["", "wrapping/", "a/b/c/d/"])
@pytest.mark.parametrize("valid", ["valid", "val", "Validation", "DEV"])
def test_splits(tmp_path: Path, save: Callable[[Path, Iterable[str]], Path], top: str, valid: str) -> None:
    names = [
        "Train/Happy/a.jpg",
        "Train/Happy/deeper/b.PNG",
        "Train/sad/a.jpg",
        f"{valid}/joy/c.jpg",
        "TEST/fear/d.jpg",
    ]
    path = save(tmp_path / "source", [top + name for name in names])
    with open_source(path) as source:
        listing = list_folders(source)
        assert rows(listing) == [
            ("train", "Happy/a.jpg", "happiness", f"{top}Train/Happy/a.jpg"),
            ("train", "Happy/deeper/b.PNG", "happiness", f"{top}Train/Happy/deeper/b.PNG"),
            ("train", "sad/a.jpg", "sadness", f"{top}Train/sad/a.jpg"),
            ("valid", "joy/c.jpg", "happiness", f"{top}{valid}/joy/c.jpg"),
            ("test", "fear/d.jpg", "fear", f"{top}TEST/fear/d.jpg"),
        ]
    assert (listing.dataset, listing.shows, listing.total, listing.warnings) == ("folders", "photo", 5, [])
    assert listing.details == {
        "layout": "folders",
        "split_folders": f"train = {top}Train, valid = {top}{valid}, test = {top}TEST",
        "class_folders": "Happy = happiness, fear = fear, joy = happiness, sad = sadness",
    }


@pytest.mark.parametrize("top", ["", "wrapping/"])
def test_class_folders_alone_are_train(top: str) -> None:
    listing = list_folders(FakeSource([f"{top}Angry/x/1.jpg", f"{top}neutral/2.jpg"]), shows="face", licence="Ours.")
    assert rows(listing) == [
        ("train", "Angry/x/1.jpg", "anger", f"{top}Angry/x/1.jpg"),
        ("train", "neutral/2.jpg", "neutral", f"{top}neutral/2.jpg"),
    ]
    assert (listing.shows, listing.licence, listing.total) == ("face", "Ours.", 2)
    assert listing.details["split_folders"] == f"train = {top.rstrip('/') or '.'}"


def test_two_names_of_one_class_are_two_folders() -> None:
    assert [row[1:3] for row in rows(list_folders(FakeSource(["joy/a.jpg", "happy/a.jpg"])))] == [
        ("happy/a.jpg", "happiness"),
        ("joy/a.jpg", "happiness"),
    ]


def test_calm_folder() -> None:
    source = FakeSource(["calm/a.jpg", "sad/b.jpg"])
    assert [row[2] for row in rows(list_folders(source, calm_is_neutral=True))] == ["neutral", "sadness"]
    with pytest.raises(NkfError, match=r"^fake: calm: counts as neutral only when asked for \(calm_is_neutral\)"):
        list_folders(source)


def test_nothing_is_left_out_silently(tmp_path: Path) -> None:
    names = ["readme.txt", "train/loose.jpg", "train/happy/a.jpg", "train/happy/Thumbs.db", "test/sad/notes.txt"]
    path = save_folder(tmp_path / "source", [*names, "test/fear/", "labels/list.txt", "loose.png"])
    with open_source(path) as source:
        listing = list_folders(source)
        assert len(rows(listing)) == 1
    assert listing.warnings == [
        f"{path}: folders left out, they hold no image (labels)",
        f"{path}: images left out, in no class folder: 2 (loose.png, train/loose.jpg)",
        f"{path}: files left out, no images by their names: 3 (readme.txt, train/happy/Thumbs.db, test/sad/notes.txt)",
        f"{path}: class folders without an image: 2 (test/fear, test/sad)",
    ]


def test_loose_files_beside_class_folders_are_counted_once() -> None:
    listing = list_folders(FakeSource(["sad/a.jpg", "b.jpg", "c.txt"]))
    assert len(rows(listing)) == 1
    assert listing.warnings == [
        "fake: images left out, in no class folder: 1 (b.jpg)",
        "fake: files left out, no images by their names: 1 (c.txt)",
    ]


def test_many_files_left_out_are_one_line() -> None:
    listing = list_folders(FakeSource(["sad/a.jpg", *(f"sad/{number}.txt" for number in range(9))]))
    assert len(rows(listing)) == 1
    assert listing.warnings == [
        "fake: files left out, no images by their names: 9 (sad/0.txt, sad/1.txt, sad/2.txt, sad/3.txt, ...)"
    ]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["sad/a.jpg", "hapy/a.jpg"],
            r"^fake: unknown class folders hapy; expected neutral, .*Perhaps you meant 'happy'",
        ),
        (["train/happy faces/a.jpg"], r"^fake: train: unknown class folders happy faces; .*Perhaps you meant 'happy'"),
        (["train/sad/a.jpg", "test/xyz/a.jpg", "test/q/a.jpg"], r"^fake: test: unknown class folders q, xyz; [^?]*$"),
        (["train/sad/a.jpg", "test/pain/a.jpg"], r"happiness \(happy, joy, joyful\), .* contempt \(contemptuous\)"),
        (
            ["train/1/a.jpg", "train/7/a.jpg"],
            r"^fake: train: class folders named by numbers \(1, 7\); rename them, as n",
        ),
        (
            ["1/a.jpg", "2/a.jpg"],
            r"^fake: class folders named by numbers \(1, 2\).*mean different classes in different",
        ),
        (["w/01/a.jpg", "w/02/a.jpg"], r"^fake: w: class folders named by numbers \(01, 02\)"),
        (["sad/a.jpg", "3/a.jpg"], r"named by numbers \(3\).*expected names: neutral, happiness"),
        (
            ["saad/a.jpg"],
            r"^fake: no class folders; expected <split>/<class>.*found only the folders saad. Perhaps .*'sad'",
        ),
        (["a.jpg"], r"^fake: no class folders; expected [^;]*happiness[^;]*$"),
        (["2024/x/a.jpg"], r"^fake: no class folders; .*; found only the folders 2024$"),
        (
            ["train/sad/a.jpg", "happy/a.jpg"],
            r"^fake: class folders \(happy\) beside split folders \(train\); expected all",
        ),
        (["val/sad/a.jpg", "valid/sad/b.jpg"], r"^fake: 2 folders for the split valid, val, valid$"),
        (["train/sad/a.jpg", "tests/sad/a.jpg"], r"^fake: tests: holds images beside split folders; .*meant 'test'\?$"),
        (["train/a.jpg", "test/sad/a.jpg"], r"^fake: train: no class folders in it"),
        (["a/sad/a.jpg", "b/sad/a.jpg"], r"^fake: class or split folders in 2 places, a, b; name one of them$"),
        (
            ["sad/train/a.jpg"],
            r"^fake: sad/train: a split folder inside the class folder sad; expected <split>/<class>",
        ),
        (["joy/happy/a.jpg", "joy/sad/b.jpg"], r"^fake: joy/sad: a class folder inside the class folder joy"),
        (["sad/a.txt"], r"^fake: no image in any of its class folders"),
    ],
)
def test_refused(names: list[str], message: str) -> None:
    with pytest.raises(NkfError, match=message) as caught:
        list_folders(FakeSource(names))
    assert "\n" not in str(caught.value)


def test_a_class_folder_may_hold_its_own_name() -> None:
    assert len(rows(list_folders(FakeSource(["happy/joy/a.jpg"])))) == 1


MERGED = r"^fake: {}: Kaggle's merged test of FER-2013 .*no official test; expected fer2013.csv with fer2013new.csv \("
FOLDERS = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")


def kaggle(count: int, test: str = "test", folders: tuple[str, ...] = FOLDERS) -> Source:
    return FakeSource(
        [f"train/{folder}/0.jpg" for folder in folders]
        + [f"{test}/{folders[number % len(folders)]}/{number}.jpg" for number in range(count)]
    )


@pytest.mark.parametrize("test", ["test", "Test", "TEST"])
def test_kaggles_fer2013_by_its_count(test: str) -> None:
    assert {canonical(folder) for folder in FOLDERS} == FER2013_CLASSES
    source = kaggle(7178, test)
    assert is_kaggle_fer2013(source)
    with pytest.raises(NkfError, match=MERGED.format(test)):
        list_folders(source)


@pytest.mark.parametrize("top", ["", "fer2013/"])
def test_kaggles_fer2013_by_its_names(top: str) -> None:
    names = ["train/sad/Training_1.jpg", "test/sad/PublicTest_2.jpg", "test/sad/PrivateTest_3.jpg"]
    source = FakeSource([top + name for name in names])
    assert is_kaggle_fer2013(source)
    with pytest.raises(NkfError, match=MERGED.format(f"{top}test")):
        list_folders(source)


@pytest.mark.parametrize(
    "source",
    [
        kaggle(7177),
        kaggle(7179),
        kaggle(7178, "valid"),
        kaggle(7178, folders=(*FOLDERS, "contempt")),
        kaggle(7178, folders=FOLDERS[1:]),
        FakeSource(["test/sad/PublicTest_2.jpg", "train/sad/PrivateTest_3.jpg"]),
        FakeSource(["val/sad/PublicTest_2.jpg", "val/sad/PrivateTest_3.jpg"]),
    ],
    ids=["one less", "one more", "valid", "contempt", "six classes", "one prefix", "valid by names"],
)
def test_not_kaggles_fer2013(source: Source) -> None:
    assert not is_kaggle_fer2013(source)
    assert list_folders(source).total


def test_other_sources_are_not_kaggles_fer2013() -> None:
    assert not is_kaggle_fer2013(FakeSource(["fer2013.csv", "FER2013Test/a.png", "1/a.jpg", "2/a.jpg"]))
