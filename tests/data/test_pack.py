"""Reading packs: what was written comes back, from several files and several processes; what damaged ones say."""

import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nkf.data import pack as pack_module
from nkf.data import pack_writer
from nkf.data.labels import DROPPED, EXPRESSIONS
from nkf.data.pack import COLUMNS, HELD_OUT_SHARE, Pack, Sample, is_held_out, pixels_md5
from nkf.data.pack_writer import PackWriter
from nkf.data.tables import Table, TableWriter
from nkf.errors import NkfError
from nkf.files import file_sha256

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
    assert pack.metadata_names == ["subject"]
    assert pack.metadata("subject") is not None
    assert pack.column("subject").tolist() == ["Ann", "Bob", ""]
    assert pack.metadata("age") is None
    assert pack.metadata("name") is None
    assert [pack.image_bytes(row) for row in range(3)] == [sample.image_bytes for sample in SAMPLES]
    np.testing.assert_array_equal(pack.landmarks_px[1], LANDMARKS)
    assert np.isnan(pack.landmarks_px[[0, 2]]).all()
    np.testing.assert_array_equal(pack.column("box_xyxy")[0], [0, 0, 6, 8])
    assert np.isnan(pack.column("box_xyxy")[1:]).all()
    assert pack.column("landmarks_source").tolist() == ["none", "teacher", "none"]
    for row, sample in enumerate(SAMPLES):
        image = np.asarray(Image.open(io.BytesIO(sample.image_bytes)).convert("RGB"))
        np.testing.assert_array_equal(pack.image(row), image)
    assert pack.column("width").tolist() == [6, 6, 5]
    assert pack.column("height").tolist() == [8, 8, 5]
    assert pack.column("bytes_md5").tolist() == [hashlib.md5(sample.image_bytes).hexdigest() for sample in SAMPLES]
    assert pack.column("pixels_md5").tolist() == [pixels_md5(pack.image(row)) for row in range(3)]
    assert [*pack.table.columns] == [*COLUMNS, "subject"]


def test_labels_come_from_votes_or_from_the_label(pack: Pack) -> None:
    expected = [EXPRESSIONS.index("happiness"), EXPRESSIONS.index("anger"), DROPPED]
    assert pack.labels().tolist() == expected
    distributions = pack.distributions()
    np.testing.assert_allclose(distributions[0], [0, 0.8, 0, 0.2, 0, 0, 0, 0])
    np.testing.assert_allclose(distributions[1], np.eye(8)[expected[1]])
    np.testing.assert_allclose(distributions[2], np.zeros(8))


def test_a_given_distribution_wins(tmp_path: Path) -> None:
    shares = np.array([0.5, 0, 0, 0, 0, 0, 0.25, 0.25], np.float32)
    with PackWriter(tmp_path / "pack", {}) as writer:
        writer.add(Sample("a.png", "train", png(1), label="anger", distribution=shares))
        writer.add(Sample("b.png", "train", png(2), votes=VOTES, distribution=shares))
        writer.add(Sample("c.png", "train", png(3), label="neutral"))
    distributions = Pack(tmp_path / "pack").distributions()
    np.testing.assert_array_equal(distributions, [shares, shares, np.eye(8)[0]])


def test_manifest(pack: Pack) -> None:
    assert pack.manifest["dataset"] == "made up"
    assert pack.manifest["classes"] == list(EXPRESSIONS)
    assert pack.manifest["images"] == 3
    assert pack.manifest["images_by_split"] == {"train": 2, "valid": 1}
    images = b"".join(sample.image_bytes for sample in SAMPLES)
    assert pack.manifest["shards"] == [
        {"file": "images-00000.bin", "bytes": len(images), "sha256": hashlib.sha256(images).hexdigest()}
    ]
    assert pack.manifest["rows_sha256"] == file_sha256(pack.path / "rows.arrow")
    assert sorted(file.name for file in pack.path.iterdir()) == ["images-00000.bin", "manifest.json", "rows.arrow"]
    assert [file.name for file in pack.path.parent.iterdir()] == ["pack"]


def test_pixels_md5_of_grey_is_of_one_channel() -> None:
    grey = RNG.integers(0, 256, (5, 4), np.uint8)
    assert pixels_md5(np.repeat(grey[..., None], 3, axis=2)) == hashlib.md5(grey.tobytes()).hexdigest()
    colour = RNG.integers(0, 256, (5, 4, 3), np.uint8)
    assert pixels_md5(colour) == hashlib.md5(colour.tobytes()).hexdigest()


def test_held_out_rows_are_one_in_ten_by_their_pixels() -> None:
    digests = np.array([hashlib.md5(str(k).encode()).hexdigest() for k in range(4000)])
    held_out = is_held_out(digests)
    assert held_out.dtype == bool
    assert abs(held_out.mean() - 1 / HELD_OUT_SHARE) < 0.02
    np.testing.assert_array_equal(is_held_out(digests[::-1]), held_out[::-1])


@pytest.fixture
def many_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve images in parts of one, each part in an images file of its own."""
    monkeypatch.setattr(pack_writer, "PART_ROWS", 1)
    monkeypatch.setattr(pack_writer, "SHARD_BYTES", 1)
    with PackWriter(tmp_path / "pack", {}) as writer:
        for number in range(12):
            writer.add(Sample(f"{number}.png", "train", png(number)))
    return tmp_path / "pack"


def test_more_images_files_than_may_be_open(many_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    monkeypatch.setattr(pack_module, "MAX_OPEN_SHARDS", 2)
    real = np.memmap
    monkeypatch.setattr(np, "memmap", lambda file, *args: opened.append(file.name) or real(file, *args))
    pack = Pack(many_shards)
    assert len(pack.manifest["shards"]) == 12
    order = [*range(12), 11, 10, 0, 0, 11]
    assert [pack.image_bytes(row) for row in order] == [png(row) for row in order]
    # 11 and 10 are still open when they come again, 0 takes the place of 11, and 11 has to be opened once more.
    assert opened == [f"images-{row:05}.bin" for row in [*range(12), 0, 11]]


READER = """
    import hashlib, sys
    from nkf.data.pack import Pack
    pack = Pack(sys.argv[1])
    sys.stdin.readline()
    rows = range(len(pack)) if sys.argv[2] == "up" else reversed(range(len(pack)))
    for row in rows:
        print(row, hashlib.sha256(pack.image_bytes(row)).hexdigest())
"""


def test_several_processes_read_one_pack_at_once(many_shards: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(READER), str(many_shards), way],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for way in ("up", "down")
    ]
    for reader in readers:
        assert reader.stdin is not None
        reader.stdin.write("go\n")
        reader.stdin.flush()
    expected = [f"{row} {hashlib.sha256(png(row)).hexdigest()}" for row in range(12)]
    results = [reader.communicate(timeout=60)[0].splitlines() for reader in readers]
    assert results == [expected, expected[::-1]]


def overwrite(name: str, data: bytes | str) -> Callable[[Path], None]:
    return lambda path: (path / name).write_bytes(data.encode() if isinstance(data, str) else data) and None


MANIFEST_DAMAGE: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", r"no pack \(manifest.json is unreadable\); make one with 'nkf data import'$"),
    "cut off": ('{"schema": 2, "ima', r"no pack \(manifest.json is unreadable\)"),
    "not text": (b"\xff\xfe\x00", r"no pack \(manifest.json is unreadable\)"),
    "nested without end": ("[" * 100_000, r"no pack \(manifest.json is unreadable\)"),
    "a list": ("[1, 2]", r"damaged manifest.json \(it does not tell its schema\); import again$"),
    "without schema": ('{"images": 3}', r"damaged manifest.json \(it does not tell its schema\); import again$"),
    "only a schema": (
        '{"schema": 2}',
        r"damaged manifest\.json \(it does not tell images, images_by_split, shards\); import again$",
    ),
    "other things": (
        '{"schema": 2, "images": "3", "images_by_split": {"val": 3}, "shards": [7]}',
        r"damaged manifest\.json \(it does not tell images, images_by_split, shards\); import again$",
    ),
    "schema as text": ('{"schema": "2", "images": 3}', r"damaged manifest.json \(it does not tell its schema\)"),
    "of the past": ('{"schema": 1, "images": 3}', r"pack schema 1, this nkf reads 2; import again$"),
    "of the future": ('{"schema": 3, "images": 3}', r"pack schema 3, this nkf reads 2; import again$"),
}


@pytest.mark.parametrize("case", MANIFEST_DAMAGE)
def test_damaged_manifest(pack: Pack, case: str) -> None:
    data, message = MANIFEST_DAMAGE[case]
    overwrite("manifest.json", data)(pack.path)
    with pytest.raises(NkfError, match=message) as caught:
        Pack(pack.path)
    assert str(caught.value).startswith(str(pack.path))
    assert "\n" not in str(caught.value)


def test_folder_without_manifest(tmp_path: Path) -> None:
    with pytest.raises(NkfError, match=r"no pack \(manifest.json is unreadable\)"):
        Pack(tmp_path)


def change_manifest(**changes: Any) -> Callable[[Path], None]:
    """Change values in the manifest; None removes."""

    def change(path: Path) -> None:
        manifest = json.loads((path / "manifest.json").read_text()) | changes
        kept = {key: value for key, value in manifest.items() if value is not None}
        (path / "manifest.json").write_text(json.dumps(kept))

    return change


def rewrite(*lacking: str, rows: int = 3) -> Callable[[Path], None]:
    """Write fewer columns or rows."""

    def change(path: Path) -> None:
        table = Table(path / "rows.arrow")
        columns = {name: kind for name, kind in table.columns.items() if name not in lacking}
        with TableWriter(path / "fewer.arrow", columns) as fewer:
            fewer.copy(table, np.arange(3) < rows)
        (path / "fewer.arrow").replace(path / "rows.arrow")

    return change


def cut_off(path: Path) -> None:
    data = (path / "rows.arrow").read_bytes()
    (path / "rows.arrow").write_bytes(data[:-200])


ROWS_DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: (path / "rows.arrow").unlink(), r"rows\.arrow: damaged table \(.*No such file"),
    "empty": (overwrite("rows.arrow", ""), r"rows\.arrow: damaged table \("),
    "cut off": (cut_off, r"rows\.arrow: damaged table \("),
    "text": (overwrite("rows.arrow", "names\n" * 50), r"rows\.arrow: damaged table \("),
    "pickle": (overwrite("rows.arrow", pickle.dumps(["a", "b", "c"] * 50)), r"rows\.arrow: damaged table \("),
    "rows missing": (rewrite(rows=2), r"rows\.arrow: 2 rows, but manifest\.json says 3$"),
    "another number of images": (change_manifest(images=4), r"rows\.arrow: 3 rows, but manifest\.json says 4$"),
    "columns missing": (
        rewrite("votes", "offset"),
        r"rows\.arrow: damaged table, without the columns votes, offset$",
    ),
}


@pytest.mark.parametrize("case", ROWS_DAMAGE)
def test_damaged_rows(pack: Pack, case: str) -> None:
    damage, message = ROWS_DAMAGE[case]
    damage(pack.path)
    with pytest.raises(NkfError, match=message) as caught:
        len(Pack(pack.path))
    assert "\n" not in str(caught.value)


def test_no_pickle_is_ever_run(pack: Pack, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[[str], Any], tuple[str]]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    trap = pickle.dumps(Trap())
    buffer = io.BytesIO()
    np.save(buffer, np.array([Trap()] * 3, object), allow_pickle=True)
    for file in ("rows.arrow", "images-00000.bin", "manifest.json"):
        original = (pack.path / file).read_bytes()
        for data in (trap, buffer.getvalue()):
            (pack.path / file).write_bytes(data)
            with pytest.raises(NkfError):
                Pack(pack.path).image(0)
        (pack.path / file).write_bytes(original)
    assert not (tmp_path / "sprung").exists()
    pickle.loads(trap)
    assert (tmp_path / "sprung").exists()


IMAGES = "images-00000.bin"
IMAGES_DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (
        lambda path: (path / IMAGES).unlink(),
        r"images-00000\.bin: unreadable images of a pack \(.*No such file",
    ),
    "empty": (overwrite(IMAGES, ""), r"images-00000\.bin: unreadable images of a pack \("),
    "cut off": (overwrite(IMAGES, "abc"), r"images-00000\.bin: damaged pack, 3 bytes, expected \d+$"),
    "not in the manifest": (
        change_manifest(shards=[]),
        r"pack: damaged manifest\.json \(it does not tell of images-00000\.bin\); import again$",
    ),
    "no list in the manifest": (
        change_manifest(shards=None),
        r"pack: damaged manifest\.json \(it does not tell shards",
    ),
    "no sizes in the manifest": (
        change_manifest(shards=[7]),
        r"pack: damaged manifest\.json \(it does not tell shards",
    ),
}


@pytest.mark.parametrize("case", IMAGES_DAMAGE)
def test_damaged_images(pack: Pack, case: str) -> None:
    damage, message = IMAGES_DAMAGE[case]
    damage(pack.path)
    with pytest.raises(NkfError, match=message) as caught:
        Pack(pack.path).image(0)
    assert "\n" not in str(caught.value)


def test_a_manifest_cannot_name_files_elsewhere(pack: Pack, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(png(7))
    change_manifest(shards=[{"file": "../secret", "bytes": len(png(7))}])(pack.path)
    with pytest.raises(NkfError, match="damaged pack"):
        Pack(pack.path).image_bytes(0)


def test_unknown_split(pack: Pack) -> None:
    with pytest.raises(NkfError, match=r"^split 'val': choose one of train, valid, test$"):
        pack.rows("val")


def test_manifest_is_plain_json(pack: Pack) -> None:
    assert json.loads((pack.path / "manifest.json").read_text()) == pack.manifest
