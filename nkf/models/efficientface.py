"""EfficientFace: Zhao, Liu and Zhou, "Robust Lightweight Facial Expression Recognition Network with Label Distribution
Training", AAAI 2021.

    crop -> conv, pool -+-> stage 2 -> modulator -+- sum -> stages 3, 4 -> 1x1 conv -> global average -> linear
                        +-> local extractor ------+

A ShuffleNet V2 (Ma et al., ECCV 2018, arXiv 1807.11164) with two additions: the local extractor sees each quadrant of
the face by itself, and the modulator weighs channels and places of the whole. It is trained on what a teacher says of
the same crop (`nkf.losses.label_distribution_loss`), not on labels; the teacher is `nkf.models.eac.EAC` with the trunk
``resnet50_standard``, trained on the same data before.

We follow the public code: 29 channels leave the first convolution where ShuffleNet V2 has 24, so that a grouped
convolution makes the 116 of stage 2 of them; the modulator multiplies channel and spatial weights under one sigmoid;
images are normalised by their data set's statistics. There the teacher's images are too; ours keeps its own mean and
std.

Legend: B faces, C channels, S side of the crop in pixels, N classes.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from nkf.models.backbone import HALF
from nkf.models.layers import ConvBN, ImageNormalization

Statistics = Literal["rafdb", "affectnet", "caers", "half"]
RGB = tuple[float, float, float]

STATISTICS: dict[str, tuple[RGB, RGB]] = {  # mean and std
    "rafdb": ((0.57535914, 0.44928582, 0.40079932), (0.20735591, 0.18981615, 0.18132027)),
    "affectnet": ((0.55391484, 0.43522123, 0.3821877), (0.24837189, 0.21625527, 0.20221159)),
    "caers": ((0.35964426, 0.22359873, 0.19040863), (0.15188067, 0.11678473, 0.1103445)),
    "half": (HALF, HALF),
}
STEM, WIDTHS, LAST = 29, (116, 232, 464), 1024  # channels behind the first convolution, the stages, the last one
REDUCTION = 16  # channels over the modulator's width
MULTIPLE = 16  # of which the crop's side has to be one, for quadrants of whole cells


class ShuffleUnit(nn.Module):
    """Half of the channels pass through 1x1, 3x3 depth-wise and 1x1 convolution; then the halves are interleaved.

    At stride 1 the other half is left as it is. At stride 2 there are no halves: both branches get all of the input,
    and the second one is 3x3 depth-wise and 1x1.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half = outputs // 2
        self.stride = stride
        self.residual = nn.Sequential(
            ConvBN(inputs if stride == 2 else half, half, activation="relu"),
            ConvBN(half, half, kernel=3, stride=stride, groups=half),
            ConvBN(half, half, activation="relu"),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride == 2:
            self.shortcut = nn.Sequential(
                ConvBN(inputs, inputs, kernel=3, stride=2, groups=inputs), ConvBN(inputs, half, activation="relu")
            )

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = (x, x) if self.stride == 2 else x.chunk(2, dim=1)
        joined = torch.stack([self.shortcut(kept), self.residual(changed)], dim=2)  # (B, C/2, 2, h, w)
        return joined.flatten(1, 2)  # (B, C, h, w), one channel of each in turn


class LocalExtractor(nn.Module):
    """Two grouped convolutions for each quadrant of the map, which see nothing of the other three; halves the size."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.quadrants = nn.ModuleList(
            nn.Sequential(
                ConvBN(inputs, outputs, kernel=3, stride=2, groups=inputs, activation="relu"),
                ConvBN(outputs, outputs, kernel=3, groups=outputs, activation="relu"),
            )
            for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, 4n, 4n) to (B, C', 2n, 2n)."""
        parts = [part for rows in x.chunk(2, dim=2) for part in rows.chunk(2, dim=3)]  # each (B, C, 2n, 2n)
        parts = [extract(part) for extract, part in zip(self.quadrants, parts, strict=True)]
        return torch.cat([torch.cat(parts[:2], dim=3), torch.cat(parts[2:], dim=3)], dim=2)


class Modulator(nn.Module):
    """x times the sigmoid of (channel weights times spatial weights)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        width = channels // REDUCTION
        self.channel = nn.Sequential(
            nn.Linear(channels, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, channels)
        )
        self.spatial = nn.Sequential(
            *_conv_with_bias(channels, width, kernel=1, dilation=1),
            *_conv_with_bias(width, width, kernel=3, dilation=4),
            *_conv_with_bias(width, width, kernel=3, dilation=4),
            nn.Conv2d(width, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to the same shape."""
        channel = self.channel(x.mean(dim=(2, 3)))[:, :, None, None]  # (B, C, 1, 1)
        return x * torch.sigmoid(channel * self.spatial(x))


def _conv_with_bias(inputs: int, outputs: int, *, kernel: int, dilation: int) -> tuple[nn.Module, ...]:
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation)
    return conv, nn.BatchNorm2d(outputs), nn.ReLU()


class EfficientFace(nn.Module):
    """Expression network. It takes no notice of landmarks.

    Args:
        num_classes: N.
        statistics: mean and std of RAF-DB, AffectNet or CAER-S as published, or 0.5 for all other data, FERPlus among
            them, of which none are.
    """

    def __init__(self, *, num_classes: int, statistics: Statistics = "half") -> None:
        super().__init__()
        if statistics not in STATISTICS:
            raise ValueError(f"unknown statistics {statistics!r}; known: {', '.join(STATISTICS)}")
        self.normalize = ImageNormalization(*STATISTICS[statistics])
        self.stem = ConvBN(3, STEM, kernel=3, stride=2, activation="relu")
        self.pool = nn.MaxPool2d(3, 2, padding=1)
        self.stage2 = _stage(STEM, WIDTHS[0], depth=4)
        self.local = LocalExtractor(STEM, WIDTHS[0])
        self.modulator = Modulator(WIDTHS[0])
        self.stage3 = _stage(WIDTHS[0], WIDTHS[1], depth=8)
        self.stage4 = _stage(WIDTHS[1], WIDTHS[2], depth=4)
        self.last = ConvBN(WIDTHS[2], LAST, activation="relu")
        self.classifier = nn.Linear(LAST, num_classes)

    def forward(self, crops: Tensor, landmarks_px: Tensor | None = None) -> Tensor:
        """Crops (B, 3, S, S) RGB in [0, 1], S a multiple of 16, to logits (B, N)."""
        logits: Tensor = self.classifier(self.features(crops))
        return logits

    def features(self, crops: Tensor, landmarks_px: Tensor | None = None) -> Tensor:
        """The same to the global feature (B, 1024), which the classifier sees."""
        if crops.shape[-1] % MULTIPLE or crops.shape[-2] % MULTIPLE:
            raise ValueError(f"crops of {tuple(crops.shape[-2:])} pixels: sides have to be multiples of {MULTIPLE}")
        x = self.pool(self.stem(self.normalize(crops)))  # (B, 29, S/4, S/4)
        x = self.modulator(self.stage2(x)) + self.local(x)  # (B, 116, S/8, S/8)
        return self.last(self.stage4(self.stage3(x))).mean(dim=(2, 3))


def _stage(inputs: int, outputs: int, *, depth: int) -> nn.Sequential:
    """`depth` shuffle units; the first halves the size."""
    first = ShuffleUnit(inputs, outputs, stride=2)
    return nn.Sequential(first, *(ShuffleUnit(outputs, outputs, stride=1) for _ in range(depth - 1)))
