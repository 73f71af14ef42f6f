"""Contrastive pretraining: its loss, its views, what it leaves, and starting from that."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from nkf.config import AugmentConfig, NetworkConfig, TrainConfig
from nkf.data.pack import Pack, is_held_out
from nkf.errors import NkfError
from nkf.export import export
from nkf.models import create_model, load_model, save_model
from nkf.models.contrastive import FaceEncoder
from nkf.recipes import create_recipe
from nkf.recipes.contrastive import ContrastiveRecipe, partners, similarities
from nkf.runtime import load_detector, load_expression_model, load_fan
from nkf.train import train
from nkf.weights import Kind, find_weights

CPU = torch.device("cpu")
TINY = NetworkConfig(backbone="tiny", keypoint_channels=16)
UNCHANGED = AugmentConfig(rotation_deg=0, scale=0, shift=0, flip=0, brightness=0, contrast=0, erase=0)


def config_for(pack: Path, task: Any = "contrastive", **changes: Any) -> TrainConfig:
    fields: dict[str, Any] = {"network": TINY, "crop_size": 32, "batch_size": 8}
    return TrainConfig(name="a", task=task, data=(pack,), **(fields | changes))


def recipe_for(pack: Path, **changes: Any) -> ContrastiveRecipe:
    recipe = create_recipe(config_for(pack, **changes), CPU)
    assert isinstance(recipe, ContrastiveRecipe)
    return recipe


def test_loss_is_nt_xent() -> None:
    """The formula of the paper, one pair of views after the other."""
    views, temperature = np.random.default_rng(0).normal(size=(6, 5)), 0.5
    unit = views / np.linalg.norm(views, axis=1, keepdims=True)
    terms = []
    for i in range(6):
        j = (i + 3) % 6
        others = sum(math.exp(unit[i] @ unit[k] / temperature) for k in range(6) if k != i)
        terms.append(-math.log(math.exp(unit[i] @ unit[j] / temperature) / others))
    projected = torch.from_numpy(views)
    loss = F.cross_entropy(similarities(projected, temperature), partners(projected))
    assert loss.item() == pytest.approx(np.mean(terms), rel=1e-5)


def test_a_batch_is_two_views_of_each_face(mini_pack: Path) -> None:
    recipe = recipe_for(mini_pack)
    rows = np.array([0, 3, 5])
    views = recipe.batch(rows, Generator().manual_seed(0))
    assert views.shape == (6, 3, 32, 32)
    assert torch.equal(views, recipe.batch(rows, Generator().manual_seed(0)))
    assert not torch.isclose(views[:3], views[3:]).all(dim=(1, 2, 3)).any()
    same = recipe_for(mini_pack, augment=UNCHANGED).batch(rows, Generator().manual_seed(0))
    torch.testing.assert_close(same[:3], same[3:])
    torch.testing.assert_close(same[:3], recipe.train.batch(rows)[0], atol=1e-5, rtol=0)


def test_a_tenth_of_the_faces_is_held_out(mini_pack: Path) -> None:
    pack, recipe = Pack(mini_pack), recipe_for(mini_pack)
    kept_out = int(is_held_out(pack.column("pixels_md5")[pack.rows("train")]).sum())
    assert (recipe.num_train, len(recipe.held_out)) == (32 - kept_out, kept_out)
    assert kept_out > 1
    assert sorted(recipe.order(0)) == list(range(recipe.num_train))


def test_the_gradient_reaches_all_and_follows_the_temperature(mini_pack: Path) -> None:
    losses = []
    for temperature in (0.1, 1.0):
        torch.manual_seed(0)
        recipe = recipe_for(mini_pack, contrastive_temperature=temperature)
        model = recipe.create()
        loss = recipe.loss(model, recipe.batch(np.arange(8), Generator().manual_seed(0)))
        loss.backward()  # type: ignore[no-untyped-call]
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            assert torch.isfinite(parameter.grad).all()
            assert parameter.grad.any(), name
        losses.append(loss.item())
    assert losses[0] != losses[1]


def test_a_run_leaves_a_backbone_that_others_start_from(mini_pack: Path, tmp_path: Path) -> None:
    settings = {"epochs": 1, "warmup_steps": 1, "evaluations": 1}
    summary = train(config_for(mini_pack, **settings), tmp_path / "faces")
    assert summary["finished"]
    assert 0 <= summary["contrastive_accuracy"] <= 1
    started = config_for(mini_pack, "expression", start_backbone=str(tmp_path / "faces"), **settings)
    train(started, tmp_path / "started", max_minutes=0)
    assert find_weights(str(tmp_path / "faces"), (".safetensors",))[1].kind == "backbone"
    _, info = find_weights(str(tmp_path / "started"), (".safetensors",))
    assert (info.kind, info.training["start_backbone"]["method"]) == ("nkf", "SimCLR")


class Pixels(nn.Module):
    def forward(self, crops: Tensor) -> Tensor:
        return crops.flatten(1) - 0.5


class Constant(nn.Module):
    def forward(self, crops: Tensor) -> Tensor:
        return torch.ones(len(crops), 2)


def test_validation_counts_views_that_find_each_other(mini_pack: Path) -> None:
    recipe = recipe_for(mini_pack, augment=UNCHANGED)
    faces = len(recipe.held_out)
    found = recipe.validate(Pixels())
    assert found["score"] == found["contrastive_accuracy"] == 1
    blind = recipe.validate(Constant())
    assert blind["contrastive_accuracy"] <= 1 / faces
    assert blind["contrastive_loss"] == pytest.approx(math.log(2 * faces - 1))
    changed = recipe_for(mini_pack)
    assert changed.validate(Pixels()) == changed.validate(Pixels())


@pytest.fixture(scope="module")
def backbone_run(mini_pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "faces"
    (run / "best").mkdir(parents=True)
    recipe = recipe_for(mini_pack, contrastive_temperature=0.3)
    model = recipe.create()
    save_model(recipe.network(model), run / "best" / "model.safetensors", recipe.info(model))
    return run


def test_what_is_saved_is_a_backbone(backbone_run: Path) -> None:
    file, info = find_weights(str(backbone_run), (".safetensors",))
    assert (info.kind, info.architecture, info.classes) == ("backbone", {"backbone": "tiny"}, ())
    assert (info.training["method"], info.training["contrastive_temperature"]) == ("SimCLR", 0.3)
    model = load_model(file, info)
    assert isinstance(model, FaceEncoder)
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 96)
    assert all(name.startswith("backbone.") for name in model.state_dict())
    assert info.parameters == sum(p.numel() for p in model.parameters())


def test_a_backbone_is_no_product(backbone_run: Path, tmp_path: Path) -> None:
    model = str(backbone_run / "best" / "model.safetensors")
    for load in (load_expression_model, load_fan, load_detector):
        with pytest.raises(NkfError, match=r"is a backbone to start from, one that .* is needed here"):
            load(model)
    with pytest.raises(NkfError, match="is a backbone to start from, there is nothing to predict with it"):
        export(model, tmp_path / "out")


def saved(kind: Kind, folder: Path, backbone_run: Path, **fields: Any) -> str:
    """A network of some kind, every weight of which is drawn anew."""
    architecture = {"nkf": TINY.architecture(), "detector": {}}.get(kind, {"backbone": "tiny"}) | fields
    network = create_model(kind, architecture, 8)
    _, info = find_weights(str(backbone_run), (".safetensors",))
    classes = tuple("abcdefgh") if kind == "nkf" else ()
    changes = {"kind": kind, "architecture": architecture, "classes": classes, "sha256": {}, "name": f"a-{kind}"}
    save_model(network, folder / f"{kind}.safetensors", info.model_copy(update=changes))
    return str(folder / f"{kind}.safetensors")


@pytest.mark.parametrize("task", ["expression", "landmarks", "contrastive"])
@pytest.mark.parametrize("kind", ["nkf", "fan", "backbone"])
def test_a_backbone_starts_from_any_network(
    kind: Kind, task: str, mini_pack: Path, backbone_run: Path, tmp_path: Path
) -> None:
    start = saved(kind, tmp_path, backbone_run)
    states = []
    for name in (None, start):
        torch.manual_seed(0)
        recipe = create_recipe(config_for(mini_pack, task, start_backbone=name), CPU)
        model = recipe.create()
        states.append(recipe.network(model).state_dict())
    source = load_model(*find_weights(start, (".safetensors",))).state_dict()
    fresh, started = states
    for key, value in started.items():
        assert torch.equal(value, (source if key.startswith("backbone.") else fresh)[key]), key
    assert any(not torch.equal(value, fresh[key]) for key, value in started.items())
    told = recipe.info(model).training["start_backbone"]
    assert (told["name"], told["kind"]) == (f"a-{kind}", kind)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("detector", {}, "a network of the kind detector has no backbone that others could start from"),
        ("fan", {"backbone": "mobile_narrow"}, "its backbone 'mobile_narrow' is not the configuration's network.backb"),
        ("nkf", {"backbone": "base"}, "its backbone 'base' is not the configuration's network.backbone"),
    ],
)
def test_a_start_that_does_not_fit_is_one_line(
    kind: Kind, fields: dict[str, Any], message: str, mini_pack: Path, backbone_run: Path, tmp_path: Path
) -> None:
    start = saved(kind, tmp_path, backbone_run, **fields)
    recipe = recipe_for(mini_pack, start_backbone=start)
    with pytest.raises(NkfError, match=message) as caught:
        recipe.create()
    assert "\n" not in str(caught.value)
    assert start in str(caught.value)
