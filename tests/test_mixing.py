"""Mixing of faces: shares, landmarks, targets, and where the randomness comes from."""

import numpy as np
import pytest
import torch
from torch import Generator

from nkf.config import MixConfig
from nkf.mixing import Faces, cutmix, mix, mixup

SIDE, POINTS, CLASSES = 16, 68, 8
BLEND = MixConfig(probability=1, mixup=0.4)
PASTE = MixConfig(probability=1, mixup=0, cutmix=1)
EITHER = MixConfig(probability=1, mixup=0.4, cutmix=1)


def faces(count: int = 6, seed: int = 0) -> Faces:
    generator = Generator().manual_seed(seed)
    crops = torch.rand(count, 3, SIDE, SIDE, generator=generator)
    points_px = SIDE * torch.rand(count, POINTS, 2, generator=generator)
    return Faces(crops, points_px, torch.rand(count, CLASSES, generator=generator).softmax(dim=1))


def assert_same(one: Faces, other: Faces) -> None:
    for mine, theirs in zip(one, other, strict=True):
        assert torch.equal(mine, theirs)


def equal(one: Faces, other: Faces) -> bool:
    return all(torch.equal(mine, theirs) for mine, theirs in zip(one, other, strict=True))


def test_blend_is_one_proportion_for_image_landmarks_and_target() -> None:
    batch, partner, share = faces(3), torch.tensor([1, 2, 0]), torch.tensor([1.0, 0.25, 0.0])
    mixed = mixup(batch, partner, share)
    for part, result in zip(batch, mixed, strict=True):
        own = part.numpy()
        expected = [own[0], 0.25 * own[1] + 0.75 * own[2], own[0]]  # all of itself, a quarter, none
        np.testing.assert_allclose(result.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("share", "centre", "left", "right", "top", "bottom"),
    [
        (0.75, (8.0, 8.0), 4, 12, 4, 12),  # a quarter of the crop: 8 of 16 pixels
        (0.75, (0.0, 8.0), 0, 4, 4, 12),  # half of it outside
        (0.75, (16.0, 16.0), 12, 16, 12, 16),
        (0.0, (8.0, 8.0), 0, 16, 0, 16),
        (0.9, (5.3, 8.2), 3, 8, 6, 11),  # half a side of 2.53 pixels, borders rounded to whole ones
    ],
)
def test_pasted_square_counts_by_its_pixels(
    share: float, centre: tuple[float, float], left: int, right: int, top: int, bottom: int
) -> None:
    batch, partner = faces(2), torch.tensor([1, 0])
    mixed = cutmix(batch, partner, torch.tensor([share, 1.0]), torch.tensor([centre, (8.0, 8.0)]))
    expected = batch.crops[0].clone()
    expected[:, top:bottom, left:right] = batch.crops[1, :, top:bottom, left:right]
    assert torch.equal(mixed.crops[0], expected)
    area = (right - left) * (bottom - top) / SIDE**2
    np.testing.assert_allclose(mixed.targets[0], (1 - area) * batch.targets[0] + area * batch.targets[1], atol=1e-6)
    x, y = batch.points_px[0].unbind(dim=-1)
    covered = (x > left) & (x < right) & (y > top) & (y < bottom)
    assert torch.equal(mixed.points_px[0], torch.where(covered[:, None], batch.points_px[1], batch.points_px[0]))
    assert covered.any()
    assert_same(Faces(*(part[1:] for part in mixed)), Faces(*(part[1:] for part in batch)))  # its share is 1


@pytest.mark.parametrize("config", [BLEND, PASTE, EITHER], ids=["mixup", "cutmix", "both"])
def test_batch_stays_a_batch(config: MixConfig) -> None:
    generator = Generator().manual_seed(3)
    for seed in range(20):
        batch = faces(seed=seed)
        mixed = mix(batch, config, generator)
        assert [part.shape for part in mixed] == [part.shape for part in batch]
        assert not equal(mixed, batch)
        torch.testing.assert_close(mixed.targets.sum(dim=1), torch.ones(6))
        assert ((mixed.crops >= 0) & (mixed.crops <= 1)).all()


def test_both_ways_are_taken() -> None:
    """A pasted batch has no pixel that is not one of the faces', a blended one hardly has any other."""
    generator, pasted = Generator().manual_seed(0), []
    for _ in range(60):
        batch = faces()
        mixed = mix(batch, EITHER, generator)
        original = (mixed.crops[:, None] == batch.crops[None]).any(dim=1).all(dim=1)  # (6, S, S)
        pasted.append(bool(original.all()))
    assert 15 < sum(pasted) < 45


def test_some_batches_are_mixed() -> None:
    generator, config = Generator().manual_seed(1), MixConfig(probability=0.3)
    batch = faces()
    assert 145 < sum(not equal(mix(batch, config, generator), batch) for _ in range(600)) < 215  # 180, 3 σ = 34


def test_shares_follow_their_distribution() -> None:
    """Beta(α, α) has the mean 1/2 and the variance 1 / (4 (2 α + 1))."""
    batch = Faces(torch.zeros(400, 3, 1, 1), torch.zeros(400, 1, 2), torch.eye(400))
    generator = Generator().manual_seed(2)
    mixed = torch.cat([mix(batch, BLEND, generator).targets.diagonal() for _ in range(20)])
    shares = mixed[(mixed > 0) & (mixed < 1)]  # without those that met themselves
    assert float(shares.mean()) == pytest.approx(0.5, abs=0.015)
    assert float(shares.var()) == pytest.approx(1 / (4 * (2 * 0.4 + 1)), rel=0.05)


@pytest.mark.parametrize("config", [BLEND, PASTE, EITHER], ids=["mixup", "cutmix", "both"])
def test_only_the_given_generator_is_drawn_from(config: MixConfig) -> None:
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        before = torch.get_rng_state()
        results.append(mix(faces(), config, Generator().manual_seed(7)))
        assert torch.equal(torch.get_rng_state(), before)
    assert_same(*results)
    assert not equal(mix(faces(), config, Generator().manual_seed(8)), results[0])


def test_nothing_is_drawn_without_mixing() -> None:
    generator, batch = Generator().manual_seed(0), faces()
    before = generator.get_state()
    assert mix(batch, MixConfig(), generator) is batch
    assert torch.equal(generator.get_state(), before)


def test_unknown_points_stay_unknown() -> None:
    batch = faces(2)
    batch.points_px[0, 3] = torch.nan
    mixed = mixup(batch, torch.tensor([1, 0]), torch.tensor([0.5, 0.5]))
    assert torch.isnan(mixed.points_px[:, 3]).all()
    assert torch.isfinite(mixed.points_px[:, :3]).all()


def test_a_probability_without_a_way_is_refused() -> None:
    with pytest.raises(ValueError, match="mixup and cutmix: one of them has to be above 0"):
        MixConfig(probability=0.5, mixup=0)
