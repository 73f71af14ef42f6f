"""Expression networks: aligned crops, cross-entropy with vote shares or labels, accuracy on the valid split."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from nkf.config import TrainConfig
from nkf.data.dataset import load_crops, training_targets
from nkf.data.labels import DROPPED, EXPRESSIONS
from nkf.data.pack import Pack
from nkf.errors import NkfError
from nkf.geometry import CROP_TEMPLATE
from nkf.metrics import accuracy, mean_class_accuracy
from nkf.models import create_model
from nkf.models.nkf import NKF
from nkf.preprocess import augment
from nkf.progress import Progress, no_progress
from nkf.recipes.common import FaceTensors, autocast, describe, load_weights, start_from
from nkf.weights import DEFAULT_FAN, Kind, WeightsInfo


class ExpressionRecipe:
    """Expression networks: aligned crops, cross-entropy with vote shares or labels, accuracy on the valid split."""

    kind: Kind = "nkf"

    def __init__(self, config: TrainConfig, device: torch.device, progress: Progress = no_progress) -> None:
        self.config = config
        self.device = device
        self.pack = Pack(config.data[0])
        crops = load_crops(self.pack, "aligned", config.crop_size, progress)
        labels = self.pack.labels(config.rule)
        train, valid = (self._rows(split, labels) for split in ("train", "valid"))
        self.num_train = len(train)
        self.train = FaceTensors.load(crops.images[train], crops.landmarks_px[train], device)
        self.valid = FaceTensors.load(crops.images[valid], crops.landmarks_px[valid], device)
        self.valid_labels = labels[valid]
        soft = config.targets == "distribution"
        targets = training_targets(
            labels[train], self.pack.distributions()[train], soft=soft, smoothing=config.label_smoothing
        )
        self.targets = torch.from_numpy(targets).to(device)

    def _rows(self, split: str, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        rows = self.pack.rows(split)
        rows = rows[labels[rows] != DROPPED]
        if not len(rows):
            raise NkfError(f"{self.pack.path}: no labelled image in its {split} split, training needs train and valid")
        return rows

    def create(self) -> nn.Module:
        architecture = self.config.network.model_dump()
        model = create_model(self.kind, architecture, len(EXPRESSIONS))
        assert isinstance(model, NKF)
        if model.fan is not None:
            load_weights(DEFAULT_FAN, model.fan)
        start_from(model, self.config, self.train)
        return model.to(self.device)

    def loss(self, model: nn.Module, rows: NDArray[np.int64], generator: Generator) -> Tensor:
        images, landmarks_px = self.train.batch(rows)
        size = images.shape[-1]
        base = torch.tensor([size / 2, size / 2, size, 0], device=self.device).expand(len(images), 4)
        crops, landmarks_px, *_ = augment(images, landmarks_px, base, size, self.config.augment, generator)
        with autocast(self.config, self.device):
            logits = model(crops.contiguous(memory_format=torch.channels_last), landmarks_px)
        targets = self.targets[torch.from_numpy(rows).to(self.device)]
        return F.cross_entropy(logits.float(), targets)

    @torch.no_grad()
    def validate(self, model: nn.Module) -> dict[str, float]:
        logits = torch.cat([model(crops, landmarks_px).float() for _, crops, landmarks_px in self.valid.batches()])
        labels = torch.from_numpy(self.valid_labels).to(self.device)
        predicted = logits.argmax(dim=1).cpu().numpy()
        top = accuracy(self.valid_labels, predicted)
        return {
            "score": top,
            "accuracy": top,
            "mean_class_accuracy": mean_class_accuracy(self.valid_labels, predicted, len(EXPRESSIONS)),
            "cross_entropy": float(F.cross_entropy(logits, labels)),
        }

    def info(self, model: nn.Module) -> WeightsInfo:
        template = tuple((float(x), float(y)) for x, y in CROP_TEMPLATE)
        return describe(self.config, self.kind, model, [self.pack], classes=EXPRESSIONS, crop_template=template)
