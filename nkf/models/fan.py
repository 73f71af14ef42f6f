"""FAN: the face alignment network. 68 landmarks with their uncertainty, and the feature maps they came from.

Integral regression: Sun et al., "Integral Human Pose Regression", ECCV 2018, arXiv 1711.08229. The trunk is a narrow
MobileFaceNet; its maps are merged top-down to the stride-4 grid, where each landmark has a heatmap, and a map of the
error to be expected if the landmark were there. A second set of heatmaps, for a dense mesh, teaches the shared maps.

Legend: B faces, K = 68 landmarks, V = 478 vertices of the mesh, S side of the crop in pixels, H = W = S / 4 cells.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nkf.geometry import NUM_LANDMARKS, NUM_VERTICES
from nkf.models.backbone import Backbone, FeatureMaps
from nkf.models.layers import ConvBN


class Landmarks(NamedTuple):
    """What the network finds in B crops.

    Attributes:
        points_px: (B, 68, 2) pixels of the crop.
        spread_px: (B, 68) expected distance of each point to the truth, pixels of the crop.
    """

    points_px: Tensor
    spread_px: Tensor


def soft_argmax(probability: Tensor, crop_size: int) -> Tensor:
    """Expected position under each heatmap.

    Args:
        probability: (B, K, H, W) over the cells of the crop, each map sums to 1.
        crop_size: S.

    Returns:
        (B, K, 2) pixels of the crop; a cell stands for its centre.
    """
    height, width = probability.shape[-2:]
    x = (torch.arange(width, device=probability.device) + 0.5) * (crop_size / width)
    y = (torch.arange(height, device=probability.device) + 0.5) * (crop_size / height)
    return torch.stack([(probability.sum(dim=2) * x).sum(-1), (probability.sum(dim=3) * y).sum(-1)], dim=-1)


def spatial_softmax(heatmaps: Tensor) -> Tensor:
    """Softmax over the cells of each map, in float32: (B, K, H, W) to the same shape."""
    return heatmaps.float().flatten(2).softmax(dim=-1).view_as(heatmaps)


class SeparableConv(nn.Sequential):
    """3x3 depth-wise, then 1x1: the cheap way to mix neighbours on the large grid."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            ConvBN(inputs, inputs, kernel=3, groups=inputs, activation="relu6"),
            ConvBN(inputs, outputs, activation="relu6"),
        )


class FAN(nn.Module):
    """Face alignment network.

    Args:
        backbone: trunk with maps at strides 4, 8 and 16.
        width: channels of the merged maps.

    Attributes:
        channels: stride -> channels of `feature_maps`.
    """

    def __init__(self, backbone: Backbone, *, width: int = 96) -> None:
        super().__init__()
        self.backbone = backbone
        self.lateral = nn.ModuleDict({str(s): ConvBN(c, width) for s, c in backbone.channels.items()})
        self.smooth = nn.ModuleDict({str(s): SeparableConv(width, width) for s in backbone.channels})
        self.expand = SeparableConv(width, 2 * width)
        self.to_heatmaps = nn.Conv2d(2 * width, NUM_LANDMARKS, 1)
        self.to_log_spread = nn.Conv2d(2 * width, NUM_LANDMARKS, 1)
        self.to_mesh = nn.Conv2d(2 * width, NUM_VERTICES, 1)
        self.channels = dict.fromkeys(backbone.channels, width)
        # Fresh uncertainties start at e^-3, 5 % of the crop's side, whatever the image.
        nn.init.zeros_(self.to_log_spread.weight)
        nn.init.constant_(_bias(self.to_log_spread), -3.0)

    def feature_maps(self, crops: Tensor) -> FeatureMaps:
        """Map (B, 3, S, S) RGB in [0, 1] to merged maps (B, width, S / stride, S / stride) by stride."""
        maps = self.backbone(crops)
        merged: FeatureMaps = {}
        above: Tensor | None = None
        for stride in sorted(maps, reverse=True):
            x = self.lateral[str(stride)](maps[stride])
            if above is not None:
                x = x + F.interpolate(above, scale_factor=2.0, mode="bilinear", align_corners=False)
            above = merged[stride] = self.smooth[str(stride)](x)
        return merged

    def forward(self, crops: Tensor) -> Landmarks:
        """Find the landmarks of (B, 3, S, S) RGB in [0, 1]."""
        return self._landmarks(self.expand(self.feature_maps(crops)[4]), crops.shape[-1])

    def with_mesh(self, crops: Tensor, vertices: Tensor) -> tuple[Landmarks, Tensor]:
        """The landmarks, and those vertices of the mesh (B, len(vertices), 2) in pixels of the crop; for training."""
        features, size = self.expand(self.feature_maps(crops)[4]), crops.shape[-1]
        heatmaps = F.conv2d(features, self.to_mesh.weight[vertices], _bias(self.to_mesh)[vertices])
        return self._landmarks(features, size), soft_argmax(spatial_softmax(heatmaps), size)

    def _landmarks(self, features: Tensor, crop_size: int) -> Landmarks:
        probability = spatial_softmax(self.to_heatmaps(features))  # (B, K, H, W)
        log_spread = (probability * self.to_log_spread(features)).sum(dim=(2, 3))  # (B, K), of the crop's side
        return Landmarks(soft_argmax(probability, crop_size), log_spread.float().exp() * crop_size)


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias
