"""Keypoint features and the attention over them: the parts that make NKF (So & Han, Sensors 2025, 25(12), 3762).

Published: feature vectors read at the landmarks, landmarks perturbed in training, an attention driven by the features
at the nasal base. The formulas here are our reading where the paper's abstract leaves the form open.

Legend: B faces, K landmarks, C channels, H x W cells of a map, S side of the crop in pixels.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nkf.geometry import NASAL_BASE

AttentionForm = Literal["none", "channel", "spatial"]
Representative = Literal["nasal_base", "nose_tip", "mean", "learned"]
_POINTS = {"nasal_base": NASAL_BASE, "nose_tip": 30}


def sample_keypoints(feature_map: Tensor, landmarks_px: Tensor, crop_size: int) -> Tensor:
    """Read a feature map at the landmarks, bilinearly.

    Args:
        feature_map: (B, C, H, W); cell (i, j) covers the same fraction of the crop at every stride.
        landmarks_px: (B, K, 2) in pixels of the crop; outside the crop the map's edge is repeated.
        crop_size: S.

    Returns:
        (B, K, C) keypoint features.
    """
    grid = (2 * landmarks_px / crop_size - 1).unsqueeze(1)  # (B, 1, K, 2) in [-1, 1]
    sampled = F.grid_sample(feature_map.float(), grid.float(), padding_mode="border", align_corners=False)
    return sampled.squeeze(2).transpose(1, 2)  # (B, C, 1, K) -> (B, K, C)


def perturb_landmarks(
    landmarks_px: Tensor,
    sigma: float,
    crop_size: int,
    *,
    common_sigma: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Move every landmark by Gaussian noise, clipped to the crop: the regularisation of keypoint features.

    Args:
        landmarks_px: (B, 68, 2) in pixels of the crop.
        sigma: standard deviation, independent for each landmark and axis, over the distance of the eye centres.
        common_sigma: the same for one shift common to all landmarks of a face.
        generator: source of randomness on the landmarks' device.
    """
    right_eye, left_eye = landmarks_px[:, 36:42].mean(dim=1), landmarks_px[:, 42:48].mean(dim=1)
    distance = (left_eye - right_eye).norm(dim=-1)[:, None, None]  # (B, 1, 1)
    noise = torch.randn(landmarks_px.shape, generator=generator, device=landmarks_px.device)
    moved = landmarks_px + sigma * distance * noise
    if common_sigma:
        shift = torch.randn(len(landmarks_px), 1, 2, generator=generator, device=landmarks_px.device)
        moved = moved + common_sigma * distance * shift
    return moved.clamp(0, crop_size)


class RKFA(nn.Module):
    """Representative keypoint feature attention.

    A representative vector r (by default the keypoint feature at the nasal base) emphasises all keypoint features:

    * ``channel``: g = sigmoid(W2 relu(W1 r)), KF'_k = KF_k * g;
    * ``spatial``: a = softmax_k(<Wq r, Wk KF_k> / sqrt(d)), KF'_k = KF_k + K a_k Wv KF_k;
    * ``none``: KF'_k = KF_k.
    """

    def __init__(self, channels: int, form: AttentionForm, representative: Representative = "nasal_base") -> None:
        super().__init__()
        if representative not in (*_POINTS, "mean", "learned"):
            known = ", ".join((*_POINTS, "mean", "learned"))
            raise ValueError(f"unknown representative {representative!r}; known: {known}")
        self.form = form
        self.representative = representative
        if representative == "learned":
            self.query = nn.Parameter(torch.zeros(channels))
        if form == "channel":
            self.gate = nn.Sequential(
                nn.Linear(channels, channels // 4), nn.ReLU(), nn.Linear(channels // 4, channels), nn.Sigmoid()
            )
        elif form == "spatial":
            self.to_query = nn.Linear(channels, channels // 4, bias=False)
            self.to_key = nn.Linear(channels, channels // 4, bias=False)
            self.to_value = nn.Linear(channels, channels, bias=False)
        elif form != "none":
            raise ValueError(f"unknown attention form {form!r}; known: none, channel, spatial")

    def forward(self, keypoint_features: Tensor) -> Tensor:
        """Map (B, K, C) keypoint features to emphasised ones of the same shape."""
        if self.form == "none":
            return keypoint_features
        r = self._representative_feature(keypoint_features)  # (B, C)
        if self.form == "channel":
            gated: Tensor = keypoint_features * self.gate(r).unsqueeze(1)
            return gated
        weights = self.attention_weights(keypoint_features, r).unsqueeze(-1)  # (B, K, 1)
        attended: Tensor = keypoint_features + weights * self.to_value(keypoint_features) * keypoint_features.shape[1]
        return attended

    def emphasis(self, keypoint_features: Tensor) -> Tensor:
        """What each keypoint gets of (B, K, C) keypoint features: (B, K), rows sum to 1.

        Of the ``spatial`` form the weights a_k. The gate of ``channel`` is common to all keypoints; what tells them
        apart is the size of what passes it, ||KF'_k|| / sum_j ||KF'_j||, and for ``none`` the same. This is our
        reading, not the paper's: it says how loud a keypoint is, not which expression it speaks for.
        """
        if self.form == "spatial":
            return self.attention_weights(keypoint_features, self._representative_feature(keypoint_features))
        sizes = self(keypoint_features).norm(dim=-1)
        return sizes / sizes.sum(dim=1, keepdim=True)

    def attention_weights(self, keypoint_features: Tensor, r: Tensor) -> Tensor:
        """The weights a_k of the ``spatial`` form: (B, K), rows sum to 1."""
        query = self.to_query(r).unsqueeze(-1)  # (B, d, 1)
        scores = (self.to_key(keypoint_features) @ query).squeeze(-1) / query.shape[1] ** 0.5
        return scores.softmax(dim=1)

    def _representative_feature(self, keypoint_features: Tensor) -> Tensor:
        if self.representative == "mean":
            return keypoint_features.mean(dim=1)
        if self.representative == "learned":
            return self.query.expand(len(keypoint_features), -1)
        return keypoint_features[:, _POINTS[self.representative]]
