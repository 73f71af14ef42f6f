"""The detector's recipe: its loss against hand-made maps, and a run on a handful of faces."""

from pathlib import Path

import made_packs
import numpy as np
import pytest
import torch
from PIL import Image

from nkf.config import AugmentConfig, TrainConfig
from nkf.data.pack import Pack
from nkf.data.pack_writer import PackWriter
from nkf.errors import NkfError
from nkf.recipes.detection import _key, detection_loss, generalized_iou, scene_makers
from nkf.train import train
from nkf.weights import find_weights


def perfect_maps(box: tuple[float, ...], points: torch.Tensor, size: int) -> torch.Tensor:
    """Raw maps (1, 15, h, w) that say exactly one face."""
    cells = size // 8
    raw = torch.zeros(1, 15, cells, cells)
    raw[:, 0] = -12.0
    x0, y0, x1, y1 = box
    raw[0, 0, int((y0 + y1) / 16), int((x0 + x1) / 16)] = 12.0
    centre = (torch.arange(cells) + 0.5) * 8
    raw[0, 1] = ((centre - x0).clamp(min=1e-3) / 8).log()[None, :]
    raw[0, 2] = ((centre - y0).clamp(min=1e-3) / 8).log()[:, None]
    raw[0, 3] = ((x1 - centre).clamp(min=1e-3) / 8).log()[None, :]
    raw[0, 4] = ((y1 - centre).clamp(min=1e-3) / 8).log()[:, None]
    middle, side = torch.tensor([x0 + x1, y0 + y1]) / 2, torch.tensor([x1 - x0, y1 - y0])
    raw[0, 5:] = ((points - middle) / side).flatten()[:, None, None]
    return raw


BOX = (40.0, 32.0, 88.0, 96.0)
POINTS = torch.tensor([[50.0, 55], [75, 55], [62, 65], [52, 80], [74, 80]])


def loss_of(raw: torch.Tensor) -> float:
    boxes, points = torch.full((1, 3, 4), torch.nan), torch.full((1, 3, 5, 2), torch.nan)
    boxes[0, 1], points[0, 1] = torch.tensor(BOX), POINTS
    return float(detection_loss(raw, boxes, points, 128))


def test_loss_is_nearly_zero_for_the_truth_and_grows_with_every_mistake():
    assert loss_of(perfect_maps(BOX, POINTS, 128)) < 0.02
    missed = perfect_maps(BOX, POINTS, 128)
    missed[:, 0] = -12
    false = perfect_maps(BOX, POINTS, 128)
    false[0, 0, 0, 0] = 12
    shifted = perfect_maps((30.0, 32.0, 78.0, 96.0), POINTS, 128)
    moved = perfect_maps(BOX, POINTS + 5, 128)
    for wrong in (missed, false, shifted, moved):
        assert loss_of(wrong) > 0.1


def test_faces_that_hardly_show_are_neither_faces_nor_background():
    boxes = torch.tensor([[[-90.0, 0, 10, 100]]])
    raw = torch.full((1, 15, 16, 16), -12.0)
    raw[0, 1:] = 0
    raw[0, 0, 5, 0] = 12  # inside what shows of it
    points = torch.zeros(1, 1, 5, 2)
    assert float(detection_loss(raw, boxes, points, 128)) < 0.01
    raw[0, 0, 5, 5] = 12  # outside
    assert float(detection_loss(raw, boxes, points, 128)) > 1


def test_generalized_iou():
    one = torch.tensor([[0.0, 0, 4, 4]]).expand(3, 4)
    other = torch.tensor([[0.0, 0, 4, 4], [2, 0, 6, 4], [4, 4, 8, 8]])
    assert generalized_iou(one, other).tolist() == pytest.approx([1, 8 / 24, -32 / 64])


@pytest.fixture
def config(mini_pack: Path, tmp_path: Path) -> TrainConfig:
    folder = tmp_path / "pictures"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(generator.integers(0, 255, (40, 50, 3)).astype(np.uint8)).save(folder / f"{number}.png")
    return TrainConfig(
        name="small", task="detection", data=(mini_pack,), backgrounds=(folder,), scenes=6, plain_scenes=3,
        crop_size=64, epochs=1, batch_size=3, warmup_steps=1, evaluations=1,
        augment=AugmentConfig(rotation_deg=0, noise=0.1),
    )  # fmt: skip


def test_a_run_ends_with_a_detector(config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nkf.recipes.detection.VALIDATION_SCENES", 3)
    result = train(config, tmp_path / "run")
    assert result["finished"]
    assert 0 <= result["average_precision"] <= 1
    _, info = find_weights(str(tmp_path / "run"), (".safetensors",))
    assert info.kind == "detector"
    assert info.architecture == {}


def test_scenes_belong_to_their_packs_and_backgrounds(config: TrainConfig, tmp_path: Path) -> None:
    pack = Pack(config.data[0])
    with PackWriter(tmp_path / "other", {"dataset": "mini", "source": "drawn", "licence": "none"}) as writer:
        writer.add(made_packs.sample(0))
    first = _key([pack], config.backgrounds)
    assert _key([Pack(config.data[0])], config.backgrounds) == first
    assert _key([Pack(tmp_path / "other")], config.backgrounds) != first
    Image.new("RGB", (9, 9)).save(config.backgrounds[0] / "0.png")
    assert _key([pack], config.backgrounds) != first


def test_backgrounds_are_needed(config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="backgrounds: a detector needs at least one folder"):
        TrainConfig.model_validate(config.model_dump() | {"backgrounds": ()})
    (tmp_path / "empty").mkdir()
    with pytest.raises(NkfError, match="empty: no pictures"):
        scene_makers([], [tmp_path / "empty"])
