"""Writing packs, reading them back, and what damaged ones say."""

import hashlib
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nkf.data.labels import DROPPED, EXPRESSIONS
from nkf.data.pack import COLUMNS, Pack, PackWriter, Sample, pixels_md5
from nkf.errors import ImageError, NkfError

RNG = np.random.default_rng(0)
VOTES = np.array([0, 8, 0, 2, 0, 0, 0, 0, 0, 0], np.uint8)
LANDMARKS = RNG.uniform(0, 8, (68, 2)).astype(np.float32)


def png(seed: int, shape: tuple[int, ...] = (8, 6, 3)) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


SAMPLES = (
    Sample("a.png", "train", png(1), votes=VOTES, box_xyxy=np.array([0, 0, 6, 8]), metadata={"subject": "Ann"}),
    Sample("b.png", "valid", png(2), label="anger", landmarks_px=LANDMARKS, landmarks_source="teacher",
           metadata={"subject": "Bob"}),
    Sample("c.png", "train", png(3, (5, 5)), metadata={"subject": ""}),
)  # fmt: skip


@pytest.fixture
def pack(tmp_path: Path) -> Pack:
    with PackWriter(tmp_path / "pack", {"dataset": "made up"}) as writer:
        for sample in SAMPLES:
            writer.add(sample)
    return Pack(tmp_path / "pack")


def test_round_trip(pack: Pack) -> None:
    assert len(pack) == 3
    assert pack.names.tolist() == ["a.png", "b.png", "c.png"]
    assert pack.rows("train").tolist() == [0, 2]
    assert pack.rows("valid").tolist() == [1]
    assert pack.rows("test").tolist() == []
    assert pack.column("meta_subject").tolist() == ["Ann", "Bob", ""]
    assert [pack.image_bytes(row) for row in range(3)] == [sample.image_bytes for sample in SAMPLES]
    np.testing.assert_array_equal(pack.landmarks_px[1], LANDMARKS)
    assert np.isnan(pack.landmarks_px[[0, 2]]).all()
    np.testing.assert_array_equal(pack.column("box_xyxy")[0], [0, 0, 6, 8])
    assert np.isnan(pack.column("box_xyxy")[1:]).all()
    assert pack.column("landmarks_source").tolist() == [0, 2, 0]
    for row, sample in enumerate(SAMPLES):
        image = np.asarray(Image.open(io.BytesIO(sample.image_bytes)).convert("RGB"))
        np.testing.assert_array_equal(pack.image(row), image)
    for key in COLUMNS:
        assert len(pack.column(key)) == 3 + (key == "offset")


def test_labels_come_from_votes_or_from_the_label(pack: Pack) -> None:
    expected = [EXPRESSIONS.index("happiness"), EXPRESSIONS.index("anger"), DROPPED]
    assert pack.labels().tolist() == expected
    distributions = pack.distributions()
    np.testing.assert_allclose(distributions[0], [0, 0.8, 0, 0.2, 0, 0, 0, 0])
    np.testing.assert_allclose(distributions[1], np.eye(8)[expected[1]])
    np.testing.assert_allclose(distributions[2], np.zeros(8))


def test_manifest(pack: Pack) -> None:
    assert pack.manifest["dataset"] == "made up"
    assert pack.manifest["classes"] == list(EXPRESSIONS)
    assert pack.manifest["images_sha256"] == hashlib.sha256(b"".join(s.image_bytes for s in SAMPLES)).hexdigest()
    assert not list(pack.path.parent.glob("*.partial"))


def test_pixels_md5_of_grey_is_of_one_channel() -> None:
    grey = RNG.integers(0, 256, (5, 4), np.uint8)
    assert pixels_md5(np.repeat(grey[..., None], 3, axis=2)) == hashlib.md5(grey.tobytes()).hexdigest()
    colour = RNG.integers(0, 256, (5, 4, 3), np.uint8)
    assert pixels_md5(colour) == hashlib.md5(colour.tobytes()).hexdigest()


def test_undecodable_image_leaves_the_pack_as_it_was(tmp_path: Path) -> None:
    with PackWriter(tmp_path / "pack", {}) as writer:
        writer.add(SAMPLES[0])
        with pytest.raises(ImageError, match=r"^bad\.png: not an image"):
            writer.add(Sample("bad.png", "train", b"no image"))
        writer.add(SAMPLES[1])
    pack = Pack(tmp_path / "pack")
    assert pack.names.tolist() == ["a.png", "b.png"]
    assert pack.image_bytes(1) == SAMPLES[1].image_bytes


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_existing_path_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "pack"
    if kind == "folder":
        path.mkdir()
    else:
        path.write_text("mine")
    with pytest.raises(NkfError, match=r"pack: exists already; name a new folder for the pack$"):
        PackWriter(path, {})
    assert kind == "folder" or path.read_text() == "mine"


def test_unwritable_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(NkfError, match=r"file/pack: cannot be written \(Not a directory\)$"),
        PackWriter(tmp_path / "file" / "pack", {}),
    ):
        pytest.fail("the block must not run")


def test_empty_pack_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(NkfError, match=r"pack: the source holds no image to pack$"),
        PackWriter(tmp_path / "pack", {}),
    ):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [NkfError("broken row"), KeyboardInterrupt()])
def test_error_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def write() -> None:
        with PackWriter(tmp_path / "pack", {}) as writer:
            writer.add(SAMPLES[0])
            raise error

    with pytest.raises(type(error)):
        write()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "metadata",
    [[{"subject": "Ann"}, {"subject": None}], [{"size": (1, 2)}, {"size": (1, 2, 3)}]],
    ids=["no plain type", "unequal shapes"],
)
def test_columns_that_numpy_would_pickle_are_not_written(tmp_path: Path, metadata: list[dict[str, Any]]) -> None:
    def write() -> None:
        with PackWriter(tmp_path / "pack", {}) as writer:
            for row in metadata:
                writer.add(Sample("a.png", "train", png(1), metadata=row))

    with pytest.raises(ValueError, match=r"Object arrays cannot be saved|inhomogeneous shape"):
        write()
    assert not list(tmp_path.iterdir())


def test_killed_in_the_middle(tmp_path: Path) -> None:
    program = """
        import os, signal, sys
        from pathlib import Path
        from nkf.data.pack import PackWriter, Sample
        with PackWriter(Path(sys.argv[1]), {}) as writer:
            writer.add(Sample("a.png", "train", sys.stdin.buffer.read()))
            os.kill(os.getpid(), signal.SIGKILL)
    """
    path = tmp_path / "pack"
    command = [sys.executable, "-c", textwrap.dedent(program), str(path)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, input=png(1), env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not path.exists()
    with PackWriter(path, {}) as writer:  # what the first one left behind is in nobody's way
        writer.add(SAMPLES[0])
    assert len(Pack(path)) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["pack"]


def overwrite(name: str, data: bytes | str) -> Callable[[Path], None]:
    return lambda path: (path / name).write_bytes(data.encode() if isinstance(data, str) else data) and None


def save_objects(path: Path) -> None:
    np.save(path / "name.npy", np.array([{"a": 1}, None, ...], object), allow_pickle=True)


MANIFEST_DAMAGE: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", r"no pack \(manifest.json is unreadable\); make one with 'nkf data import'$"),
    "cut off": ('{"schema": 1, "ima', r"no pack \(manifest.json is unreadable\)"),
    "not text": (b"\xff\xfe\x00", r"no pack \(manifest.json is unreadable\)"),
    "nested without end": ("[" * 100_000, r"no pack \(manifest.json is unreadable\)"),
    "a list": ("[1, 2]", r"damaged manifest.json \(it does not tell the number of images\); import again$"),
    "without count": ('{"schema": 1}', r"damaged manifest.json \(it does not tell the number of images\)"),
    "count as text": ('{"schema": 1, "images": "3"}', r"damaged manifest.json"),
    "of the future": ('{"schema": 2, "images": 3}', r"pack schema 2, this nkf reads 1$"),
}


@pytest.mark.parametrize("case", MANIFEST_DAMAGE)
def test_damaged_manifest(pack: Pack, case: str) -> None:
    data, message = MANIFEST_DAMAGE[case]
    overwrite("manifest.json", data)(pack.path)
    with pytest.raises(NkfError, match=message) as caught:
        Pack(pack.path)
    assert str(caught.value).startswith(str(pack.path))


def test_folder_without_manifest(tmp_path: Path) -> None:
    with pytest.raises(NkfError, match=r"no pack \(manifest.json is unreadable\)"):
        Pack(tmp_path)


COLUMN_DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (lambda path: (path / "name.npy").unlink(), r"name\.npy: unreadable column of a pack \(.*No such file"),
    "empty": (overwrite("name.npy", ""), r"name\.npy: unreadable column of a pack \("),
    "text": (overwrite("name.npy", "names"), r"name\.npy: unreadable column of a pack \("),
    "pickle": (overwrite("name.npy", pickle.dumps(["a", "b", "c"])), r"name\.npy: unreadable column of a pack \("),
    "object array": (save_objects, r"name\.npy: unreadable column of a pack \(.*(Object arrays|Python objects)"),
    "rows missing": (
        lambda path: np.save(path / "name.npy", np.array(["a.png"])),
        r"name\.npy: damaged pack, column of shape \(1,\), expected 3 rows$",
    ),
}


@pytest.mark.parametrize("case", COLUMN_DAMAGE)
def test_damaged_column(pack: Pack, case: str) -> None:
    damage, message = COLUMN_DAMAGE[case]
    damage(pack.path)
    with pytest.raises(NkfError, match=message) as caught:
        pack.column("name")
    assert "\n" not in str(caught.value)


def test_no_pickle_is_ever_run(pack: Pack, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[[str], Any], tuple[str]]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    np.save(pack.path / "name.npy", np.array([Trap()] * 3, object), allow_pickle=True)
    with pytest.raises(NkfError, match="unreadable column"):
        pack.column("name")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "images.bin").unlink(), r"images\.bin: unreadable images of a pack \(.*No such file"),
        (overwrite("images.bin", ""), r"images\.bin: unreadable images of a pack \("),
        (overwrite("images.bin", "abc"), r"images\.bin: damaged pack, 3 bytes, expected \d+$"),
    ],
    ids=["missing", "empty", "cut off"],
)
def test_damaged_images(pack: Pack, damage: Callable[[Path], None], message: str) -> None:
    damage(pack.path)
    with pytest.raises(NkfError, match=message):
        pack.image(0)


def test_unknown_split(pack: Pack) -> None:
    with pytest.raises(NkfError, match=r"^split 'val': choose one of train, valid, test$"):
        pack.rows("val")


def test_manifest_is_plain_json(pack: Pack) -> None:
    assert json.loads((pack.path / "manifest.json").read_text()) == pack.manifest
