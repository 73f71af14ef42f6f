"""What the recipes share: the interface that the trainer sees, faces as tensors, starting weights, the sidecar."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from nkf import __version__
from nkf.config import TrainConfig
from nkf.data.pack import Pack
from nkf.errors import NkfError
from nkf.models import count_parameters, load_model
from nkf.models.fan import FAN
from nkf.models.nkf import NKF
from nkf.models.pretrained import load_pretrained
from nkf.preprocess import to_float
from nkf.weights import Kind, WeightsInfo, file_sha256, find_weights

_PRETRAINED_FACES = 256  # from which folded batch norms are estimated
_VALIDATION_BATCH = 64


class Recipe(Protocol):
    """A task, for the trainer."""

    config: TrainConfig
    num_train: int

    def create(self) -> nn.Module:
        """Build the network with its starting weights."""

    def loss(self, model: nn.Module, rows: NDArray[np.int64], generator: Generator) -> Tensor:
        """Loss of one training batch, given row numbers below `num_train`."""

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Metrics of a network in evaluation mode; the checkpoint with the highest ``score`` is kept as the best."""

    def info(self, model: nn.Module) -> WeightsInfo:
        """The sidecar of the network."""


@dataclass(frozen=True, slots=True)
class FaceTensors:
    """Crops of one split as tensors: images (N, S, S, 3) uint8, landmarks (N, 68, 2)."""

    images: Tensor
    landmarks_px: Tensor

    @classmethod
    def load(cls, images: NDArray[np.uint8], landmarks_px: NDArray[np.float32], device: torch.device) -> "FaceTensors":
        return cls(torch.from_numpy(images).to(device), torch.from_numpy(landmarks_px).to(device))

    def batch(self, rows: NDArray[np.int64] | slice) -> tuple[Tensor, Tensor]:
        index = torch.from_numpy(rows).to(self.images.device) if isinstance(rows, np.ndarray) else rows
        return to_float(self.images[index]), self.landmarks_px[index]

    def batches(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        for start in range(0, len(self.images), _VALIDATION_BATCH):
            rows = slice(start, start + _VALIDATION_BATCH)
            yield rows, *self.batch(rows)


def autocast(config: TrainConfig, device: torch.device) -> torch.autocast:
    """Lower precision for the network alone: landmarks and crops are computed in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.bf16)


def start_from(model: NKF | FAN, config: TrainConfig, faces: FaceTensors) -> None:
    """Load the weights that the configuration starts from, if any."""
    if config.start is not None:
        load_weights(config.start, model)
    if config.pretrained is not None:
        images, _ = faces.batch(slice(0, _PRETRAINED_FACES))
        load_pretrained(model.backbone, config.pretrained, images.cpu())


def load_weights(name: str, model: nn.Module) -> None:
    file, info = find_weights(name, (".safetensors",))
    try:
        model.load_state_dict(load_model(file, info).state_dict())
    except RuntimeError as error:
        raise NkfError(f"{file}: another network than the configuration's ({info.architecture})") from error


def describe(config: TrainConfig, kind: Kind, model: nn.Module, packs: list[Pack], **more: Any) -> WeightsInfo:
    network: Any = model
    normalize = getattr(network, "backbone", network).normalize
    data = [{key: pack.manifest.get(key) for key in ("source", "label_file", "licence", "images")} for pack in packs]
    recipe = config.model_dump(
        mode="json", include={"rule", "targets", "epochs", "batch_size", "learning_rate", "seed"}
    )
    training: dict[str, Any] = {"data": data, **recipe}
    if config.pretrained is not None:
        file = config.pretrained
        training["pretrained"] = {"file": f"{file.absolute().parent.name}/{file.name}", "sha256": file_sha256(file)}
    if config.start is not None:
        _, info = find_weights(config.start, (".safetensors",))
        training["start"] = {"name": info.name, **info.training}
    architecture = {
        "nkf": config.network.model_dump(mode="json"), "fan": {"backbone": config.network.backbone}, "detector": {},
    }[kind]  # fmt: skip
    return WeightsInfo(
        name=config.name,
        kind=kind,
        architecture=architecture,
        input_size=config.crop_size,
        mean=tuple(normalize.mean.flatten().tolist()),
        std=tuple(normalize.std.flatten().tolist()),
        parameters=count_parameters(model),
        training=training,
        nkf_version=__version__,
        **more,
    )
