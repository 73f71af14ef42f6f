"""The face detector: boxes with five points and a score, from pictures of any size in one pass.

A face is the point at its centre, as in Zhou et al., "Objects as Points", 2019, arXiv 1904.07850, on a grid of stride
8; size and points are read at that cell. The trunk is ours: depth-wise separable blocks to stride 64, since a tight
crop fills the picture, merged top-down to the grid.

Legend: B pictures, H and W sides of the input in pixels (multiples of 64), h = H / 8, w = W / 8 cells, P = 5 points.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nkf.models.layers import ConvBN, ImageNormalization

STRIDE = 8  # pixels of the input for each cell of the grid
MULTIPLE = 64  # both sides of the input
NUM_POINTS = 5
_OUTPUTS = 1 + 4 + 2 * NUM_POINTS  # score, left-top and right-bottom distances, points


class Detections(NamedTuple):
    """What the network says about each cell.

    Attributes:
        scores: (B, h, w) in [0, 1], whether a face has its centre there.
        boxes_px: (B, h, w, 4) xyxy, pixels of the input.
        points_px: (B, h, w, P, 2) in the order of `geometry.five_points`, pixels of the input.
    """

    scores: Tensor
    boxes_px: Tensor
    points_px: Tensor


class SeparableBlock(nn.Module):
    """3x3 depth-wise, 1x1, plus the input where it fits."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1) -> None:
        super().__init__()
        self.dw = ConvBN(inputs, inputs, kernel=3, stride=stride, groups=inputs)
        self.pw = ConvBN(inputs, outputs, activation="relu6")
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.pw(self.dw(x))
        return x + y if self.skip else y


class FaceDetector(nn.Module):
    """Face detector.

    Args:
        widths: channels at strides 2, 4, 8, 16, 32 and 64.
        depths: blocks at strides 4, 8, 16, 32 and 64, the one that halves the size included.
        neck: channels of the merged maps.
        head_depth: blocks on the grid after merging.
    """

    def __init__(
        self,
        *,
        widths: Sequence[int] = (12, 24, 56, 128, 160, 160),
        depths: Sequence[int] = (1, 3, 5, 3, 2),
        neck: int = 56,
        head_depth: int = 3,
    ) -> None:
        super().__init__()
        self.normalize = ImageNormalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
        self.stem = ConvBN(3, widths[0], kernel=3, stride=2, activation="relu6")
        self.stages = nn.ModuleList()
        for before, width, depth in zip(widths, widths[1:], depths, strict=False):
            first = SeparableBlock(before, width, stride=2)
            self.stages.append(nn.Sequential(first, *(SeparableBlock(width, width) for _ in range(depth - 1))))
        self.lateral = nn.ModuleList(ConvBN(width, neck) for width in widths[2:])  # strides 8, 16, 32, 64
        self.smooth = nn.ModuleList(SeparableBlock(neck, neck) for _ in widths[3:])  # strides 8, 16, 32
        self.head = nn.Sequential(*(SeparableBlock(neck, neck) for _ in range(head_depth)))
        self.output = nn.Conv2d(neck, _OUTPUTS, 1)
        # Fresh scores say that one cell in a hundred holds a face, as in Lin et al., arXiv 1708.02002.
        assert self.output.bias is not None
        nn.init.normal_(self.output.weight, std=0.01)
        with torch.no_grad():
            self.output.bias.zero_()
            self.output.bias[0] = -4.6
            self.output.bias[1:5] = 1.5

    def forward(self, images: Tensor) -> Detections:
        """Look at (B, 3, H, W) RGB in [0, 1]."""
        return decode(self.raw_maps(images))

    def raw_maps(self, images: Tensor) -> Tensor:
        """Raw maps (B, 15, h, w) that `decode` reads; for training, whose loss needs the logits in channel 0."""
        x = self.stem(self.normalize(images))  # (B, C, H/2, W/2)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        merged: Tensor | None = None
        for level in reversed(range(len(self.lateral))):
            x = self.lateral[level](maps[1 + level])
            if merged is not None:
                x = self.smooth[level](F.relu6(x + F.interpolate(merged, scale_factor=2.0, mode="nearest")))
            merged = x
        assert merged is not None
        result: Tensor = self.output(self.head(merged))
        return result.float()


def cell_centres(height: int, width: int, device: torch.device) -> Tensor:
    """Centres (height, width, 2) of the cells, pixels of the input."""
    y = (torch.arange(height, device=device) + 0.5) * STRIDE
    x = (torch.arange(width, device=device) + 0.5) * STRIDE
    return torch.stack([x[None, :].expand(height, width), y[:, None].expand(height, width)], dim=-1)


def decode(output: Tensor) -> Detections:
    """Turn the raw maps (B, 15, h, w) into what they mean.

    The first is the score's logit. The distances from the cell's centre to the box's sides are exponentials, in cells;
    the points are in units of the box's sides from the box's centre.
    """
    output = output.permute(0, 2, 3, 1)  # (B, h, w, 15)
    centres = cell_centres(output.shape[1], output.shape[2], output.device)
    distance = output[..., 1:5].clamp(max=6).exp() * STRIDE
    low, high = centres - distance[..., :2], centres + distance[..., 2:]
    middle, size = ((low + high) / 2)[..., None, :], (high - low)[..., None, :]
    points = middle + output[..., 5:].reshape(*output.shape[:3], NUM_POINTS, 2) * size
    return Detections(output[..., 0].sigmoid(), torch.cat([low, high], dim=-1), points)
