"""POSTER (Zheng, Mendieta & Chen, "POSTER: A Pyramid Cross-Fusion Transformer Network for Facial Expression
Recognition", ICCV workshops 2023, arXiv 2204.04083).

    crop -+-> image trunk, last map ----> 49 tokens, linear -+
          |                                                  +-> pyramid of cross fusions -> image summary -> gate
          +-> landmark trunk, last map -> 49 tokens ---------+                                    -> linear -> logits

No coordinates enter it: what is called landmarks is the last feature map of a frozen landmark network.

Written from the published equations and tables. Where the public code differs from them, or from what one would
expect, this is the code's way: tokens of the image are not places (`image_tokens`); queries are not projected; the
summary token of a stream is the mean of the others, and the learned one is never used; the learned mixing of all
tokens exists in the model for RAF-DB and not in that for AffectNet. There, the landmark half of the last layer's large
fusion runs without effect; it is kept.

Legend: B faces, D width of a scale, T = 50 tokens of a stream (a summary and 7 x 7), H heads, N classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nkf.models.face_trunks import TwoTrunks

TOKENS = 50
WIDTHS = (512, 256, 128)  # of the three scales
HEADS = 8
LAYER_NORM_EPS = 1e-6


def image_tokens(feature_map: Tensor) -> Tensor:
    """Map (B, 256, 14, 14) to 49 tokens (B, 49, 1024).

    Token t is the run of numbers 1024 t to 1024 t + 1023 of the map in channel-major order, about five whole channels:
    no cut into 2 x 2 places, which would have the same shape.
    """
    return feature_map.reshape(feature_map.shape[0], TOKENS - 1, -1)


def map_tokens(feature_map: Tensor) -> Tensor:
    """Map (B, C, H, W) to a token for every place, row by row: (B, H W, C)."""
    return feature_map.flatten(2).transpose(1, 2)


class StochasticDepth(nn.Module):
    """Drop a residual branch for some faces in training (Huang et al., ECCV 2016, arXiv 1603.09382)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return branch
        kept = torch.rand(len(branch), 1, 1, device=branch.device) >= self.rate
        return branch * kept / (1 - self.rate)


class MLP(nn.Sequential):
    """Linear to `ratio` times the width, GELU, linear back."""

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__(nn.Linear(width, ratio * width), nn.GELU(), nn.Linear(ratio * width, width))


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """(B, T, D) to (B, H, T, D / H)."""
    split: Tensor = tokens.unflatten(-1, (heads, -1))  # type: ignore[no-untyped-call]
    return split.transpose(1, 2)


class CrossAttention(nn.Module):
    """softmax(Q K^T / sqrt(D / H) + bias) V and a linear, where one stream asks with its tokens as they are.

    Args:
        width: D.
        heads: H.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_keys_values = nn.Linear(width, 2 * width)
        self.project = nn.Linear(width, width)

    def forward(self, queries: Tensor, source: Tensor, bias: Tensor | None = None) -> Tensor:
        """Queries and source (B, T, D), bias (H, T, T), to (B, T, D)."""
        keys, values = self.to_keys_values(source).chunk(2, dim=-1)
        q, k, v = (split_heads(x, self.heads) for x in (queries, keys, values))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        projected: Tensor = self.project(attended.transpose(1, 2).flatten(2))
        return projected


class Stream(nn.Module):
    """One half of a cross fusion: a stream receives what the other one asks of it."""

    def __init__(self, width: int, drop_rate: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.attention = CrossAttention(width, HEADS)
        self.mlp_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mlp = MLP(width, 2)
        self.drop = StochasticDepth(drop_rate)

    def forward(self, own: Tensor, other: Tensor) -> Tensor:
        """Own and other tokens (B, T, D) to own ones."""
        own = own + self.drop(self.attention(self.norm(other), self.norm(own)))
        own = own + self.drop(self.mlp(self.mlp_norm(own)))
        return own


class CrossFusion(nn.Module):
    """Image and landmark stream exchange, both from what they were before; then all 100 tokens are mixed."""

    def __init__(self, width: int, drop_rate: float, *, token_mixing: bool) -> None:
        super().__init__()
        self.image = Stream(width, drop_rate)
        self.landmarks = Stream(width, drop_rate)
        self.mix = nn.Conv1d(2 * TOKENS, 2 * TOKENS, 1) if token_mixing else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, 2 T, D), image first, to the same shape."""
        image, landmarks = tokens.chunk(2, dim=1)
        exchanged = torch.cat([self.image(image, landmarks), self.landmarks(landmarks, image)], dim=1)
        mixed: Tensor = self.mix(exchanged)
        return mixed


class PyramidLayer(nn.Module):
    """A cross fusion at every scale, then the smaller scales are added to the larger ones."""

    def __init__(self, drop_rate: float, *, token_mixing: bool) -> None:
        super().__init__()
        self.large, self.medium, self.small = (
            CrossFusion(width, drop_rate, token_mixing=token_mixing) for width in WIDTHS
        )
        self.small_to_medium = nn.ConvTranspose1d(2 * TOKENS, 2 * TOKENS, 2, 2)
        self.medium_to_large = nn.ConvTranspose1d(2 * TOKENS, 2 * TOKENS, 2, 2)

    def forward(self, large: Tensor, medium: Tensor, small: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (B, 2 T, D) of the three scales to the same shapes."""
        large, medium, small = self.large(large), self.medium(medium), self.small(small)
        medium = medium + self.small_to_medium(small)
        large = large + self.medium_to_large(medium)
        return large, medium, small


class Pyramid(nn.Module):
    """The cross-fusion transformer at three scales.

    The scales differ in the width of the tokens, not in their number: the convolutions between them have the 100
    tokens as channels and slide along the features.

    Args:
        depth: layers.
        token_mixing: as in `CrossFusion`.
        drop_rate: of stochastic depth in the last layer; it rises evenly from 0 in the first.
        dead_parts: add the learned summary token that is never used.
    """

    def __init__(self, depth: int, *, token_mixing: bool, drop_rate: float, dead_parts: bool) -> None:
        super().__init__()
        width, tokens = WIDTHS[0], 2 * TOKENS
        self.position = nn.Parameter(torch.zeros(1, TOKENS, width))
        if dead_parts:
            self.dead_summary = nn.Parameter(torch.zeros(1, 1, width))
        self.to_medium = nn.Conv1d(tokens, tokens, 2, 2)
        self.to_small = nn.Conv1d(tokens, tokens, 4, 4)
        rates = [drop_rate * layer / max(depth - 1, 1) for layer in range(depth)]
        self.layers = nn.ModuleList(PyramidLayer(rate, token_mixing=token_mixing) for rate in rates)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)

    def forward(self, image: Tensor, landmarks: Tensor) -> Tensor:
        """Tokens (B, 49, 512) of both streams to the image's summary (B, 512)."""
        streams = [with_summary(image) + self.position, with_summary(landmarks)]
        large = torch.cat(streams, dim=1)  # (B, 2 T, 512)
        scales = large, self.to_medium(large), self.to_small(large)
        for layer in self.layers:
            scales = layer(*scales)
        summary: Tensor = self.norm(scales[0][:, 0])
        return summary


def with_summary(tokens: Tensor) -> Tensor:
    """Put the mean of the tokens (B, T - 1, D) in front of them."""
    return torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)


class Gate(nn.Module):
    """y * sigmoid(W2 relu(W1 y)): squeeze and excitation of a vector, without a reduction."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weigh = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.Sigmoid())

    def forward(self, y: Tensor) -> Tensor:
        gated: Tensor = y * self.weigh(y)
        return gated


class POSTER(TwoTrunks):
    """Expression network.

    Args:
        num_classes: N.
        depth: layers of the pyramid: 4 (small), 6 (base), 8 (large, the published one).
        token_mixing: mix the tokens after each cross fusion, as for RAF-DB; False as for AffectNet.
        drop_rate: of stochastic depth in the last layer.
        frozen_statistics: see `TwoTrunks`.
        dead_parts: see `TwoTrunks`; here an unused summary token too.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        depth: int = 8,
        token_mixing: bool = True,
        drop_rate: float = 0.1,
        frozen_statistics: bool = True,
        dead_parts: bool = False,
    ) -> None:
        super().__init__(frozen_statistics=frozen_statistics, dead_parts=dead_parts)
        width = WIDTHS[0]
        self.image_embedding = nn.Linear(1024, width)
        self.fusion = Pyramid(depth, token_mixing=token_mixing, drop_rate=drop_rate, dead_parts=dead_parts)
        self.gate = Gate(width)
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, crops: Tensor, landmarks_px: Tensor | None = None) -> Tensor:
        """Crops (B, 3, S, S) RGB in [0, 1], S = 112 or a multiple, to logits (B, N).

        Landmarks are taken as by `NKF`, and not used.
        """
        logits: Tensor = self.classifier(self.features(crops, landmarks_px))
        return logits

    def features(self, crops: Tensor, landmarks_px: Tensor | None = None) -> Tensor:
        """The same to the gated summary (B, 512), which the classifier sees."""
        image_maps, landmark_maps = self.trunk_maps(crops)
        image = self.image_embedding(image_tokens(image_maps[-1]))  # (B, 49, 512)
        gated: Tensor = self.gate(self.fusion(image, map_tokens(landmark_maps[-1])))
        return gated
