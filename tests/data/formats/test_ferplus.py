"""FER+ tables, the broken ones above all. No image is read here."""

import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

import pytest

from nkf.data.formats.ferplus import list_ferplus
from nkf.data.listing import Entry, Listing
from nkf.data.sources import MAX_FIELD, MAX_IMAGE_BYTES, Children
from nkf.errors import NkfError

LABELS = "FER2013Train/label.csv"
PIXELS, VOTES = "fer2013.csv", "fer2013new.csv"
BLACK = " ".join(["0"] * 48 * 48)


class MemorySource:
    """A `Source` of files in memory."""

    def __init__(self, files: dict[str, str | bytes], path: str = "dataset") -> None:
        self.path = Path(path)
        self.warnings: list[str] = []
        self.files = {name: data.encode() if isinstance(data, str) else data for name, data in files.items()}

    def children(self, folder: str = "") -> Children:
        start = f"{folder}/" if folder else ""
        below = [name.removeprefix(start).split("/") for name in self.files if name.startswith(start)]
        folders = {parts[0] for parts in below if len(parts) > 1}
        return Children(sorted(folders), sorted(parts[0] for parts in below if len(parts) == 1))

    def has(self, name: str) -> bool:
        return name in self.files

    def open(self, name: str) -> IO[bytes]:
        return io.BytesIO(self.files[name])

    def read(self, name: str, limit: int = MAX_IMAGE_BYTES) -> bytes:
        pytest.fail("a listing reads no image")


def folder_files() -> dict[str, str]:
    box = '"(0, 0, 48, 48)"'
    return {
        LABELS: f"fer0000000.png,{box},1,2,3,4,0,0,0,0,0,0\nfer0000007.png,{box},2,0,0,0,0,0,8,0,0,0\n",
        "FER2013Test/label.csv": f"fer0032220.png,{box},0,0,0,0,0,0,0,9,0,1\n",
    }


def csv_files() -> dict[str, str]:
    return {
        PIXELS: f"emotion,pixels,Usage\n0,{BLACK},Training\n3,{BLACK},Training\n0,{BLACK},PrivateTest\n",
        VOTES: "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF\n"
        "Training,fer0000000.png,4,0,0,1,3,2,0,0,0,0\n"
        "Training,,0,0,0,0,0,0,0,0,0,10\n"
        "PrivateTest,fer0032220.png,10,0,0,0,0,0,0,0,0,0\n",
    }


def listing_of(files: dict[str, str]) -> tuple[Listing, list[Entry]]:
    listing = list_ferplus(MemorySource(files))  # type: ignore[arg-type]
    return listing, list(listing.entries)


def names_of(entries: Iterable[Entry]) -> list[tuple[str, str]]:
    return [(entry.split, entry.name) for entry in entries]


def test_folders() -> None:
    listing, entries = listing_of(folder_files())
    assert (listing.dataset, listing.shows, listing.total) == ("ferplus", "face", 3)
    assert listing.details == {"layout": "folders", "label_file": "label_csv"}
    assert (listing.warnings, listing.uncounted) == ([], [])
    assert names_of(entries) == [
        ("train", "fer0000000.png"),
        ("train", "fer0000007.png"),
        ("test", "fer0032220.png"),
    ]
    assert entries[0].votes is not None
    assert entries[0].votes.tolist() == [1, 2, 4, 3, 0, 0, 0, 0, 0, 0]  # sadness comes before surprise in nkf
    assert entries[0].box_xyxy is not None
    assert entries[0].box_xyxy.tolist() == [0, 0, 48, 48]
    assert (entries[2].member, entries[2].folder) == ("FER2013Test/fer0032220.png", "FER2013Test")


def test_tables() -> None:
    listing, entries = listing_of(csv_files())
    assert listing.details == {"layout": "csv", "label_file": "fer2013new"}
    assert listing.warnings == []
    assert names_of(entries) == [("train", "fer0000000.png"), ("test", "fer0032220.png")]
    assert [entry.member for entry in entries] == ["fer2013.csv, line 2", "fer2013.csv, line 4"]
    assert [entry.folder for entry in entries] == ["FER2013Train", "FER2013Test"]
    assert all(entry.image_bytes is not None and entry.image_bytes.startswith(b"\x89PNG") for entry in entries)


def test_folders_win_over_tables() -> None:
    assert listing_of(folder_files() | csv_files())[0].details["layout"] == "folders"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("\n", "\r\n"),
        ("\n", "\n\n"),
        ("fer", " fer"),
        ('"(0, 0, 48, 48)"', '"(0,0,48,48)"'),
        ("fer0000000", "\ufefffer"),
    ],
)
def test_harmless_differences(old: str, new: str) -> None:
    files = folder_files()
    files[LABELS] = files[LABELS].replace(old, new, 1 if "\ufeff" in new else -1)
    assert len(listing_of(files)[1]) == 3


def test_images_without_label_are_told() -> None:
    files = folder_files() | {f"FER2013Train/extra{i}.png": "" for i in range(6)} | {"FER2013Train/notes.txt": ""}
    stray = [f"FER2013Train/extra{i}.png" for i in range(6)] + ["FER2013Train/fer0000000.png"]
    files["FER2013Train/fer0000000.png"] = ""  # has one
    names = ", ".join(stray[:4])
    assert listing_of(files)[0].warnings == [f"dataset: 6 images left out, not in label.csv ({names}, ...)"]


def put(name: str, text: str | bytes) -> Callable[[dict[str, str]], dict[str, str]]:
    return lambda files: files | {name: text}  # type: ignore[dict-item]


def edit(name: str, old: str, new: str) -> Callable[[dict[str, str]], dict[str, str]]:
    def change(files: dict[str, str]) -> dict[str, str]:
        assert old in files[name]
        return files | {name: files[name].replace(old, new, 1)}

    return change


WHERE = r"^dataset: FER2013Train/label\.csv"
NOT_VOTES = WHERE + r", line 2: votes .*, expected ten whole numbers$"
BROKEN_FOLDERS: dict[str, tuple[Callable[[dict[str, str]], dict[str, str]], str]] = {
    "no label.csv": (
        lambda files: {name: text for name, text in files.items() if name != LABELS} | {"FER2013Train/a.png": ""},
        WHERE + r": missing; FER\+ has a label\.csv in each of its folders$",
    ),
    "empty": (put(LABELS, "\n"), WHERE + ": empty; expected a row for each image: name, box, ten votes$"),
    "field missing": (edit(LABELS, ",8,0,0,0\n", ",8,0,0\n"), WHERE + ", line 2: 11 fields, expected 12: name, box"),
    "header": (edit(LABELS, "fer", "name,box,votes\nfer"), WHERE + ", line 1: 3 fields, expected 12: name, box, ten"),
    "word as vote": (edit(LABELS, ",8,", ",x,"), NOT_VOTES),
    "negative vote": (edit(LABELS, ",8,", ",-8,"), NOT_VOTES),
    "half a vote": (edit(LABELS, ",8,", ",7.5,"), NOT_VOTES),
    "300 votes": (edit(LABELS, ",8,", ",300,"), NOT_VOTES),
    "no vote": (edit(LABELS, ",8,", ",,"), NOT_VOTES),
    "five box sides": (
        edit(LABELS, "48)", "48, 0)"),
        WHERE + r", line 1: box '\(0, 0, 48, 48, 0\)', expected \(x0, y0",
    ),
    "word in box": (
        edit(LABELS, "48)", "x)"),
        WHERE + r", line 1: box '\(0, 0, 48, x\)', expected \(x0, y0, x1, y1\)$",
    ),
    "empty box": (edit(LABELS, "48)", "0)"), WHERE + r", line 1: box '\(0, 0, 48, 0\)' is empty, expected \(x0, y0"),
    "box of nan": (edit(LABELS, "48)", "nan)"), WHERE + r", line 1: box '\(0, 0, 48, nan\)' is empty, expected"),
    "name leads out": (
        edit(LABELS, "fer0000007", "../x"),
        WHERE + r", line 2: image name '\.\./x\.png', expected a plain",
    ),
    "no name": (edit(LABELS, "fer0000007.png", " "), WHERE + ", line 2: no image name$"),
    "not text": (put(LABELS, b"\xff\xfe\x00"), WHERE + r": not a text table \(UTF-8\)$"),
    "endless field": (put(LABELS, "x" * (MAX_FIELD + 1)), WHERE + r", line \d: not a csv table \(field larger than"),
    "folder twice": (
        put("copy/FER2013Train/label.csv", ""),
        "^dataset: has FER2013Train twice, in FER2013Train and in copy/FER2013Train$",
    ),
    "nothing of FER+": (
        lambda _: {"photo.png": ""},
        r"^dataset: no FER\+ data; expected FER2013Train, FER2013Valid, FER2013Test \(any of them\) with a label\.csv",
    ),
}


@pytest.mark.parametrize("case", BROKEN_FOLDERS)
def test_broken_folders(case: str) -> None:
    damage, message = BROKEN_FOLDERS[case]
    with pytest.raises(NkfError, match=message) as caught:
        listing_of(damage(folder_files()))
    assert "\n" not in str(caught.value)


GO_TOGETHER = "the two files have to go together row by row$"
BROKEN_TABLES: dict[str, tuple[Callable[[dict[str, str]], dict[str, str]], str]] = {
    "one table alone": (
        lambda files: {VOTES: files[VOTES]},
        r"no FER\+ data; .* or fer2013\.csv with fer2013new\.csv$",
    ),
    "header of votes": (edit(VOTES, "Usage", "Use"), r"new\.csv, line 1: expected the header Usage,Image name,neutral"),
    "header of pixels": (edit(PIXELS, "emotion", "label"), r"2013\.csv, line 1: expected the header emotion,pixels,Us"),
    "empty votes": (put(VOTES, ""), r"new\.csv, line 1: expected the header Usage,Image name,neutral"),
    "field missing": (edit(VOTES, ",0,0,0,10\n", ",0,0,10\n"), r"new\.csv, line 3: 11 fields, expected 12: usage, na"),
    "vote": (edit(VOTES, "0,10\n", "0,ten\n"), r"new\.csv, line 3: votes .*ten, expected ten whole numbers$"),
    "usage": (edit(VOTES, "PrivateTest", "Test"), r"new\.csv, line 4: usage 'Test', expected one of Training, Public"),
    "usage of pixels": (edit(PIXELS, "PrivateTest", ""), r"2013\.csv, line 4: usage '', expected one of Training"),
    "pixel too bright": (
        edit(PIXELS, "0,0 ", "0,256 "),
        r"2013\.csv, line 2: pixels have to be integers from 0 to 255$",
    ),
    "pixel too many": (
        edit(PIXELS, "0,0 ", "0,0 0 "),
        r"2013\.csv, line 2: 2305 pixels, expected emotion, 48x48 pixel",
    ),
    "pixels missing": (edit(PIXELS, f",{BLACK}", ""), r"2013\.csv, line 2: pixels have to be integers"),
    "another order": (
        edit(VOTES, "Training,,", "PrivateTest,,"),
        r"new\.csv, line 3: is of FER2013Test, but the same line of fer2013\.csv of FER2013Train; " + GO_TOGETHER,
    ),
    "votes end early": (
        edit(VOTES, "PrivateTest,fer0032220.png,10,0,0,0,0,0,0,0,0,0\n", ""),
        r"fewer rows than fer2013\.csv; " + GO_TOGETHER,
    ),
    "pixels end early": (
        edit(PIXELS, f"0,{BLACK},PrivateTest\n", ""),
        r"new\.csv, line 4: is of FER2013Test, but .* of no image; " + GO_TOGETHER,
    ),
}


@pytest.mark.parametrize("case", BROKEN_TABLES)
def test_broken_tables(case: str) -> None:
    damage, message = BROKEN_TABLES[case]
    with pytest.raises(NkfError, match=message) as caught:
        listing_of(damage(csv_files()))
    assert "\n" not in str(caught.value)


KAGGLE = [f"train/happy/Training_{i}.jpg" for i in range(3)]
KAGGLE += [f"test/{folder}/{usage}_1.jpg" for folder in ("happy", "angry") for usage in ("PublicTest", "PrivateTest")]
OTHER_SOURCES: dict[str, tuple[dict[str, str | bytes], str, str]] = {
    "one split instead of its parent": (
        {"label.csv": ""},
        "data/FER2013Valid",
        r"^data/FER2013Valid: is one split of FER\+; name the folder that holds it, data$",
    ),
    "fer2013.csv alone": (
        {"data/fer2013.csv": csv_files()[PIXELS]},
        "dataset",
        r"^dataset: has fer2013\.csv alone, with FER-2013's old labels; expected .* or fer2013\.csv with fer2013new\.c",
    ),
    "tables in two folders": (
        {"a/fer2013.csv": csv_files()[PIXELS], "b/fer2013new.csv": csv_files()[VOTES]},
        "dataset",
        r"^dataset: has fer2013\.csv alone, ",
    ),
    "Kaggle's folders": (
        dict.fromkeys(KAGGLE, ""),
        "dataset",
        r"^dataset: is Kaggle's folder copy of FER-2013, without votes, its test merged of two splits; expected FER2",
    ),
}


@pytest.mark.parametrize("case", OTHER_SOURCES)
def test_other_sources(case: str) -> None:
    files, path, message = OTHER_SOURCES[case]
    with pytest.raises(NkfError, match=message) as caught:
        list_ferplus(MemorySource(files, path))
    assert "\n" not in str(caught.value)


def test_two_vote_tables_are_refused() -> None:
    with pytest.raises(NkfError, match=r"^dataset: has a fer2013new\.csv of its own; leave out mine\.csv$"):
        list_ferplus(MemorySource(csv_files()), fer2013new=Path("mine.csv"))  # type: ignore[arg-type]


def test_doubled_names_are_told_and_counted() -> None:
    files = folder_files()
    files[LABELS] += files[LABELS].replace("1,2,3,4", "9,0,0,0")
    listing, entries = listing_of(files)
    assert names_of(entries)[:2] == [("train", "fer0000000.png"), ("train", "fer0000007.png")]
    assert entries[0].votes is not None
    assert entries[0].votes[0] == 9
    assert listing.warnings == [
        "2 names are listed twice, the last row counts: fer0000000.png, fer0000007.png; "
        "their votes differ: fer0000000.png"
    ]
    assert [(split, votes.tolist()[:4]) for split, votes in listing.uncounted] == [
        ("train", [1, 2, 4, 3]),
        ("train", [2, 0, 0, 0]),
    ]


def test_table_of_pixels_is_read_row_by_row() -> None:
    """Nothing of it is held: the first images come before the broken row is read."""
    files = edit(PIXELS, "PrivateTest", "nonsense")(csv_files())
    entries = iter(list_ferplus(MemorySource(files)).entries)  # type: ignore[arg-type]
    assert next(entries).name == "fer0000000.png"
    with pytest.raises(NkfError, match=r"2013\.csv, line 4: usage 'nonsense'"):
        next(entries)
