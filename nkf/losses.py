"""Losses of the compared systems, as their public code has them.

Legend: B faces, N classes, h x w cells of an attention map.
"""

import torch.nn.functional as F
from torch import Tensor

POSTER_SMOOTHING = 0.2
POSTER_SMOOTHED_WEIGHT = 2.0
EAC_CONSISTENCY_WEIGHT = 5.0


def poster_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy plus twice the cross-entropy smoothed by 0.2.

    POSTER: Zheng et al., ICCV workshops 2023, arXiv 2204.04083. With H = -sum_c t_c log p_c, for one class -log p_y,

        L = H + 2 (0.8 H + 0.2 mean_c(-log p_c))

    which is three times the cross-entropy smoothed by 2/15: what is special is its scale, and Adam takes no notice of
    that.

    Args:
        logits: (B, N).
        targets: (B, N) distributions t; a label is the one with all in one class.
    """
    smoothed = F.cross_entropy(logits, targets, label_smoothing=POSTER_SMOOTHING)
    return F.cross_entropy(logits, targets) + POSTER_SMOOTHED_WEIGHT * smoothed


def attention_consistency(maps: Tensor, maps_of_mirrored: Tensor) -> Tensor:
    """Mean over faces, classes and cells of (M(x1) - mirror(M(x2)))^2; both have a gradient.

    EAC: Zhang et al., ECCV 2022, arXiv 2207.10299.

    Args:
        maps: (B, N, h, w) of crops x1, see `nkf.models.eac.EAC.logits_and_maps`.
        maps_of_mirrored: the same of mirrored crops x2, as they come: they are mirrored back here.
    """
    return F.mse_loss(maps, maps_of_mirrored.flip(-1))


def eac_loss(
    logits: Tensor,
    targets: Tensor,
    maps: Tensor,
    maps_of_mirrored: Tensor,
    *,
    weight: float = EAC_CONSISTENCY_WEIGHT,
) -> Tensor:
    """Cross-entropy of the crops plus `weight` times the consistency with the mirrored ones, which see no label.

    Args:
        logits: (B, N) of crops x1.
        targets: (B, N) distributions.
        maps: see `attention_consistency`.
        maps_of_mirrored: see there.
        weight: lambda of the paper.
    """
    return F.cross_entropy(logits, targets) + weight * attention_consistency(maps, maps_of_mirrored)


def label_distribution_loss(logits: Tensor, teacher_probabilities: Tensor) -> Tensor:
    """Mean over faces *and classes* of -q log p, with q the teacher's probabilities: 1/N of the usual cross-entropy.

    EfficientFace: Zhao, Liu and Zhou, AAAI 2021. Its learning rate of 0.1 belongs to that scale. The logarithm is
    taken of the logits directly, where the public code takes it of the softmax: the same, and finite for all logits.

    Args:
        logits: (B, N).
        teacher_probabilities: (B, N) of the same crops.
    """
    return -(teacher_probabilities * F.log_softmax(logits, dim=1)).mean()
