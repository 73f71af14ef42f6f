"""EAC: Erasing Attention Consistency (Zhang et al., "Learn from All: Erasing Attention Consistency for Noisy Label
Facial Expression Recognition", ECCV 2022, arXiv 2207.10299). A training method; the network is a plain one.

    crop -> trunk -> last map F -+-> global average -> linear W -> logits
                                 +-> attention maps M_c = sum_k W_ck F_k, of all classes, W without gradient

In training a crop with an erased box and a mirrored one both pass; the maps of one have to be the mirrored maps of the
other (`nkf.losses.eac_loss`). A network that remembers a wrong label by some corner of the face cannot keep that up.

We follow the public code. There the ResNet-50 is of the Caffe kind, W is detached in the maps, and the maps have
neither bias nor ReLU nor normalisation. The paper's ResNet-18 is not in that code: it is put together here from basic
blocks with the same pool and head. Any other backbone of ours serves too, so that the method can be compared on equal
networks. With ``resnet50_standard`` this is also the network that teaches EfficientFace.

Legend: B faces, C channels of the last map, h x w its cells, S side of the crop in pixels, N classes.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from nkf.models.backbone import Backbone, create_backbone
from nkf.models.layers import ImageNormalization
from nkf.models.resnet import RESNETS, create_resnet


def create_trunk(name: str) -> Backbone:
    """Build a ResNet or one of the other backbones with fresh weights."""
    if name in RESNETS:
        return create_resnet(name)
    try:
        return create_backbone(name)
    except ValueError as error:  # which names the others
        raise ValueError(f"{error}, {', '.join(RESNETS)}") from error


class EAC(nn.Module):
    """Expression network. It takes no notice of landmarks.

    Args:
        num_classes: N.
        trunk: name of a ResNet (`nkf.models.resnet.RESNETS`) or backbone (`nkf.models.backbone.create_backbone`), of
            which the map with the largest stride is used.
    """

    def __init__(self, *, num_classes: int, trunk: str = "resnet50") -> None:
        super().__init__()
        self.trunk = create_trunk(trunk)
        self.stride = max(self.trunk.channels)
        self.classifier = nn.Linear(self.trunk.channels[self.stride], num_classes)

    @property
    def backbone(self) -> Backbone:
        """The trunk, under the name by which starting weights find it."""
        return self.trunk

    @property
    def normalize(self) -> ImageNormalization:
        """The trunk's mean and std."""
        normalize = self.trunk.normalize
        assert isinstance(normalize, ImageNormalization)
        return normalize

    def forward(self, crops: Tensor, landmarks_px: Tensor | None = None) -> Tensor:
        """Crops (B, 3, S, S) RGB in [0, 1] to logits (B, N)."""
        logits: Tensor = self.classifier(self.features(crops))
        return logits

    def features(self, crops: Tensor, landmarks_px: Tensor | None = None) -> Tensor:
        """The same to the global feature (B, C), which the classifier sees."""
        return self._last_map(crops).mean(dim=(2, 3))

    def logits_and_maps(self, crops: Tensor, landmarks_px: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The same to logits (B, N) and attention maps (B, N, h, w), for training.

        The maps' gradient reaches the trunk, not the classifier.
        """
        last_map = self._last_map(crops)  # (B, C, h, w)
        logits: Tensor = self.classifier(last_map.mean(dim=(2, 3)))
        return logits, F.conv2d(last_map, self.classifier.weight.detach()[:, :, None, None])

    def _last_map(self, crops: Tensor) -> Tensor:
        return self.trunk(crops)[self.stride]
