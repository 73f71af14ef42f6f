"""The made-up folder of the benchmark: what it says of its files is what reading them tells."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from nkf.cli_files import ImageInputs
from nkf.errors import ImageError
from nkf.images import read_image

SEED = 1  # one whose files have every ending


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    file = Path(__file__).parents[1] / "benchmarks" / "mixed_folder.py"
    spec = importlib.util.spec_from_file_location("mixed_folder", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_truth(benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, portrait_path: Path) -> None:
    monkeypatch.setattr(benchmark, "PHOTO", portrait_path)
    truth = benchmark.make_folder(tmp_path / "photos", 90, SEED)
    assert [row["path"] for row in truth] == [image.name for image in ImageInputs([tmp_path / "photos"])]
    assert {row["broken"] for row in truth} == {"", *benchmark.DAMAGES}
    assert {row["path"].suffix for row in truth if not row["broken"]} == benchmark.FORMATS.keys()
    for row in truth:
        file = tmp_path / "photos" / row["path"]
        if row["broken"]:
            with pytest.raises(ImageError):
                read_image(file)
        else:
            assert min(read_image(file).shape[:2]) > 40


def test_the_same_seed_makes_the_same_folder(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, portrait_path: Path
) -> None:
    monkeypatch.setattr(benchmark, "PHOTO", portrait_path)
    folders = [tmp_path / name for name in ("one", "two")]
    first, second = (benchmark.make_folder(folder, 20, 0) for folder in folders)
    assert first == second
    for row in first:
        one, other = (folder / row["path"] for folder in folders)
        assert one.is_symlink() or one.read_bytes() == other.read_bytes()
