"""A teacher's answers: beside labels, and for faces without any; which of those are taken, in what order."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_packs import png
from numpy.typing import NDArray
from safetensors.numpy import save_file
from torch import Generator

from nkf.config import AugmentConfig, MixConfig, NetworkConfig, TrainConfig
from nkf.data.labels import EXPRESSIONS
from nkf.data.pack import Pack, Sample
from nkf.data.pack_writer import PackWriter
from nkf.errors import NkfError
from nkf.mixing import Faces, mix
from nkf.preprocess import augment
from nkf.recipes import create_recipe
from nkf.recipes.expression import ExpressionRecipe

CPU = torch.device("cpu")
NETWORK = NetworkConfig(backbone="tiny", keypoint_channels=16)
HAPPINESS, FEAR = EXPRESSIONS.index("happiness"), EXPRESSIONS.index("fear")
LABELLED = [("train", "happiness")] * 6 + [("train", "fear")] * 2 + [("train", None)] + [("valid", "fear")] * 2 + [
    ("valid", None), ("test", "fear"),
]  # fmt: skip


def write_pack(path: Path, rows: Sequence[tuple[str, str | None]], *, first: int = 0, **manifest: str) -> Path:
    """Pictures of noise, all different, numbered from `first`."""
    with PackWriter(path, {"dataset": "made", "source": path.name, "licence": "none", **manifest}) as pack:
        for number, (split, label) in enumerate(rows, first):
            pack.add(Sample(f"{number}.png", split, png(number, (16, 16, 3)), label=label))
    return path


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pack(tmp_path_factory.mktemp("packs") / "labelled", LABELLED)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten faces; the first five repeat rows 8 to 12 of the labelled pack, the last is not in train."""
    rows: list[tuple[str, str | None]] = [("train", None)] * 9 + [("valid", None)]
    return write_pack(tmp_path_factory.mktemp("packs") / "others", rows, first=8)


def soft_labels(folder: Path, pack: Path, probabilities: NDArray[Any], classes: tuple[str, ...] = EXPRESSIONS) -> Path:
    file = folder / f"{pack.name}.safetensors"
    metadata = {"classes": json.dumps(classes), "models": json.dumps(["teacher"])}
    metadata["rows_sha256"] = Pack(pack).manifest["rows_sha256"]
    save_file({"probabilities": probabilities.astype(np.float16)}, file, metadata)
    return file


def answers(count: int, sure: float = 0.75, of: int = HAPPINESS) -> NDArray[np.float64]:
    """The same for all faces: so sure of one class, and the rest evenly."""
    rows = np.full((count, 8), (1 - sure) / 7)
    rows[:, of] = sure
    return rows


def recipe_for(pack: Path, **changes: Any) -> ExpressionRecipe:
    fields: dict[str, Any] = {"network": NETWORK, "crop_size": 32, "batch_size": 4}
    recipe = create_recipe(TrainConfig(name="a", task="expression", data=(pack,), **(fields | changes)), CPU)
    assert isinstance(recipe, ExpressionRecipe)
    return recipe


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_soft_labels_are_mixed_into_the_targets(weight: float, labelled: Path, tmp_path: Path) -> None:
    soft = np.random.default_rng(0).dirichlet(np.ones(8), len(LABELLED))
    file = soft_labels(tmp_path, labelled, soft)
    plain = recipe_for(labelled, label_smoothing=0.1)
    recipe = recipe_for(labelled, soft_labels=file, soft_weight=weight, label_smoothing=0.1)
    expected = (1 - weight) * plain.targets.numpy() + weight * soft[:8]
    np.testing.assert_allclose(recipe.targets, expected, atol=1e-3)
    np.testing.assert_allclose(recipe.targets.sum(dim=1), np.ones(8), atol=1e-5)
    assert recipe.order(0).tolist() == plain.order(0).tolist()
    training = recipe.info(recipe.create()).training
    assert training["soft_labels"] == {"models": ["teacher"], "weight": weight}
    assert not {"soft_labels", "unlabelled", "mesh", "mix"} & plain.info(plain.create()).training.keys()


def unlabelled(others: Path, tmp_path: Path, probabilities: Any = None, **fields: Any) -> list[dict[str, Any]]:
    rows = answers(10) if probabilities is None else probabilities
    return [{"data": others, "soft_labels": soft_labels(tmp_path, others, rows), **fields}]


def test_faces_without_labels_are_added(labelled: Path, others: Path, tmp_path: Path) -> None:
    """All but those that choose or measure, and those that the labelled pack has with a label or in another split."""
    recipe = recipe_for(labelled, unlabelled=unlabelled(others, tmp_path))
    assert recipe.num_train == 8 + 5  # row 8 has no label and is in train; 13 to 16 are new, 17 is in valid
    pixels = [np.asarray(recipe.train.images_uint8(np.array([row]))[0]) for row in range(13)]
    for row, number in zip(range(8, 13), (8, 13, 14, 15, 16), strict=True):
        other = write_pack(tmp_path / f"one{number}", [("train", "fear")], first=number)
        np.testing.assert_array_equal(pixels[row], recipe_for(other, protocol={"choose": "last"}).crops.images[0])
    np.testing.assert_allclose(recipe.targets[8:], answers(5), atol=1e-3)
    np.testing.assert_array_equal(recipe.targets[:8], recipe_for(labelled).targets)
    assert sorted(recipe.order(0)) == list(range(13))
    training = recipe.info(recipe.create()).training
    assert training["images"] == {"train": 8, "choose": 2}
    facts = {"source": "others", "models": ["teacher"], "min_confidence": 0.0, "images": 5}
    assert training["unlabelled"] == [facts]
    assert [pack["source"] for pack in training["data"]] == ["labelled", "others"]


def test_the_labelled_pack_itself_may_have_faces_without_labels(labelled: Path, tmp_path: Path) -> None:
    recipe = recipe_for(labelled, unlabelled=unlabelled(labelled, tmp_path, answers(len(LABELLED))))
    assert recipe.num_train == 9
    info = recipe.info(recipe.create())
    assert len(info.training["data"]) == 1


def test_pictures_of_a_fold_that_is_left_out_are_never_trained_on(labelled: Path, tmp_path: Path) -> None:
    copy = write_pack(tmp_path / "copy", [("train", None)] * 8)
    others = unlabelled(copy, tmp_path, answers(8))
    protocol = {"choose": "last", "folds": 2, "fold": 0}
    with pytest.raises(NkfError, match="no face of its train split"):  # all of them have labels
        recipe_for(labelled, protocol=protocol, unlabelled=others)


def test_only_faces_that_the_teacher_is_sure_of_count(labelled: Path, others: Path, tmp_path: Path) -> None:
    rows = answers(10, 0.9)
    rows[[6, 7]] = answers(2, 0.6)  # pictures 14 and 15
    recipe = recipe_for(labelled, unlabelled=unlabelled(others, tmp_path, rows, min_confidence=0.7))
    assert recipe.num_train == 8 + 3
    message = r"others: no face of its train split that the teacher is sure of by 0\.95 or more, .*lower min_confidence"
    with pytest.raises(NkfError, match=message) as caught:
        recipe_for(labelled, unlabelled=unlabelled(others, tmp_path, rows, min_confidence=0.95))
    assert "\n" not in str(caught.value)


def test_photos_in_which_no_face_was_found_are_not_added(labelled: Path, tmp_path: Path) -> None:
    photos = write_pack(tmp_path / "photos", [("train", None)] * 3, first=20, shows="photo")
    with pytest.raises(NkfError, match="no face of its train split"):
        recipe_for(labelled, unlabelled=unlabelled(photos, tmp_path, answers(3)))


def test_balanced_sampling_counts_the_teachers_classes(labelled: Path, others: Path, tmp_path: Path) -> None:
    """Six of happiness, two of fear; five that the teacher takes for fear, so that there are seven of it."""
    rows = unlabelled(others, tmp_path, answers(10, of=FEAR))
    recipe = recipe_for(labelled, protocol={"sampling": "balanced"}, unlabelled=rows)
    classes = recipe.targets.argmax(dim=1).numpy()
    assert np.bincount(classes)[[HAPPINESS, FEAR]].tolist() == [6, 7]
    for epoch in range(3):
        order = recipe.order(epoch)
        assert len(order) == 13
        assert sorted(np.bincount(classes[order])[[HAPPINESS, FEAR]]) == [6, 7]
        assert max(np.bincount(order)) <= 2
    assert (recipe.order(0) >= 8).sum() >= 4


def test_soft_labels_of_other_classes_are_refused(labelled: Path, tmp_path: Path) -> None:
    file = soft_labels(tmp_path, labelled, answers(len(LABELLED)))
    with pytest.raises(NkfError, match=r"tells neutral, .*, contempt; expected happiness, fear, in this order"):
        recipe_for(labelled, soft_labels=file, protocol={"classes": ("happiness", "fear")})


def test_a_step_on_all_of_it_reaches_every_weight(labelled: Path, others: Path, tmp_path: Path) -> None:
    recipe = recipe_for(
        labelled,
        soft_labels=soft_labels(tmp_path, labelled, answers(len(LABELLED))),
        unlabelled=unlabelled(others, tmp_path),
        mix=MixConfig(probability=1, cutmix=1),
    )
    model = recipe.create()
    loss = recipe.loss(model, recipe.batch(np.array([0, 7, 8, 12]), Generator().manual_seed(0)))
    loss.backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()
        assert parameter.grad.any(), name
    assert recipe.info(model).training["mix"] == {"probability": 1.0, "mixup": 0.2, "cutmix": 1.0}


def test_a_mixed_batch_is_a_batch_that_was_mixed(labelled: Path) -> None:
    config = MixConfig(probability=1, mixup=0.5)
    rows, generator = np.array([0, 7, 3, 5]), Generator().manual_seed(5)
    plain, recipe = recipe_for(labelled), recipe_for(labelled, mix=config)
    images, landmarks_px = plain.train.batch(rows)
    base = torch.tensor([16.0, 16, 32, 0]).expand(4, 4)
    crops, points_px, *_ = augment(images, landmarks_px, base, 32, AugmentConfig(), generator)
    expected = mix(Faces(crops, points_px, plain.targets[rows]), config, generator)
    found = recipe.batch(rows, Generator().manual_seed(5))
    for part, wanted in zip(found[:3], expected, strict=True):
        assert torch.equal(part, wanted)
    assert not torch.equal(found.crops, plain.batch(rows, Generator().manual_seed(5)).crops)
    assert found.targets.max(dim=1).values.min() < 1  # happiness met fear
