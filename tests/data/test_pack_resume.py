"""Packs that are interrupted while they are written: what is complete stays, and the next writer goes on from it."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from made_packs import IDENTITY, Killed, names, png, sample, sha256, write

from nkf.data.pack import Pack
from nkf.data.pack_writer import PackWriter
from nkf.data.tables import TableWriter
from nkf.errors import NkfError


@pytest.mark.parametrize("error", [NkfError("broken row"), KeyboardInterrupt(), Killed()])
def test_error_leaves_nothing_that_cannot_be_gone_on_from(
    tmp_path: Path, small_parts: None, error: BaseException
) -> None:
    with pytest.raises(type(error)):
        write(tmp_path / "pack", 5, stop=error, identity=None)
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [NkfError("broken row"), KeyboardInterrupt(), RuntimeError("bug"), Killed()])
@pytest.mark.parametrize("count", [2, 5, 6])
def test_complete_parts_outlive_an_error(tmp_path: Path, small_parts: None, error: BaseException, count: int) -> None:
    write(tmp_path / "whole", 7)
    with pytest.raises(type(error)):
        write(tmp_path / "pack", count, stop=error)
    assert names(tmp_path) == ["pack.partial", "whole"]
    with PackWriter(tmp_path / "pack", {"dataset": "made up"}, identity=IDENTITY) as writer:
        assert writer.notes.consumed == count // 2 * 2
        assert [len(table) for table in writer.written()] == [2] * (count // 2)
        for number in range(writer.notes.consumed, 7):
            writer.add(sample(number))
    assert sha256(tmp_path / "pack") == sha256(tmp_path / "whole")
    assert names(tmp_path) == ["pack", "whole"]


def test_error_before_the_first_part_is_complete(tmp_path: Path, small_parts: None) -> None:
    with pytest.raises(NkfError, match=r"^broken row$"):
        write(tmp_path / "pack", 1, stop=NkfError("broken row"))
    assert names(tmp_path) == []
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "pack", 1, stop=KeyboardInterrupt())
    assert names(tmp_path) == ["pack.partial"]


def test_notes_add_up_over_the_runs(tmp_path: Path, small_parts: None) -> None:
    def run(stop: bool) -> None:
        with PackWriter(tmp_path / "pack", {}, identity=IDENTITY) as writer:
            if not writer.notes.consumed:
                writer.skip("skipped a")
                writer.add(sample(0))
                writer.drop(pixels_md5="12", label="fear", votes=None)
                writer.add(sample(1))
            assert writer.notes.consumed == 4
            if stop:
                writer.skip("skipped and forgotten")
                raise KeyboardInterrupt
            writer.skip("skipped b")
            writer.drop(pixels_md5="34", label=None, votes=[1] * 10)
            assert writer.notes.consumed == 6
            assert writer.notes.skipped == ["skipped a", "skipped b"]
            assert writer.notes.dropped == [
                {"pixels_md5": "12", "label": "fear", "votes": None},
                {"pixels_md5": "34", "label": None, "votes": [1] * 10},
            ]

    with pytest.raises(KeyboardInterrupt):
        run(stop=True)
    run(stop=False)
    assert len(Pack(tmp_path / "pack")) == 2


def test_another_import_may_not_go_on(tmp_path: Path, small_parts: None) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "pack", 5, stop=KeyboardInterrupt())
    before = sha256(tmp_path / "pack.partial")
    message = (
        r"pack\.partial: holds another import that was interrupted; "
        r"finish that with the same command, or remove the folder$"
    )
    with pytest.raises(NkfError, match=message) as caught:
        write(tmp_path / "pack", 5, identity={"source": "another"})
    assert "\n" not in str(caught.value)
    assert sha256(tmp_path / "pack.partial") == before
    write(tmp_path / "pack", 5)  # the first one may


def test_without_an_identity_a_writer_starts_anew(tmp_path: Path, small_parts: None) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "pack", 5, stop=KeyboardInterrupt())
    (tmp_path / "pack.partial" / "index").mkdir()
    write(tmp_path / "pack", 3, identity=None)
    write(tmp_path / "fresh", 3, identity=None)
    assert sha256(tmp_path / "pack") == sha256(tmp_path / "fresh")


def test_a_second_writer_at_the_same_time_is_refused(tmp_path: Path) -> None:
    program = """
        import sys
        from pathlib import Path
        from nkf.data.pack_writer import PackWriter
        from nkf.errors import NkfError
        try:
            with PackWriter(Path(sys.argv[1]), {}, identity={"source": "made up"}):
                print("inside")
        except NkfError as error:
            print(error)
    """
    with PackWriter(tmp_path / "pack", {}, identity=IDENTITY) as writer:
        writer.add(sample(0))
        done = run_child(program, tmp_path / "pack", check=True)
        assert done.stdout.decode() == (
            f"{tmp_path / 'pack'}: another import is writing this pack; wait for it, or name another\n"
        )
        with (
            pytest.raises(NkfError, match=r"pack: another import is writing this pack; wait for it, or name another$"),
            PackWriter(tmp_path / "pack", {}),
        ):
            pytest.fail("the block must not run")
        writer.add(sample(1))
    assert [Pack(tmp_path / "pack").image_bytes(row) for row in range(2)] == [png(0), png(1)]
    assert names(tmp_path) == ["pack"]


def run_child(program: str, path: Path, *, check: bool = False) -> "subprocess.CompletedProcess[bytes]":
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", textwrap.dedent(program), str(path)]
    return subprocess.run(command, input=png(0), env=environment, check=check, capture_output=True, timeout=60)


@pytest.mark.parametrize("identity", [None, IDENTITY])
def test_killed_in_the_middle(tmp_path: Path, identity: Mapping[str, Any] | None) -> None:
    program = f"""
        import os, signal, sys
        from pathlib import Path
        from nkf.data import pack_writer
        from nkf.data.pack import Sample
        pack_writer.PART_ROWS = 2
        data = sys.stdin.buffer.read()
        with pack_writer.PackWriter(Path(sys.argv[1]), {{}}, identity={identity!r}) as writer:
            for number in range(3):
                writer.add(Sample(f"{{number}}.png", "train", data + bytes([number])))
            writer._images.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    """
    path = tmp_path / "pack"
    assert run_child(program, path).returncode == -signal.SIGKILL
    assert names(tmp_path) == ["pack.partial"]
    assert (path.with_name("pack.partial") / "images-00000.bin").stat().st_size == 3 * (len(png(0)) + 1)
    with PackWriter(path, {}, identity=identity) as writer:
        assert writer.notes.consumed == (2 if identity else 0)
        writer.add(sample(7))
    pack = Pack(path)
    assert pack.names.tolist() == (["0.png", "1.png"] if identity else []) + ["7.png"]
    assert pack.image_bytes(len(pack) - 1) == png(7)
    assert names(tmp_path) == ["pack"]


@pytest.mark.parametrize("count", range(1, 7))
def test_going_on_across_images_files(tmp_path: Path, small_shards: None, count: int) -> None:
    """What a kill leaves in the file after a full one belongs to no part."""
    write(tmp_path / "whole", 7)
    with pytest.raises(Killed):
        write(tmp_path / "pack", count, stop=Killed())
    write(tmp_path / "pack", 7)
    assert sha256(tmp_path / "pack") == sha256(tmp_path / "whole")
    assert [Pack(tmp_path / "pack").image_bytes(row) for row in range(7)] == [png(row) for row in range(7)]


def test_nothing_stays_of_an_images_file_that_is_not_needed_in_the_end(tmp_path: Path, small_shards: None) -> None:
    with pytest.raises(Killed):
        write(tmp_path / "pack", 3, stop=Killed())
    assert (tmp_path / "pack.partial" / "images-00001.bin").exists()
    with PackWriter(tmp_path / "pack", {}, identity=IDENTITY) as writer:
        writer.skip("skipped 2.png: gone")
    assert names(tmp_path / "pack") == ["images-00000.bin", "manifest.json", "rows.arrow"]


@pytest.mark.parametrize("step", range(6))
def test_killed_while_a_finished_pack_is_tidied(
    tmp_path: Path, small_parts: None, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files that are no longer needed go one by one; the next writer removes the rest."""
    write(tmp_path / "whole", 7)
    unlink = Path.unlink
    left = [step]

    def killed_at_step(path: Path, missing_ok: bool = False) -> None:
        if path.parent == tmp_path / "pack":
            if not left[0]:
                raise Killed
            left[0] -= 1
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed_at_step)
        with pytest.raises(Killed):
            write(tmp_path / "pack", 7)
    assert len(Pack(tmp_path / "pack")) == 7
    with pytest.raises(NkfError, match=r"pack: exists already; name a new folder for the pack$"):
        write(tmp_path / "pack", 7)
    assert sha256(tmp_path / "pack") == sha256(tmp_path / "whole")


def test_killed_before_the_last_name(tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """All is there, and not one sample is asked for again."""

    def rename(*_: Any) -> None:
        raise Killed

    write(tmp_path / "whole", 7)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        with pytest.raises(Killed):
            write(tmp_path / "pack", 7)
    assert (tmp_path / "pack.partial" / "manifest.json").exists()
    write(tmp_path / "pack", 7, start=7)
    assert sha256(tmp_path / "pack") == sha256(tmp_path / "whole")


def test_files_of_an_unfinished_part_go(tmp_path: Path, small_parts: None) -> None:
    with pytest.raises(Killed):
        write(tmp_path / "pack", 3, stop=Killed())
    (tmp_path / "pack.partial" / "part-00001.arrow.123.partial").write_bytes(b"half")
    write(tmp_path / "pack", 3)
    assert names(tmp_path / "pack") == ["images-00000.bin", "manifest.json", "rows.arrow"]


FULL_DISK = """
    import resource, sys
    from pathlib import Path
    from nkf.data import pack_writer
    from nkf.data.pack import Sample
    from nkf.errors import NkfError
    pack_writer.PART_ROWS = 2
    data = sys.stdin.buffer.read()
    try:
        with pack_writer.PackWriter(Path(sys.argv[1]), {}, identity={"source": "made up"}) as writer:
            for number in range(1000):
                if number == 3:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))
                writer.add(Sample(f"{number}.png", "train", data + bytes(AFTER)))
    except NkfError as error:
        print(error)
"""


@pytest.mark.parametrize(("limit", "after"), [(20_000, 100), (20_000, 9_000), (100, 0)])
def test_full_disk(tmp_path: Path, limit: int, after: int) -> None:
    """A limit on the size of files stands for it: images that fit a buffer, that do not, and no space for the rows."""
    program = FULL_DISK.replace("LIMIT, LIMIT", f"{limit}, {limit}").replace("AFTER", str(after))
    done = run_child(program, tmp_path / "pack")
    assert done.stderr.decode() == ""
    assert done.stdout.decode() == f"{tmp_path / 'pack'}: cannot be written (File too large)\n"
    assert names(tmp_path) == ["pack.partial"]
    with PackWriter(tmp_path / "pack", {}, identity=IDENTITY) as writer:  # with more space it goes on
        rows = writer.notes.consumed
        assert rows >= 2
        writer.add(sample(5000))
    pack = Pack(tmp_path / "pack")
    expected = [f"{number}.png" for number in range(rows)]
    assert pack.names.tolist() == [*expected, "5000.png"]
    assert [pack.image_bytes(row)[: len(png(0))] for row in range(rows)] == [png(0)] * rows
    assert pack.image_bytes(rows) == png(5000)


def test_full_disk_at_the_end_keeps_the_parts(
    tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(TableWriter, "copy", copy)
        with pytest.raises(NkfError, match=r"pack: cannot be written \(No space left on device\)$"):
            write(tmp_path / "pack", 5)
    assert names(tmp_path) == ["pack.partial"]
    write(tmp_path / "pack", 5, start=5)
    write(tmp_path / "whole", 5)
    assert sha256(tmp_path / "pack") == sha256(tmp_path / "whole")
