"""Imports that are killed, interrupted or started twice: the same call goes on, and makes the same pack."""

import io
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nkf.data import importers, index, pack_writer, sources
from nkf.data.formats.ferplus import list_ferplus
from nkf.data.importers import ImportOptions, import_dataset
from nkf.data.labels import FERPLUS_COLUMNS
from nkf.data.pack import Pack
from nkf.data.sources import Source
from nkf.data.tables import Table
from nkf.errors import NkfError
from nkf.files import file_sha256
from nkf.geometry import Points

PART_ROWS, READ_AHEAD, BATCH = 4, 3, 5
SPLIT_SIZES = {"FER2013Train": 17, "FER2013Valid": 5, "FER2013Test": 3}
COUNT = sum(SPLIT_SIZES.values())


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (48, 48), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FER+ in folders; two train images are copies of a test image, one image is broken, one has an unusable name."""
    path = tmp_path_factory.mktemp("ferplus") / "source"
    number = 0
    for folder, count in SPLIT_SIZES.items():
        (path / folder).mkdir(parents=True)
        rows = []
        for _ in range(count):
            votes = ",".join("9" if k == number % 8 else "0" for k in range(len(FERPLUS_COLUMNS)))
            rows.append(f'fer{number:07}.png,"(0, 0, 48, 48)",{votes}\n')
            copy = number in (3, 11)
            data = b"broken" if number == 7 else png(COUNT - 1 if copy else number)
            (path / folder / f"fer{number:07}.png").write_bytes(data)
            number += 1
        (path / folder / "label.csv").write_text("".join(rows))
        (path / folder / "two\nlines.png").write_bytes(b"")
    return path


def find_faces(images: Sequence[Any], boxes_xyxy: Sequence[Any], shows: str, /) -> list[Points | None]:
    """Landmarks that depend on the picture alone; none in some."""
    means = [float(image.mean()) for image in images]
    return [None if mean % 1 < 0.2 else np.arange(136, dtype=np.float32).reshape(68, 2) + mean for mean in means]


OPTIONS = ImportOptions(find_faces=find_faces, drop_leaks=True)


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack_writer, "PART_ROWS", PART_ROWS)
    monkeypatch.setattr(pack_writer, "SHARD_BYTES", 10_000)  # four images or so
    monkeypatch.setattr(importers, "READ_AHEAD", READ_AHEAD)
    monkeypatch.setattr(index, "BATCH", BATCH)


@pytest.fixture
def read_members(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which files of a source are read as images."""
    members: list[str] = []

    class NotingSource(sources.FolderSource):
        def read(self, name: str, limit: int = sources.MAX_IMAGE_BYTES) -> bytes:
            members.append(name)
            return super().read(name, limit)

    @contextmanager
    def open_source(path: Path) -> Iterator[Source]:
        yield NotingSource(path)

    monkeypatch.setattr(importers, "open_source", open_source)
    return members


def sha256(folder: Path) -> dict[str, str]:
    return {file.name: file_sha256(file) for file in sorted(folder.iterdir())}


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def consumed(partial_pack: Path) -> int:
    return sum(Table(part).notes["consumed"] for part in partial_pack.glob("part-*.arrow"))


# Forks for each place, given as TEXT:NUMBER, and the pack that follows it; imports and kills itself there: in the loop
# that the progress calls so, in the search for faces, when the manifest is written, when a file is removed or renamed.
KILLED = f"""
    import os, signal, sys
    from pathlib import Path
    import numpy as np
    from nkf.data import importers, index, pack_writer
    from nkf.data.formats.ferplus import list_ferplus

    pack_writer.PART_ROWS, pack_writer.SHARD_BYTES = {PART_ROWS}, 10_000
    importers.READ_AHEAD, index.BATCH = {READ_AHEAD}, {BATCH}
    source, *arguments = sys.argv[1:]

    def run(where, number, out):
        left = [number]
        def step(name):
            if name == where:
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1
        def progress(items, text, total):
            for item in items:
                step(text)
                yield item
        def find_faces(images, boxes, shows):
            for image in images:
                step("search")
            means = [float(image.mean()) for image in images]
            shape = np.arange(136, dtype=np.float32).reshape(68, 2)
            return [None if mean % 1 < 0.2 else shape + mean for mean in means]
        def stepping(name, function):
            def stepped(*arguments, **options):
                step(name)
                return function(*arguments, **options)
            return stepped
        pack_writer.write_manifest = stepping("manifest", pack_writer.write_manifest)
        Path.unlink = stepping("unlink", Path.unlink)
        Path.rename = stepping("rename", Path.rename)
        Path.replace = stepping("replace", Path.replace)
        options = importers.ImportOptions(find_faces=find_faces, drop_leaks=True)
        importers.import_dataset(list_ferplus, Path(source), Path(out), options, progress=progress)

    for place, out in zip(arguments[::2], arguments[1::2]):
        where, number = place.split(":")
        process = os.fork()
        if not process:
            run(where, int(number), out)
            os._exit(0)
        status = os.waitpid(process, 0)[1]
        print(place, "killed" if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL else status)
"""


def import_and_kill(source: Path, *places_and_outs: tuple[str, Path]) -> None:
    """Import once for each place, and be killed there; all from one process, since its start takes the longest."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    arguments = [str(text) for pair in places_and_outs for text in pair]
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(source), *arguments]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == [f"{place} killed" for place, _ in places_and_outs]


@pytest.fixture
def whole(source: Path, tmp_path: Path) -> Path:
    """The pack of an import that nothing happened to."""
    import_dataset(list_ferplus, source, tmp_path / "whole", OPTIONS)
    return tmp_path / "whole"


def test_the_whole_import(source: Path, whole: Path) -> None:
    """What the others are compared with is what it should be."""
    pack = Pack(whole)
    assert pack.manifest["images_by_split"] == {"train": 14, "valid": 5, "test": 3}
    assert (pack.manifest["leaks_dropped"], pack.manifest["images_skipped"]) == (2, 1)
    assert len(pack.manifest["shards"]) == 3
    assert 0 < pack.manifest["landmarks_missing"] < 10
    for row, file in enumerate(pack.column("file").tolist()):
        assert pack.image_bytes(row) == (source / file).read_bytes()


PLACES = [
    "Listing:0",
    "Listing:7",
    "replace:0",
    "Importing:0",
    "Importing:2",
    "Importing:9",
    "Importing:24",
    "search:0",
    "search:12",
    "search:21",
    "replace:4",
    "manifest:0",
    "unlink:9",
    "rename:0",
]


TIDYING = ["unlink:10", "unlink:15", "unlink:21"]


def test_a_kill_while_a_finished_pack_is_tidied(source: Path, whole: Path, tmp_path: Path) -> None:
    """The pack is complete; the next call does the rest, and says so."""
    for place in TIDYING:
        (tmp_path / place).mkdir()
    import_and_kill(source, *((place, tmp_path / place / "pack") for place in TIDYING))
    for place in TIDYING:
        assert len(names(tmp_path / place / "pack")) > len(names(whole))
        with pytest.raises(NkfError, match=r"pack: exists already; name a new folder"):
            import_dataset(list_ferplus, source, tmp_path / place / "pack", OPTIONS)
        assert sha256(tmp_path / place / "pack") == sha256(whole)
        assert names(tmp_path / place) == ["pack"]


@pytest.fixture(scope="module")
def killed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each place with what the kill left there."""
    top = tmp_path_factory.mktemp("killed")
    folders = {place: top / place.replace(":", "-") for place in PLACES}
    for folder in folders.values():
        folder.mkdir()
    import_and_kill(source, *((place, folder / "pack") for place, folder in folders.items()))
    return folders


@pytest.mark.parametrize("place", PLACES)
def test_the_same_call_goes_on_after_a_kill(
    source: Path, whole: Path, killed: dict[str, Path], place: str, read_members: list[str]
) -> None:
    folder = killed[place]
    assert names(folder) == ["pack.partial"]
    resumes = (folder / "pack.partial" / "import.json").exists()
    done = consumed(folder / "pack.partial") if resumes else 0
    warnings = import_dataset(list_ferplus, source, folder / "pack", OPTIONS).warnings
    assert sha256(folder / "pack") == sha256(whole)
    assert names(folder) == ["pack"]
    assert len(read_members) == COUNT - done  # what complete parts hold is not read again
    assert warnings[:3] == tuple(
        f"left out '{split}/two\\nlines.png': expected a printable name" for split in sorted(SPLIT_SIZES)
    )
    assert (
        warnings[3] == f"skipped {source}: FER2013Train/fer0000007.png: not an image in a format that can be read"
        " (JPEG, PNG, WebP, ...)"
    )


def test_what_was_read_is_not_read_again(
    source: Path, killed: dict[str, Path], tmp_path: Path, read_members: list[str]
) -> None:
    """Of 25 entries 24 were handed out before the kill, READ_AHEAD of them not yet read; parts end with four rows."""
    import_and_kill(source, ("Importing:24", tmp_path / "pack"))
    done = consumed(tmp_path / "pack.partial")
    assert 16 <= done <= 24
    import_dataset(list_ferplus, source, tmp_path / "pack", OPTIONS)
    order = [f"{folder}/fer{number:07}.png" for folder, numbers in (
        ("FER2013Test", range(22, 25)), ("FER2013Valid", range(17, 22)), ("FER2013Train", range(17)),
    ) for number in numbers]  # fmt: skip
    assert sorted(read_members) == sorted(order[done:])


def test_several_random_kills(source: Path, whole: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    places = ["Listing:9", *(f"{random.choice(['Importing', 'search'])}:{random.integers(2, 9)}" for _ in range(5))]
    import_and_kill(source, *((place, tmp_path / "pack") for place in places))
    assert 0 < consumed(tmp_path / "pack.partial") < COUNT
    import_dataset(list_ferplus, source, tmp_path / "pack", OPTIONS)
    assert sha256(tmp_path / "pack") == sha256(whole)
    assert names(tmp_path) == ["pack", "whole"]


def stop_after(count: int, error: BaseException, text: str = "Importing") -> Callable[..., Iterable[Any]]:
    """A progress that raises an error behind so many items."""

    def progress(items: Iterable[Any], told: str, _: int, /) -> Iterator[Any]:
        for number, item in enumerate(items):
            if told == text and number == count:
                raise error
            yield item

    return progress


@pytest.mark.parametrize("text", ["Listing", "Importing"])
@pytest.mark.parametrize("count", [1, 20])
def test_an_interrupted_import_goes_on(source: Path, whole: Path, tmp_path: Path, text: str, count: int) -> None:
    stop = stop_after(count, KeyboardInterrupt(), text)
    with pytest.raises(KeyboardInterrupt):
        import_dataset(list_ferplus, source, tmp_path / "pack", OPTIONS, progress=stop)
    assert names(tmp_path) == ["pack.partial", "whole"]
    import_dataset(list_ferplus, source, tmp_path / "pack", OPTIONS)
    assert sha256(tmp_path / "pack") == sha256(whole)


def test_the_progress_of_an_import_that_goes_on(source: Path, tmp_path: Path) -> None:
    totals = []

    def progress(items: Iterable[Any], text: str, total: int, /) -> Iterable[Any]:
        totals.append((text, total))
        return items

    with pytest.raises(KeyboardInterrupt):
        import_dataset(list_ferplus, source, tmp_path / "pack", OPTIONS, progress=stop_after(20, KeyboardInterrupt()))
    done = consumed(tmp_path / "pack.partial")
    import_dataset(list_ferplus, source, tmp_path / "pack", OPTIONS, progress=progress)
    assert totals == [("Importing", COUNT - done)]


def test_an_error_in_the_listing_leaves_nothing_behind(source: Path, tmp_path: Path) -> None:
    for count in (0, 7, 20):
        stop = stop_after(count, NkfError("line 7: broken"), "Listing")
        with pytest.raises(NkfError, match=r"^line 7: broken$"):
            import_dataset(list_ferplus, source, tmp_path / "pack", OPTIONS, progress=stop)
        assert names(tmp_path) == []


OTHER_CALLS: dict[str, Callable[[Path, Path], Any]] = {
    "options": lambda source, out: import_dataset(list_ferplus, source, out, ImportOptions(find_faces=find_faces)),
    "no search": lambda source, out: import_dataset(list_ferplus, source, out, ImportOptions(drop_leaks=True)),
    "source": lambda source, out: import_dataset(list_ferplus, source.parent, out, OPTIONS),
    "reader": lambda source, out: import_dataset(partial(list_ferplus, fer2013new=None), source, out, OPTIONS),
}


@pytest.mark.parametrize("case", OTHER_CALLS)
def test_another_call_may_not_go_on(source: Path, tmp_path: Path, case: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        import_dataset(list_ferplus, source, tmp_path / "pack", OPTIONS, progress=stop_after(20, KeyboardInterrupt()))
    before = sha256(tmp_path / "pack.partial")
    message = r"pack\.partial: holds another import that was interrupted; finish that with the same command, or remove"
    with pytest.raises(NkfError, match=message) as caught:
        OTHER_CALLS[case](source, tmp_path / "pack")
    assert "\n" not in str(caught.value)
    assert sha256(tmp_path / "pack.partial") == before


def test_a_second_import_at_the_same_time_is_refused(source: Path, whole: Path, tmp_path: Path) -> None:
    refused = []

    def find_and_import(images: Sequence[Any], boxes_xyxy: Sequence[Any], shows: str, /) -> list[Points | None]:
        assert not (tmp_path / "pack").exists()
        with pytest.raises(NkfError) as caught:
            import_dataset(list_ferplus, source, tmp_path / "pack", OPTIONS)
        refused.append(str(caught.value))
        return find_faces(images, boxes_xyxy, shows)

    options = ImportOptions(find_faces=find_and_import, drop_leaks=True)
    import_dataset(list_ferplus, source, tmp_path / "pack", options)
    message = f"{tmp_path / 'pack'}: another import is writing this pack; wait for it, or name another"
    assert set(refused) == {message}
    assert sha256(tmp_path / "pack") == sha256(whole)
