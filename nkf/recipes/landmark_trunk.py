"""The landmark network whose trunk POSTER and POSTER++ read: 68 points by regression, from aligned crops.

They were published with a trunk that others had trained on other data; ours learns from the packs' landmarks. It sees
what it will see inside these networks, the crop that shows their image trunk the face.

Legend: B faces, K = 68 landmarks, S side of the crop in pixels.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from nkf.config import TrainConfig
from nkf.data.sampling import epoch_order
from nkf.geometry import CROP_TEMPLATE, LEFT_EYE_OUTER, RIGHT_EYE_OUTER
from nkf.models import create_model
from nkf.progress import Progress, no_progress
from nkf.recipes.aligned import aligned_faces, changed_views
from nkf.recipes.common import architecture, autocast, describe, load_weights
from nkf.weights import Kind, WeightsInfo

_UNIT = 0.05  # of the crop's side: about how far landmarks of aligned faces are from the mean shape's


class TrunkBatch(NamedTuple):
    """Crops (B, 3, S, S) and their landmarks (B, K, 2) in pixels."""

    crops: Tensor
    landmarks_px: Tensor


class LandmarkTrunkRecipe:
    """A `nkf.models.face_trunks.LandmarkRegressor`."""

    kind: Kind = "landmark_trunk"

    def __init__(self, config: TrainConfig, device: torch.device, progress: Progress = no_progress) -> None:
        self.config = config
        self.device = device
        self.packs, self.train, self.held_out = aligned_faces(config, device, landmarks=True, progress=progress)
        self.num_train = len(self.train)
        self.order = epoch_order(self.num_train, config.seed)

    def create(self) -> nn.Module:
        model = create_model(self.kind, architecture(self.config))
        if self.config.start is not None:
            load_weights(self.config.start, model)
        return model.to(self.device)

    def network(self, model: nn.Module) -> nn.Module:
        return model

    def batch(self, rows: NDArray[np.int64], generator: Generator) -> TrunkBatch:
        return TrunkBatch(*changed_views(*self.train.batch(rows), self.config, generator))

    def loss(self, model: nn.Module, batch: TrunkBatch) -> Tensor:
        with autocast(self.config, self.device):
            found = model(batch.crops)
        unit = _UNIT * batch.crops.shape[-1]
        return F.smooth_l1_loss(found.float() / unit, batch.landmarks_px / unit)

    @torch.no_grad()
    def validate(self, model: nn.Module) -> dict[str, float]:
        """Mean distance over that of the outer eye corners, of held-out faces, each changed at random once."""
        generator = torch.Generator(self.device).manual_seed(1)  # the same views for every network
        errors = []
        for _, images, landmarks_px in self.held_out.batches():
            crops, target = changed_views(images, landmarks_px, self.config, generator)
            eyes = (target[:, LEFT_EYE_OUTER] - target[:, RIGHT_EYE_OUTER]).norm(dim=-1).clamp(min=1)
            errors.append((model(crops) - target).norm(dim=-1).mean(dim=1) / eyes)
        of_faces = torch.cat(errors)
        error = float(of_faces.mean())
        return {"score": -error, "error": error, "median_error": float(of_faces.median())}

    def info(self, model: nn.Module) -> WeightsInfo:
        images = {"train": self.num_train, "choose": len(self.held_out)}
        template = tuple((float(x), float(y)) for x, y in CROP_TEMPLATE)
        return describe(self.config, self.kind, model, self.packs, {"images": images}, crop_template=template)
