"""What stands around the pictures in training: where a picture ends in its crop, and tiles of other pictures."""

import io
from pathlib import Path

import made_packs
import numpy as np
import pytest
import torch
from PIL import Image

from nkf.config import TrainConfig
from nkf.data.dataset import load_crops
from nkf.data.pack import Pack
from nkf.data.pack_writer import PackWriter
from nkf.errors import NkfError
from nkf.geometry import MEAN_SHAPE, transform_points
from nkf.pose import MEAN_SHAPE_3D
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


def test_without_landmarks_the_box_is_cut_or_the_whole_picture(tmp_path: Path) -> None:
    with PackWriter(tmp_path / "pack", {"dataset": "made up"}, identity=made_packs.IDENTITY) as writer:
        for number, box in enumerate((None, np.array([20.0, 10, 40, 30]))):
            image = made_packs.png(number, (40, 80, 3))
            writer.add(made_packs.sample(number, image_bytes=image, box_xyxy=box))
    whole, boxed = picture_maps(Pack(tmp_path / "pack"), np.array([0, 1]), "aligned", 80).astype(np.float64)
    corners = np.array([[0.0, 0], [80, 80]])
    np.testing.assert_allclose(transform_points(whole, corners), [[0, -0.5], [1, 1.5]], atol=1e-6)
    np.testing.assert_allclose(transform_points(boxed, corners), [[0.25, 0.25], [0.5, 0.75]], atol=1e-6)


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


def coloured_pack(path: Path, count: int, size_wh: tuple[int, int], color: tuple[int, int, int]) -> Path:
    """Faces whose landmarks stand where a whole picture's crop of 64 px has the mean shape; pictures of one colour."""
    width, height = size_wh
    stream = io.BytesIO()
    Image.new("RGB", size_wh, color).save(stream, "PNG")
    longer = max(size_wh)
    points = MEAN_SHAPE * longer - [(longer - width) / 2, (longer - height) / 2]
    with PackWriter(path, {"dataset": "made up"}, identity=made_packs.IDENTITY) as writer:
        for number in range(count):
            noise = made_packs.png(number + width, (height, width, 3)) if number >= count - 8 else stream.getvalue()
            writer.add(made_packs.sample(number, image_bytes=noise, landmarks_px=points))
    return path


def test_turned_faces_come_more_often(tmp_path: Path) -> None:
    """With landmarks of a turned face, which are narrower, for every fifth of 200 pictures."""
    with PackWriter(tmp_path / "pack", {"dataset": "made up"}, identity=made_packs.IDENTITY) as writer:
        for number in range(200):
            turn = np.radians(-40.0 * (number % 5 == 0))
            x, y, z = MEAN_SHAPE_3D.T
            points = np.stack([np.cos(turn) * x - np.sin(turn) * z, y], axis=1) * 10 + 20
            image = made_packs.png(number, (40, 40, 3))
            writer.add(made_packs.sample(number, image_bytes=image, landmarks_px=points))
    shares = []
    for turned in (False, True):
        settings = {"name": "small", "task": "landmarks", "data": (tmp_path / "pack",), "turned_faces": turned}
        recipe = create_recipe(TrainConfig.model_validate(settings), torch.device("cpu"))
        is_turned = np.ptp(recipe.train.landmarks_px.numpy()[..., 0], axis=1)  # type: ignore[attr-defined]
        is_turned = is_turned < is_turned.max() - 1
        shares.append(is_turned[recipe.order(0)].mean())
    assert shares[0] == pytest.approx(0.2, abs=0.05)
    assert shares[1] == pytest.approx(5 * 0.2 / (5 * 0.2 + 0.8), abs=0.05)


def test_training_shows_them_around_each_picture_and_not_over_it(tmp_path: Path) -> None:
    """A wide picture is black above and below, a high one at its sides: of two packs, each face its own."""
    folder = tmp_path / "black"
    folder.mkdir()
    Image.new("RGB", (9, 9), (0, 0, 0)).save(folder / "black.png")
    packs = (
        coloured_pack(tmp_path / "wide", 40, (64, 32), (255, 0, 0)),
        coloured_pack(tmp_path / "high", 40, (32, 64), (0, 255, 0)),
    )
    nothing = {"rotation_deg": 0, "scale": 0, "shift": 0, "flip": 0, "brightness": 0, "contrast": 0, "erase": 0}
    config = TrainConfig.model_validate(
        {
            "name": "small", "task": "landmarks", "data": packs, "backgrounds": (folder,), "crop_size": 64,
            "augment": nothing | {"surroundings": 1.0},
        }
    )  # fmt: skip
    recipe = create_recipe(config, torch.device("cpu"))
    rows = np.arange(recipe.num_train)
    batch = recipe.batch(rows, torch.Generator().manual_seed(0))
    seen = set()
    for crop, points in zip(batch.crops, batch.points_px, strict=True):
        centre = crop[:, 32, 32]
        if centre.tolist() not in ([1, 0, 0], [0, 1, 0]):
            continue  # noise, there so that some faces are held out
        is_wide = bool(centre[0])
        seen.add(is_wide)
        (low, high) = points.amin(dim=0), points.amax(dim=0)
        middle = (low + high) / 2
        side = float((high - low).max()) / (np.ptp(MEAN_SHAPE, axis=0).max())  # of the whole picture, in the crop
        middle_of_shape = (MEAN_SHAPE.min(axis=0) + MEAN_SHAPE.max(axis=0)) / 2
        at = middle.numpy() - (middle_of_shape - 0.5) * side
        inside = crop[:, int(at[1]) - 10 : int(at[1]) + 10, int(at[0]) - 10 : int(at[0]) + 10]
        torch.testing.assert_close(inside, centre[:, None, None].expand_as(inside))
        profile = crop.sum(dim=0)[:, int(at[0])] if is_wide else crop.sum(dim=0)[int(at[1])]
        assert max(profile[0], profile[-1]) < 0.1  # of 1: half a side away, where the widest fading ends
        along = crop.sum(dim=0)[int(at[1])] if is_wide else crop.sum(dim=0)[:, int(at[0])]
        assert along[8:-8].min() > 0.9
    assert seen == {True, False}


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
