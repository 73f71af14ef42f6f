"""Face alignment network: crops cut at random from whole pictures, distance to the teacher's landmarks.

Crops are loose, as a detector's box gives them, or (`AugmentConfig.near`) placed well, as the second pass sees them.

Legend: B faces, V vertices of the mesh, S side of the crop in pixels.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from nkf.config import AugmentConfig, TrainConfig
from nkf.data.dataset import CropRows, FaceCrops, load_crops
from nkf.data.pack import Pack, is_held_out
from nkf.data.sampling import epoch_order
from nkf.errors import NkfError
from nkf.geometry import LEFT_EYE_OUTER, NUM_VERTICES, RIGHT_EYE_OUTER, loose_square, upright_square
from nkf.models import create_model
from nkf.models.fan import FAN
from nkf.preprocess import augment, random_similarities, transform_landmarks, warp
from nkf.progress import Progress, no_progress
from nkf.recipes.common import FaceTensors, autocast, describe, start_from
from nkf.weights import Kind, WeightsInfo

WHOLE_SIZE = 128  # side in pixels at which pictures wait for their crops; FER-2013's and FairFace's are smaller
MESH_WEIGHT = 0.5  # of the mean distance of the mesh's vertices, beside the landmarks' loss
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
        self.order = epoch_order(self.num_train, config.seed)
        if not len(self.held_out):
            raise NkfError(
                f"{config.data[0]}: too few faces with landmarks, none falls into the tenth that is held out"
            )
        rows = [rows for _, rows in train]
        self.mesh = Mesh(config.mesh, self.packs, rows, device) if config.mesh is not None else None

    def _join(self, parts: list[tuple[FaceCrops, NDArray[np.int64]]]) -> tuple[FaceTensors, Tensor]:
        """Faces of all packs, and (N, 2, 4) squares of their loose and of their well-placed crops."""
        images = CropRows([(crops.images, rows) for crops, rows in parts])
        landmarks = np.concatenate([crops.landmarks_px[rows] for crops, rows in parts])
        squares = np.stack([loose_square(landmarks), upright_square(landmarks)], axis=1).astype(np.float32)
        return FaceTensors(images, landmarks, self.device), torch.from_numpy(squares).to(self.device)

    def create(self) -> nn.Module:
        model = create_model(self.kind, {"backbone": self.config.network.backbone})
        assert isinstance(model, FAN)
        start_from(model, self.config, self.train)
        return model.to(self.device)

    def batch(self, rows: NDArray[np.int64], generator: Generator) -> LandmarkBatch:
        images, landmarks_px = self.train.batch(rows)
        index, size = torch.from_numpy(rows).to(self.device), self.config.crop_size
        crops, target, matrices, mirrored = augment(
            images, landmarks_px, self.train_squares[index], size, self.config.augment, generator
        )
        crops = crops.contiguous(memory_format=torch.channels_last)
        if self.mesh is None:
            return LandmarkBatch(crops, target)
        vertices = torch.randperm(NUM_VERTICES, generator=generator, device=self.device)[:_VERTICES]
        mesh_target = self.mesh.vertices_px(index, landmarks_px, vertices, matrices, mirrored)
        return LandmarkBatch(crops, target, vertices, mesh_target)

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
        mesh_loss = ((mesh - batch.mesh_px).norm(dim=-1) / face_size).mean()
        return landmark_loss(found.points_px, found.spread_px, target, face_size) + MESH_WEIGHT * mesh_loss

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


class Mesh:
    """The teacher's dense mesh of the training faces: coefficients of a linear basis, in a pack's metadata.

    Args:
        folder: holds ``mesh_pca_basis.npz`` (``mean`` (V, 3), ``basis`` (64, V, 3), in longer sides of the image) and
            ``mesh_maps.json`` (``mesh_mirror``: partner of each vertex; ``landmark68_from_mesh``: the vertices whose
            mean is a landmark).
        packs: with the metadata ``mesh_pca`` (N, 64).
        rows: of the training faces in each pack.
        device: where they are needed.

    Raises:
        NkfError: when a file or a column is missing or of another form.
    """

    def __init__(self, folder: Path, packs: list[Pack], rows: list[NDArray[np.int64]], device: torch.device) -> None:
        try:
            with np.load(folder / "mesh_pca_basis.npz", allow_pickle=False) as archive:
                mean, basis = archive["mean"][:, :2], archive["basis"][:, :, :2]
            maps = json.loads((folder / "mesh_maps.json").read_text())
            partner = np.array(maps["mesh_mirror"], np.int64)
            single = [(k, v[0]) for k, v in enumerate(maps["landmark68_from_mesh"]) if len(v) == 1]
            coefficients = np.concatenate(
                [pack.column("mesh_pca")[part] for pack, part in zip(packs, rows, strict=True)]
            )
        except (OSError, KeyError, ValueError, NkfError) as error:
            raise NkfError(f"{folder}: no usable mesh basis, or packs without mesh coefficients ({error})") from error
        self.landmark, self.vertex = (torch.tensor(column, device=device) for column in zip(*single, strict=True))
        self.partner = torch.from_numpy(partner).to(device)
        self.coefficients = torch.from_numpy(coefficients.astype(np.float32)).to(device)
        self.mean = torch.from_numpy(mean.astype(np.float32)).to(device)
        self.basis = torch.from_numpy(basis.astype(np.float32)).to(device)

    def vertices_px(
        self, rows: Tensor, landmarks_px: Tensor, vertices: Tensor, matrices: Tensor, mirrored: Tensor
    ) -> Tensor:
        """Positions (B, len(vertices), 2) of some vertices in crops, pixels.

        Args:
            rows: (B,) of the training faces.
            landmarks_px: (B, 68, 2) in the pictures that the crops were cut from, of side `WHOLE_SIZE`.
            vertices: indices.
            matrices: (B, 2, 3) from picture to crop.
            mirrored: (B,) bool, which crops are mirror images.
        """
        asked = torch.where(mirrored[:, None], self.partner[vertices], vertices)  # (B, v)
        mesh = self.mean + torch.einsum("bn,nvd->bvd", self.coefficients[rows], self.basis)  # (B, V, 2)
        mesh = mesh * WHOLE_SIZE
        # The mesh is in longer sides of the original picture; where it lies in the square one the landmarks tell.
        offset = (landmarks_px[:, self.landmark] - mesh[:, self.vertex]).mean(dim=1, keepdim=True)
        chosen = mesh.gather(1, asked[..., None].expand(-1, -1, 2)) + offset
        return chosen @ matrices[:, :, :2].transpose(1, 2) + matrices[:, None, :, 2]
