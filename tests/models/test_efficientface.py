"""EfficientFace: the published counts, and each of its blocks against its formula."""

import pytest
import torch
import torch.nn.functional as F
from gradients import without_gradient
from plain_layers import batch_norm, conv_bn, relu, scatter_batch_norms
from torch import Tensor

from nkf.costs import macs_by_part, parameters_by_part
from nkf.models import count_parameters
from nkf.models.efficientface import EfficientFace, LocalExtractor, Modulator, ShuffleUnit

# Published name -> ours, parameters, multiply-adds; 7 classes, 224 pixels.
PUBLISHED = {
    "conv1": ("stem", 841, 9_821_952),
    "stage2": ("stage2", 30_827, 26_896_688),
    "local": ("local", 10_208, 1_636_992),
    "modulator": ("modulator", 3_526, 1_335_208),
    "stage3": ("stage3", 244_180, 54_589_136),
    "stage4": ("stage4", 501_352, 32_160_072),
    "conv5": ("last", 477_184, 23_281_664),
    "fc": ("classifier", 7_175, 7_168),
}


@pytest.fixture(scope="module")
def published() -> EfficientFace:
    with torch.device("meta"):
        return EfficientFace(num_classes=7)


def test_counts_are_the_published_ones(published: EfficientFace) -> None:
    parts = {part: (ours,) for part, (ours, _, _) in PUBLISHED.items()}
    assert parameters_by_part(published, parts) == {part: count for part, (_, count, _) in PUBLISHED.items()}
    assert count_parameters(published) == 1_275_293
    macs = {part: count for part, (_, _, count) in PUBLISHED.items()}
    crops = torch.empty(1, 3, 224, 224, device="meta")
    assert macs_by_part(published.eval(), parts, crops) == macs | {"total": 149_728_880}


def test_nothing_is_dead(published: EfficientFace) -> None:
    assert without_gradient(published, torch.empty(2, 3, 64, 64, device="meta")) == []


@pytest.fixture(scope="module")
def network() -> EfficientFace:
    torch.manual_seed(0)
    return scatter_batch_norms(EfficientFace(num_classes=5))


@pytest.mark.parametrize("side", [64, 112, 224])  # 112 is no multiple of 32: stage 4 has 4 cells
def test_sizes_on_the_way(network: EfficientFace, side: int) -> None:
    seen = {}
    parts = ("pool", "stage2", "local", "modulator", "stage3", "stage4", "last")
    handles = [
        getattr(network, part).register_forward_hook(lambda _, __, out, part=part: seen.update({part: out.shape[1:]}))
        for part in parts
    ]
    with torch.no_grad():
        assert network(torch.rand(1, 3, side, side)).shape == (1, 5)
    for handle in handles:
        handle.remove()
    cells = [side // 4, *[side // 8] * 3, side // 16, *[-(-side // 32)] * 2]
    channels = [29, 116, 116, 116, 232, 464, 1024]
    assert seen == {part: (c, n, n) for part, c, n in zip(parts, channels, cells, strict=True)}


def test_network_adds_the_local_maps_to_the_modulated_ones(network: EfficientFace) -> None:
    crops = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        pooled = F.max_pool2d(network.stem((crops - 0.5) / 0.5), 3, 2, 1)
        joined = network.modulator(network.stage2(pooled)) + network.local(pooled)
        features = network.last(network.stage4(network.stage3(joined))).flatten(2).mean(dim=2)
        torch.testing.assert_close(network.features(crops), features)
        torch.testing.assert_close(network(crops), features @ network.classifier.weight.T + network.classifier.bias)


def shuffled(joined: Tensor) -> Tensor:
    """Channels of two groups in turn: 0, C/2, 1, C/2 + 1 ..."""
    half = joined.shape[1] // 2
    return joined[:, [channel for pair in zip(range(half), range(half, 2 * half), strict=True) for channel in pair]]


@torch.no_grad()
def test_shuffle_unit_of_stride_1() -> None:
    torch.manual_seed(0)
    unit = scatter_batch_norms(ShuffleUnit(8, 8, stride=1))
    x = torch.randn(2, 8, 6, 6)
    first, depthwise, last = unit.residual
    changed = relu(conv_bn(conv_bn(relu(conv_bn(x[:, 4:], first)), depthwise, groups=4), last))
    torch.testing.assert_close(unit(x), shuffled(torch.cat([x[:, :4], changed], dim=1)))


@torch.no_grad()
def test_shuffle_unit_of_stride_2() -> None:
    torch.manual_seed(0)
    unit = scatter_batch_norms(ShuffleUnit(6, 8, stride=2))
    x = torch.randn(2, 6, 6, 6)
    depthwise, last = unit.shortcut
    one = relu(conv_bn(conv_bn(x, depthwise, stride=2, groups=6), last))
    first, depthwise, last = unit.residual
    other = relu(conv_bn(conv_bn(relu(conv_bn(x, first)), depthwise, stride=2, groups=4), last))
    torch.testing.assert_close(unit(x), shuffled(torch.cat([one, other], dim=1)))


@torch.no_grad()
def test_local_extractor_sees_each_quadrant_by_itself() -> None:
    torch.manual_seed(0)
    extractor = scatter_batch_norms(LocalExtractor(3, 12))
    x = torch.randn(2, 3, 16, 16)
    found = extractor(x)
    assert found.shape == (2, 12, 8, 8)
    for number, (top, left) in enumerate([(0, 0), (0, 8), (8, 0), (8, 8)]):
        first, second = extractor.quadrants[number]
        quadrant = x[:, :, top : top + 8, left : left + 8]  # padded with zeros, not with its neighbours
        expected = relu(conv_bn(relu(conv_bn(quadrant, first, stride=2, groups=3)), second, groups=12))
        place = (slice(None), slice(None), slice(top // 2, top // 2 + 4), slice(left // 2, left // 2 + 4))
        torch.testing.assert_close(found[place], expected)


@torch.no_grad()
def test_modulator_has_one_sigmoid_over_the_product() -> None:
    torch.manual_seed(0)
    modulator = scatter_batch_norms(Modulator(32))
    x = torch.randn(2, 32, 9, 9)
    squeeze, norm, _, expand = modulator.channel
    hidden = relu(batch_norm(x.mean(dim=(2, 3)) @ squeeze.weight.T + squeeze.bias, norm))
    channel = (hidden @ expand.weight.T + expand.bias)[:, :, None, None]
    y = x
    for number, (padding, dilation) in enumerate([(0, 1), (4, 4), (4, 4)]):
        conv, norm = modulator.spatial[3 * number], modulator.spatial[3 * number + 1]
        y = relu(batch_norm(F.conv2d(y, conv.weight, conv.bias, 1, padding, dilation), norm))
    spatial = F.conv2d(y, modulator.spatial[-1].weight, modulator.spatial[-1].bias)
    torch.testing.assert_close(modulator(x), x / (1 + (-channel * spatial).exp()))
    assert not torch.allclose(modulator(x), x * channel.sigmoid() * spatial.sigmoid(), atol=1e-3)


@pytest.mark.parametrize(
    ("statistics", "red_mean", "blue_std"),
    [
        ("rafdb", 0.57535914, 0.18132027),
        ("affectnet", 0.55391484, 0.20221159),
        ("caers", 0.35964426, 0.1103445),
        ("half", 0.5, 0.5),
    ],
)
def test_images_are_normalised_by_their_data_set(statistics: str, red_mean: float, blue_std: float) -> None:
    network = EfficientFace(num_classes=7, statistics=statistics)
    black, white = (network.normalize(torch.full((3, 1, 1), value)).flatten() for value in (0.0, 1.0))
    step = (white - black).tolist()
    assert -float(black[0]) / step[0] == pytest.approx(red_mean)
    assert step[2] == pytest.approx(1 / blue_std)


def test_landmarks_and_memory_format_change_nothing(network: EfficientFace) -> None:
    crops = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = network(crops)
        assert torch.equal(network(crops, torch.rand(1, 68, 2)), expected)
        torch.testing.assert_close(network(crops.to(memory_format=torch.channels_last)), expected)


def test_mistakes_are_named(network: EfficientFace) -> None:
    with pytest.raises(ValueError, match="unknown statistics 'ferplus'; known: rafdb, affectnet, caers, half"):
        EfficientFace(num_classes=7, statistics="ferplus")
    with pytest.raises(ValueError, match=r"crops of \(72, 72\) pixels: sides have to be multiples of 16"):
        network(torch.rand(1, 3, 72, 72))
