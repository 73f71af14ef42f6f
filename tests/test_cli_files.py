"""The image files that the inputs of a command mean."""

import io
import os
from pathlib import Path

import pytest
from PIL import Image

from nkf.cli_files import ImageInputs, check_no_input, signature
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


def test_a_link_that_leads_in_a_circle_is_listed(folder):
    (folder / "loop.jpg").symlink_to("loop.jpg")
    assert "in/loop.jpg" in names(folder)
    check_no_input([Path("a.json"), folder / "loop.png"], ImageInputs([folder]))


def test_what_comes_later_is_not_read(folder):
    images = ImageInputs([folder])
    going = iter(images)
    next(going)
    (folder / "z.jpg").touch()
    (folder / "b.jpg").unlink()
    assert len(list(going)) == 6
    assert len(list(images)) == len(images) == 7


def test_pictures_of_an_earlier_run_are_left_out(folder):
    (folder / "out").mkdir()
    for name, software in (("ours.png", "nkf test"), ("foreign.png", "other")):
        Image.new("RGB", (4, 4)).save(folder / "out" / name, exif=signature(software))
    for given in (folder, Path("in/**/*.png")):
        images = ImageInputs([given], written={Path("in/out"): "nkf test"})
        found = [str(image.file) for image in images]
        assert "in/out/foreign.png" in found
        assert "in/out/ours.png" not in found
    (folder / "out" / "foreign.png").unlink()
    both = ImageInputs([folder, folder / "out"], written={Path("in/out"): "nkf test"})  # as a shell's in/* gives them
    assert len(both) == 7
    with pytest.raises(NkfError, match="in/out: only pictures that nkf itself has written"):
        ImageInputs([folder / "out"], written={Path("in/out"): "nkf test"})
    named = ImageInputs([folder / "out" / "ours.png"], written={Path("in/out"): "nkf test"})
    assert len(named) == 1  # by its own name


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
        (["-", "-"], "standard input: can be read once only"),
    ],
)
def test_what_means_no_image_is_refused(folder, standard_input, inputs, message):
    standard_input(b"")
    Path("empty").mkdir()
    Path("clip.mp4").touch()
    with pytest.raises(NkfError, match=message):
        ImageInputs([Path(name) for name in inputs])


def test_an_input_is_never_a_place_to_write(folder):
    with pytest.raises(NkfError, match=r"^in/\.\./in/b\.jpg: an input, would be overwritten"):
        check_no_input([Path("in/../in/b.jpg")], ImageInputs([folder]))
    check_no_input([Path("in/new.jpg")], ImageInputs([folder]))


def test_a_closed_standard_input_is_told(folder, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(NkfError, match=r"^standard input: closed"):
        ImageInputs([Path("-")])
