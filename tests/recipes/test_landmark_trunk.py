"""The landmark network that POSTER reads: its faces, its loss, how it is validated, and what a run leaves."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor, nn

from nkf.config import AugmentConfig, TrainConfig
from nkf.data.dataset import load_crops
from nkf.data.pack import Pack, is_held_out
from nkf.errors import NkfError
from nkf.export import export
from nkf.models import load_model
from nkf.models.face_trunks import LandmarkRegressor
from nkf.recipes import LandmarkTrunkRecipe, create_recipe
from nkf.recipes.landmark_trunk import TrunkBatch
from nkf.runtime import load_expression_model, load_fan
from nkf.train import train
from nkf.weights import find_weights

CPU = torch.device("cpu")
UNCHANGED = AugmentConfig(rotation_deg=0, scale=0, shift=0, flip=0, brightness=0, contrast=0, erase=0)


def config_for(pack: Path, **changes: Any) -> TrainConfig:
    return TrainConfig.model_validate(
        {"name": "trunk", "task": "landmark_trunk", "data": [pack], "batch_size": 4} | changes
    )


def recipe_for(pack: Path, **changes: Any) -> LandmarkTrunkRecipe:
    recipe = create_recipe(config_for(pack, **changes), CPU)
    assert isinstance(recipe, LandmarkTrunkRecipe)
    return recipe


class Always(nn.Module):
    """Finds the same landmarks (K, 2) in every crop."""

    def __init__(self, landmarks_px: Tensor) -> None:
        super().__init__()
        self.landmarks_px = landmarks_px

    def forward(self, crops: Tensor) -> Tensor:
        return self.landmarks_px.expand(len(crops), 68, 2)


def test_faces_without_landmarks_are_left_out_and_a_tenth_is_held_out(mini_pack: Path) -> None:
    """Every eighth of the 32 has none; which are held out is told by their pixels alone."""
    pack, recipe = Pack(mini_pack), recipe_for(mini_pack)
    usable = np.array([row for row in range(32) if row % 8 != 7])
    kept_out = is_held_out(pack.column("pixels_md5")[usable])
    assert 1 < kept_out.sum() < 10
    assert (recipe.num_train, len(recipe.held_out)) == (28 - kept_out.sum(), kept_out.sum())
    crops = load_crops(pack, "aligned", 112)
    np.testing.assert_array_equal(recipe.train.landmarks_px, crops.landmarks_px[usable[~kept_out]])
    np.testing.assert_array_equal(recipe.held_out.landmarks_px, crops.landmarks_px[usable[kept_out]])


def test_a_batch_moves_crops_and_landmarks_alike(mini_pack: Path) -> None:
    rows = np.array([0, 3, 5])
    recipe = recipe_for(mini_pack, augment=UNCHANGED)
    images, landmarks_px = recipe.train.batch(rows)
    same = recipe.batch(rows, Generator().manual_seed(0))
    torch.testing.assert_close(same.crops, images, atol=1e-5, rtol=0)
    torch.testing.assert_close(same.landmarks_px, landmarks_px)
    mirrored = recipe_for(mini_pack, augment=UNCHANGED.model_copy(update={"flip": 1.0}))
    batch = mirrored.batch(rows, Generator().manual_seed(0))
    torch.testing.assert_close(batch.crops, images.flip(-1), atol=1e-5, rtol=0)
    torch.testing.assert_close(batch.landmarks_px[:, 36, 0], 112 - landmarks_px[:, 45, 0])  # the outer eye corners


@pytest.mark.parametrize("size", [112, 224])
def test_loss_counts_a_twentieth_of_the_side(mini_pack: Path, size: int) -> None:
    """Huber's loss about one: half of the square below that, the distance less a half above."""
    crops, target = torch.zeros(2, 3, size, size), torch.full((2, 68, 2), 50.0)
    found = target[0].clone()
    found[0, 0] += 0.05 * size * 0.5
    found[1, 1] -= 0.05 * size * 3
    loss = recipe_for(mini_pack, crop_size=112).loss(Always(found), TrunkBatch(crops, target))
    assert float(loss) == pytest.approx((0.5**2 / 2 + 3 - 0.5) / (68 * 2), rel=1e-5)


def test_validation_is_the_mean_distance_over_that_of_the_outer_eye_corners(mini_pack: Path) -> None:
    recipe = recipe_for(mini_pack, augment=UNCHANGED)
    target = recipe.held_out.landmarks_px.double().numpy()
    told = recipe.validate(Always(torch.from_numpy(target[0]).float()))
    eyes = np.linalg.norm(target[:, 45] - target[:, 36], axis=1)
    errors = np.linalg.norm(target - target[0], axis=2).mean(axis=1) / eyes
    assert told["error"] == pytest.approx(errors.mean(), rel=1e-4)
    assert told["score"] == -told["error"]
    assert errors.min() <= told["median_error"] <= errors.max()
    changed = recipe_for(mini_pack)
    model = Always(torch.from_numpy(target[0]).float())
    assert changed.validate(model) == changed.validate(model)  # the same views for every network


@pytest.fixture(scope="module")
def run(mini_pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "trunk"
    changes = {"epochs": 0.4, "evaluations": 1, "warmup_steps": 0, "ema_decay": 0}
    summary = train(config_for(mini_pack, **changes), folder)
    assert (summary["finished"], summary["step"] > 0) == (True, True)
    assert 0 < summary["error"] < 1
    return folder


def test_a_run_leaves_a_landmark_network(run: Path) -> None:
    file, info = find_weights(str(run), (".safetensors",))
    assert (info.kind, info.architecture, info.classes, info.input_size) == ("landmark_trunk", {}, (), 112)
    assert info.mean == pytest.approx((0.485, 0.456, 0.406))
    model = load_model(file, info)
    assert isinstance(model, LandmarkRegressor)
    assert info.parameters == sum(p.numel() for p in model.parameters())
    torch.manual_seed(0)
    fresh = LandmarkRegressor().state_dict()
    assert [name for name, value in model.trunk.state_dict().items() if not torch.equal(value, fresh[f"trunk.{name}"])]


def test_another_run_starts_from_it(run: Path, mini_pack: Path) -> None:
    started = recipe_for(mini_pack, start=str(run)).create().state_dict()
    source = load_model(*find_weights(str(run), (".safetensors",))).state_dict()
    assert all(torch.equal(value, source[name]) for name, value in started.items())


def test_it_is_no_product(run: Path, tmp_path: Path) -> None:
    for load in (load_expression_model, load_fan):
        with pytest.raises(NkfError, match=r"is a landmark trunk to start from, one that .* is needed here"):
            load(str(run))
    with pytest.raises(NkfError, match="is a landmark trunk to start from, there is nothing to predict with it"):
        export(str(run), tmp_path / "out")
