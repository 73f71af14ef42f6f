"""The commands of a researcher, from a folder of pictures to an exported network."""

import io
import json
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from nkf.cli import main
from nkf.data.pack import Pack


@pytest.fixture
def ferplus_folder(mini_pack: Path, tmp_path: Path) -> Path:
    """The drawn faces in FER+'s layout."""
    pack, root = Pack(mini_pack), tmp_path / "work" / "ferplus"
    for split, folder in (("train", "FER2013Train"), ("valid", "FER2013Valid")):
        (root / folder).mkdir(parents=True)
        lines = []
        for row in pack.rows(split):
            (root / folder / str(pack.names[row])).write_bytes(pack.image_bytes(row))
            happy = pack.labels()[row] == 1
            lines.append(f'{pack.names[row]},"(0, 0, 48, 48)",2,{8 * happy},0,{8 * (1 - happy)},0,0,0,0,0,0')
        (root / folder / "label.csv").write_text("\n".join(lines) + "\n")
    return root


def test_import_train_evaluate_export_predict(
    ferplus_folder: Path, fake_package: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(ferplus_folder.parent)
    assert main(["data", "import", "ferplus", str(ferplus_folder), "pack", "--drop-leaks"]) == 0
    printed = capsys.readouterr()
    assert "duplicates: 2 valid in train" in printed.out
    assert "known" in printed.err  # these are not FER+'s counts, and that is said
    assert len(Pack(Path("pack"))) == 46

    network = {"backbone": "tiny", "keypoint_channels": 16}
    config = {"name": "tiny", "task": "expression", "data": ["elsewhere"], "network": network, "crop_size": 32}
    config |= {"epochs": 1, "batch_size": 8, "evaluations": 1, "warmup_steps": 0}
    Path("tiny.yaml").write_text(yaml.safe_dump(config))
    assert main(["train", "tiny.yaml", "--data", "pack", "--device", "cpu"]) == 0
    assert "runs/tiny: " in capsys.readouterr().out

    assert main(["evaluate", "pack", "--model", "runs/tiny", "--out", "results", "--device", "cpu"]) == 0
    assert "16 images" in capsys.readouterr().out
    assert json.loads(Path("results/evaluation.json").read_text())["n_leakfree"] == 16

    figures = ["--evaluation", "results/evaluation.json"]
    assert main(["export", "runs/tiny", "--out", "exported", "--name", "mine", *figures]) == 0
    assert json.loads(Path("exported/mine.json").read_text())["metrics"]["ferplus valid majority"]["n"] == 16
    assert capsys.readouterr().out.split() == [f"exported/mine.{kind}" for kind in ("onnx", "safetensors", "json")]

    predict = ["predict", str(ferplus_folder / "FER2013Valid" / "face34.png"), "--detector", "none", "--device", "cpu"]
    assert main([*predict, "--model", "exported/mine.onnx", "--json", "out.json"]) == 0
    (prediction,) = json.loads(Path("out.json").read_text())
    assert sum(prediction["faces"][0]["probabilities"].values()) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "none.yaml"], "none.yaml: No such file"),
        (["evaluate", "none", "--out", "x"], "none: no pack"),
        (["evaluate", "none"], "out"),
        (["export", "none", "--out", "x"], "model 'none': neither a packaged model"),
        (["export", "fan", "--out", "x", "--evaluation", "none.json"], "none.json: not an evaluation.json of nkf"),
        (["data", "import", "ferplus", "none", "x"], "none"),
        (["data", "import", "rafdv", "a", "b"], "unknown command 'rafdv'. Perhaps you meant 'rafdb'?"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("nkf: ")
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "nowhere"], "nowhere: no pack"),
        (["--pretrained", "nowhere"], "nowhere: no such file, expected starting weights"),
        (["--seed", "-1"], "options: seed"),
    ],
)
def test_mistaken_training_leaves_no_run_behind(
    options: list[str], message: str, mini_pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"name": "a", "task": "expression", "data": [str(mini_pack)], "batch_size": 8, "crop_size": 32}
    file = tmp_path / "a.yaml"
    file.write_text(yaml.safe_dump(config))
    assert main(["train", str(file), "--out", str(tmp_path / "run"), "--device", "cpu", *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("arguments", [["train", "configs/mobile.yaml"], ["export", "fan", "--out", "x"]])
def test_without_torch_one_line_says_what_to_install(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(arguments) == 2
    assert capsys.readouterr().err == "nkf: this needs torch: pip install '.[train]' in nkf's folder\n"


def test_unlabelled_faces_are_imported_from_a_folder(
    tmp_path: Path, fake_package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "faces").mkdir()
    stream = io.BytesIO()
    Image.new("RGB", (40, 60), "gray").save(stream, "JPEG")
    (tmp_path / "faces" / "a.jpg").write_bytes(stream.getvalue())
    (tmp_path / "faces" / "b.jpg").write_bytes(stream.getvalue()[:200])
    assert main(["data", "import", "faces", str(tmp_path / "faces"), str(tmp_path / "pack")]) == 1  # one is broken
    printed = capsys.readouterr()
    assert "skipped: 1" in printed.out
    assert "b.jpg" in printed.err
    pack = Pack(tmp_path / "pack")
    assert pack.landmarks_px.shape == (1, 68, 2)
    assert pack.column("landmarks_source").tolist() == ["fan"]
