import pytest
import torch
import torch.nn.functional as F
from plain_layers import batch_norm, scatter_batch_norms
from torch import nn

from nkf.costs import parameters_by_part
from nkf.geometry import MEAN_SHAPE
from nkf.models.backbone import ResidualUnit
from nkf.models.face_trunks import (
    ImageTrunk,
    LandmarkRegressor,
    TwoTrunks,
    create_landmark_trunk,
    to_trunk_size,
)

MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


@pytest.fixture(scope="module")
def trunks() -> TwoTrunks:
    torch.manual_seed(0)
    return scatter_batch_norms(TwoTrunks(frozen_statistics=True, dead_parts=False))


@pytest.fixture(scope="module")
def regressor() -> LandmarkRegressor:
    torch.manual_seed(1)
    return scatter_batch_norms(LandmarkRegressor())


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_crops_shrink_by_nearest_neighbour(factor: int) -> None:
    crops = torch.rand(2, 3, 112 * factor, 112 * factor)
    shrunk = to_trunk_size(crops)
    assert torch.equal(shrunk, F.interpolate(crops, size=(112, 112), mode="nearest"))
    assert torch.equal(shrunk, crops[..., ::factor, ::factor])
    smooth = F.interpolate(crops, size=(112, 112), mode="bilinear", align_corners=False, antialias=True)
    assert torch.equal(shrunk, smooth) == (factor == 1)


@pytest.mark.parametrize("size", [(64, 64), (150, 150), (112, 224)])
def test_crops_of_another_size_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"{size[0]}x{size[1]} pixels; their side has to be 112, or a multiple as 224"):
        to_trunk_size(torch.rand(1, 3, *size))


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(4, 4, 1), (4, 4, 2), (4, 6, 2)])
def test_unit_has_no_norm_between_its_convolutions(inputs: int, outputs: int, stride: int) -> None:
    torch.manual_seed(0)
    unit, x = scatter_batch_norms(ResidualUnit(inputs, outputs, stride, inner_norm=False)), torch.randn(2, inputs, 8, 8)
    norm, first, prelu, second, last_norm = unit.residual
    with torch.no_grad():
        y = F.conv2d(batch_norm(x, norm), first.weight, padding=1)
        y = torch.where(y > 0, y, prelu.weight[:, None, None] * y)
        y = batch_norm(F.conv2d(y, second.weight, stride=stride, padding=1), last_norm)
        short = x[..., ::stride, ::stride]
        if inputs != outputs:
            weight = unit.shortcut.conv.weight[..., 0, 0]
            short = batch_norm(torch.einsum("oi,bihw->bohw", weight, short), unit.shortcut.bn)
        torch.testing.assert_close(unit(x), y + short)


def test_image_trunk_has_the_published_parts() -> None:
    with torch.device("meta"):
        trunk = ImageTrunk(dead_tail=True)
    parts = {part: [part] for part in ("stem", "stages.0", "stages.1", "stages.2", "dead_tail")}
    assert parameters_by_part(trunk, parts) == {
        "stem": 1_920, "stages.0": 222_144, "stages.1": 1_116_800, "stages.2": 16_271_104, "dead_tail": 12_847_616,
    }  # fmt: skip
    assert len(trunk.state_dict()) == 304  # tensors of the published weights, all of which have to match
    assert [tuple(m.shape) for m in trunk(torch.empty(2, 3, 112, 112, device="meta"))] == [
        (2, 64, 56, 56), (2, 128, 28, 28), (2, 256, 14, 14),
    ]  # fmt: skip


def test_landmark_trunk_has_the_published_parts() -> None:
    with torch.device("meta"):
        network = LandmarkRegressor()
    names = {
        "conv1": ["stem"], "conv2": ["stem_dw"], "23": ["stages.0.0"], "34": ["stages.1.0"], "45": ["stages.2.0"],
        "3": [f"stages.0.{n}" for n in range(1, 5)], "4": [f"stages.1.{n}" for n in range(1, 7)],
        "5": [f"stages.2.{n}" for n in range(1, 3)], "sep": ["head_conv"],
    }  # fmt: skip
    parts = {part: [f"trunk.{name}" for name in ours] for part, ours in names.items()} | {"head": ["head"]}
    counts = parameters_by_part(network, parts)
    assert counts == {
        "conv1": 1_920, "conv2": 768, "23": 18_432, "3": 73_728, "34": 53_248, "4": 417_792, "45": 139_008,
        "5": 139_264, "sep": 67_072, "head": 96_016,
    }  # fmt: skip
    assert sum(counts.values()) == sum(p.numel() for p in network.parameters()) == 1_007_248
    maps = network.trunk(torch.empty(2, 3, 112, 112, device="meta"))
    assert [tuple(m.shape) for m in maps.values()] == [(2, 64, 28, 28), (2, 128, 14, 14), (2, 512, 7, 7)]


def test_landmark_regressor_starts_at_the_mean_shape(regressor: LandmarkRegressor) -> None:
    crops = torch.rand(3, 3, 112, 112)
    network = LandmarkRegressor()  # fresh, in training: its points scatter around the mean shape
    points_px = network(crops)
    mean_shape = torch.from_numpy(MEAN_SHAPE).float()
    torch.testing.assert_close(points_px.mean(dim=0) / 112, mean_shape, atol=1e-4, rtol=0)
    assert 0.02 < (points_px / 112 - mean_shape).std() < 0.06
    points_px.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


def test_landmarks_are_pixels_of_the_crop(regressor: LandmarkRegressor) -> None:
    crops = torch.rand(1, 3, 112, 112)
    with torch.no_grad():
        points_px = regressor(crops)
        assert points_px.shape == (1, 68, 2)
        torch.testing.assert_close(regressor(crops.repeat_interleave(2, 2).repeat_interleave(2, 3)), 2 * points_px)
        flat = regressor.head(regressor.trunk(crops)[16]).flatten(1)
    torch.testing.assert_close(points_px[:, 7, 1], 112 * flat[:, 15])  # x and y alternate


def test_both_trunks_see_normalised_rgb(trunks: TwoTrunks) -> None:
    seen = []
    convolutions = (trunks.image_trunk.stem.conv, trunks.landmark_trunk.stem.conv)
    handles = [layer.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for layer in convolutions]
    crops = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        trunks.trunk_maps(crops)
    for handle in handles:
        handle.remove()
    assert len(seen) == 2
    for images in seen:
        torch.testing.assert_close(images, (crops[..., ::2, ::2] - MEAN) / STD)


def test_maps_of_both_trunks(trunks: TwoTrunks) -> None:
    crops = torch.rand(2, 3, 112, 112)
    with torch.no_grad():
        image_maps, landmark_maps = trunks.trunk_maps(crops)
        last = trunks.landmark_trunk(crops)[16]
    assert [m.shape[1:] for m in image_maps] == [(64, 56, 56), (128, 28, 28), (256, 14, 14)]
    assert [m.shape[1:] for m in landmark_maps] == [(64, 28, 28), (128, 14, 14), (512, 7, 7)]
    assert torch.equal(landmark_maps[-1], last)


@pytest.mark.parametrize("frozen_statistics", [True, False])
def test_landmark_trunk_is_frozen_and_its_statistics_on_demand(frozen_statistics: bool) -> None:
    network = TwoTrunks(frozen_statistics=frozen_statistics, dead_parts=True)
    network.image_trunk = nn.Identity()  # not at issue here, and slow
    frozen = [name for name, parameter in network.named_parameters() if not parameter.requires_grad]
    assert frozen
    assert all(name.startswith("landmark_") for name in frozen)
    norms = (network.landmark_trunk.head_conv.bn, network.landmark_head.norm)
    before = [norm.running_mean.clone() for norm in norms]
    network.train().trunk_maps(torch.rand(2, 3, 112, 112))
    assert network.training
    for norm, mean in zip(norms, before, strict=True):
        assert torch.equal(norm.running_mean, mean) == frozen_statistics
        assert norm.training != frozen_statistics


@pytest.mark.parametrize("dead_parts", [False, True])
def test_trained_landmark_trunk_is_taken_over(dead_parts: bool, regressor: LandmarkRegressor) -> None:
    network = TwoTrunks(frozen_statistics=True, dead_parts=dead_parts).eval()
    network.take_landmark_trunk(regressor)
    crops = torch.rand(1, 3, 112, 112)
    with torch.no_grad():
        _, landmark_maps = network.trunk_maps(crops)
        for ours, theirs in zip(landmark_maps, regressor.trunk(crops).values(), strict=True):
            assert torch.equal(ours, theirs)
        if network.landmark_head is not None:
            assert torch.equal(network.landmark_head(landmark_maps[-1]) * 112, regressor(crops))
    assert not any(p.requires_grad for p in network.landmark_trunk.parameters())
    assert create_landmark_trunk().state_dict().keys() == network.landmark_trunk.state_dict().keys()
