"""Backbones: face crop -> feature maps at strides 4, 8 and 16.

MobileFaceNet: Chen et al., "MobileFaceNets", CCBR 2018, arXiv 1804.07573. IR: the improved residual units of
ArcFace, Deng et al., CVPR 2019, arXiv 1801.07698, without squeeze-excitation. Both written from their papers and
layer tables; no embedding layers, since expression needs the maps.

Legend: B faces, C channels, S side of the crop in pixels.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from nkf.images import IMAGENET_MEAN, IMAGENET_STD
from nkf.models.layers import Activation, ConvBN, DepthwiseBlock, ImageNormalization, PReLU

FeatureMaps = dict[int, Tensor]  # stride -> (B, C, S / stride, S / stride)


class Backbone(nn.Module):
    """What NKF needs of a backbone.

    Attributes:
        channels: stride -> number of channels of the map at that stride.
    """

    channels: dict[int, int]

    def forward(self, crops: Tensor) -> FeatureMaps:
        """Map (B, 3, S, S) RGB in [0, 1] to feature maps by stride."""
        raise NotImplementedError


class MobileFaceNet(Backbone):
    """Depth-wise separable face trunk: stem, then three stages that each halve the size.

    Args:
        widths: channels of the stem and of the three stages.
        hidden: channels inside the three down-sampling blocks.
        expansion: hidden channels of a residual block over its width.
        depths: residual blocks in each stage.
        last: channels after the closing 1x1 convolution.
        stem_pointwise: add a 1x1 convolution to the stem.
    """

    def __init__(
        self,
        *,
        widths: Sequence[int],
        hidden: Sequence[int],
        expansion: int,
        depths: Sequence[int],
        last: int,
        activation: Activation,
        stem_pointwise: bool,
        normalization: ImageNormalization,
    ) -> None:
        super().__init__()
        stem, *stage_widths = widths
        self.normalize = normalization
        self.stem = ConvBN(3, stem, kernel=3, stride=2, activation=activation)
        self.stem_dw = ConvBN(stem, stem, kernel=3, groups=stem, activation=activation)
        self.stem_pw = ConvBN(stem, stem, activation=activation) if stem_pointwise else nn.Identity()
        self.stages = nn.ModuleList()
        for before, width, middle, depth in zip(widths, stage_widths, hidden, depths, strict=False):
            blocks = [DepthwiseBlock(before, middle, width, stride=2, activation=activation)]
            blocks += [
                DepthwiseBlock(width, expansion * width, width, stride=1, activation=activation) for _ in range(depth)
            ]
            self.stages.append(nn.Sequential(*blocks))
        self.head_conv = ConvBN(stage_widths[-1], last, activation=activation)
        self.channels = {4: stage_widths[0], 8: stage_widths[1], 16: last}

    def forward(self, crops: Tensor) -> FeatureMaps:
        x = self.stem_pw(self.stem_dw(self.stem(self.normalize(crops))))  # (B, C, S/2, S/2)
        f4 = self.stages[0](x)
        f8 = self.stages[1](f4)
        f16 = self.head_conv(self.stages[2](f8))
        return {4: f4, 8: f8, 16: f16}


class ResidualUnit(nn.Module):
    """BN - conv 3x3 - BN - PReLU - conv 3x3 with the stride - BN, plus the (sub-sampled or projected) input.

    Args:
        inputs: channels.
        outputs: channels.
        stride: of the second convolution.
        inner_norm: the batch norm between the convolutions, which not all networks of this kind have.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, *, inner_norm: bool = True) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False),
            *([nn.BatchNorm2d(outputs)] if inner_norm else []),
            PReLU(outputs),
            nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.MaxPool2d(1, stride) if inputs == outputs else ConvBN(inputs, outputs, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.residual(x) + self.shortcut(x)
        return y


class IR(Backbone):
    """Improved residual network: a stem, then stages that each halve the size; the last three give the maps.

    Args:
        widths: channels of the stem and of each stage.
        depths: units in each stage, for example 2-2-2-2 (IR-18) or 3-4-14-3 (IR-50).
        stem_stride: 1 before four stages, 2 before three.
    """

    def __init__(
        self, *, widths: Sequence[int], depths: Sequence[int], stem_stride: int = 1, normalization: ImageNormalization
    ) -> None:
        super().__init__()
        self.normalize = normalization
        self.stem = ConvBN(3, widths[0], kernel=3, stride=stem_stride, activation="prelu")
        self.stages = nn.ModuleList()
        for before, width, depth in zip(widths, widths[1:], depths, strict=False):
            units = [ResidualUnit(before if n == 0 else width, width, stride=2 if n == 0 else 1) for n in range(depth)]
            self.stages.append(nn.Sequential(*units))
        self.channels = dict(zip((4, 8, 16), widths[-3:], strict=True))

    def forward(self, crops: Tensor) -> FeatureMaps:
        x = self.stem(self.normalize(crops))
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return dict(zip((4, 8, 16), maps[-3:], strict=True))


HALF = (0.5, 0.5, 0.5)

_MOBILE: dict[str, Any] = {
    "widths": (128, 128, 256, 256), "hidden": (128, 256, 512), "expansion": 1, "depths": (4, 6, 2), "last": 512,
    "activation": "prelu", "stem_pointwise": False,
}  # fmt: skip
_MOBILE_NARROW: dict[str, Any] = {
    "widths": (64, 64, 128, 128), "hidden": (128, 256, 512), "expansion": 2, "depths": (4, 6, 2), "last": 512,
    "activation": "relu6", "stem_pointwise": True,
}  # fmt: skip


def create_backbone(name: str) -> Backbone:
    """Build a backbone with fresh weights.

    Args:
        name: ``tiny`` (tests, CPU ablations, 64x64 crops), ``mobile`` (the default size), ``mobile_narrow`` (the face
            alignment network's trunk), ``base`` (IR-18) or ``large`` (IR-50).
    """
    half = ImageNormalization(HALF, HALF)
    if name == "tiny":
        return IR(widths=(16, 32, 64, 96), depths=(1, 1, 1), stem_stride=2, normalization=half)
    if name == "mobile":
        return MobileFaceNet(**_MOBILE, normalization=half)
    if name == "mobile_narrow":
        return MobileFaceNet(**_MOBILE_NARROW, normalization=ImageNormalization(IMAGENET_MEAN, IMAGENET_STD))
    if name == "base":
        return IR(widths=(64, 64, 128, 256, 512), depths=(2, 2, 2, 2), normalization=half)
    if name == "large":
        return IR(widths=(64, 64, 128, 256, 512), depths=(3, 4, 14, 3), normalization=half)
    raise ValueError(f"unknown backbone {name!r}; known: tiny, mobile, mobile_narrow, base, large")
