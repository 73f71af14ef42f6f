"""Parquet files in a zip: how much of them is unpacked, and numbers that no table holds."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from nkf.data.formats import table_files
from nkf.data.formats.table import list_table
from nkf.data.formats.table_files import open_table
from nkf.data.importers import import_dataset
from nkf.data.pack import Pack
from nkf.data.sources import open_source
from nkf.errors import NkfError


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def save_zip(path: Path, **columns: Any) -> Path:
    buffer = io.BytesIO()
    fixed = {"path": ["0.png", "1.png"], "label": ["sad", "happy"]}
    pyarrow.parquet.write_table(pyarrow.table(fixed | columns), buffer)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("t.parquet", buffer.getvalue())
        for number in range(2):
            archive.writestr(f"{number}.png", png(number))
    return path


def test_no_more_than_a_limit_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_zip(tmp_path / "a.zip")
    with open_source(path) as source:
        assert open_table(source, "t.parquet").total == 2
        monkeypatch.setattr(table_files, "MAX_COPY", 100)
        message = r"t\.parquet: more than .* GiB unpacked; unpack the zip, and import its folder$"
        with pytest.raises(NkfError, match=message):
            open_table(source, "t.parquet")


def test_text_that_is_no_text(tmp_path: Path) -> None:
    """Parquet keeps text as bytes, and damage may be found no earlier than when they are decoded."""
    column = pyarrow.array([b"\xb5.png", b"1.png"], pyarrow.binary()).cast(pyarrow.string(), safe=False)
    path = save_zip(tmp_path / "a.zip", label=column)
    with open_source(path) as source:
        table = open_table(source, "t.parquet")
        with pytest.raises(NkfError, match=r"t\.parquet: not a readable Parquet file \('utf-8' codec can't decode"):
            list(table.rows())


def test_whole_numbers_of_a_table(tmp_path: Path) -> None:
    path = save_zip(
        tmp_path / "a.zip",
        time=pyarrow.array([1_700_000_001.0, None]),
        known=pyarrow.array([2**62 + 1, -1]),
        age=pyarrow.array([None, 7], pyarrow.int16()),
    )
    import_dataset(list_table, path, tmp_path / "pack")
    pack = Pack(tmp_path / "pack")
    np.testing.assert_array_equal(pack.column("time"), [1_700_000_001, np.nan])
    np.testing.assert_array_equal(pack.column("age"), [np.nan, 7])
    assert pack.column("known").tolist() == [2**62 + 1, -1]


def test_a_whole_number_of_more_bits_is_refused(tmp_path: Path) -> None:
    path = save_zip(tmp_path / "a.zip", hash=pyarrow.array([1, 2**63], pyarrow.uint64()))
    with pytest.raises(
        NkfError, match=r"^table: train, '1\.png': hash 9223372036854775808, expected a whole number of"
    ):
        import_dataset(list_table, path, tmp_path / "pack")
    assert [file.name for file in tmp_path.iterdir()] == ["a.zip"]
