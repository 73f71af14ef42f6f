"""Folders and zips, the hostile ones too."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from nkf.data.sources import (
    MAX_DEPTH,
    MAX_IMAGE_BYTES,
    Children,
    file_stamp,
    find_root,
    find_roots,
    is_image,
    join,
    open_source,
    read_table,
    some,
    walk,
    walk_images,
)
from nkf.errors import ImageError, NkfError

FILES = {"a/1.png": b"one", "a/b/2.png": b"two", "readme.txt": b"text"}
HIDDEN = {".DS_Store": b"", "a/.hidden": b"", "__MACOSX/a/._1.png": b"", ".git/config": b""}


def make_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def make_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


Make = Callable[[Path, dict[str, bytes]], Path]
each_source = pytest.mark.parametrize("make", [make_zip, make_folder])


@each_source
def test_names_and_bytes(tmp_path: Path, make: Make) -> None:
    with open_source(make(tmp_path / "source", FILES | HIDDEN)) as source:
        assert list(walk(source)) == ["readme.txt", "a/1.png", "a/b/2.png"]
        assert {name: source.read(name) for name in walk(source)} == FILES
        with source.open("a/b/2.png") as stream:
            assert stream.read() == b"two"
        with pytest.raises(ImageError, match=r"nothing\.png: [Nn]o such file"):
            source.read("nothing.png")
        with pytest.raises(ImageError, match=r"readme\.txt: more than 0 MiB, which is no file of this dataset$"):
            source.read("readme.txt", limit=3)
        assert source.read("readme.txt", limit=4) == b"text"
        with pytest.raises(NkfError, match=r"nothing\.csv: [Nn]o such file"):
            source.open("nothing.csv")
        assert source.warnings == []


@each_source
def test_children(tmp_path: Path, make: Make) -> None:
    with open_source(make(tmp_path / "source", FILES | HIDDEN | {"a/0.txt": b"", "b/c/3.png": b""})) as source:
        assert source.children() == Children(["a", "b"], ["readme.txt"])
        assert source.children("a") == Children(["b"], ["0.txt", "1.png"])
        assert source.children("b") == Children(["c"], [])
        assert source.children("nowhere") == Children([], [])


@each_source
def test_has(tmp_path: Path, make: Make) -> None:
    with open_source(make(tmp_path / "source", FILES)) as source:
        assert [source.has(name) for name in ("a/1.png", "a", "a/b", "1.png", "a/2.png")] == [True, *[False] * 4]
        assert not source.has("long" * 1000)


@each_source
def test_walk_below_a_folder(tmp_path: Path, make: Make) -> None:
    with open_source(make(tmp_path / "source", FILES | {"a/note.txt": b""})) as source:
        assert list(walk(source, "a")) == ["a/1.png", "a/note.txt", "a/b/2.png"]
        assert list(walk_images(source, "a")) == ["a/1.png", "a/b/2.png"]
        assert list(walk(source, "b")) == []


@each_source
def test_names_that_break_a_line_are_left_out(tmp_path: Path, make: Make) -> None:
    odd = {"a/two\nlines.png": b"x", "a/line\u2028.png": b"x", "a/\t": b"x"}
    good = {"Screenshot 1.02.03\u202fPM.png": b"x", "\u3000.png": b"x", "\xad\xa0ä.png": b"x"}
    with open_source(make(tmp_path / "source", FILES | odd | good)) as source:
        assert set(walk(source)) == FILES.keys() | good.keys()
        assert sorted(source.warnings) == [
            f"left out {name}: expected a printable name"
            for name in ("'a/\\t'", "'a/line\\u2028.png'", "'a/two\\nlines.png'")
        ]


def test_names_in_no_encoding(tmp_path: Path) -> None:
    make_folder(tmp_path / "source", {"good.png": b"", b"\xff.png".decode(errors="surrogateescape"): b""})
    with open_source(tmp_path / "source") as source:
        assert list(walk(source)) == ["good.png"]
        assert source.warnings == [r"left out '\udcff.png': expected a printable name"]


def test_hidden_members_of_a_zip_are_not_judged_by_their_names(tmp_path: Path) -> None:
    hidden = {"__MACOSX/a/two\nlines.png": b"", ".x\a": b"", "__MACOSX/../../.evil": b""}
    with open_source(make_zip(tmp_path / "a.zip", FILES | hidden)) as source:
        assert set(walk(source)) == FILES.keys()
        assert source.warnings == []


def test_backslashes_between_folders_of_a_zip(tmp_path: Path) -> None:
    files = {name.replace("/", "\\"): data for name, data in FILES.items()}
    with open_source(make_zip(tmp_path / "a.zip", files | {"empty\\": b""})) as source:
        assert {name: source.read(name) for name in walk(source)} == FILES
        assert source.children() == Children(["a"], ["readme.txt"])
        assert source.has("a/b/2.png")
        with source.open("a/1.png") as stream:
            assert stream.read() == b"one"


def test_names_in_a_zip_that_are_written_in_a_roundabout_way(tmp_path: Path) -> None:
    with open_source(make_zip(tmp_path / "a.zip", {"./a//1.png": b"one", "./2.png": b"two"})) as source:
        assert {name: source.read(name) for name in walk(source)} == {"a/1.png": b"one", "2.png": b"two"}


@each_source
@pytest.mark.parametrize("depth", [MAX_DEPTH, MAX_DEPTH + 1, 400])
def test_folders_in_each_other(tmp_path: Path, make: Make, depth: int) -> None:
    files = {"/".join(["d"] * depth + ["1.png"]): b"one"}

    def read() -> list[str]:
        with open_source(make(tmp_path / "source", files)) as source:
            return list(walk(source))

    if depth == MAX_DEPTH:
        assert read() == list(files)
        return
    with pytest.raises(NkfError, match=r"source: more than 50 folders in each other, 'd/d/.*'\.\.\.$"):
        read()


def test_links_that_lead_back(tmp_path: Path) -> None:
    source_path = make_folder(tmp_path / "top" / "source", FILES | {"c/3.png": b"three"})
    (source_path / "a" / "self").symlink_to(".")
    (source_path / "a" / "b" / "up").symlink_to("../..")
    (source_path / "a" / "b" / "above").symlink_to(tmp_path)
    (source_path / "a" / "b" / "to_c").symlink_to(source_path / "c")
    (source_path / "c" / "to_b").symlink_to(source_path / "a" / "b")
    with open_source(source_path) as source:
        assert list(walk(source)) == [
            "readme.txt", "a/1.png", "a/b/2.png", "a/b/to_c/3.png", "c/3.png", "c/to_b/2.png",
        ]  # fmt: skip
        assert sorted(source.warnings) == [
            f"left out '{name}': it is a link to a folder that it lies in"
            for name in ("a/b/above", "a/b/to_c/to_b", "a/b/up", "a/self", "c/to_b/above", "c/to_b/to_c", "c/to_b/up")
        ]


def test_opened_files_are_noted(tmp_path: Path) -> None:
    make_folder(tmp_path / "source", FILES)
    with open_source(tmp_path / "source") as source:
        source.read("a/1.png")
        source.open("readme.txt").close()
        known = (tmp_path / "source" / "readme.txt").stat()
        assert source.opened == {"readme.txt": [known.st_size, known.st_mtime_ns]}
        assert file_stamp(tmp_path / "source" / "readme.txt") == source.opened["readme.txt"]
    assert file_stamp(tmp_path / "nowhere") == file_stamp(tmp_path) == []


def test_unprintable_names_in_a_folder_are_left_out_and_told_once(tmp_path: Path) -> None:
    make_folder(tmp_path / "source", FILES | {"a/two\nlines.png": b"x", "bell\a/1.png": b"x", "a/\t": b"x"})
    with open_source(tmp_path / "source") as source:
        assert list(walk(source)) == ["readme.txt", "a/1.png", "a/b/2.png"]
        assert list(walk(source)) == ["readme.txt", "a/1.png", "a/b/2.png"]
        assert source.warnings == [
            "left out 'bell\\x07': expected a printable name",
            "left out 'a/\\t': expected a printable name",
            "left out 'a/two\\nlines.png': expected a printable name",
        ]


def test_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    with (
        open_source(make_folder(tmp_path / "source", FILES)) as source,
        pytest.raises(NkfError, match=r"readme\.txt: Not a directory$"),
    ):
        source.children("readme.txt")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.png", True), ("a/b.JPG", True), ("a.jpeg", True), ("png", False), ("a.png.txt", False), (".png", False)],
)
def test_is_image(name: str, expected: bool) -> None:
    assert is_image(name) == expected


def test_some_cuts_what_is_no_name() -> None:
    assert some(["a" * 10_000, "b"]) == "a" * 200 + "..., b"


def test_join_and_some() -> None:
    assert (join("", "a"), join("a/b", "c")) == ("a", "a/b/c")
    assert (some(list("abcd")), some(list("abcde")), some(list("abc"), 2)) == (
        "a, b, c, d",
        "a, b, c, d, ...",
        "a, b, ...",
    )


DEEP = {"x/set/marker/1.png": b"", "x/set/inner/set/marker/2.png": b"", "y/z/list.txt": b"", "1/2/3/4/5/list.txt": b""}


@each_source
def test_find_roots_level_by_level_and_not_below_one(tmp_path: Path, make: Make) -> None:
    with open_source(make(tmp_path / "source", DEEP)) as source:
        assert find_roots(source, lambda _, __, children: "marker" in children.folders) == ["x/set"]
        assert find_roots(source, lambda _, __, children: "list.txt" in children.files) == ["y/z"]
        assert find_roots(source, lambda _, __, children: "list.txt" in children.files, 5) == ["y/z", "1/2/3/4/5"]
        assert find_roots(source, lambda _, folder, __: folder == "") == [""]
        looked_into = []
        find_roots(source, lambda _, folder, __: looked_into.append(folder) is not None, 1)
        assert looked_into == ["", "1", "x", "y"]


@pytest.mark.parametrize(("marker", "root"), [("list.txt", "y/z"), ("set/marker/1.png", "x"), ("inner", "x/set")])
def test_find_root(tmp_path: Path, marker: str, root: str) -> None:
    with open_source(make_folder(tmp_path / "source", DEEP)) as source:
        assert find_root(source, ["nothing", marker], "a list") == root


def test_no_root_and_two_roots(tmp_path: Path) -> None:
    with open_source(make_folder(tmp_path / "source", DEEP | {"z/list.txt": b""})) as source:
        with pytest.raises(NkfError, match=r"source: not this dataset; expected a list$"):
            find_root(source, ["lists.txt"], "a list")
        with pytest.raises(NkfError, match=r"source: holds the dataset 2 times, in z, y/z; name one of them$"):
            find_root(source, ["list.txt"], "a list")


@each_source
def test_read_table(tmp_path: Path, make: Make) -> None:
    data = '\ufeffname,text\r\na,"two\nlines"\n\n b ,ä\n'.encode()
    with open_source(make(tmp_path / "source", {"a.csv": data, "a.tsv": b"1\t2,3\n", "none.csv": b""})) as source:
        assert list(read_table(source, "a.csv")) == [(1, ["name", "text"]), (3, ["a", "two\nlines"]), (5, [" b ", "ä"])]
        assert list(read_table(source, "a.tsv", "\t")) == [(1, ["1", "2,3"])]
        assert list(read_table(source, "none.csv")) == []


@each_source
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a,b\n\xff,c\n", r"a\.csv: not a text table \(UTF-8\)$"),
        (b"x" * ((4 << 20) + 1), r"a\.csv, line \d: not a csv table \(field larger than field limit \(4194304\)\)$"),
        (b"a,b\n" + b"x," * (5 << 20), r"a\.csv, line 2: a row of more than 8 MiB$"),
        (b"a,b\n" + b'"\n",' * (3 << 20), r"a\.csv, line \d+: a row of more than 8 MiB$"),
    ],
    ids=["bytes", "endless field", "endless line", "endless row"],
)
def test_broken_table(tmp_path: Path, make: Make, data: bytes, message: str) -> None:
    with open_source(make(tmp_path / "source", {"a.csv": data})) as source, pytest.raises(NkfError, match=message):
        list(read_table(source, "a.csv"))


def test_zip_folders_are_no_files(tmp_path: Path) -> None:
    with open_source(make_zip(tmp_path / "a.zip", {"a/": b"", "a/1.png": b"one"})) as source:
        assert list(walk(source)) == ["a/1.png"]
        assert source.children() == Children(["a"], [])


@pytest.mark.parametrize(
    "name",
    ["../evil.png", "a/../../evil.png", "/etc/evil.png", "C:/evil.png", "a\\..\\..\\evil.png", "\\evil.png",
     "evil\n/../x.png"],
)  # fmt: skip
def test_hostile_member_names(tmp_path: Path, name: str) -> None:
    path = make_zip(tmp_path / "a.zip", {"good.png": b"", name: b"x"})
    message = r"a\.zip: refused for the name of a file in it, '.*'; expected plain relative names$"
    with pytest.raises(NkfError, match=message) as caught, open_source(path):
        pytest.fail("the block must not run")
    assert "\n" not in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.zip"]


def test_member_that_unpacks_enormous(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"bomb.png": bytes(MAX_IMAGE_BYTES + 1)})
    assert path.stat().st_size < 100_000
    with open_source(path) as source, pytest.raises(ImageError, match=r"bomb\.png: more than 64 MiB, which is no"):
        source.read("bomb.png")


def patched(data: bytes, signature: bytes, offset: int, value: int) -> bytes:
    """Change one byte of the first record with a signature."""
    position = data.index(signature) + offset
    return data[:position] + bytes([value]) + data[position + 1 :]


CENTRAL = b"PK\x01\x02"
DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "changed byte": (lambda data: data.replace(b"stored", b"sTored"), r"a\.png: broken zip member \(Bad CRC-32"),
    "password": (lambda data: patched(data, CENTRAL, 8, 1), r"a\.png: zip member cannot be read \(.*encrypted"),
    "compression": (lambda data: patched(data, CENTRAL, 10, 99), r"a\.png: zip member cannot be read \("),
    "no deflate stream": (lambda data: patched(data, CENTRAL, 10, 8), r"a\.png: broken zip member \("),
    "no lzma stream": (lambda data: patched(data, CENTRAL, 10, 14), r"a\.png: broken zip member \("),
    "no bzip2 stream": (lambda data: patched(data, CENTRAL, 10, 12), r"a\.png: broken zip member \("),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_member(tmp_path: Path, case: str) -> None:
    damage, message = DAMAGE[case]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("a.png", b"stored bytes")
    (tmp_path / "a.zip").write_bytes(damage(buffer.getvalue()))
    with open_source(tmp_path / "a.zip") as source, pytest.raises(ImageError, match=message):
        source.read("a.png")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, r"source: no such file or folder; expected a dataset's folder or a zip of it$"),
        (b"", r"source: not a readable zip \(.*\); expected a dataset's folder or a zip of it$"),
        (b"a tar, perhaps", r"source: not a readable zip \(File is not a zip file\); expected a dataset's"),
    ],
)
def test_no_source(tmp_path: Path, data: bytes | None, message: str) -> None:
    if data is not None:
        (tmp_path / "source").write_bytes(data)
    with pytest.raises(NkfError, match=message), open_source(tmp_path / "source"):
        pytest.fail("the block must not run")


def test_table_in_a_damaged_zip(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("a.csv", b"name,label\n")
    path.write_bytes(path.read_bytes().replace(b"label", b"lABel"))
    with open_source(path) as source, pytest.raises(NkfError, match=r"a\.csv: cannot be read to its end \(Bad CRC"):
        list(read_table(source, "a.csv"))
