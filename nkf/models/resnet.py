"""ResNet: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv 1512.03385, as compared systems
use it.

    crop -> 7x7 conv, stride 2 -> max-pool, stride 2 -> 4 stages of residual blocks -> maps at strides 4, 8, 16, 32

Two kinds of ResNet-50 are in use, with the same tensors and different functions. The Caffe kind (EAC's) halves the size
in a block's first 1x1 convolution and pools without padding; the usual one (EfficientFace's teacher) halves it in the
3x3 convolution and pools with padding.

Legend: B faces, C channels, S side of the crop in pixels.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from nkf.images import IMAGENET_MEAN, IMAGENET_STD
from nkf.models.backbone import Backbone, FeatureMaps
from nkf.models.layers import ConvBN, ImageNormalization

Block = Literal["basic", "bottleneck"]
StrideIn = Literal["1x1", "3x3"]

WIDTHS = (64, 128, 256, 512)  # of the four stages, before the bottleneck's expansion
EXPANSION = 4  # channels that leave a bottleneck over its width


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, plus the (projected) input, ReLU behind the sum."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            ConvBN(inputs, width, kernel=3, stride=stride, activation="relu"), ConvBN(width, width, kernel=3)
        )
        self.shortcut = _shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.residual(x) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution to four times the width, plus the (projected) input, ReLU behind the sum.

    Args:
        inputs: channels that come in.
        width: of the first two convolutions.
        stride: of the block.
        stride_in: convolution that has it.
    """

    def __init__(self, inputs: int, width: int, stride: int, stride_in: StrideIn) -> None:
        super().__init__()
        first, second = (stride, 1) if stride_in == "1x1" else (1, stride)
        self.residual = nn.Sequential(
            ConvBN(inputs, width, stride=first, activation="relu"),
            ConvBN(width, width, kernel=3, stride=second, activation="relu"),
            ConvBN(width, EXPANSION * width),
        )
        self.shortcut = _shortcut(inputs, EXPANSION * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.residual(x) + self.shortcut(x))


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    same = stride == 1 and inputs == outputs
    return nn.Identity() if same else ConvBN(inputs, outputs, stride=stride)


class ResNet(Backbone):
    """Residual network without its classifier; takes ImageNet's mean and std.

    Args:
        depths: blocks in each of the four stages.
        block: of two convolutions or three.
        stride_in: convolution of a bottleneck that halves the size.
        padded_pool: pad the max-pool by one pixel; without, its last windows may end outside (ceil mode). Either way
            a side that is a multiple of 4 becomes a quarter.
    """

    def __init__(
        self, *, depths: Sequence[int], block: Block, stride_in: StrideIn = "3x3", padded_pool: bool = True
    ) -> None:
        super().__init__()
        self.normalize = ImageNormalization(IMAGENET_MEAN, IMAGENET_STD)
        self.stem = ConvBN(3, WIDTHS[0], kernel=7, stride=2, activation="relu")
        self.pool = nn.MaxPool2d(3, 2, padding=1) if padded_pool else nn.MaxPool2d(3, 2, ceil_mode=True)
        self.stages = nn.ModuleList()
        self.channels = {}
        inputs = WIDTHS[0]
        for level, (width, depth) in enumerate(zip(WIDTHS, depths, strict=True)):
            blocks: list[nn.Module] = []
            for number in range(depth):
                stride = 2 if level > 0 and number == 0 else 1
                basic = block == "basic"
                blocks.append(
                    BasicBlock(inputs, width, stride) if basic else Bottleneck(inputs, width, stride, stride_in)
                )
                inputs = width if basic else EXPANSION * width
            self.stages.append(nn.Sequential(*blocks))
            self.channels[4 * 2**level] = inputs
        for module in self.modules():  # as the paper does, after He et al., arXiv 1502.01852
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, crops: Tensor) -> FeatureMaps:
        x = self.pool(self.stem(self.normalize(crops)))  # (B, 64, S/4, S/4)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return dict(zip(self.channels, maps, strict=True))


RESNETS: dict[str, dict[str, Any]] = {
    "resnet18": {"depths": (2, 2, 2, 2), "block": "basic", "padded_pool": False},  # EAC's pool, as its ResNet-50
    "resnet50": {"depths": (3, 4, 6, 3), "block": "bottleneck", "stride_in": "1x1", "padded_pool": False},
    "resnet50_standard": {"depths": (3, 4, 6, 3), "block": "bottleneck"},
}


def create_resnet(name: str) -> ResNet:
    """Build a ResNet with fresh weights: ``resnet18``, ``resnet50`` (of the Caffe kind) or ``resnet50_standard``."""
    if name not in RESNETS:
        raise ValueError(f"unknown ResNet {name!r}; known: {', '.join(RESNETS)}")
    return ResNet(**RESNETS[name])
