"""POSTER++, also called POSTER V2 (Mao et al., "POSTER++: A simpler and stronger facial expression recognition
network", arXiv 2301.12149).

    crop -+-> image trunk, three maps, halved -+-> cross fusion of each level -> tokens of 7 x 7 places, three levels
          +-> landmark trunk, three maps ------+        -> transformer with a class token -> gate -> linear -> logits

Against POSTER, the exchange has one direction, where the landmarks ask and the image answers, and the levels meet
once, in the transformer. No coordinates enter it: what is called landmarks are maps of a frozen landmark network.

Written from the published equations and tables. Where the public code differs from them, or from what one would
expect, this is the code's way: a window covers the whole map, so that a window attention is a global one; queries are
the landmark map as it is, neither projected nor normalised; the residual path carries the *normalised* image map; the
fusion enters with weights of 1e-5, so that a fresh network is nearly the image trunk alone.

Legend: B faces, D width of a level, W side of its map, H heads, N classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nkf.models.face_trunks import TwoTrunks
from nkf.models.poster import LAYER_NORM_EPS, MLP, CrossAttention, Gate, StochasticDepth, map_tokens, split_heads

LEVELS = ((64, 28), (128, 14), (256, 7))  # D, W
HEAD_WIDTH = 32
DROP_RATES = (0.0, 0.125, 0.25)  # of stochastic depth, by level
WIDTH, DEPTH, HEADS = 768, 2, 8  # of the transformer
TOKENS = 1 + 3 * 7 * 7


class PositionBias(nn.Module):
    """A learned number for every head and every offset between two places of a map (Swin: Liu et al., ICCV 2021,
    arXiv 2103.14030)."""

    index: Tensor

    def __init__(self, side: int, heads: int) -> None:
        super().__init__()
        offsets = 2 * side - 1
        self.table = nn.Parameter(nn.init.trunc_normal_(torch.empty(offsets**2, heads), std=0.02))
        y, x = (steps.flatten() for steps in torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"))
        down, right = (steps[:, None] - steps[None] + side - 1 for steps in (y, x))
        self.register_buffer("index", offsets * down + right, persistent=False)  # (W^2, W^2)

    def forward(self) -> Tensor:
        """Bias (H, W^2, W^2) from asking to answering place."""
        return self.table[self.index].permute(2, 0, 1)


class WindowAttention(nn.Module):
    """Cross attention over all places of a map with a position bias; the landmarks ask, the image answers."""

    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        self.attention = CrossAttention(width, width // HEAD_WIDTH)
        self.position_bias = PositionBias(side, width // HEAD_WIDTH)

    def forward(self, landmarks: Tensor, image: Tensor) -> Tensor:
        """Tokens (B, W^2, D) of both to the same shape."""
        attended: Tensor = self.attention(landmarks, image, self.position_bias())
        return attended


class FeedForward(nn.Module):
    """S + g1 A, then plus g2 MLP(norm of it): both residual branches, with a learned weight for every channel."""

    def __init__(self, width: int, drop_rate: float) -> None:
        super().__init__()
        self.attended_scale = nn.Parameter(torch.full((width,), 1e-5))
        self.mlp_scale = nn.Parameter(torch.full((width,), 1e-5))
        self.norm = nn.LayerNorm(width)
        self.mlp = MLP(width, 4)
        self.drop = StochasticDepth(drop_rate)

    def forward(self, image: Tensor, attended: Tensor) -> Tensor:
        """Image tokens S and attended ones A (B, W^2, D) to the same shape."""
        fused = image + self.drop(self.attended_scale * attended)
        fused = fused + self.drop(self.mlp_scale * self.mlp(self.norm(fused)))
        return fused


class Level(nn.Module):
    """Fusion of one pair of maps.

    Args:
        width: D.
        side: W.
        drop_rate: of stochastic depth.
    """

    def __init__(self, width: int, side: int, drop_rate: float) -> None:
        super().__init__()
        self.halve = nn.Conv2d(width, width, 3, 2, 1)
        self.norm = nn.LayerNorm(width)
        self.attention = WindowAttention(width, side)
        self.feed_forward = FeedForward(width, drop_rate)

    def forward(self, image_map: Tensor, landmark_map: Tensor) -> Tensor:
        """Image map (B, D, 2 W, 2 W) and landmark map (B, D, W, W) to a fused map (B, D, W, W)."""
        image = self.norm(map_tokens(self.halve(image_map)))  # (B, W^2, D)
        fused = self.feed_forward(image, self.attention(map_tokens(landmark_map), image))
        return fused.transpose(1, 2).unflatten(2, landmark_map.shape[-2:])


class Block(nn.Module):
    """Transformer block with the norms first (Dosovitskiy et al., ICLR 2021, arXiv 2010.11929)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH, eps=LAYER_NORM_EPS)
        self.to_queries_keys_values = nn.Linear(WIDTH, 3 * WIDTH)
        self.project = nn.Linear(WIDTH, WIDTH)
        self.mlp_norm = nn.LayerNorm(WIDTH, eps=LAYER_NORM_EPS)
        self.mlp = MLP(WIDTH, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T, 768) to the same shape."""
        parts = self.to_queries_keys_values(self.norm(tokens)).chunk(3, dim=-1)
        q, k, v = (split_heads(part, HEADS) for part in parts)
        attended = F.scaled_dot_product_attention(q, k, v)
        tokens = tokens + self.project(attended.transpose(1, 2).flatten(2))
        tokens = tokens + self.mlp(self.mlp_norm(tokens))
        return tokens


class Transformer(nn.Module):
    """Class token and positions, two blocks, norm.

    Args:
        dead_parts: add the layers that are registered and never called.
    """

    def __init__(self, *, dead_parts: bool) -> None:
        super().__init__()
        self.class_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, WIDTH), std=0.02))
        self.position = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, TOKENS, WIDTH), std=0.02))
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH, eps=LAYER_NORM_EPS)
        if dead_parts:
            self.dead = nn.ModuleDict(
                {
                    "patch_embedding": nn.Conv2d(256, WIDTH, 1),
                    "channel_attention": nn.Conv1d(1, 1, 5, bias=False),
                    "pointwise": nn.Conv2d(256, WIDTH, 1, bias=False),
                    "linear_1": nn.Linear(1024, WIDTH),
                    "linear_2": nn.Linear(WIDTH, 512),
                    "token_mixing": nn.ModuleList(nn.Conv1d(TOKENS, TOKENS, 1) for _ in range(DEPTH)),
                }
            )

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T - 1, 768) to the class token (B, 768)."""
        tokens = torch.cat([self.class_token.expand(tokens.shape[0], -1, -1), tokens], dim=1) + self.position
        for block in self.blocks:
            tokens = block(tokens)
        summary: Tensor = self.norm(tokens[:, 0])
        return summary


class POSTERPlusPlus(TwoTrunks):
    """Expression network.

    Args:
        num_classes: N.
        frozen_statistics: see `TwoTrunks`.
        dead_parts: see `TwoTrunks` and `Transformer`.
    """

    def __init__(self, *, num_classes: int, frozen_statistics: bool = True, dead_parts: bool = False) -> None:
        super().__init__(frozen_statistics=frozen_statistics, dead_parts=dead_parts)
        self.landmark_reduce = nn.Conv2d(512, LEVELS[-1][0], 3, 1, 1)
        self.levels = nn.ModuleList(Level(*level, rate) for level, rate in zip(LEVELS, DROP_RATES, strict=True))
        self.embeddings = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(64, WIDTH, 3, 2, 1), nn.Conv2d(WIDTH, WIDTH, 3, 2, 1)),
                nn.Conv2d(128, WIDTH, 3, 2, 1),
                nn.Conv2d(256, WIDTH, 1),
            ]
        )
        self.transformer = Transformer(dead_parts=dead_parts)
        self.gate = Gate(WIDTH)
        self.classifier = nn.Linear(WIDTH, num_classes)
        for part in (self.transformer, self.gate, self.classifier):
            part.apply(_start_narrow)

    def forward(self, crops: Tensor, landmarks_px: Tensor | None = None) -> Tensor:
        """Crops (B, 3, S, S) RGB in [0, 1], S = 112 or a multiple, to logits (B, N).

        Landmarks are taken as by `NKF`, and not used.
        """
        logits: Tensor = self.classifier(self.features(crops, landmarks_px))
        return logits

    def features(self, crops: Tensor, landmarks_px: Tensor | None = None) -> Tensor:
        """The same to the gated class token (B, 768), which the classifier sees."""
        image_maps, landmark_maps = self.trunk_maps(crops)
        landmark_maps = (*landmark_maps[:2], self.landmark_reduce(landmark_maps[2]))
        levels = zip(self.levels, self.embeddings, image_maps, landmark_maps, strict=True)
        tokens = [map_tokens(embed(fuse(image, landmarks))) for fuse, embed, image, landmarks in levels]  # (B, 49, 768)
        gated: Tensor = self.gate(self.transformer(torch.cat(tokens, dim=1)))
        return gated


def _start_narrow(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.01)
        nn.init.zeros_(module.bias)
