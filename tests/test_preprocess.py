from pathlib import Path

import kornia
import numpy as np
import pytest
import torch

from nkf.config import AugmentConfig, TrainConfig
from nkf.geometry import CROP_SIZE, MEAN_SHAPE, mirror_landmarks
from nkf.preprocess import (
    augment,
    blur,
    erase,
    lower_resolution,
    similarity_matrices,
    to_float,
    transform_landmarks,
    warp,
)
from nkf.recipes import create_recipe

NOTHING = AugmentConfig(rotation_deg=0, scale=0, shift=0, flip=0, brightness=0, contrast=0, erase=0)
EVERYTHING = AugmentConfig(gamma=0.5, color_cast=0.2, grey=0.3, noise=0.1, blur=0.5, low_resolution=0.5, erase=0.5)


@pytest.fixture
def faces() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    coarse = torch.rand(6, 3, 14, 14)
    images = torch.nn.functional.interpolate(coarse, size=CROP_SIZE, mode="bilinear", align_corners=False)
    return images, torch.tensor(MEAN_SHAPE * CROP_SIZE).float().expand(6, 68, 2).contiguous()


def centred(count: int, size: float = CROP_SIZE) -> torch.Tensor:
    return torch.tensor([size / 2, size / 2, size]).expand(count, 3)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(count: int, seed: int) -> dict[str, torch.Tensor]:
    numbers = torch.rand(5, count, generator=generator(seed)) * 2 - 1
    return {
        "angle": numbers[0],
        "scale": 1 + 0.3 * numbers[1],
        "shift": 0.1 * numbers[2:4].T,
        "mirrored": numbers[4] > 0,
    }


def test_no_change_is_the_identity(faces: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, landmarks = faces
    crops, moved = augment(images, landmarks, centred(6), CROP_SIZE, NOTHING, generator())
    torch.testing.assert_close(crops, images, atol=1e-5, rtol=0)
    torch.testing.assert_close(moved, landmarks)


def test_low_precision_is_for_networks_only(mini_pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Crops and landmarks of a training step are the same with and without bfloat16."""
    seen = []
    monkeypatch.setattr("nkf.recipes.augment", lambda *args: seen.append(augment(*args)) or seen[-1])
    for bf16 in (True, False):
        network = {"backbone": "tiny"}
        settings = TrainConfig(name="a", task="landmarks", data=(mini_pack,), network=network, crop_size=32, bf16=bf16)
        recipe = create_recipe(settings, torch.device("cpu"))
        recipe.loss(recipe.create(), np.arange(8), generator())
    (crops, landmarks), (crops_again, landmarks_again) = seen
    assert torch.equal(crops, crops_again)
    assert torch.equal(landmarks, landmarks_again)


def test_warp_agrees_with_kornia(faces: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, _ = faces
    matrices = similarity_matrices(centred(6), 96, **drawn(6, seed=1))
    ours = warp(images, matrices, 96)
    # kornia's pixel coordinates put the centre of the first pixel at (0, 0), ours at (0.5, 0.5).
    theirs_matrices = matrices.clone()
    theirs_matrices[:, :, 2] += matrices[:, :, :2].sum(dim=2) * 0.5 - 0.5
    theirs = kornia.geometry.warp_affine(images, theirs_matrices, (96, 96), padding_mode="border", align_corners=True)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("seed", range(4))
def test_landmarks_stay_on_what_they_mark(seed: int) -> None:
    """A bright dot at each of three landmarks is found again at the moved landmark."""
    landmarks = torch.tensor(MEAN_SHAPE * CROP_SIZE).float()[None]
    parameters = drawn(1, seed)
    matrices = similarity_matrices(centred(1), CROP_SIZE, **parameters)
    moved = transform_landmarks(landmarks, matrices, parameters["mirrored"])
    y, x = torch.meshgrid(torch.arange(CROP_SIZE) + 0.5, torch.arange(CROP_SIZE) + 0.5, indexing="ij")
    for point in (30, 36, 45):
        source = 45 + 36 - point if parameters["mirrored"] and point != 30 else point  # the eyes swap
        dot = torch.exp(-((x - landmarks[0, source, 0]) ** 2 + (y - landmarks[0, source, 1]) ** 2) / 8)
        seen = warp(dot.expand(1, 3, -1, -1), matrices, CROP_SIZE)[0, 0]
        centre = torch.stack([(seen * x).sum(), (seen * y).sum()]) / seen.sum()
        torch.testing.assert_close(centre, moved[0, point], atol=0.05, rtol=0)


def test_mirroring_agrees_with_geometry(faces: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, landmarks = faces
    always = NOTHING.model_copy(update={"flip": 1.0})
    crops, moved = augment(images, landmarks, centred(6), CROP_SIZE, always, generator())
    torch.testing.assert_close(crops, images.flip(-1), atol=1e-5, rtol=0)
    expected = mirror_landmarks(landmarks.numpy(), CROP_SIZE)
    torch.testing.assert_close(moved, torch.from_numpy(expected))


def test_same_generator_gives_the_same_crops_and_another_gives_others(
    faces: tuple[torch.Tensor, torch.Tensor],
) -> None:
    first, again, other = (augment(*faces, centred(6), 64, EVERYTHING, generator(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (6, 3, 64, 64)
    assert first.min() >= 0
    assert first.max() <= 1


def test_mean_effect_of_low_resolution_and_blur_is_loss_of_detail() -> None:
    noise = torch.rand(8, 3, 64, 64, generator=generator())
    for change in (blur, lower_resolution):
        changed = change(noise, 1.0, generator(5))
        assert changed.shape == noise.shape
        assert changed.std() < 0.8 * noise.std()
        torch.testing.assert_close(changed.mean(), noise.mean(), atol=0.01, rtol=0)
        assert torch.equal(change(noise, 0.0, generator()), noise)


def test_erasing_covers_no_more_than_its_largest_area() -> None:
    images = torch.full((200, 3, 32, 32), -1.0)
    erased = (erase(images, 1.0, 0.2, generator()) != -1).all(dim=1).float().mean(dim=(1, 2))
    assert erased.max() <= 0.2 * 1.15  # whole pixels
    assert (erased > 0).float().mean() > 0.95


def test_to_float_puts_channels_first_in_unit_range() -> None:
    image = torch.zeros(1, 4, 4, 3, dtype=torch.uint8)
    image[0, 1, 2] = torch.tensor([255, 51, 0])
    torch.testing.assert_close(to_float(image)[0, :, 1, 2], torch.tensor([1.0, 0.2, 0.0]))
