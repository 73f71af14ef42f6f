"""A backbone trained without labels: SimCLR's encoder and projection (Chen et al., "A Simple Framework for Contrastive
Learning of Visual Representations", ICML 2020, arXiv 2002.05709).

Legend: B crops, G channels of the backbone's last map, S side of the crop in pixels.
"""

from torch import Tensor, nn

from nkf.models.backbone import Backbone

HIDDEN, PROJECTED = 256, 128


class FaceEncoder(nn.Module):
    """A backbone alone: what pretraining leaves, and other networks start from."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, crops: Tensor) -> Tensor:
        """Crops (B, 3, S, S) RGB in [0, 1] to the global feature (B, G), the average of the last map."""
        feature: Tensor = self.backbone(crops)[16].mean(dim=(2, 3))
        return feature


class Contrastive(nn.Module):
    """An encoder with the projection that its loss is computed behind; the projection serves in training only."""

    def __init__(self, network: FaceEncoder) -> None:
        super().__init__()
        self.network = network
        self.projection = nn.Sequential(
            nn.Linear(network.backbone.channels[16], HIDDEN, bias=False),
            nn.BatchNorm1d(HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, PROJECTED),
        )

    def forward(self, crops: Tensor) -> Tensor:
        """Crops (B, 3, S, S) to projections (B, 128)."""
        projected: Tensor = self.projection(self.network(crops))
        return projected
