from pathlib import Path

import kornia
import numpy as np
import pytest
import torch

from nkf.config import AugmentConfig, TrainConfig
from nkf.geometry import CROP_SIZE, MEAN_SHAPE, mirror_landmarks
from nkf.preprocess import (
    IMAGENET_MEAN,
    Around,
    add_noise,
    augment,
    blur,
    cover_eyes,
    cover_mouth,
    erase,
    jpeg,
    lower_resolution,
    motion_blur,
    random_similarities,
    resized_crop,
    similarity_matrices,
    surround,
    to_float,
    transform_landmarks,
    warp,
)
from nkf.recipes import create_recipe

NOTHING = AugmentConfig(rotation_deg=0, scale=0, shift=0, flip=0, brightness=0, contrast=0, erase=0)
EVERYTHING = AugmentConfig(
    **dict.fromkeys(("blur", "motion_blur", "jpeg", "darkness", "glasses", "mask", "low_resolution", "erase"), 0.5),
    **{"gamma": 0.5, "color_cast": 0.2, "grey": 0.3, "noise": 0.1, "near": 0.5},
)


@pytest.fixture
def faces() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    coarse = torch.rand(6, 3, 14, 14)
    images = torch.nn.functional.interpolate(coarse, size=CROP_SIZE, mode="bilinear", align_corners=False)
    return images, torch.tensor(MEAN_SHAPE * CROP_SIZE).float().expand(6, 68, 2).contiguous()


def centred(count: int, size: float = CROP_SIZE) -> torch.Tensor:
    return torch.tensor([size / 2, size / 2, size, 0.0]).expand(count, 4)


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
    crops, moved, *_ = augment(images, landmarks, centred(6), CROP_SIZE, NOTHING, generator())
    torch.testing.assert_close(crops, images, atol=1e-5, rtol=0)
    torch.testing.assert_close(moved, landmarks)


def test_low_precision_is_for_networks_only(mini_pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Crops and landmarks of a training step are the same with and without bfloat16."""
    seen = []
    monkeypatch.setattr("nkf.recipes.landmarks.augment", lambda *args: seen.append(augment(*args)) or seen[-1])
    for bf16 in (True, False):
        network = {"backbone": "tiny"}
        settings = TrainConfig(name="a", task="landmarks", data=(mini_pack,), network=network, crop_size=32, bf16=bf16)
        recipe = create_recipe(settings, torch.device("cpu"))
        recipe.loss(recipe.create(), recipe.batch(np.arange(8), generator()))
    (crops, landmarks, *_), (crops_again, landmarks_again, *_) = seen
    assert torch.equal(crops, crops_again)
    assert torch.equal(landmarks, landmarks_again)


def test_warp_agrees_with_kornia(faces: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, _ = faces
    matrices = similarity_matrices(centred(6)[:, :3], 96, **drawn(6, seed=1))
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
    matrices = similarity_matrices(centred(1)[:, :3], CROP_SIZE, **parameters)
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
    crops, moved, *_ = augment(images, landmarks, centred(6), CROP_SIZE, always, generator())
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
    for change in (blur, lower_resolution, motion_blur):
        changed = change(noise, 1.0, generator(5))
        assert changed.shape == noise.shape
        assert changed.std() < 0.8 * noise.std()
        torch.testing.assert_close(changed.mean(), noise.mean(), atol=0.01, rtol=0)
        assert torch.equal(change(noise, 0.0, generator()), noise)


def test_erasing_covers_no_more_than_its_largest_area() -> None:
    images, config = torch.full((200, 3, 32, 32), -1.0), AugmentConfig(erase=1.0, erase_area=0.2)
    erased = (erase(images, config, generator()) != -1).all(dim=1).float().mean(dim=(1, 2))
    assert erased.max() <= 0.2 * 1.15  # whole pixels
    assert (erased > 0).float().mean() > 0.95


@pytest.mark.parametrize("fill", ["random", "mean"])
def test_patches_have_one_colour(fill: str) -> None:
    """Any, another one for each image; or ImageNet's mean, which is 0 behind the networks' normalisation."""
    images = torch.full((50, 3, 32, 32), -1.0)
    changed = erase(images, AugmentConfig(erase=1.0, erase_fill=fill), generator())
    colors = [image[:, image[0] != -1].unique(dim=1) for image in changed if (image != -1).any()]
    assert {color.shape for color in colors} == {(3, 1)}
    if fill == "mean":
        assert all(torch.equal(color[:, 0], torch.tensor(IMAGENET_MEAN)) for color in colors)
    else:
        assert len({tuple(color.flatten().tolist()) for color in colors}) == len(colors)


@pytest.mark.parametrize("probability", [1.0, 0.3, 0.0])
def test_noise_is_put_on_a_share_of_the_images(probability: float) -> None:
    images = torch.full((400, 3, 16, 16), 0.5)
    spread = (add_noise(images, 0.2, probability, generator()) - images).flatten(1).std(dim=1)
    noisy = spread[spread > 0]
    assert len(noisy) / 400 == pytest.approx(probability, abs=0.07)
    if len(noisy):
        assert noisy.max() < 0.2 * 1.1
        assert noisy.mean() == pytest.approx(0.1, abs=0.02)  # uniform up to the largest
    assert torch.equal(add_noise(images, 0.0, probability, generator()), images)


def test_resized_crops_are_parts_of_the_crop() -> None:
    """Corners of what fills the crop lie in it; its area and its aspect are in their ranges, and all of it is drawn."""
    before = torch.tensor([[0.5, 0.1, 3.0], [-0.1, 0.5, 20.0]]).expand(2000, 2, 3)
    after = resized_crop(before, 64, 0.08, generator())
    corners = torch.tensor([[0.0, 0, 1], [64, 64, 1]]).T  # of the new crop, homogeneous
    last_row = torch.tensor([0.0, 0, 1]).expand(2000, 1, 3)
    to_before = torch.cat([before, last_row], 1) @ torch.linalg.inv(torch.cat([after, last_row], 1))
    (left, right), (top, bottom) = ((to_before @ corners)[:, axis].T / 64 for axis in (0, 1))
    for low, high in ((left, right), (top, bottom)):
        assert -1e-4 < low.min() < 0.02
        assert 0.98 < high.max() < 1 + 1e-4
    width, height = right - left, bottom - top
    free = (width < 0.999) & (height < 0.999)  # else it was cut to the whole side
    assert 0.08 - 1e-3 < (width * height).min() < 0.1
    assert (width * height).max() > 0.9
    aspect = (width / height)[free]
    assert 3 / 4 - 1e-3 < aspect.min() < 0.77
    assert 1.3 < aspect.max() < 4 / 3 + 1e-3
    assert aspect.log().mean().abs() < 0.02  # as often wide as high
    assert (left / (1 - width))[free].mean() == pytest.approx(0.5, abs=0.03)


def test_landmarks_move_along_with_resized_crops(faces: tuple[torch.Tensor, torch.Tensor]) -> None:
    """What is at a landmark's place before is there after."""
    config = NOTHING.model_copy(update={"resized_crop": 0.3})
    images, landmarks = faces
    crops, moved, matrices, _ = augment(images, landmarks, centred(6), CROP_SIZE, config, generator(2))
    assert (matrices[:, 0, 0] != matrices[:, 1, 1]).all()
    assert torch.equal(resized_crop(matrices, CROP_SIZE, 1.0, generator()), matrices)
    inside = ((moved > 2) & (moved < CROP_SIZE - 2)).all(dim=-1)
    assert inside.float().mean() > 0.3
    for picture, points, crop, places, seen in zip(images, landmarks, crops, moved, inside, strict=True):
        expected, found = (colors_at(picture, points), colors_at(crop, places))
        torch.testing.assert_close(found[:, seen], expected[:, seen], atol=0.05, rtol=0)


def colors_at(picture: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    grid = 2 * points[None, None] / picture.shape[-1] - 1
    return torch.nn.functional.grid_sample(picture[None], grid, align_corners=False, padding_mode="border")[0, :, 0]


def test_near_crops_are_drawn_from_their_own_square_and_a_fifth_of_the_ranges() -> None:
    squares = torch.tensor([[50.0, 50, 60, 0], [40, 40, 30, 0.5]]).expand(400, 2, 4)
    config = NOTHING.model_copy(update={"rotation_deg": 60.0, "shift": 0.1, "near": 0.5})
    matrices, _ = random_similarities(squares, 112, config, generator())
    scale = (112 / matrices[:, :, :2].det().sqrt()).round()
    assert set(scale.tolist()) == {30.0, 60.0}
    near = scale == 30
    assert 150 < near.sum() < 250
    angle = torch.atan2(matrices[:, 1, 0], matrices[:, 0, 0]).rad2deg()
    offset = torch.rad2deg(torch.tensor(0.5))
    assert 50 < angle[~near].abs().max() <= 60
    assert 10 < (angle[near] + offset).abs().max() <= 12.001  # the square's own rotation is undone
    centre = (matrices[:, :, :2] @ torch.tensor([[40.0], [40.0]])).squeeze(-1) + matrices[:, :, 2] - 56
    assert 2 < centre[near].abs().max() <= 0.02 * 112 + 1e-3


def test_covers_lie_where_they_should(faces: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, landmarks = torch.full((6, 3, CROP_SIZE, CROP_SIZE), -1.0), faces[1]
    points = {"eyes": (36, 39, 42, 45), "mouth": (48, 54, 57, 33), "brows": (19, 24)}
    for change, covered, free in ((cover_eyes, "eyes", "mouth"), (cover_mouth, "mouth", "brows")):
        changed = (change(images, landmarks, 1.0, generator(1)) != -1).any(dim=1)
        x, y = landmarks[0].long().unbind(dim=-1)
        inside = changed[:, y, x]  # (6, 68)
        assert inside[:, points[covered]].float().mean() > 0.6
        assert not inside[:, points[free]].any()


def test_jpeg_keeps_flat_pictures_and_roughens_the_others() -> None:
    flat, noise = torch.full((2, 3, 32, 32), 0.5), torch.rand(2, 3, 32, 32, generator=generator())
    torch.testing.assert_close(jpeg(flat, 1.0, generator()), flat, atol=0.04, rtol=0)
    changed = jpeg(noise, 1.0, generator())
    assert 0.01 < (changed - noise).abs().mean() < 0.3
    torch.testing.assert_close(changed.mean(), noise.mean(), atol=0.02, rtol=0)


def test_to_float_puts_channels_first_in_unit_range() -> None:
    image = torch.zeros(1, 4, 4, 3, dtype=torch.uint8)
    image[0, 1, 2] = torch.tensor([255, 51, 0])
    torch.testing.assert_close(to_float(image)[0, :, 1, 2], torch.tensor([1.0, 0.2, 0.0]))


def around_a_half(count: int, tiles: torch.Tensor) -> Around:
    """Pictures that fill the middle half of images of `CROP_SIZE` pixels."""
    quarter = CROP_SIZE / 4
    scale = 1 / (2 * quarter)
    return Around(torch.tensor([[scale, 0, -0.5], [0, scale, -0.5]]).expand(count, 2, 3), tiles)


def test_surroundings_stand_around_the_picture_and_never_over_it(faces: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, tiles = faces[0], torch.rand(6, 3, CROP_SIZE, CROP_SIZE)
    unmoved = torch.eye(2, 3).expand(6, 2, 3)
    changed = surround(images, unmoved, around_a_half(6, tiles), 1.0, generator())
    own = slice(CROP_SIZE // 4, 3 * CROP_SIZE // 4)
    torch.testing.assert_close(changed[:, :, own, own], images[:, :, own, own])
    corner = (slice(None), slice(None), slice(0, 4), slice(0, 4))  # 0.6 sides away: beyond the widest fading
    torch.testing.assert_close(changed[corner], tiles[corner])
    row = (changed - tiles).abs().mean(dim=1)[:, CROP_SIZE // 2, : CROP_SIZE // 4]  # of the edge's colour, outwards
    assert (row[:, 0] < 1e-6).all()
    assert (row[:, -1] > 0).all()
    assert surround(images, unmoved, around_a_half(6, tiles), 0.0, generator()).equal(images)


def test_surroundings_move_with_the_picture(faces: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Shifted to the right by a quarter of the crop, and mirrored: the picture fills the left half."""
    images, tiles = faces[0], torch.rand(6, 3, CROP_SIZE, CROP_SIZE)
    shifted = torch.tensor([[-1.0, 0, 0.75 * CROP_SIZE], [0, 1, 0]]).expand(6, 2, 3)
    changed = surround(images, shifted, around_a_half(6, tiles), 1.0, generator())
    inside = changed[:, :, CROP_SIZE // 2, : CROP_SIZE // 2]
    torch.testing.assert_close(inside, images[:, :, CROP_SIZE // 2, : CROP_SIZE // 2])
    torch.testing.assert_close(changed[:, :, :, -20:], tiles[:, :, :, -20:])


def test_grey_faces_get_grey_surroundings(faces: tuple[torch.Tensor, torch.Tensor]) -> None:
    images = faces[0].clone()
    images[:3] = images[:3].mean(dim=1, keepdim=True)
    tiles = torch.rand(6, 3, CROP_SIZE, CROP_SIZE)
    changed = surround(images, torch.eye(2, 3).expand(6, 2, 3), around_a_half(6, tiles), 1.0, generator())
    color = (changed.amax(dim=1) - changed.amin(dim=1)).amax(dim=(1, 2))
    assert (color[:3] < 1e-5).all()
    assert (color[3:] > 0.1).all()
