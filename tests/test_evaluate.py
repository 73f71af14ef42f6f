import csv
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nkf.data.labels import EXPRESSIONS
from nkf.data.listing import KnownCount, known_to_json
from nkf.data.pack import Pack
from nkf.data.split import fold_pack
from nkf.errors import NkfError, NkfWarning
from nkf.evaluate import evaluate
from nkf.metrics import wilson_interval
from nkf.protocols import PROTOCOLS


def test_evaluation_files_follow_the_contract(mini_pack: Path, model_file: Path, tmp_path: Path) -> None:
    """The fake model always answers happiness, which is right for every second of the 16 valid faces."""
    result = evaluate(mini_pack, "valid", tmp_path / "out", model=str(model_file), landmarks="pack", device="cpu")
    saved = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert saved["schema"] == 1
    assert saved["n"] == result.n == 16
    assert saved["accuracy"] == 0.5
    assert saved["accuracy_ci95"] == pytest.approx(wilson_interval(8, 16))
    assert saved["mean_class_accuracy"] == 0.5
    assert saved["recall_by_class"]["happiness"] == 1
    assert saved["recall_by_class"]["fear"] is None
    assert saved["confusion"][2][1] == 8  # sadness taken for happiness
    assert saved["classes"][:3] == ["neutral", "happiness", "sadness"]
    assert (saved["rule"], saved["split"], saved["model"]) == ("majority", "valid", "nkf")
    assert saved["landmarks_missing"] == 2
    # faces 32 and 33, one of each class, are copies of training images
    assert (saved["n_leakfree"], saved["accuracy_leakfree"]) == (14, 0.5)
    assert saved["accuracy_leakfree_ci95"] == pytest.approx(wilson_interval(7, 14))
    rows = list(csv.DictReader((tmp_path / "out" / "predictions.csv").read_text().splitlines()))
    assert len(rows) == 16
    assert [rows[0]["name"], rows[0]["label"]] == ["face32.png", "happiness"]
    assert sum(float(rows[0][name]) for name in saved["classes"]) == pytest.approx(1, abs=1e-5)
    with Image.open(tmp_path / "out" / "confusion.png") as picture:
        assert picture.width > 300
    assert not list((tmp_path / "out").glob("*.partial"))


def test_our_own_landmarks_are_the_default(
    mini_pack: Path, model_file: Path, fan_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nkf.runtime import load_fan

    monkeypatch.setattr("nkf.evaluate.load_fan", lambda device: load_fan(str(fan_file), device))
    result = evaluate(mini_pack, "valid", tmp_path, model=str(model_file), device="cpu")
    assert (result.landmarks, result.landmarks_missing) == ("fan", 0)


def test_labels_that_the_model_does_not_know_are_left_out(
    mini_pack: Path, save_network: object, tmp_path: Path
) -> None:
    file = save_network("nkf", np.zeros(2, np.float32), classes=("anger", "sadness"))
    result = evaluate(mini_pack, "valid", tmp_path, model=str(file), landmarks="pack", device="cpu")
    assert (result.n, result.n_left_out) == (8, 8)
    assert result.classes == ("anger", "sadness")


def test_training_split_has_no_leakfree_figure(mini_pack: Path, model_file: Path, tmp_path: Path) -> None:
    evaluate(mini_pack, "train", tmp_path, model=str(model_file), landmarks="pack", device="cpu")
    saved = json.loads((tmp_path / "evaluation.json").read_text())
    assert saved["n"] == 32
    assert saved["accuracy_leakfree"] is None


def test_output_that_is_a_file_is_refused(mini_pack: Path, model_file: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(NkfError, match="out: a file, expected a folder"):
        evaluate(mini_pack, "valid", tmp_path / "out", model=str(model_file), landmarks="pack")


def test_split_without_labels_is_one_line(mini_pack: Path, model_file: Path, tmp_path: Path) -> None:
    with pytest.raises(NkfError, match="no image of the test split has a label"):
        evaluate(mini_pack, "test", tmp_path / "out", model=str(model_file), landmarks="pack", device="cpu")
    assert not (tmp_path / "out").exists()


def test_pack_without_a_train_split_has_no_leakfree_figure(
    mini_pack: Path, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = Pack.rows
    monkeypatch.setattr(Pack, "rows", lambda pack, split: rows(pack, split)[: 0 if split == "train" else None])
    result = evaluate(mini_pack, "valid", tmp_path, model=str(model_file), landmarks="pack", device="cpu")
    assert result.accuracy_leakfree is None
    assert result.n_leakfree is None


def copy_with(pack: Path, folder: Path, **manifest: Any) -> Path:
    """A copy of a pack that says more of itself."""
    shutil.copytree(pack, folder, ignore=shutil.ignore_patterns("cache"))
    (folder / "manifest.json").write_text(json.dumps(Pack(pack).manifest | manifest))
    return folder


WHOLE = {"happiness": 8, "sadness": 8}
VALID = "counts differ from the known mini (majority, valid): "
KNOWN: list[tuple[dict[Any, dict[str, KnownCount]], list[str]]] = [
    ({}, []),
    ({"majority": {"valid": KnownCount(16, WHOLE)}}, []),
    ({"majority": {"valid": KnownCount(17)}}, [f"{VALID}total 16 not 17"]),
    ({"majority": {"valid": KnownCount(16, {"happiness": 8, "fear": 8})}}, [f"{VALID}fear 0 not 8"]),
    ({"majority": {"train": KnownCount(99)}, "argmax8": {"valid": KnownCount(99)}}, []),  # of what is not scored
]


@pytest.mark.parametrize(("known", "expected"), KNOWN)
def test_counts_that_are_not_the_known_ones_are_told(
    mini_pack: Path, model_file: Path, tmp_path: Path, known: Any, expected: list[str]
) -> None:
    pack = copy_with(mini_pack, tmp_path / "pack", known_counts=known_to_json(known))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = evaluate(pack, "valid", tmp_path, model=str(model_file), landmarks="pack", device="cpu")
    assert result.differences == tuple(expected)
    assert [(str(warning.message), warning.category) for warning in caught] == [(line, NkfWarning) for line in expected]
    assert json.loads((tmp_path / "evaluation.json").read_text())["differences"] == expected


def test_it_is_told_what_the_images_and_labels_are(mini_pack: Path, model_file: Path, tmp_path: Path) -> None:
    told = {"label_file": "label_csv", "crop": "aligned", "release": "second", "test_split_is": "the validation set"}
    pack = copy_with(mini_pack, tmp_path / "pack", **told, layout="", other="no matter")
    evaluate(pack, "valid", tmp_path, model=str(model_file), landmarks="pack", device="cpu")
    saved = json.loads((tmp_path / "evaluation.json").read_text())
    assert saved["pack"] == {"source": "drawn", **told}
    assert saved["data"] == "mini"
    assert (saved["protocol"], saved["differences"]) == (None, [])  # of a model that does not tell


SEVEN = EXPRESSIONS[:-1]
TOO_FEW = "protocol affectnet7: 24 images in test, a complete copy has 3,500"


@pytest.mark.parametrize(
    ("split", "classes", "expected"),
    [("test", SEVEN, [TOO_FEW]), ("train", SEVEN, []), ("test", ("happiness", "sadness"), [])],
)
def test_the_protocol_of_the_model_is_told_with_the_images_it_expects(
    mini_pack: Path, save_network: Any, tmp_path: Path, split: str, classes: tuple[str, ...], expected: list[str]
) -> None:
    """Without contempt, as published; where the model was trained on other classes, no number is expected."""
    fields = PROTOCOLS["affectnet7"].model_dump(mode="json", exclude={"metric", "expected"})
    training = {"protocol": fields | {"classes": list(classes)}, "seed": 5}
    model = save_network("nkf", np.zeros(len(classes), np.float32), classes=classes, training=training)
    fold, _ = fold_pack(mini_pack, tmp_path / "folds", count=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = evaluate(fold, split, tmp_path / "out", model=str(model), landmarks="pack", device="cpu")
    assert result.protocol == "affectnet7"
    assert (result.n, result.seed, result.classes) == (24, 5, classes)
    assert list(result.differences) == [str(warning.message) for warning in caught] == expected
