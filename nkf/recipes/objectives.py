"""What a step of an expression network minimises: cross-entropy, or the loss of a compared system (`nkf.losses`).

Legend: B faces, S side of the crop in pixels, N classes, h x w cells of an attention map.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nkf.config import TrainConfig
from nkf.errors import NkfError
from nkf.losses import eac_loss, label_distribution_loss, poster_loss
from nkf.models import WithProbabilities, load_model
from nkf.models.eac import EAC
from nkf.weights import find_weights

Objective = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]
"""Model, crops (B, 3, S, S), landmarks (B, 68, 2) in pixels and targets (B, N) to the mean loss."""


def make_objective(config: TrainConfig, classes: tuple[str, ...], device: torch.device) -> Objective:
    """Choose the loss that a configuration names.

    Args:
        config: of the run.
        classes: of the network that is trained; a teacher has to have the same, in the same order.
        device: where a teacher runs.

    Raises:
        NkfError: when the teacher is unusable, or has other classes.
    """
    if config.loss == "label_distribution":
        assert config.teacher is not None
        return partial(_taught, load_teacher(config.teacher, config.crop_size, classes).to(device))
    return {"cross_entropy": _cross_entropy, "poster": _poster, "eac": _eac}[config.loss]


def load_teacher(name: str, crop_size: int, classes: tuple[str, ...]) -> nn.Module:
    """Load a frozen network that gives probabilities.

    Its class order is checked: with permuted classes EfficientFace learns to be wrong, below chance, and nothing
    else tells why.

    Raises:
        NkfError: when it is unusable, tells other classes, or sees crops of another size.
    """
    file, info = find_weights(name, (".safetensors",))
    if info.classes != classes:
        told = ", ".join(info.classes) or "no expressions"
        raise NkfError(f"teacher {name!r}: tells {told}; expected {', '.join(classes)}, in this order")
    if info.input_size != crop_size:
        raise NkfError(f"teacher {name!r}: sees crops of {info.input_size} pixels, crop_size is {crop_size}")
    return WithProbabilities(load_model(file, info), info.calibration).eval().requires_grad_(False)


def _cross_entropy(model: nn.Module, crops: Tensor, landmarks_px: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(model(crops, landmarks_px).float(), targets)


def _poster(model: nn.Module, crops: Tensor, landmarks_px: Tensor, targets: Tensor) -> Tensor:
    return poster_loss(model(crops, landmarks_px).float(), targets)


def _eac(model: nn.Module, crops: Tensor, landmarks_px: Tensor, targets: Tensor) -> Tensor:
    """The network passes twice: what it sees in the mirror image gets no label, and has to look at the same places."""
    assert isinstance(model, EAC)
    logits, maps = model.logits_and_maps(crops)
    _, maps_of_mirrored = model.logits_and_maps(crops.flip(-1))
    return eac_loss(logits.float(), targets, maps.float(), maps_of_mirrored.float())


def _taught(teacher: nn.Module, model: nn.Module, crops: Tensor, landmarks_px: Tensor, targets: Tensor) -> Tensor:
    """The targets are the teacher's answers to the same augmented crops; labels are not looked at."""
    with torch.no_grad():
        answers = teacher(crops, landmarks_px).float()
    return label_distribution_loss(model(crops, landmarks_px).float(), answers)
