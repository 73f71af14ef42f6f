"""NKF: a simple network around keypoint features (So & Han, "Facial Landmark-Driven Keypoint Feature Extraction for
Robust Facial Expression Recognition", Sensors 2025, 25(12), 3762, doi 10.3390/s25123762).

    crop -> backbone -> maps -> keypoint features -> RKFA -> reduced, flattened -+-> batch norm, dropout, linear
                           +--> global average of the last map ------------------+

Legend: B faces, K = 68 landmarks, C channels, S side of the crop in pixels, N classes.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nkf.geometry import NUM_LANDMARKS
from nkf.models.backbone import Backbone, FeatureMaps
from nkf.models.fan import FAN
from nkf.models.keypoints import RKFA, AttentionForm, Representative, perturb_landmarks, sample_keypoints

FAN_CROP_SIZE = 112  # that FAN is trained at


class KeypointFeatures(nn.Module):
    """Read one or several maps at the landmarks, project each to its share of the channels, concatenate, batch norm.

    The 1x1 projection commutes with bilinear sampling, so it runs on K points instead of H x W cells.
    """

    def __init__(self, map_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        share = channels // len(map_channels)
        self.projections = nn.ModuleList(nn.Linear(c, share, bias=False) for c in map_channels)
        self.channels = share * len(map_channels)
        self.norm = nn.BatchNorm1d(self.channels)

    def forward(self, maps: Sequence[Tensor], landmarks_px: Tensor, crop_size: int) -> Tensor:
        """Maps (B, C_i, H_i, W_i) and landmarks (B, K, 2) to keypoint features (B, K, C)."""
        parts = [
            project(sample_keypoints(feature_map, landmarks_px, crop_size))
            for project, feature_map in zip(self.projections, maps, strict=True)
        ]
        features = torch.cat(parts, dim=-1)
        normed: Tensor = self.norm(features.transpose(1, 2)).transpose(1, 2)
        return normed


class Head(nn.Module):
    """z = [global feature; linear of the flattened keypoint features], batch norm, dropout, linear to the classes."""

    def __init__(self, global_channels: int, keypoint_channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        width, hidden = 16, 256
        self.reduce = nn.Linear(keypoint_channels, width) if keypoint_channels else None
        self.aggregate = nn.Linear(NUM_LANDMARKS * width, hidden) if keypoint_channels else None
        total = global_channels + (hidden if keypoint_channels else 0)
        self.norm = nn.BatchNorm1d(total)
        self.dropout = nn.Dropout(dropout)
        self.classify = nn.Linear(total, num_classes)

    def features(self, global_feature: Tensor, keypoint_features: Tensor | None) -> Tensor:
        """(B, G) and (B, K, C) to z (B, Z) behind its batch norm."""
        z = global_feature
        if self.reduce is not None and self.aggregate is not None:
            assert keypoint_features is not None
            z = torch.cat([z, self.aggregate(self.reduce(keypoint_features).flatten(1))], dim=1)
        normed: Tensor = self.norm(z)
        return normed

    def forward(self, z: Tensor) -> Tensor:
        """What `features` gives, (B, Z), to logits (B, N)."""
        logits: Tensor = self.classify(self.dropout(z))
        return logits


class NKF(nn.Module):
    """Expression network.

    Args:
        backbone: any `Backbone`.
        num_classes: N.
        strides: of the maps to read keypoint features from; empty for the global feature alone.
        read_backbone: read the backbone's maps; without, FAN's alone.
        fan: frozen face alignment network whose maps at the same strides are read too, or None.
        keypoint_channels: C of the keypoint features, shared evenly by their sources (and rounded down to that).
        attention: form of RKFA.
        representative: what drives RKFA.
        sigma: landmark perturbation in training, over the distance of the eye centres.
        common_sigma: the same, of one shift common to all landmarks of a face.
        dropout: before the classifier.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        num_classes: int,
        strides: Sequence[int] = (8,),
        read_backbone: bool = True,
        fan: FAN | None = None,
        keypoint_channels: int = 256,
        attention: AttentionForm = "channel",
        representative: Representative = "nasal_base",
        sigma: float = 0.05,
        common_sigma: float = 0.0,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.strides = tuple(strides)
        self.sigma, self.common_sigma = sigma, common_sigma
        self.read_backbone = read_backbone
        self.fan = fan
        networks: list[Backbone | FAN] = [backbone] if read_backbone else []
        if fan is not None:
            networks.append(fan.requires_grad_(False))
        sources = [network.channels[stride] for network in networks for stride in strides]
        self.keypoint_features = KeypointFeatures(sources, keypoint_channels) if sources else None
        channels = 0 if self.keypoint_features is None else self.keypoint_features.channels
        self.rkfa = RKFA(channels, attention, representative) if sources else None
        self.head = Head(backbone.channels[16], channels, num_classes, dropout)

    @property
    def has_keypoints(self) -> bool:
        """Whether keypoint features are read, else the global feature alone is."""
        return self.keypoint_features is not None

    @property
    def classifier(self) -> nn.Linear:
        """The last layer: its weight and bias have a row for each class."""
        return self.head.classify

    def train(self, mode: bool = True) -> "NKF":
        """Switch the mode of all but FAN, which stays frozen."""
        super().train(mode)
        if self.fan is not None:
            self.fan.eval()
        return self

    def forward(self, crops: Tensor, landmarks_px: Tensor) -> Tensor:
        """Crops (B, 3, S, S) RGB in [0, 1] and landmarks (B, 68, 2) in crop pixels to logits (B, N)."""
        logits: Tensor = self.head(self.features(crops, landmarks_px))
        return logits

    def with_attention(self, crops: Tensor, landmarks_px: Tensor) -> tuple[Tensor, Tensor]:
        """The same to logits (B, N) and what each keypoint gets (B, 68), see `RKFA.emphasis`.

        Only for networks with `has_keypoints`.
        """
        global_feature, keypoint_features = self._read(crops, landmarks_px)
        assert keypoint_features is not None
        assert self.rkfa is not None
        logits = self.head(self.head.features(global_feature, self.rkfa(keypoint_features)))
        return logits, self.rkfa.emphasis(keypoint_features)

    def features(self, crops: Tensor, landmarks_px: Tensor) -> Tensor:
        """The same to z (B, Z), which the classifier sees."""
        global_feature, keypoint_features = self._read(crops, landmarks_px)
        if keypoint_features is not None and self.rkfa is not None:
            keypoint_features = self.rkfa(keypoint_features)
        return self.head.features(global_feature, keypoint_features)

    def _read(self, crops: Tensor, landmarks_px: Tensor) -> tuple[Tensor, Tensor | None]:
        """The global feature (B, G), and the keypoint features (B, K, C) before the attention."""
        maps = self.backbone(crops)
        global_feature = maps[16].mean(dim=(2, 3))
        if self.keypoint_features is None:
            return global_feature, None
        crop_size = crops.shape[-1]
        if self.training:
            landmarks_px = perturb_landmarks(landmarks_px, self.sigma, crop_size, common_sigma=self.common_sigma)
        sources = [maps[s] for s in self.strides] if self.read_backbone else []
        sources += self._fan_maps(crops)
        return global_feature, self.keypoint_features(sources, landmarks_px, crop_size)

    def _fan_maps(self, crops: Tensor) -> list[Tensor]:
        if self.fan is None:
            return []
        if crops.shape[-1] < FAN_CROP_SIZE:  # smaller faces than FAN was trained on are enlarged for it
            crops = F.interpolate(crops, size=(FAN_CROP_SIZE,) * 2, mode="bilinear", align_corners=False)
        with torch.no_grad():
            maps: FeatureMaps = self.fan.feature_maps(crops)
        return [maps[s] for s in self.strides]
