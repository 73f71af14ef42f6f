"""Crops cut from a pack: where they are kept, going on after a kill, two processes at once; training targets."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from nkf.data import dataset
from nkf.data.dataset import FaceCrops, cache_folder, load_crops, training_targets
from nkf.data.pack import Pack
from nkf.errors import NkfError
from nkf.geometry import CROP_TEMPLATE, MEAN_SHAPE, five_points

VOTES = np.array([[0.8, 0.2, 0.0, 0.0]], np.float32)


@pytest.mark.parametrize(
    ("soft", "smoothing", "expected"),
    [
        (True, 0.0, [0.8, 0.2, 0.0, 0.0]),
        (False, 0.0, [1.0, 0.0, 0.0, 0.0]),
        (False, 0.2, [0.85, 0.05, 0.05, 0.05]),
        (True, 0.2, [0.69, 0.21, 0.05, 0.05]),
    ],
)
def test_targets(soft: bool, smoothing: float, expected: list[float]) -> None:
    targets = training_targets(np.array([0]), VOTES, soft=soft, smoothing=smoothing)
    np.testing.assert_allclose(targets, [expected], atol=1e-6)


def test_aligned_crops_put_the_landmarks_on_the_template(mini_pack: Path) -> None:
    crops = load_crops(Pack(mini_pack), "aligned", 32)
    assert crops.images.shape == (48, 32, 32, 3)
    assert crops.found.sum() == 42
    error = five_points(crops.landmarks_px[crops.found]) / 32 - CROP_TEMPLATE
    assert np.abs(error).max() < 0.05  # a similarity fits the mean shape's five points to the template only nearly
    np.testing.assert_allclose(
        crops.landmarks_px[~crops.found], np.broadcast_to(MEAN_SHAPE * 32, (6, 68, 2)), atol=1e-4
    )


def test_crops_are_cut_once(mini_pack: Path) -> None:
    first = load_crops(Pack(mini_pack), "whole", 48)
    files = sorted((mini_pack / "cache").glob("whole48-*"))
    written = [file.stat().st_mtime_ns for file in files]
    again = load_crops(Pack(mini_pack), "whole", 48)
    assert [file.stat().st_mtime_ns for file in files] == written
    np.testing.assert_array_equal(first.images, again.images)
    np.testing.assert_array_equal(first.images[0], Pack(mini_pack).image(0))  # 48 pixels, shown as they are


@pytest.fixture
def pack(mini_pack: Path, tmp_path: Path) -> Path:
    """The drawn faces, without crops."""
    shutil.copytree(mini_pack, tmp_path / "pack", ignore=shutil.ignore_patterns("cache"))
    return tmp_path / "pack"


@pytest.fixture
def uncut(pack: Path, tmp_path: Path) -> Path:
    """The same again, to cut crops in one go."""
    shutil.copytree(pack, tmp_path / "uncut")
    return tmp_path / "uncut"


class Counting:
    """A progress that counts rows, and raises or does something else after some of them."""

    def __init__(self, stop_after: int = 1000, error: BaseException | None = None) -> None:
        self.rows = 0
        self._stop_after = stop_after
        self._error = error

    def __call__(self, items: Iterable[int], text: str, total: int, /) -> Iterator[int]:
        for item in items:
            if self._error is not None and self.rows == self._stop_after:
                raise self._error
            self.rows += 1
            yield item


def assert_same(crops: FaceCrops, expected: FaceCrops) -> None:
    np.testing.assert_array_equal(crops.images, expected.images)
    np.testing.assert_array_equal(crops.landmarks_px, expected.landmarks_px)
    np.testing.assert_array_equal(crops.found, expected.found)
    assert crops.images.any(axis=(1, 2, 3)).all()  # none was left out


@pytest.mark.parametrize("kind", ["aligned", "whole"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), NkfError("no")], ids=["interrupted", "failed"])
def test_cutting_goes_on_where_it_stopped(
    pack: Path, uncut: Path, kind: dataset.CropKind, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "CHECKPOINT_ROWS", 8)
    with pytest.raises(type(error)):
        load_crops(Pack(pack), kind, 32, Counting(21, error))
    assert not list((pack / "cache").glob("*.npy"))
    second = Counting()
    assert_same(load_crops(Pack(pack), kind, 32, second), load_crops(Pack(uncut), kind, 32))
    assert second.rows == 48 - 16
    assert sorted(file.suffix for file in (pack / "cache").iterdir()) == [".lock", ".npy", ".npy"]


def test_before_the_first_checkpoint_cutting_starts_anew(pack: Path, uncut: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        load_crops(Pack(pack), "aligned", 32, Counting(30, KeyboardInterrupt()))
    second = Counting()
    assert_same(load_crops(Pack(pack), "aligned", 32, second), load_crops(Pack(uncut), "aligned", 32))
    assert second.rows == 48


def test_a_kill_between_the_two_files_is_no_end(pack: Path, uncut: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Landmarks have their name, crops do not yet."""
    monkeypatch.setattr(dataset, "CHECKPOINT_ROWS", 8)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda file, target: _stop_at_images(file, target))
        with pytest.raises(KeyboardInterrupt):
            load_crops(Pack(pack), "aligned", 32)
    assert [file.name.partition(".")[2] for file in (pack / "cache").glob("*.npy")] == ["landmarks.npy"]
    with pytest.raises(KeyboardInterrupt):
        load_crops(Pack(pack), "aligned", 32, Counting(3, KeyboardInterrupt()))
    assert_same(load_crops(Pack(pack), "aligned", 32), load_crops(Pack(uncut), "aligned", 32))


def _stop_at_images(file: Path, target: Path) -> None:
    if target.name.endswith(".images.npy"):
        raise KeyboardInterrupt
    os.replace(file, target)


CUT = """
import os, signal, sys, time
from pathlib import Path
from nkf.data import dataset
from nkf.data.pack import Pack

pack, kill_at = Path(sys.argv[1]), int(sys.argv[2])
dataset.CHECKPOINT_ROWS = 8
cut = 0

def progress(items, text, total):
    global cut
    for item in items:
        if cut == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.01)  # long enough for the other process to come meanwhile
        yield item
        cut += 1

opened = Pack(pack)
print("ready", flush=True)
sys.stdin.readline()
crops = dataset.load_crops(opened, "aligned", 32, progress)
print(cut, crops.images.shape[0])
"""


def start_cutting(pack: Path, kill_at: int = -1) -> "subprocess.Popen[str]":
    """A process that is ready to cut as soon as it gets a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", CUT, str(pack), str(kill_at)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return process


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_cutting_goes_on_after_a_kill(pack: Path, uncut: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with start_cutting(pack, kill_at=29) as process:
        process.communicate("go\n", timeout=60)
    assert process.returncode == -signal.SIGKILL
    second = Counting()
    assert_same(load_crops(Pack(pack), "aligned", 32, second), load_crops(Pack(uncut), "aligned", 32))
    assert second.rows == 48 - 24


def test_two_processes_at_once_cut_once(pack: Path, uncut: Path) -> None:
    with start_cutting(pack) as one, start_cutting(pack) as other:
        for process in (one, other):
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in (one, other):
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        printed = [process.communicate(timeout=60)[0].split() for process in (one, other)]
    assert sorted(printed) == [["0", "48"], ["48", "48"]]
    assert_same(load_crops(Pack(pack), "aligned", 32), load_crops(Pack(uncut), "aligned", 32))


def test_crops_stay_on_the_disk(pack: Path) -> None:
    crops = load_crops(Pack(pack), "aligned", 32)
    assert isinstance(crops.images, np.memmap)
    assert crops.images.mode == "r"
    with pytest.raises(ValueError, match="read-only"):
        crops.images[0] = 0


@pytest.mark.parametrize("how", ["a file in its place", "no permission", "no permission for the pack"])
def test_crops_of_a_pack_that_cannot_be_written_go_to_the_users_folder(
    pack: Path, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "a file in its place":
        (pack / "cache").touch()
    elif how == "no permission":
        monkeypatch.setattr(dataset.os, "access", lambda folder, _: tmp_path / "home" in folder.parents)
    elif os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    else:
        pack.chmod(0o500)
        monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    crops = load_crops(Pack(pack), "aligned", 32)
    pack.chmod(0o700)
    assert len(crops.images) == 48
    folder = tmp_path / "home" / "nkf" / Pack(pack).manifest["rows_sha256"][:16]
    assert len(list(folder.glob("aligned32-*.npy"))) == 2
    assert not list(pack.glob("cache/*"))


def test_the_users_folder_is_in_the_home_folder(pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (pack / "cache").touch()
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "me")
    assert cache_folder(Pack(pack)).parent == tmp_path / "me" / ".cache" / "nkf"
