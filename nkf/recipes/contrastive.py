"""Contrastive pretraining: two changed views of a face are to be nearer to each other than to all other faces.

SimCLR's loss (Chen et al., ICML 2020, arXiv 2002.05709) on the aligned faces of all packs, without labels. What it
leaves is a backbone that other networks start from (`TrainConfig.start_backbone`).

Legend: B faces, 2B views (first all first ones, then all second ones), D channels of the projection, S side of a crop.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from nkf.config import TrainConfig
from nkf.data.sampling import epoch_order
from nkf.geometry import CROP_TEMPLATE
from nkf.models import create_model
from nkf.models.contrastive import Contrastive, FaceEncoder
from nkf.progress import Progress, no_progress
from nkf.recipes.aligned import aligned_faces, changed_views
from nkf.recipes.common import architecture, autocast, describe, start_from
from nkf.weights import Kind, WeightsInfo


class ContrastiveRecipe:
    """Backbones from faces without labels.

    Of the packs' train splits, one row in ten (by the hash of its pixels, so that copies stay together) is held out.
    A batch's other faces are what a face is told from: parts of a batch that are computed one by one, or by several
    processes, see fewer of them.
    """

    kind: Kind = "backbone"

    def __init__(self, config: TrainConfig, device: torch.device, progress: Progress = no_progress) -> None:
        self.config = config
        self.device = device
        self.packs, self.train, self.held_out = aligned_faces(config, device, landmarks=False, progress=progress)
        self.num_train = len(self.train)
        self.order = epoch_order(self.num_train, config.seed)

    def create(self) -> nn.Module:
        encoder = create_model(self.kind, architecture(self.config))
        assert isinstance(encoder, FaceEncoder)
        start_from(encoder, self.config, self.train)
        return Contrastive(encoder).to(self.device)

    def network(self, model: nn.Module) -> nn.Module:
        return model.network if isinstance(model, Contrastive) else model

    def batch(self, rows: NDArray[np.int64], generator: Generator) -> Tensor:
        """Views (2B, 3, S, S)."""
        return self._views(*self.train.batch(rows), generator)

    def _views(self, images: Tensor, landmarks_px: Tensor, generator: Generator) -> Tensor:
        return changed_views(images.repeat(2, 1, 1, 1), landmarks_px.repeat(2, 1, 1), self.config, generator)[0]

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        with autocast(self.config, self.device):
            projected = model(batch)
        return F.cross_entropy(similarities(projected, self.config.contrastive_temperature), partners(batch))

    @torch.no_grad()
    def validate(self, model: nn.Module) -> dict[str, float]:
        """Share of views whose nearest one, of 64 held-out faces, is the other view of its face; and the loss."""
        generator = torch.Generator(self.device).manual_seed(1)  # the same views for every network
        right, losses = [], []
        for _, images, landmarks_px in self.held_out.batches():
            views = self._views(images, landmarks_px, generator)
            scores, partner = similarities(model(views), self.config.contrastive_temperature), partners(views)
            right.append(scores.argmax(dim=1) == partner)
            losses.append(F.cross_entropy(scores, partner, reduction="none"))
        accuracy, loss = float(torch.cat(right).float().mean()), float(torch.cat(losses).mean())
        return {"score": accuracy, "contrastive_accuracy": accuracy, "contrastive_loss": loss}

    def info(self, model: nn.Module) -> WeightsInfo:
        training: dict[str, Any] = {
            "method": "SimCLR",
            "contrastive_temperature": self.config.contrastive_temperature,
            "images": {"train": self.num_train, "choose": len(self.held_out)},
        }
        template = tuple((float(x), float(y)) for x, y in CROP_TEMPLATE)
        network = self.network(model)
        return describe(self.config, self.kind, network, self.packs, training, crop_template=template)


def similarities(projected: Tensor, temperature: float) -> Tensor:
    """Cosines (2B, 2B) of projections (2B, D) over the temperature; minus infinity of each with itself."""
    unit = F.normalize(projected.float(), dim=1)
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    return (unit @ unit.T / temperature).masked_fill(itself, -torch.inf)


def partners(views: Tensor) -> Tensor:
    """(2B,) row of the other view of each view's face."""
    return torch.arange(len(views), device=views.device).roll(len(views) // 2)
