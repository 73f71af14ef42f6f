"""FER+ tables, the broken ones above all. No image is read here."""

from collections.abc import Callable
from pathlib import Path

import pytest

from nkf.data.ferplus import FerplusListing, list_ferplus
from nkf.data.sources import MAX_IMAGE_BYTES
from nkf.errors import ImageError, NkfError

LABELS = "FER2013Train/label.csv"
PIXELS, VOTES = "fer2013.csv", "fer2013new.csv"
BLACK = " ".join(["0"] * 48 * 48)


class MemorySource:
    """A `Source` of files in memory."""

    def __init__(self, files: dict[str, str | bytes], path: str = "dataset") -> None:
        self.path = Path(path)
        self.files = {name: data.encode() if isinstance(data, str) else data for name, data in files.items()}
        self.names = sorted(files)

    def read(self, name: str, limit: int = MAX_IMAGE_BYTES) -> bytes:
        if len(self.files[name]) > limit:
            raise ImageError(f"{self.path}: {name}: too long")
        return self.files[name]


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


def listing_of(files: dict[str, str]) -> FerplusListing:
    return list_ferplus(MemorySource(files))


def test_folders() -> None:
    listing = listing_of(folder_files())
    assert (listing.layout, listing.label_file, listing.warnings) == ("folders", "label_csv", [])
    assert [(entry.split, entry.name) for entry in listing.entries] == [
        ("train", "fer0000000.png"),
        ("train", "fer0000007.png"),
        ("test", "fer0032220.png"),
    ]
    assert listing.entries[0].votes is not None
    assert listing.entries[0].votes.tolist() == [1, 2, 4, 3, 0, 0, 0, 0, 0, 0]  # sadness comes before surprise in nkf
    assert listing.entries[2].file == "dataset: FER2013Test/fer0032220.png"


def test_tables() -> None:
    listing = listing_of(csv_files())
    assert (listing.layout, listing.label_file, listing.warnings) == ("csv", "fer2013new", [])
    assert [(entry.split, entry.name) for entry in listing.entries] == [
        ("train", "fer0000000.png"),
        ("test", "fer0032220.png"),
    ]


def test_folders_win_over_tables() -> None:
    assert listing_of(folder_files() | csv_files()).layout == "folders"


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
    assert len(listing_of(files).entries) == 3


def test_images_without_label_are_told() -> None:
    files = folder_files() | {f"FER2013Train/extra{i}.png": "" for i in range(6)} | {"FER2013Train/notes.txt": ""}
    names = ", ".join(f"FER2013Train/extra{i}.png" for i in range(4))
    assert listing_of(files).warnings == [f"dataset: 6 images left out, not in label.csv ({names}, ...)"]


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
    "endless field": (put(LABELS, "x" * 200_000), WHERE + r", line \d: not a csv table \(field larger than"),
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
        lambda files: {PIXELS: files[PIXELS]},
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


def test_one_split_instead_of_its_parent() -> None:
    source = MemorySource({"label.csv": ""}, "data/FER2013Valid")
    with pytest.raises(
        NkfError, match=r"^data/FER2013Valid: is one split of FER\+; name the folder that holds it, data$"
    ):
        list_ferplus(source)


def test_two_vote_tables_are_refused() -> None:
    with pytest.raises(NkfError, match=r"^dataset: has a fer2013new\.csv of its own; leave out mine\.csv$"):
        list_ferplus(MemorySource(csv_files()), Path("mine.csv"))
