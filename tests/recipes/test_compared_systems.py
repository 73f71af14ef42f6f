"""The compared systems through the recipe of expression networks: trained, found again, measured; their starts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nkf.config import NetworkConfig, TrainConfig
from nkf.data.dataset import load_crops
from nkf.data.labels import EXPRESSIONS
from nkf.data.pack import Pack
from nkf.errors import NkfError
from nkf.evaluate import score
from nkf.models import count_parameters, create_model, load_model, save_model
from nkf.models.eac import EAC
from nkf.models.poster import POSTER
from nkf.progress import no_progress
from nkf.recipes import ExpressionRecipe, create_recipe
from nkf.runtime import load_expression_model
from nkf.train import _start, train, train_step
from nkf.weights import EXPRESSION_KINDS, Kind, WeightsInfo, find_weights

CPU = torch.device("cpu")
SEVEN = EXPRESSIONS[:-1]
EAC_TINY = {"system": "eac", "trunk": "tiny"}
NKF_TINY = NetworkConfig(backbone="tiny", keypoint_channels=16).architecture()


def config_for(pack: Path, **changes: Any) -> TrainConfig:
    fields: dict[str, Any] = {"network": EAC_TINY, "crop_size": 32, "batch_size": 4, "protocol": "own"}
    return TrainConfig.model_validate({"name": "a", "task": "expression", "data": [pack]} | fields | changes)


def recipe_for(pack: Path, **changes: Any) -> ExpressionRecipe:
    recipe = create_recipe(config_for(pack, **changes), CPU)
    assert isinstance(recipe, ExpressionRecipe)
    return recipe


def save_fresh(file: Path, kind: Kind, architecture: dict[str, Any], size: int = 112) -> tuple[str, nn.Module]:
    """A network of random weights, and the same in memory."""
    torch.manual_seed(7)
    network = create_model(kind, architecture, len(EXPRESSIONS))
    info = WeightsInfo(
        name=file.stem, kind=kind, architecture=architecture, input_size=size, mean=(0.5,) * 3, std=(0.5,) * 3,
        classes=EXPRESSIONS if kind in EXPRESSION_KINDS else (), parameters=count_parameters(network), nkf_version="0",
    )  # fmt: skip
    save_model(network, file, info)
    return str(file), network


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_fresh(tmp_path_factory.mktemp("teacher") / "teacher.safetensors", "nkf", NKF_TINY, 48)[0]


SYSTEMS: dict[str, dict[str, Any]] = {
    "eac": {"network": EAC_TINY, "loss": "eac", "crop_size": 32},
    "efficientface": {"network": {"system": "efficientface"}, "loss": "label_distribution", "crop_size": 48},
}


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_compared_system_is_trained_found_again_and_measured(
    system: str, mini_pack: Path, teacher: str, tmp_path: Path
) -> None:
    run, fields = tmp_path / "run", SYSTEMS[system] | ({"teacher": teacher} if system == "efficientface" else {})
    steps = {"batch_size": 8, "epochs": 2, "evaluations": 1, "warmup_steps": 0, "ema_decay": 0}
    config = config_for(mini_pack, **(fields | steps))
    summary = train(config, run)
    assert (summary["finished"], summary["step"]) == (True, 8)
    file, info = find_weights(str(run), (".safetensors",))
    assert (info.kind, info.architecture, info.classes) == (system, config.network.architecture(), EXPRESSIONS)
    assert info.training["loss"] == config.loss
    assert ("teacher" in info.training) == (system == "efficientface")
    pack = Pack(mini_pack)
    crops, rows = load_crops(pack, "aligned", config.crop_size), pack.rows("valid")
    images = np.ascontiguousarray(crops.images[rows].transpose(0, 3, 1, 2)).astype(np.float32) / 255
    probabilities = load_expression_model(str(run), "cpu")[0](images, crops.landmarks_px[rows])
    with torch.no_grad():
        expected = load_model(file, info)(torch.from_numpy(images)).softmax(dim=1)
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)
    assert summary["accuracy"] == pytest.approx((probabilities.argmax(axis=1) == pack.labels()[rows]).mean())
    how: Any = {"rule": "majority", "landmarks": "pack", "device": "cpu", "progress": no_progress}
    scored = score(pack, "valid", model=str(run), **how)
    np.testing.assert_array_equal(scored.rows, rows)
    np.testing.assert_allclose(scored.probabilities, probabilities, atol=1e-3)


@pytest.mark.parametrize("loss", ["poster", "eac", "label_distribution"])
def test_a_recipe_minimises_the_loss_that_is_asked_for(loss: str, mini_pack: Path, teacher: str) -> None:
    """The same network and batch as with cross-entropy give another loss and another gradient."""
    losses, gradients = [], []
    for changes in ({}, {"loss": loss} | ({"teacher": teacher} if loss == "label_distribution" else {})):
        recipe = recipe_for(mini_pack, crop_size=48, **changes)
        torch.manual_seed(0)
        model = recipe.create()
        value = recipe.loss(model, recipe.batch(np.arange(4), torch.Generator().manual_seed(0)))
        value.backward()  # type: ignore[no-untyped-call]
        losses.append(value.item())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert losses[1] != pytest.approx(losses[0], rel=1e-3)
    assert torch.cosine_similarity(*gradients, dim=0) < 0.9999


POSTER_SMALL: dict[str, Any] = {"network": {"system": "poster", "depth": 1}, "crop_size": 112, "batch_size": 2}


def test_poster_takes_the_landmark_trunk_and_leaves_it(mini_pack: Path, tmp_path: Path) -> None:
    """Weights and statistics are still those of the file, bit for bit, after a step that changed the others."""
    start, source = save_fresh(tmp_path / "trunk.safetensors", "landmark_trunk", {})
    trunk = {f"landmark_{name}": value for name, value in source.state_dict().items() if name.startswith("trunk.")}
    torch.manual_seed(0)
    fresh = recipe_for(mini_pack, **POSTER_SMALL).create().state_dict()
    recipe = recipe_for(mini_pack, **POSTER_SMALL, start_landmark_trunk=start, warmup_steps=0, ema_decay=0)
    state = _start(recipe)
    assert isinstance(state.model, POSTER)
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    for name, value in before.items():
        assert torch.equal(value, (trunk if name.startswith("landmark_trunk.") else fresh)[name]), name
    assert not all(torch.equal(value, fresh[name]) for name, value in trunk.items())
    state.model.train()
    assert np.isfinite(train_step(recipe, state))
    for model in (state.model, state.average.module):
        changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        assert [name for name in changed if name.startswith("landmark_trunk.")] == []
        assert {"image_trunk.stem.conv.weight", "classifier.weight"} <= changed
    told = recipe.info(state.model).training["start_landmark_trunk"]
    assert (told["name"], told["kind"]) == ("trunk", "landmark_trunk")


@pytest.mark.parametrize(
    ("kind", "architecture"), [("fan", {"backbone": "mobile_narrow"}), ("eac", {"trunk": "tiny"}), ("detector", {})]
)
def test_a_landmark_trunk_of_another_kind_is_one_line(
    kind: Kind, architecture: dict[str, Any], mini_pack: Path, tmp_path: Path
) -> None:
    start, _ = save_fresh(tmp_path / "other.safetensors", kind, architecture)
    recipe = recipe_for(mini_pack, **POSTER_SMALL, start_landmark_trunk=start)
    expected = rf"other\.safetensors: a network of the kind {kind}; expected one that the task landmark_trunk trained$"
    with pytest.raises(NkfError, match=expected):
        recipe.create()


def test_a_teacher_of_other_classes_is_refused_before_anything_is_read(mini_pack: Path, teacher: str) -> None:
    config = config_for(Path("none"), **SYSTEMS["efficientface"], teacher=teacher, protocol={"classes": SEVEN})
    with pytest.raises(NkfError, match=r"teacher .*: tells .*contempt; expected .*anger, in this order$"):
        create_recipe(config, CPU)


def test_a_limit_draws_the_same_images_for_every_run(mini_pack: Path) -> None:
    drawn = [recipe_for(mini_pack, limit=10, seed=seed) for seed in (0, 1)]
    rows = [recipe.parts[0].rows for recipe in drawn]
    np.testing.assert_array_equal(*rows)
    assert len(set(rows[0])) == 10
    assert set(rows[0]) <= set(range(32))
    assert rows[0].max() > 10  # not the first ones
    assert [recipe.num_train for recipe in drawn] == [10, 10]
    assert [len(recipe.valid_labels) for recipe in drawn] == [16, 16]
    assert drawn[0].info(drawn[0].create()).training["limit"] == 10
    assert recipe_for(mini_pack, limit=99).num_train == 32


def test_eac_starts_from_a_backbone_or_from_a_head_of_other_classes(mini_pack: Path, tmp_path: Path) -> None:
    backbone, source = save_fresh(tmp_path / "nkf.safetensors", "nkf", NKF_TINY, 32)
    model = recipe_for(mini_pack, start_backbone=backbone).create()
    assert isinstance(model, EAC)
    for name, value in model.trunk.state_dict().items():
        assert torch.equal(value, source.state_dict()[f"backbone.{name}"]), name
    start, eac = save_fresh(tmp_path / "eac.safetensors", "eac", {"trunk": "tiny"}, 32)
    recipe = recipe_for(mini_pack, protocol={"classes": SEVEN}, start=start)
    model = recipe.create()
    assert isinstance(model, EAC)
    assert isinstance(eac, EAC)
    assert torch.equal(model.classifier.weight, eac.classifier.weight[:7])
    assert recipe.info(model).training["head_rows"] == {"copied": list(SEVEN), "new": []}


def test_a_trunk_that_does_not_fit_is_one_line(mini_pack: Path, tmp_path: Path) -> None:
    start, _ = save_fresh(tmp_path / "eac.safetensors", "eac", {"trunk": "tiny"}, 32)
    other = recipe_for(mini_pack, network={"system": "eac", "trunk": "mobile"}, start_backbone=start)
    with pytest.raises(
        NkfError, match=r"its backbone 'tiny' is not the configuration's network\.backbone or network\."
    ):
        other.create()
