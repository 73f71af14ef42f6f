"""The two trunks that POSTER and POSTER++ share: what the face looks like, and where its landmarks are.

Image trunk: the IR-50 of ArcFace (Deng et al., CVPR 2019, arXiv 1801.07698) without its fourth stage. Its units
differ from those of our own backbones: there is no batch norm between their two convolutions. Landmark trunk: a
MobileFaceNet (Chen et al., CCBR 2018, arXiv 1804.07573) that was trained to find 68 landmarks. The published code
starts both from weights that others trained; here the first starts fresh, and the second from a `LandmarkRegressor`.

    crop -> every second pixel, where it is 224 wide -+-> image trunk:     64 x 56 x 56, 128 x 28 x 28, 256 x 14 x 14
                                                      +-> landmark trunk:  64 x 28 x 28, 128 x 14 x 14, 512 x 7 x 7

Legend: B faces, C channels, K = 68 landmarks, S side of the crop in pixels.
"""

from functools import partial
from typing import Self

import torch
from torch import Tensor, nn

from nkf.geometry import MEAN_SHAPE, NUM_LANDMARKS
from nkf.images import IMAGENET_MEAN, IMAGENET_STD
from nkf.models.backbone import MobileFaceNet, ResidualUnit
from nkf.models.layers import ConvBN, ImageNormalization

_unit = partial(ResidualUnit, inner_norm=False)
TRUNK_SIZE = 112  # pixels of the side that both trunks see
ThreeMaps = tuple[Tensor, Tensor, Tensor]


def to_trunk_size(crops: Tensor) -> Tensor:
    """Bring crops (B, 3, S, S) to 112 x 112 by nearest neighbour, which takes every (S / 112)-th pixel from the first.

    Raises:
        ValueError: when S is no multiple of 112.
    """
    height, width = crops.shape[-2:]
    if height != width or height % TRUNK_SIZE:
        raise ValueError(f"crops of {height}x{width} pixels; their side has to be 112, or a multiple as 224")
    step = height // TRUNK_SIZE
    return crops[:, :, ::step, ::step] if step > 1 else crops


class ImageTrunk(nn.Module):
    """IR-50 cut after its third stage: 3, 4 and 14 units.

    Args:
        dead_tail: add the embedding layers of the uncut network, which are never called.
    """

    def __init__(self, *, dead_tail: bool = False) -> None:
        super().__init__()
        self.stem = ConvBN(3, 64, kernel=3, activation="prelu")
        self.stages = nn.ModuleList(
            nn.Sequential(_unit(before, width, 2), *(_unit(width, width, 1) for _ in range(depth - 1)))
            for before, width, depth in ((64, 64, 3), (64, 128, 4), (128, 256, 14))
        )
        if dead_tail:
            self.dead_tail = nn.Sequential(
                nn.BatchNorm2d(512), nn.Dropout(0.0), nn.Flatten(), nn.Linear(512 * 7 * 7, 512), nn.BatchNorm1d(512)
            )

    def forward(self, images: Tensor) -> ThreeMaps:
        """Normalised images (B, 3, 112, 112) to (B, 64, 56, 56), (B, 128, 28, 28) and (B, 256, 14, 14)."""
        first = self.stages[0](self.stem(images))
        second = self.stages[1](first)
        return first, second, self.stages[2](second)


def create_landmark_trunk() -> MobileFaceNet:
    """The landmark regressor without its head, with fresh weights."""
    return MobileFaceNet(
        widths=(64, 64, 128, 128),
        hidden=(128, 256, 512),
        expansion=2,
        depths=(4, 6, 2),
        last=512,
        activation="prelu",
        stem_pointwise=False,
        normalization=ImageNormalization(IMAGENET_MEAN, IMAGENET_STD),
    )


class LandmarkHead(nn.Module):
    """One depth-wise weight for every cell of the last map, linear, batch norm: 68 points as fractions of the side.

    The batch norm that closes the head holds mean and spread of every coordinate; it starts at the mean shape, with a
    spread of 5 % of the side.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.Conv2d(512, 512, 7, groups=512, bias=False)
        self.pool_norm = nn.BatchNorm2d(512)
        self.linear = nn.Linear(512, 2 * NUM_LANDMARKS, bias=False)
        self.norm = nn.BatchNorm1d(2 * NUM_LANDMARKS)
        nn.init.constant_(self.norm.weight, 0.05)
        with torch.no_grad():
            self.norm.bias.copy_(torch.from_numpy(MEAN_SHAPE).flatten())

    def forward(self, feature_map: Tensor) -> Tensor:
        """Map (B, 512, 7, 7) to points (B, K, 2), x and y over the side of the crop."""
        pooled = self.pool_norm(self.pool(feature_map)).flatten(1)  # (B, 512)
        points: Tensor = self.norm(self.linear(pooled)).unflatten(1, (NUM_LANDMARKS, 2))
        return points


class LandmarkRegressor(nn.Module):
    """The landmark network as it is trained, before its trunk goes into POSTER or POSTER++."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = create_landmark_trunk()
        self.head = LandmarkHead()

    @property
    def normalize(self) -> ImageNormalization:
        """Of the trunk."""
        return self.trunk.normalize

    def forward(self, crops: Tensor) -> Tensor:
        """Crops (B, 3, S, S) RGB in [0, 1], S = 112 or a multiple, to landmarks (B, K, 2) in pixels of the crop."""
        points: Tensor = self.head(self.trunk(to_trunk_size(crops))[16])
        return points * crops.shape[-1]


class TwoTrunks(nn.Module):
    """What POSTER and POSTER++ start with: the trunks, of which the landmark trunk is frozen.

    Args:
        frozen_statistics: keep the landmark trunk's batch norms in evaluation mode too. The published training leaves
            them in training mode: they use the statistics of the batch, and their running averages drift.
        dead_parts: add what is published and has no effect: the image trunk's tail, which is never called, and the head
            of the landmark network, which runs, and its points are thrown away.
    """

    def __init__(self, *, frozen_statistics: bool, dead_parts: bool) -> None:
        super().__init__()
        self.normalize = ImageNormalization(IMAGENET_MEAN, IMAGENET_STD)
        self.image_trunk = ImageTrunk(dead_tail=dead_parts)
        self.landmark_trunk = create_landmark_trunk().requires_grad_(False)
        self.landmark_head = LandmarkHead().requires_grad_(False) if dead_parts else None
        self.frozen_statistics = frozen_statistics

    def train(self, mode: bool = True) -> Self:
        """Switch the mode of all but the frozen statistics."""
        super().train(mode)
        if self.frozen_statistics:
            self.landmark_trunk.eval()
            if self.landmark_head is not None:
                self.landmark_head.eval()
        return self

    def take_landmark_trunk(self, regressor: LandmarkRegressor) -> None:
        """Copy the weights of a trained landmark network into the frozen trunk."""
        self.landmark_trunk.load_state_dict(regressor.trunk.state_dict())
        if self.landmark_head is not None:
            self.landmark_head.load_state_dict(regressor.head.state_dict())

    def trunk_maps(self, crops: Tensor) -> tuple[ThreeMaps, ThreeMaps]:
        """Crops (B, 3, S, S) RGB in [0, 1], S = 112 or a multiple, to three maps of the image and three of landmarks.

        They are (B, 64, 56, 56), (B, 128, 28, 28), (B, 256, 14, 14) and (B, 64, 28, 28), (B, 128, 14, 14),
        (B, 512, 7, 7).
        """
        crops = to_trunk_size(crops)
        maps = self.landmark_trunk(crops)  # normalises by itself, as the network of its own that it is
        if self.landmark_head is not None:
            self.landmark_head(maps[16])
        return self.image_trunk(self.normalize(crops)), (maps[4], maps[8], maps[16])
