"""FAN: the face alignment network. 68 landmarks by integral regression, and the feature maps they came from.

Integral regression: Sun et al., "Integral Human Pose Regression", ECCV 2018, arXiv 1711.08229. The trunk is a narrow
MobileFaceNet; its maps are merged top-down to the stride-4 grid, where each landmark has a heatmap.

Legend: B faces, K = 68 landmarks, S side of the crop in pixels, H = W = S / 4 cells of a heatmap.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nkf.geometry import NUM_LANDMARKS
from nkf.models.backbone import Backbone, FeatureMaps
from nkf.models.layers import ConvBN


def soft_argmax(heatmaps: Tensor, crop_size: int) -> Tensor:
    """Expected position under the softmax of each heatmap.

    Args:
        heatmaps: (B, K, H, W) logits over the cells of the crop.
        crop_size: S.

    Returns:
        (B, K, 2) pixels of the crop; a cell stands for its centre.
    """
    height, width = heatmaps.shape[-2:]
    probability = heatmaps.flatten(2).softmax(dim=-1).view_as(heatmaps)
    x = (torch.arange(width, device=heatmaps.device) + 0.5) * (crop_size / width)
    y = (torch.arange(height, device=heatmaps.device) + 0.5) * (crop_size / height)
    return torch.stack([(probability.sum(dim=2) * x).sum(-1), (probability.sum(dim=3) * y).sum(-1)], dim=-1)


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
        self.to_heatmaps = nn.Sequential(SeparableConv(width, 2 * width), nn.Conv2d(2 * width, NUM_LANDMARKS, 1))
        self.channels = dict.fromkeys(backbone.channels, width)

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

    def forward(self, crops: Tensor) -> Tensor:
        """Map (B, 3, S, S) RGB in [0, 1] to landmarks (B, 68, 2) in pixels of the crop."""
        heatmaps = self.to_heatmaps(self.feature_maps(crops)[4])
        return soft_argmax(heatmaps.float(), crops.shape[-1])
