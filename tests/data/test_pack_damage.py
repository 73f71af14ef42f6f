"""Packs that the machine went down on while they were written, and folders that are somebody else's."""

import os
from pathlib import Path

import pytest
from made_packs import IDENTITY, Killed, names, png, sample, sha256, write

from nkf.data.pack_writer import PackWriter
from nkf.errors import NkfError


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "pack.partial").mkdir()
    (tmp_path / "pack.partial" / "thesis.txt").write_text("years of work")
    message = r"pack\.partial: is in the way and no import made it; rename it, or name another pack$"
    for identity in (None, IDENTITY):
        with pytest.raises(NkfError, match=message):
            write(tmp_path / "pack", 1, identity=identity)
    assert names(tmp_path / "pack.partial") == ["thesis.txt"]
    (tmp_path / "pack.partial" / "thesis.txt").unlink()
    write(tmp_path / "pack", 1)  # an empty one is nobody's


@pytest.mark.parametrize("damage", ["empty", "cut off"])
def test_a_last_part_that_the_disk_lost_is_written_again(tmp_path: Path, small_shards: None, damage: str) -> None:
    """Each part has an images file of its own, so that of the lost part goes too."""
    write(tmp_path / "whole", 7)
    with pytest.raises(Killed):
        write(tmp_path / "pack", 6, stop=Killed())
    part = tmp_path / "pack.partial" / "part-00002.arrow"
    os.truncate(part, 0 if damage == "empty" else part.stat().st_size - 300)
    with PackWriter(tmp_path / "pack", {"dataset": "made up"}, identity=IDENTITY) as writer:
        assert writer.notes.consumed == 4
        assert not part.exists()
        assert not (tmp_path / "pack.partial" / "images-00002.bin").exists()
        for number in range(4, 7):
            writer.add(sample(number))
    assert sha256(tmp_path / "pack") == sha256(tmp_path / "whole")


def test_an_earlier_part_that_is_damaged_is_told(tmp_path: Path, small_parts: None) -> None:
    with pytest.raises(Killed):
        write(tmp_path / "pack", 6, stop=Killed())
    os.truncate(tmp_path / "pack.partial" / "part-00001.arrow", 0)
    before = sha256(tmp_path / "pack.partial")
    message = r"part-00001\.arrow: damaged table \(.*\); remove .*pack\.partial and import again$"
    with pytest.raises(NkfError, match=message) as caught:
        write(tmp_path / "pack", 7)
    assert "\n" not in str(caught.value)
    assert sha256(tmp_path / "pack.partial") == before


def test_images_reach_the_disk_before_the_part_that_tells_of_them(
    tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, int]] = []

    def fsync(descriptor: int) -> None:
        file = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        synced.append((file.name.split(".")[0], file.stat().st_size))

    monkeypatch.setattr(os, "fsync", fsync)
    write(tmp_path / "pack", 4)
    kinds = [kind for kind, _ in synced]
    assert kinds[:4] == ["images-00000", "part-00000", "images-00000", "part-00001"]
    assert [size for kind, size in synced if kind == "images-00000"] == [
        len(b"".join(map(png, range(count)))) for count in (2, 4)
    ]


@pytest.mark.parametrize("number", [0, 1])
def test_any_images_file_that_the_disk_lost_is_told(tmp_path: Path, small_shards: None, number: int) -> None:
    with pytest.raises(Killed):
        write(tmp_path / "pack", 5, stop=Killed())
    os.truncate(tmp_path / "pack.partial" / f"images-{number:05}.bin", 100)
    with pytest.raises(
        NkfError, match=rf"images-0000{number}\.bin: damaged, 100 bytes, expected \d+; remove .* again$"
    ):
        write(tmp_path / "pack", 7)


@pytest.mark.parametrize("damage", ["shorter", "missing"])
def test_images_that_the_disk_lost_are_told(tmp_path: Path, small_parts: None, damage: str) -> None:
    with pytest.raises(Killed):
        write(tmp_path / "pack", 5, stop=Killed())
    images = tmp_path / "pack.partial" / "images-00000.bin"
    if damage == "missing":
        images.unlink()
    else:
        os.truncate(images, 100)
    size = 100 if damage == "shorter" else 0
    expected = len(b"".join(map(png, range(4))))
    message = (
        rf"images-00000\.bin: damaged, {size} bytes, expected {expected}; remove .*pack\.partial and import again$"
    )
    with pytest.raises(NkfError, match=message):
        write(tmp_path / "pack", 7)
