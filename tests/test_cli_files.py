"""The image files that the inputs of a command mean."""

import io
import os
from pathlib import Path

import pytest

from nkf.cli_files import ImageInputs, check_no_input, find_images
from nkf.errors import NkfError

FILES = ("b.jpg", "a.PNG", "a/z.webp", "a/c/y.jpg", "a.jpg/x.jpg", "notes.txt", "B.jpg", "[1].jpg")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in FILES:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    monkeypatch.chdir(tmp_path)
    return Path("in")


def names(*inputs):
    return [str(image.file) for image in ImageInputs([Path(path) for path in inputs])]


@pytest.fixture
def standard_input(monkeypatch):
    def give(content):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))

    return give


def test_a_folder_is_searched_in_the_order_of_its_paths(folder):
    images = ImageInputs([folder])
    found = [image.file for image in images]
    assert found == sorted(folder / name for name in FILES if name != "notes.txt")
    assert [image.file for image in images] == found  # again
    assert len(images) == len(found) == 7
    assert [image.name for image in images] == [file.relative_to(folder) for file in found]


def test_a_link_to_nothing_is_listed_and_a_pipe_is_not(folder):
    (folder / "gone.jpg").symlink_to("nowhere.jpg")
    (folder / "there.jpg").symlink_to("b.jpg")
    os.mkfifo(folder / "pipe.jpg")
    found = names(folder)
    assert {"in/gone.jpg", "in/there.jpg"} < set(found)
    assert "in/pipe.jpg" not in found


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("in/*.jpg", ["in/B.jpg", "in/[1].jpg", "in/b.jpg"]),
        ("in/*", ["in/B.jpg", "in/[1].jpg", "in/a.PNG", "in/b.jpg"]),
        ("in/**/*.jpg", ["in/B.jpg", "in/[1].jpg", "in/a/c/y.jpg", "in/a.jpg/x.jpg", "in/b.jpg"]),
        ("in/[1].jpg", ["in/[1].jpg"]),  # a file has this very name
        ("in/?", ["in/a/c/y.jpg", "in/a/z.webp"]),  # a folder alone
    ],
)
def test_patterns(folder, pattern, found):
    assert names(pattern) == found


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"in/b.jpg\nin/none.jpg\n", ["in/b.jpg", "in/none.jpg"]),
        (b"in/b.jpg\r\nin/a.PNG", ["in/b.jpg", "in/a.PNG"]),
        (b"one\nname.jpg\0in/b.jpg\0", ["one\nname.jpg", "in/b.jpg"]),
        (b"\n\nin/b.jpg\n", ["in/b.jpg"]),
        (b"\xff.jpg\n", [os.fsdecode(b"\xff.jpg")]),
        (b"x" * 70_000 + b".jpg\nb.jpg\n", ["x" * 70_000 + ".jpg", "b.jpg"]),
    ],
)
def test_a_list_on_standard_input(folder, standard_input, content, found):
    standard_input(content)
    images = ImageInputs([Path("-")])
    assert [str(image.file) for image in images] == found
    assert len(images) == len(found)
    both = zip(images, images, strict=True)  # two passes at once
    assert [(str(a.file), str(b.file)) for a, b in both] == [(name, name) for name in found]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "no input: give image files"),
        (["none.jpg"], "none.jpg: no such file or folder"),
        (["in/*.bmp"], r"in/\*\.bmp: no image has such a name"),
        (["empty"], "empty: no image in this folder"),
        (["clip.mp4"], "clip.mp4: a video; nkf video reads these"),
        (["-"], "standard input: an empty list"),
    ],
)
def test_what_means_no_image_is_refused(folder, standard_input, inputs, message):
    standard_input(b"")
    Path("empty").mkdir()
    Path("clip.mp4").touch()
    with pytest.raises(NkfError, match=message):
        find_images([Path(name) for name in inputs])


def test_an_input_is_never_a_place_to_write(folder):
    with pytest.raises(NkfError, match=r"^in/\.\./in/b\.jpg: an input, would be overwritten"):
        check_no_input([Path("in/../in/b.jpg")], ImageInputs([folder]))
    check_no_input([Path("in/new.jpg")], ImageInputs([folder]))
