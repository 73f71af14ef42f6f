import csv
import io
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nkf import __version__
from nkf.data.labels import EXPRESSIONS
from nkf.data.listing import KnownCount, known_to_json
from nkf.data.pack import Pack, Sample
from nkf.data.pack_writer import PackWriter
from nkf.data.split import fold_pack
from nkf.errors import NkfError, NkfWarning
from nkf.evaluate import evaluate
from nkf.faces import to_batch
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
    logits = np.array([1.0, 4.0, 0.5, 2.0, 0.0, -1.0, 0.2, -0.5])  # of every face
    probabilities = np.exp(logits) / np.exp(logits).sum()
    assert saved["ece"] == pytest.approx(probabilities[1] - 0.5)
    assert saved["nll"] == pytest.approx(-np.log(probabilities[1:3]).mean())
    assert saved["brier"] == pytest.approx(((probabilities**2).sum() + 1) - 2 * probabilities[1:3].mean())
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

    monkeypatch.setattr("nkf.finder.load_fan", lambda device: load_fan(str(fan_file), device))
    result = evaluate(mini_pack, "valid", tmp_path, model=str(model_file), device="cpu")
    assert (result.landmarks, result.landmarks_missing) == ("fan", 0)


def test_landmarks_are_looked_for_in_the_boxes(
    model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two faces of one photo are two crops: by their boxes where no landmarks are found there."""
    asked: list[Any] = []

    class Finder:
        def __init__(self, device: str) -> None: ...

        def __call__(self, images: Any, boxes_xyxy: Any, shows: str) -> list[None]:
            asked.extend([*boxes_xyxy, shows])
            return [None] * len(images)

    photo = np.zeros((40, 80, 3), np.uint8)
    photo[:, 40:] = 200
    stream = io.BytesIO()
    Image.fromarray(photo).save(stream, "PNG")
    boxes = [np.array(box, np.float32) for box in ((0, 0, 40, 40), (40, 0, 80, 40))]
    with PackWriter(tmp_path / "pack", {"dataset": "photos", "shows": "photo"}) as pack:
        for number, box in enumerate(boxes):
            pack.add(Sample(f"a#{number}", "test", stream.getvalue(), label="happiness", box_xyxy=box))
        pack.add(Sample("b", "test", stream.getvalue(), label="happiness"))
    crops: list[Any] = []
    monkeypatch.setattr("nkf.evaluate.LandmarkFinder", Finder)
    monkeypatch.setattr("nkf.views.to_batch", lambda given: crops.extend(given) or to_batch(given))
    result = evaluate(tmp_path / "pack", "test", tmp_path, model=str(model_file), device="cpu")
    np.testing.assert_array_equal(asked[:2], boxes)
    assert asked[2:] == [None, "photo"]
    assert result.landmarks_missing == 3
    assert [crop.mean() for crop in crops[:2]] == pytest.approx([0, 200], abs=2)


def test_accuracy_is_told_by_group(model_file: Path, tmp_path: Path) -> None:
    rows = [("happiness", "female"), ("happiness", "female"), ("sadness", "female"), ("sadness", "male"), ("fear", "")]
    with PackWriter(tmp_path / "pack", {"dataset": "groups"}) as pack:
        for number, (label, sex) in enumerate(rows):
            stream = io.BytesIO()
            Image.new("L", (20, 20), 40 * number).save(stream, "PNG")
            metadata = {"sex": sex or None, "subject": f"{number % 2}", "yaw": 1.5, "site": "here"}
            pack.add(Sample(f"{number}", "test", stream.getvalue(), label=label, metadata=metadata))
    result = evaluate(tmp_path / "pack", "test", tmp_path, model=str(model_file), landmarks="pack", device="cpu")
    assert list(result.groups) == ["sex"]  # one value, numbers and people are no groups
    assert {name: row["n"] for name, row in result.groups["sex"].items()} == {"female": 3, "male": 1}
    assert {name: row["accuracy"] for name, row in result.groups["sex"].items()} == {"female": 2 / 3, "male": 0}
    assert result.groups["sex"]["female"]["accuracy_ci95"] == wilson_interval(2, 3)


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
    with pytest.raises(NkfError, match=r"mini: has no test split; it has train, valid$"):
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
    given = {"source": "drawn", "images_by_split": {"train": 32, "valid": 16}, "nkf_version": __version__}
    pack = copy_with(mini_pack, tmp_path / "pack", **told, layout="", other="no matter")
    evaluate(pack, "valid", tmp_path, model=str(model_file), landmarks="pack", device="cpu")
    saved = json.loads((tmp_path / "evaluation.json").read_text())
    assert saved["pack"] == {**given, **told}
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
