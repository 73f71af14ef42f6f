"""The teacher's dense mesh as a target beside landmarks or expressions: 478 points say a lot about a face's shape.

Legend: B faces, V = 478 vertices of the mesh, S side of the crop in pixels, Z channels that the classifier sees.
"""

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from nkf.data.pack import Pack
from nkf.errors import NkfError
from nkf.geometry import MEAN_SHAPE, NUM_VERTICES, similarity_transform, transform_points
from nkf.models.nkf import NKF

_UNIT = 0.03  # of the crop's side: how far aligned faces' vertices are from the mean shape's (root mean square)
_RANK = 32  # directions in which 99.7 % of that lies


class Mesh:
    """The teacher's dense mesh of the training faces: coefficients of a linear basis, in a pack's metadata.

    Args:
        folder: holds ``mesh_pca_basis.npz`` (``mean`` (V, 3), ``basis`` (64, V, 3), in longer sides of the image) and
            ``mesh_maps.json`` (``mesh_mirror``: partner of each vertex; ``landmark68_from_mesh``: the vertices whose
            mean is a landmark).
        packs: with the metadata ``mesh_pca`` (N, 64), NaN where the teacher found no face.
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
            landmark, vertex = (list(column) for column in zip(*single, strict=True))
            typical = transform_points(similarity_transform(mean[vertex], MEAN_SHAPE[landmark]), mean)
            coefficients = np.concatenate(
                [pack.column("mesh_pca")[part] for pack, part in zip(packs, rows, strict=True)]
            )
        except (OSError, KeyError, ValueError, NkfError) as error:
            raise NkfError(f"{folder}: no usable mesh basis, or packs without mesh coefficients ({error})") from error
        self.landmark, self.vertex = (torch.tensor(column, device=device) for column in (landmark, vertex))
        self.partner = torch.from_numpy(partner).to(device)
        self.coefficients, self.mean, self.basis, self.typical = (
            torch.from_numpy(array.astype(np.float32)).to(device) for array in (coefficients, mean, basis, typical)
        )

    def in_crops(self, rows: Tensor, landmarks_px: Tensor, mirrored: Tensor) -> Tensor:
        """Positions (B, V, 2) in crops, pixels; NaN where the teacher found no face.

        Args:
            rows: (B,) of the training faces.
            landmarks_px: (B, 68, 2) in the crops, which tell where the mesh lies: its coordinates are the picture's.
            mirrored: (B,) bool, which crops are mirror images.
        """
        mesh = self.mean + torch.einsum("bn,nvd->bvd", self.coefficients[rows], self.basis)  # (B, V, 2)
        mirror_image = mesh[:, self.partner] * mesh.new_tensor([-1.0, 1.0])
        mesh = torch.where(mirrored[:, None, None], mirror_image, mesh)
        return _laid_on(mesh, mesh[:, self.vertex], landmarks_px[:, self.landmark])

    def deviations(self, mesh_px: Tensor, crop_size: int) -> Tensor:
        """How far vertices (B, V, 2) are from those of the mean shape in an aligned crop, about 1 on average."""
        return (mesh_px / crop_size - self.typical) / _UNIT


def _laid_on(points: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Move (B, V, 2) points by the similarities that bring `source` (B, n, 2) closest to `target`: least squares."""
    source_centre, target_centre = source.mean(dim=1, keepdim=True), target.mean(dim=1, keepdim=True)
    s, t = source - source_centre, target - target_centre
    along = (s * t).sum(dim=(1, 2))
    across = (s[..., 0] * t[..., 1] - s[..., 1] * t[..., 0]).sum(dim=1)
    a, b = torch.stack([along, across]) / s.square().sum(dim=(1, 2))
    linear = torch.stack([torch.stack([a, -b], -1), torch.stack([b, a], -1)], dim=1)  # (B, 2, 2)
    return (points - source_centre) @ linear.transpose(1, 2) + target_centre


class WithMesh(nn.Module):
    """An expression network that tells the mesh too, from what its classifier sees; the mesh serves in training only.

    Telling the mesh is linear and of low rank, so that the features have to know the face's shape.
    """

    def __init__(self, network: NKF) -> None:
        super().__init__()
        self.network = network
        self.mesh = nn.Sequential(nn.Linear(network.classifier.in_features, _RANK), nn.Linear(_RANK, 2 * NUM_VERTICES))

    def forward(self, crops: Tensor, landmarks_px: Tensor) -> tuple[Tensor, Tensor]:
        """Crops (B, 3, S, S) and landmarks (B, 68, 2) to logits (B, N) and `Mesh.deviations` (B, V, 2)."""
        z = self.network.features(crops, landmarks_px)  # (B, Z)
        return self.network.head(z), self.mesh(z).unflatten(1, (NUM_VERTICES, 2))


def mesh_loss(found: Tensor, target: Tensor) -> Tensor:
    """Smooth L1 distance of `Mesh.deviations` (B, V, 2), over the coordinates that the target knows; else zero."""
    known = torch.isfinite(target)
    errors = F.smooth_l1_loss(found, torch.where(known, target, 0.0), reduction="none")
    return (errors * known).sum() / known.sum().clamp(min=1)
