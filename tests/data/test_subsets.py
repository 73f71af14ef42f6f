"""Lists that name a subset of a dataset."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from nkf.cli_import import Common, _import_options
from nkf.data.importers import ImportOptions
from nkf.data.listing import Entry, Listing
from nkf.data.subsets import add_subsets, read_subsets
from nkf.errors import NkfError


def listing_of(*names: str, **changes: Any) -> Listing:
    return Listing("made up", "none", [Entry(name, "test", name, metadata={"age": 3}) for name in names], **changes)


def marks(listing: Listing, subset: str) -> list[str]:
    return [entry.metadata[f"subset_{subset}"] for entry in listing.entries]


def save(path: Path, lines: Iterable[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


@pytest.mark.parametrize(
    "line",
    [
        "test_0001.jpg",
        "test_0001",
        "test_0001_aligned.jpg",
        "test_0001_aligned",
        "  test_0001.jpg 4 7",
        "test_0001,4",
        "test_0001\t3",
        "0/test_0001.png 3",
        "a\\b\\test_0001.png",
        "\ufefftest_0001",
    ],
)
@pytest.mark.parametrize("name", ["test_0001.jpg", "x/test_0001_aligned.jpg", "test_0001"])
def test_names_are_matched_without_folder_and_ending(tmp_path: Path, line: str, name: str) -> None:
    listing = listing_of(name, "test_00012.jpg", "x.test_0001.jpg")
    add_subsets(listing, read_subsets({"pose": save(tmp_path / "list.txt", [line])}))
    assert marks(listing, "pose") == ["yes", "no", "no"]
    assert listing.warnings == []
    assert listing.metadata == {"subset_pose": "text"}


def test_a_dot_in_a_name_is_no_ending(tmp_path: Path) -> None:
    listing = listing_of("a.v1.jpg", "a.v2.jpg")
    add_subsets(listing, read_subsets({"pose": save(tmp_path / "list.txt", ["a.v2"])}))
    assert marks(listing, "pose") == ["no", "yes"]


def test_several_lists(tmp_path: Path) -> None:
    files = {
        "occlusion": save(tmp_path / "1.txt", ["# occluded", "", "a.png", "gone.png", "lost.png", " , "]),
        "pose_30": save(tmp_path / "2.txt", ["b.png", "a.png", "a.png"]),
    }
    listing = listing_of("a.png", "b.png", "c.png", metadata={"age": "integer"})
    add_subsets(listing, read_subsets(files))
    assert listing.metadata == {"age": "integer", "subset_occlusion": "text", "subset_pose_30": "text"}
    found = [dict(entry.metadata) for entry in listing.entries]
    assert found == [
        {"age": 3, "subset_occlusion": occlusion, "subset_pose_30": pose}
        for occlusion, pose in [("yes", "yes"), ("no", "yes"), ("no", "no")]
    ]
    assert listing.warnings == [f"{tmp_path / '1.txt'}: 2 of 3 names are not in the dataset (gone, lost)"]


def test_a_list_of_another_dataset_is_refused_at_the_end(tmp_path: Path) -> None:
    listing = listing_of("a.png", "b.png")
    add_subsets(listing, read_subsets({"pose": save(tmp_path / "list.txt", ["x.png", "y.png"])}))
    with pytest.raises(
        NkfError, match=r"list\.txt: names no image of the dataset \(x, y\); expected subset pose$"
    ) as caught:
        list(listing.entries)
    assert "\n" not in str(caught.value)


def test_a_column_of_the_dataset_is_not_replaced(tmp_path: Path) -> None:
    subsets = read_subsets({"pose": save(tmp_path / "list.txt", ["a.png"])})
    with pytest.raises(NkfError, match=r"^made up: has a column subset_pose of its own; name the subset otherwise$"):
        add_subsets(listing_of("a.png", metadata={"subset_pose": "text"}), subsets)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("po se", b"a\n", r"^subset 'po se': expected a name of letters, digits and _, such as occlusion$"),
        ("pose", None, r"list\.txt: No such file or directory; expected the list of subset pose$"),
        ("pose", b"\xff\xfe", r"list\.txt: not a text file \(UTF-8\); expected the list of subset pose$"),
        ("pose", b"# a\n\n", r"list\.txt: empty; expected the list of subset pose, the name of an image in each line$"),
    ],
)
def test_unusable_lists(tmp_path: Path, name: str, data: bytes | None, message: str) -> None:
    if data is not None:
        (tmp_path / "list.txt").write_bytes(data)
    with pytest.raises(NkfError, match=message):
        read_subsets({name: tmp_path / "list.txt"})


def test_subsets_are_part_of_an_import(tmp_path: Path) -> None:
    file = save(tmp_path / "list.txt", ["a"])
    one, two = ImportOptions(subsets={"pose": file}), ImportOptions(subsets={"occlusion": file})
    assert ImportOptions().identity() != one.identity() != two.identity()
    before = one.identity()
    save(file, ["a", "b"])
    assert one.identity() != before


def options_of(*subset: str, **changes: Any) -> ImportOptions:
    return _import_options(Common(landmarks="none", subset=subset, **changes))


def test_command_line() -> None:
    assert options_of().subsets == {}
    assert options_of("a=b.txt", "c=d=e").subsets == {"a": Path("b.txt"), "c": Path("d=e")}
    for subset, message in [
        (("a",), r"^--subset a: expected NAME=FILE, such as occlusion=occlusion\.txt$"),
        (("=b",), r"^--subset =b: expected NAME=FILE"),
        (("a=b", "a=c"), r"^--subset a=c: a second list of a; expected one$"),
    ]:
        with pytest.raises(NkfError, match=message):
            options_of(*subset)


@pytest.mark.parametrize("crops", [0, 15, 1025, 3_000_000])
def test_crops_of_a_size_that_no_network_reads(crops: int) -> None:
    message = rf"^--crops {crops}: expected the side of a crop in pixels, such as 112, from 16 to 1024$"
    with pytest.raises(NkfError, match=message):
        options_of(crops=crops)
    options_of(crops=16)
    options_of(crops=1024)
