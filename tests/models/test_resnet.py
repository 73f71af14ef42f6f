"""ResNets: the published counts, where a block has its stride, the two kinds of pool."""

import pytest
import torch
from plain_layers import conv_bn, relu, scatter_batch_norms

from nkf.costs import macs_by_part, parameters_by_part
from nkf.models import count_parameters
from nkf.models.resnet import BasicBlock, Bottleneck, ResNet, create_resnet

# EfficientFace's teacher without its classifier: published name -> ours, parameters, multiply-adds at 224 pixels.
STANDARD = {
    "conv1, bn1": ("stem", 9_408 + 128, 118_013_952),
    "layer1": ("stages.0", 215_808, 667_942_912),
    "layer2": ("stages.1", 1_219_584, 1_027_604_480),
    "layer3": ("stages.2", 7_098_368, 1_464_336_384),
    "layer4": ("stages.3", 14_964_736, 809_238_528),
}


def made_without_data(name: str) -> ResNet:
    with torch.device("meta"):
        return create_resnet(name).eval()


def test_standard_resnet50_has_the_published_parts() -> None:
    network = made_without_data("resnet50_standard")
    parts = {part: (ours,) for part, (ours, _, _) in STANDARD.items()}
    assert parameters_by_part(network, parts) == {part: count for part, (_, count, _) in STANDARD.items()}
    assert count_parameters(network) == sum(count for _, count, _ in STANDARD.values()) == 23_508_032
    macs = {part: count for part, (_, _, count) in STANDARD.items()}
    assert macs_by_part(network.eval(), parts, torch.empty(1, 3, 224, 224, device="meta")) == macs | {
        "total": sum(macs.values())
    }


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet50_standard"])
@pytest.mark.parametrize("side", [64, 112, 224])
def test_maps_have_the_strides_they_are_named_by(name: str, side: int) -> None:
    network = made_without_data(name)
    maps = network(torch.empty(1, 3, side, side, device="meta"))
    first = 64 if name == "resnet18" else 256
    assert network.channels == {4: first, 8: 2 * first, 16: 4 * first, 32: 8 * first}
    for stride, feature_map in maps.items():
        cells = -(-side // stride)  # of 112 pixels, stride 32 makes 4 cells
        assert feature_map.shape == (1, network.channels[stride], cells, cells)


@pytest.mark.parametrize(
    ("stride_in", "inputs", "stride", "strides"),
    [
        ("1x1", 16, 2, (2, 1)),
        ("3x3", 16, 2, (1, 2)),
        ("1x1", 16, 1, (1, 1)),  # first of the first stage: projected without a stride
        ("1x1", 32, 1, (1, 1)),
    ],
)
def test_bottleneck_follows_its_formula(stride_in: str, inputs: int, stride: int, strides: tuple[int, int]) -> None:
    torch.manual_seed(0)
    block = scatter_batch_norms(Bottleneck(inputs, 8, stride, stride_in))
    x = torch.randn(2, inputs, 8, 8)
    one, three, last = block.residual
    y = relu(conv_bn(x, one, stride=strides[0]))
    y = conv_bn(relu(conv_bn(y, three, stride=strides[1])), last)
    shortcut = x if inputs == 32 else conv_bn(x, block.shortcut, stride=stride)
    with torch.no_grad():
        torch.testing.assert_close(block(x), relu(y + shortcut))


def test_the_stride_moves_the_function_not_the_tensors() -> None:
    torch.manual_seed(0)
    caffe, usual = Bottleneck(16, 8, 2, "1x1").eval(), Bottleneck(16, 8, 2, "3x3").eval()
    usual.load_state_dict(caffe.state_dict())
    x = torch.randn(1, 16, 8, 8)
    assert not torch.allclose(caffe(x), usual(x))


@pytest.mark.parametrize(("inputs", "stride"), [(8, 1), (4, 2)])
def test_basic_block_follows_its_formula(inputs: int, stride: int) -> None:
    torch.manual_seed(0)
    block = scatter_batch_norms(BasicBlock(inputs, 8, stride))
    x = torch.randn(2, inputs, 8, 8)
    first, second = block.residual
    y = conv_bn(relu(conv_bn(x, first, stride=stride)), second)
    shortcut = x if stride == 1 else conv_bn(x, block.shortcut, stride=stride)
    with torch.no_grad():
        torch.testing.assert_close(block(x), relu(y + shortcut))


@pytest.mark.parametrize(
    ("name", "last_rows"),
    [
        ("resnet18", [2, 4, 6, 7]),  # windows 0-2, 2-4, 4-6, 6-7: no padding, the last one ends outside
        ("resnet50", [2, 4, 6, 7]),
        ("resnet50_standard", [1, 3, 5, 7]),  # windows 0-1, 1-3, 3-5, 5-7
    ],
)
def test_pool_takes_these_windows(name: str, last_rows: list[int]) -> None:
    pool = made_without_data(name).pool
    rows = torch.arange(8.0)[:, None].expand(1, 1, 8, 8)
    assert pool(rows)[0, 0, :, 0].tolist() == last_rows


def test_it_takes_imagenet_statistics() -> None:
    network = ResNet(depths=(1, 1, 1, 1), block="basic").eval()
    crops = torch.rand(1, 3, 32, 32)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = network.stem((crops - mean[:, None, None]) / std[:, None, None])
    network.pool.register_forward_pre_hook(lambda _, given: torch.testing.assert_close(given[0], expected))
    network(crops)


def test_unknown_resnet_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown ResNet 'resnet34'; known: resnet18, resnet50, resnet50_standard"):
        create_resnet("resnet34")
