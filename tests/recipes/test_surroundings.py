"""What stands around the pictures in training: where a picture ends in its crop, and tiles of other pictures."""

from pathlib import Path

import made_packs
import numpy as np
import pytest
import torch
from PIL import Image

from nkf.config import AugmentConfig, TrainConfig
from nkf.data.dataset import load_crops
from nkf.data.pack import Pack
from nkf.data.pack_writer import PackWriter
from nkf.errors import NkfError
from nkf.geometry import transform_points
from nkf.recipes import create_recipe
from nkf.recipes.surroundings import make_tiles, picture_maps


@pytest.fixture
def backgrounds(tmp_path: Path) -> Path:
    folder = tmp_path / "backgrounds"
    folder.mkdir()
    for name, color in (("red", (255, 0, 0)), ("green", (0, 255, 0))):
        Image.new("RGB", (200, 150), color).save(folder / f"{name}.png")
    return folder


@pytest.mark.parametrize("kind", ["aligned", "whole"])
def test_maps_lead_from_the_crop_back_to_the_picture(mini_pack: Path, kind: str) -> None:
    pack = Pack(mini_pack)
    crops = load_crops(pack, kind, 48)  # type: ignore[arg-type]
    rows = np.flatnonzero(crops.found)
    maps = picture_maps(pack, rows, kind, 48)  # type: ignore[arg-type]
    sizes = np.stack([pack.column("width"), pack.column("height")], axis=1)[rows]
    shares = np.stack([transform_points(m, p) for m, p in zip(maps, crops.landmarks_px[rows], strict=True)])
    np.testing.assert_allclose(shares, pack.landmarks_px[rows] / sizes[:, None], atol=1e-4)


def test_a_picture_that_is_no_square_ends_before_its_crop_does(tmp_path: Path) -> None:
    with PackWriter(tmp_path / "pack", {"dataset": "made up"}, identity=made_packs.IDENTITY) as writer:
        writer.add(made_packs.sample(0, image_bytes=made_packs.png(0, (60, 90, 3))))
    maps = picture_maps(Pack(tmp_path / "pack"), np.array([0]), "whole", 90)
    corners = transform_points(maps[0].astype(np.float64), np.array([[0.0, 15], [90, 75], [45, 0]]))
    np.testing.assert_allclose(corners, [[0, 0], [1, 1], [0.5, -0.25]], atol=1e-6)


def test_tiles_are_of_all_folders_and_the_same_for_a_seed(backgrounds: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    Image.new("RGB", (50, 50), (0, 0, 255)).save(tmp_path / "more" / "blue.png")
    tiles = make_tiles([backgrounds, tmp_path / "more"], 32, 0, count=40)
    assert tiles.shape == (40, 32, 32, 3)
    assert {tuple(color) for color in tiles[:, 16, 16].tolist()} == {(255, 0, 0), (0, 255, 0), (0, 0, 255)}
    np.testing.assert_array_equal(tiles, make_tiles([backgrounds, tmp_path / "more"], 32, 0, count=40))
    assert (tiles != make_tiles([backgrounds, tmp_path / "more"], 32, 1, count=40)).any()
    with pytest.raises(NkfError, match="no pictures"):
        make_tiles([tmp_path], 32, 0)


@pytest.mark.parametrize("task", ["expression", "landmarks"])
def test_training_shows_them(mini_pack: Path, backgrounds: Path, task: str) -> None:
    """Faces much smaller than their crops, over red and green: what the same crops show without is another thing."""
    nothing = {"rotation_deg": 0, "scale": 0, "shift": 0, "flip": 0, "brightness": 0, "contrast": 0, "erase": 0}
    settings = {
        "name": "small", "task": task, "data": (mini_pack,), "backgrounds": (backgrounds,), "crop_size": 32,
    }  # fmt: skip
    crops = []
    for share in (0.0, 1.0):
        augment = AugmentConfig.model_validate(nothing | {"scale": 0.3, "surroundings": share})
        recipe = create_recipe(TrainConfig.model_validate(settings | {"augment": augment}), torch.device("cpu"))
        crops.append(recipe.batch(np.arange(8), torch.Generator().manual_seed(0)).crops)
    assert crops[0].shape == crops[1].shape == (8, 3, 32, 32)
    assert not crops[0].equal(crops[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "expression"}, "surroundings: needs backgrounds"),
        ({"task": "contrastive"}, "surroundings: for the task expression and landmarks alone, this is contrastive"),
        ({"task": "expression", "turned_faces": True}, "turned_faces: for the task landmarks alone"),
    ],
)
def test_settings_that_do_not_fit(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig.model_validate({"name": "a", "data": ("x",), "augment": {"surroundings": 0.5}} | change)
