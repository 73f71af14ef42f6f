"""Face alignment network: crops cut at random from whole pictures, distance to the teacher's landmarks.

Crops are loose, as a detector's box gives them, or (`AugmentConfig.near`) placed well, as the second pass sees them.

Legend: B faces, S side of the crop in pixels.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from nkf.config import AugmentConfig, TrainConfig
from nkf.data.dataset import CropRows, FaceCrops, load_crops
from nkf.data.pack import Pack, is_held_out
from nkf.data.sampling import epoch_order, turned_weights
from nkf.errors import NkfError
from nkf.geometry import LEFT_EYE_OUTER, NUM_VERTICES, RIGHT_EYE_OUTER, loose_square, upright_square
from nkf.models import create_model
from nkf.models.fan import FAN
from nkf.preprocess import augment, random_similarities, transform_landmarks, warp
from nkf.progress import Progress, no_progress
from nkf.recipes.common import FaceTensors, architecture, autocast, describe, start_from
from nkf.recipes.mesh import Mesh
from nkf.recipes.surroundings import Surroundings
from nkf.weights import Kind, WeightsInfo

WHOLE_SIZE = 128  # side in pixels at which pictures wait for their crops; FER-2013's and FairFace's are smaller
_VERTICES = 96  # of the mesh that one step looks at; all 478 heatmaps would take a fifth of its time


class LandmarkBatch(NamedTuple):
    """Crops (B, 3, S, S), true landmarks (B, 68, 2), and some vertices of the mesh with their places (B, v, 2)."""

    crops: Tensor
    points_px: Tensor
    vertices: Tensor | None = None
    mesh_px: Tensor | None = None


class LandmarkRecipe:
    """Landmarks of the teacher, and optionally its dense mesh.

    Of the packs' train splits, one row in ten (by the hash of its pixels, so that copies stay together) is held out.
    """

    kind: Kind = "fan"

    def __init__(self, config: TrainConfig, device: torch.device, progress: Progress = no_progress) -> None:
        self.config = config
        self.device = device
        self.packs = [Pack(path) for path in config.data]
        parts = [(pack, load_crops(pack, "whole", WHOLE_SIZE, progress)) for pack in self.packs]
        train, held_out = [], []
        for pack, crops in parts:
            usable = pack.rows("train")[crops.found[pack.rows("train")]]
            kept_out = is_held_out(pack.column("pixels_md5")[usable])
            train.append((crops, usable[~kept_out]))
            held_out.append((crops, usable[kept_out]))
        self.train, self.train_squares = self._join(train)
        self.held_out, self.held_out_squares = self._join(held_out)
        self.num_train = len(self.train)
        turned = turned_weights(self.train.landmarks_px.cpu().numpy()) if config.turned_faces else None
        self.order = epoch_order(self.num_train, config.seed, weights=turned)
        if not len(self.held_out):
            raise NkfError(
                f"{config.data[0]}: too few faces with landmarks, none falls into the tenth that is held out"
            )
        rows = [rows for _, rows in train]
        self.surroundings: Surroundings | None = None
        if config.augment.surroundings:
            pairs = list(zip(self.packs, rows, strict=True))
            self.surroundings = Surroundings(config, pairs, "whole", WHOLE_SIZE, device, progress)
        self.mesh = Mesh(config.mesh, self.packs, rows, device) if config.mesh is not None else None

    def _join(self, parts: list[tuple[FaceCrops, NDArray[np.int64]]]) -> tuple[FaceTensors, Tensor]:
        """Faces of all packs, and (N, 2, 4) squares of their loose and of their well-placed crops."""
        images = CropRows([(crops.images, rows) for crops, rows in parts])
        landmarks = np.concatenate([crops.landmarks_px[rows] for crops, rows in parts])
        squares = np.stack([loose_square(landmarks), upright_square(landmarks)], axis=1).astype(np.float32)
        return FaceTensors(images, landmarks, self.device), torch.from_numpy(squares).to(self.device)

    def create(self) -> nn.Module:
        model = create_model(self.kind, architecture(self.config))
        assert isinstance(model, FAN)
        start_from(model, self.config, self.train)
        return model.to(self.device)

    def network(self, model: nn.Module) -> nn.Module:
        return model

    def batch(self, rows: NDArray[np.int64], generator: Generator) -> LandmarkBatch:
        images, landmarks_px = self.train.batch(rows)
        index, size = torch.from_numpy(rows).to(self.device), self.config.crop_size
        around = None if self.surroundings is None else self.surroundings.draw(index, generator)
        crops, target, _, mirrored = augment(
            images, landmarks_px, self.train_squares[index], size, self.config.augment, generator, around
        )
        crops = crops.contiguous(memory_format=torch.channels_last)
        if self.mesh is None:
            return LandmarkBatch(crops, target)
        vertices = torch.randperm(NUM_VERTICES, generator=generator, device=self.device)[:_VERTICES]
        mesh_px = self.mesh.in_crops(index, target, mirrored)[:, vertices]
        return LandmarkBatch(crops, target, vertices, mesh_px)

    def loss(self, model: nn.Module, batch: LandmarkBatch) -> Tensor:
        target = batch.points_px
        # Over the face's size, not the distance of the eyes, which vanishes in profile and would blow the loss up.
        face_size = (target.amax(dim=1) - target.amin(dim=1)).amax(dim=1)[:, None]
        if batch.vertices is None or batch.mesh_px is None:
            with autocast(self.config, self.device):
                found = model(batch.crops)
            return landmark_loss(found.points_px, found.spread_px, target, face_size)
        with autocast(self.config, self.device):
            found, mesh = model.with_mesh(batch.crops, batch.vertices)  # type: ignore[operator]
        of_mesh = ((mesh - batch.mesh_px).norm(dim=-1) / face_size).mean()
        return landmark_loss(found.points_px, found.spread_px, target, face_size) + self.config.mesh_weight * of_mesh

    @torch.no_grad()
    def validate(self, model: nn.Module) -> dict[str, float]:
        """Errors from loose and from well-placed crops; the score is the latter's, which prediction ends with."""
        loose = self.held_out_errors(model, self.config.augment.model_copy(update={"near": 0.0, "flip": 0.0}))
        near = self.held_out_errors(model, self.config.augment.model_copy(update={"near": 1.0, "flip": 0.0}))
        return {
            "score": -float(near.mean()),
            "error": float(near.mean()),
            "median_error": float(np.median(near)),
            "loose_error": float(loose.mean()),
        }

    @torch.no_grad()
    def held_out_errors(self, model: nn.Module, placement: AugmentConfig) -> NDArray[np.float32]:
        """Mean distance over the distance of the outer eye corners, (N,), from one random crop of each held-out face.

        Args:
            model: in evaluation mode.
            placement: its rotation, scale and shift are drawn, the same for every network; the looks stay.
        """
        generator = torch.Generator().manual_seed(1)
        size, errors = self.config.crop_size, []
        for rows, images, landmarks_px in self.held_out.batches():
            squares = self.held_out_squares[rows].cpu()
            matrices, mirrored = (
                part.to(self.device) for part in random_similarities(squares, size, placement, generator)
            )
            target = transform_landmarks(landmarks_px, matrices, mirrored)
            distance = (model(warp(images, matrices, size)).points_px - target).norm(dim=-1).mean(dim=1)
            eyes = (target[:, LEFT_EYE_OUTER] - target[:, RIGHT_EYE_OUTER]).norm(dim=-1)
            errors.append(distance / eyes.clamp(min=1))  # in exact profile the corners may coincide
        return torch.cat(errors).cpu().numpy()

    def info(self, model: nn.Module) -> WeightsInfo:
        return describe(self.config, self.kind, model, self.packs)


def landmark_loss(points_px: Tensor, spread_px: Tensor, target_px: Tensor, face_size: Tensor) -> Tensor:
    """Likelihood of the distances r under exp(-r / b) / (2 pi b^2), whose mean is 2 b, the network's spread.

    Each point's term is weighed by the square root of its b, held constant: without the weight (Seitzer et al., "On the
    Pitfalls of Heteroscedastic Uncertainty Estimation", ICLR 2022) hard points would be given up instead of learnt.

    Args:
        points_px: (B, K, 2) found.
        spread_px: (B, K) expected distances.
        target_px: (B, K, 2) truth.
        face_size: (B, 1) pixels, by which distances are divided.
    """
    distance = (points_px - target_px).norm(dim=-1) / face_size  # (B, K)
    b = spread_px / face_size / 2
    return ((distance / b + 2 * b.log()) * b.detach().sqrt()).mean()
