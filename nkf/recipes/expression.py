"""Expression networks: aligned crops, cross-entropy with vote shares or labels, accuracy on what the protocol says."""

import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from nkf.config import TrainConfig
from nkf.data.dataset import CropRows, FaceCrops, load_crops
from nkf.data.labels import DROPPED
from nkf.data.pack import Pack
from nkf.data.sampling import epoch_order
from nkf.errors import NkfWarning
from nkf.geometry import CROP_TEMPLATE, NUM_LANDMARKS
from nkf.metrics import accuracy, mean_class_accuracy
from nkf.mixing import Faces, mix
from nkf.models import create_model
from nkf.models.nkf import NKF
from nkf.preprocess import augment
from nkf.progress import Progress, no_progress
from nkf.protocols import SPLITS, check_counts
from nkf.recipes.common import FaceTensors, architecture, autocast, describe, load_weights, start_from
from nkf.recipes.mesh import Mesh, WithMesh, mesh_loss
from nkf.recipes.objectives import make_objective
from nkf.recipes.rows import chosen_rows, drawn, fold_rows, labelled
from nkf.recipes.surroundings import Surroundings
from nkf.recipes.targets import training_faces
from nkf.weights import DEFAULT_FAN, Kind, WeightsInfo


class ExpressionBatch(NamedTuple):
    """Crops (B, 3, S, S), their landmarks (B, 68, 2) in pixels, target distributions (B, N), and perhaps the mesh.

    The mesh (B, V, 2) is what `Mesh.deviations` says.
    """

    crops: Tensor
    landmarks_px: Tensor
    targets: Tensor
    mesh: Tensor | None = None


class ExpressionRecipe:
    """Expression networks of all systems: aligned crops, vote shares or labels, and the loss that is asked for.

    Attributes:
        differences: one line for each split whose number of images is not the one that the protocol expects.
        parts: faces that are trained on, of the labelled pack, and then of those without labels.
    """

    def __init__(self, config: TrainConfig, device: torch.device, progress: Progress = no_progress) -> None:
        self.config = config
        self.kind: Kind = config.network.system
        self.device = device
        self.protocol = config.protocol
        self.objective = make_objective(config, self.protocol.classes, device)
        self.pack = Pack(config.data[0])
        crops = load_crops(self.pack, "aligned", config.crop_size, progress)
        labels = self.protocol.class_indices(self.pack.labels(self.protocol.rule))
        self._leave_out(labels, ~crops.shown)
        train, valid = chosen_rows(self.pack, self.protocol, labels)
        counts: dict[str, int] = {split: len(labelled(self.pack, split, labels)) for split in SPLITS}
        self.differences = check_counts(self.protocol, counts, carved=bool(self.pack.manifest.get("valid_carved")))
        for difference in self.differences:
            warnings.warn(f"{self.pack.path}: {difference}", NkfWarning, stacklevel=2)
        self.crops, self.labels, self.valid_rows, self.valid_labels = crops, labels, valid, labels[valid]
        train = drawn(train, config.limit)
        self.parts = training_faces(config, self.pack, crops, labels, train, progress)
        self.train, self.valid = self._tensors([(part.crops, part.rows) for part in self.parts]), self._faces(valid)
        self.targets = torch.from_numpy(np.concatenate([part.targets for part in self.parts])).to(device)
        self.num_train = len(self.targets)
        classes = np.concatenate([part.classes for part in self.parts])
        self.order = epoch_order(self.num_train, config.seed, classes if self.protocol.sampling == "balanced" else None)
        self.mesh: Mesh | None = None
        if config.mesh is not None:
            packs, rows = [part.pack for part in self.parts], [part.rows for part in self.parts]
            self.mesh = Mesh(config.mesh, packs, rows, device)
        self.surroundings: Surroundings | None = None
        if config.augment.surroundings:
            pairs = [(part.pack, part.rows) for part in self.parts]
            self.surroundings = Surroundings(config, pairs, "aligned", config.crop_size, device, progress)
        self.head_rows: dict[str, list[str]] = {}

    def _leave_out(self, labels: NDArray[np.int64], hidden: NDArray[np.bool_]) -> None:
        """Take the label from photos in which no face was found: a crop of their middle would teach nothing."""
        count = int((hidden & (labels != DROPPED)).sum())
        if count:
            message = f"{self.pack.path}: {count} photos are left out, it is not known where their faces are"
            warnings.warn(message, NkfWarning, stacklevel=3)
        labels[hidden] = DROPPED

    def create(self) -> nn.Module:
        model = create_model(self.kind, architecture(self.config), len(self.protocol.classes))
        if isinstance(model, NKF) and model.fan is not None:
            load_weights(DEFAULT_FAN, model.fan)
        self.head_rows = start_from(model, self.config, self.train, self.protocol.classes)
        if self.mesh is not None:
            assert isinstance(model, NKF)
            model = WithMesh(model)
        return model.to(self.device)

    def network(self, model: nn.Module) -> nn.Module:
        return model.network if isinstance(model, WithMesh) else model

    def batch(self, rows: NDArray[np.int64], generator: Generator) -> ExpressionBatch:
        images, landmarks_px = self.train.batch(rows)
        index, size = torch.from_numpy(rows).to(self.device), images.shape[-1]
        base = torch.tensor([size / 2, size / 2, size, 0], device=self.device).expand(len(images), 4)
        around = None if self.surroundings is None else self.surroundings.draw(index, generator)
        crops, points_px, _, mirrored = augment(
            images, landmarks_px, base, size, self.config.augment, generator, around
        )
        if self.mesh is not None:  # its vertices go through the mixing as further points
            points_px = torch.cat([points_px, self.mesh.in_crops(index, points_px, mirrored)], dim=1)
        faces = mix(Faces(crops, points_px, self.targets[index]), self.config.mix, generator)
        crops = faces.crops.contiguous(memory_format=torch.channels_last)
        landmarks_px, mesh_px = faces.points_px[:, :NUM_LANDMARKS], faces.points_px[:, NUM_LANDMARKS:]
        mesh = None if self.mesh is None else self.mesh.deviations(mesh_px, size)
        return ExpressionBatch(crops, landmarks_px, faces.targets, mesh)

    def loss(self, model: nn.Module, batch: ExpressionBatch) -> Tensor:
        with autocast(self.config, self.device):
            if batch.mesh is None:
                return self.objective(model, batch.crops, batch.landmarks_px, batch.targets)
            logits, mesh = model(batch.crops, batch.landmarks_px)
        of_mesh = mesh_loss(mesh.float(), batch.mesh)
        return F.cross_entropy(logits.float(), batch.targets) + self.config.mesh_weight * of_mesh

    @torch.no_grad()
    def validate(self, model: nn.Module) -> dict[str, float]:
        """Accuracy of the images that choose the checkpoint; nothing where there are none."""
        if not len(self.valid_labels):
            return {}
        logits = self._logits(model, self.valid)
        labels = torch.from_numpy(self.valid_labels).to(self.device)
        predicted = logits.argmax(dim=1).cpu().numpy()
        top = accuracy(self.valid_labels, predicted)
        return {
            "score": top,
            "accuracy": top,
            "mean_class_accuracy": mean_class_accuracy(self.valid_labels, predicted, len(self.protocol.classes)),
            "cross_entropy": float(F.cross_entropy(logits, labels)),
        }

    def _logits(self, model: nn.Module, faces: FaceTensors) -> Tensor:
        network = self.network(model)
        return torch.cat([network(crops, landmarks_px).float() for _, crops, landmarks_px in faces.batches()])

    @torch.no_grad()
    def probabilities(self, model: nn.Module, faces: FaceTensors) -> NDArray[np.float32]:
        """(N, C) of a network in evaluation mode."""
        return self._logits(model, faces).softmax(dim=1).cpu().numpy()

    def measured(self, most: int | None = None) -> tuple[NDArray[np.int64], NDArray[np.int64], FaceTensors]:
        """Rows of the pack, labels and faces of what the run is measured on, or of the first so many.

        This is the fold that was left out of training; without one the protocol's reported split, or in a pack without
        it the images that chose the checkpoint.
        """
        rows = fold_rows(self.pack, self.protocol, self.labels)
        if self.protocol.fold is None:
            reported = labelled(self.pack, self.protocol.test, self.labels)
            rows = reported if len(reported) else self.valid_rows
        rows = rows[:most]
        return rows, self.labels[rows], self._faces(rows)

    def _faces(self, rows: NDArray[np.int64]) -> FaceTensors:
        return self._tensors([(self.crops, rows)])

    def _tensors(self, parts: list[tuple[FaceCrops, NDArray[np.int64]]]) -> FaceTensors:
        landmarks_px = np.concatenate([crops.landmarks_px[rows] for crops, rows in parts])
        return FaceTensors(CropRows([(crops.images, rows) for crops, rows in parts]), landmarks_px, self.device)

    def info(self, model: nn.Module) -> WeightsInfo:
        template = tuple((float(x), float(y)) for x, y in CROP_TEMPLATE)
        training: dict[str, Any] = {
            "protocol": self.protocol.model_dump(mode="json", exclude={"metric", "expected"}),
            "images": {"train": len(self.parts[0].rows), "choose": len(self.valid_labels)},
            "targets": self.config.targets,
        }
        if self.differences:
            training["differences"] = self.differences
        if self.head_rows:
            training["head_rows"] = self.head_rows
        training |= self._teaching()
        packs = {part.pack.path: part.pack for part in self.parts}
        return describe(
            self.config,
            self.kind,
            self.network(model),
            list(packs.values()),
            training,
            classes=self.protocol.classes,
            crop_template=template,
        )

    def _teaching(self) -> dict[str, Any]:
        """What the sidecar tells of targets beside the labels."""
        soft, unlabelled = self.parts[0].facts, [part.facts for part in self.parts[1:]]
        mesh = {"weight": self.config.mesh_weight} if self.mesh is not None else {}
        told = {"soft_labels": soft, "unlabelled": unlabelled, "mesh": mesh}
        return {name: facts for name, facts in told.items() if facts}
