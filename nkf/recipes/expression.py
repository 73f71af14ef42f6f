"""Expression networks: aligned crops, cross-entropy with vote shares or labels, accuracy on what the protocol says."""

import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from nkf.config import TrainConfig
from nkf.data.dataset import CropRows, load_crops, training_targets
from nkf.data.groups import linked_rows
from nkf.data.labels import DROPPED, EXPRESSIONS
from nkf.data.pack import Pack
from nkf.data.sampling import epoch_order
from nkf.data.splitting import folds, stratified_groups
from nkf.errors import NkfError, NkfWarning
from nkf.geometry import CROP_TEMPLATE
from nkf.metrics import accuracy, mean_class_accuracy
from nkf.models import create_model
from nkf.models.nkf import NKF
from nkf.preprocess import augment
from nkf.progress import Progress, no_progress
from nkf.protocols import SPLITS, Protocol, check_counts
from nkf.recipes.common import FaceTensors, autocast, describe, load_weights, start_from
from nkf.weights import DEFAULT_FAN, Kind, WeightsInfo


class ExpressionBatch(NamedTuple):
    """Crops (B, 3, S, S), their landmarks (B, 68, 2) in pixels, and target distributions (B, N)."""

    crops: Tensor
    landmarks_px: Tensor
    targets: Tensor


class ExpressionRecipe:
    """Expression networks: aligned crops, cross-entropy with vote shares or labels.

    Attributes:
        differences: one line for each split whose number of images is not the one that the protocol expects.
    """

    kind: Kind = "nkf"

    def __init__(self, config: TrainConfig, device: torch.device, progress: Progress = no_progress) -> None:
        self.config = config
        self.device = device
        self.protocol = config.protocol
        self.pack = Pack(config.data[0])
        crops = load_crops(self.pack, "aligned", config.crop_size, progress)
        labels = self.protocol.class_indices(self.pack.labels(self.protocol.rule))
        self._leave_out(labels, ~crops.shown)
        train, valid = chosen_rows(self.pack, self.protocol, labels)
        counts: dict[str, int] = {split: len(labelled(self.pack, split, labels)) for split in SPLITS}
        self.differences = check_counts(self.protocol, counts, carved=bool(self.pack.manifest.get("valid_carved")))
        for difference in self.differences:
            warnings.warn(f"{self.pack.path}: {difference}", NkfWarning, stacklevel=2)
        self.num_train = len(train)
        self.order = epoch_order(
            self.num_train, config.seed, labels[train] if self.protocol.sampling == "balanced" else None
        )
        self.crops, self.labels, self.valid_rows, self.valid_labels = crops, labels, valid, labels[valid]
        self.train, self.valid = self._faces(train), self._faces(valid)
        targets = training_targets(
            labels[train],
            shares_of_classes(self.pack.distributions()[train], labels[train], self.protocol.classes),
            soft=config.targets == "distribution",
            smoothing=config.label_smoothing,
        )
        self.targets = torch.from_numpy(targets).to(device)
        self.head_rows: dict[str, list[str]] = {}

    def _leave_out(self, labels: NDArray[np.int64], hidden: NDArray[np.bool_]) -> None:
        """Take the label from photos in which no face was found: a crop of their middle would teach nothing."""
        count = int((hidden & (labels != DROPPED)).sum())
        if count:
            message = f"{self.pack.path}: {count} photos are left out, it is not known where their faces are"
            warnings.warn(message, NkfWarning, stacklevel=3)
        labels[hidden] = DROPPED

    def create(self) -> nn.Module:
        architecture = self.config.network.model_dump()
        model = create_model(self.kind, architecture, len(self.protocol.classes))
        assert isinstance(model, NKF)
        if model.fan is not None:
            load_weights(DEFAULT_FAN, model.fan)
        self.head_rows = start_from(model, self.config, self.train, self.protocol.classes)
        return model.to(self.device)

    def batch(self, rows: NDArray[np.int64], generator: Generator) -> ExpressionBatch:
        images, landmarks_px = self.train.batch(rows)
        size = images.shape[-1]
        base = torch.tensor([size / 2, size / 2, size, 0], device=self.device).expand(len(images), 4)
        crops, landmarks_px, *_ = augment(images, landmarks_px, base, size, self.config.augment, generator)
        targets = self.targets[torch.from_numpy(rows).to(self.device)]
        return ExpressionBatch(crops.contiguous(memory_format=torch.channels_last), landmarks_px, targets)

    def loss(self, model: nn.Module, batch: ExpressionBatch) -> Tensor:
        with autocast(self.config, self.device):
            logits = model(batch.crops, batch.landmarks_px)
        return F.cross_entropy(logits.float(), batch.targets)

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
        return torch.cat([model(crops, landmarks_px).float() for _, crops, landmarks_px in faces.batches()])

    @torch.no_grad()
    def probabilities(self, model: nn.Module, faces: FaceTensors) -> NDArray[np.float32]:
        """(N, C) of a network in evaluation mode."""
        return self._logits(model, faces).softmax(dim=1).cpu().numpy()

    def measured(self) -> tuple[NDArray[np.int64], NDArray[np.int64], FaceTensors]:
        """Rows of the pack, labels and faces of what the run is measured on.

        This is the fold that was left out of training; without one the protocol's reported split, or in a pack without
        it the images that chose the checkpoint.
        """
        rows = fold_rows(self.pack, self.protocol, self.labels)
        if self.protocol.fold is None:
            reported = labelled(self.pack, self.protocol.test, self.labels)
            rows = reported if len(reported) else self.valid_rows
        return rows, self.labels[rows], self._faces(rows)

    def _faces(self, rows: NDArray[np.int64]) -> FaceTensors:
        images = CropRows([(self.crops.images, rows)])
        return FaceTensors(images, self.crops.landmarks_px[rows], self.device)

    def info(self, model: nn.Module) -> WeightsInfo:
        template = tuple((float(x), float(y)) for x, y in CROP_TEMPLATE)
        training: dict[str, Any] = {
            "protocol": self.protocol.model_dump(mode="json", exclude={"metric", "expected"}),
            "images": {"train": self.num_train, "choose": len(self.valid_labels)},
            "targets": self.config.targets,
        }
        if self.differences:
            training["differences"] = self.differences
        if self.head_rows:
            training["head_rows"] = self.head_rows
        return describe(
            self.config,
            self.kind,
            model,
            [self.pack],
            training,
            classes=self.protocol.classes,
            crop_template=template,
        )


def labelled(pack: Pack, split: str, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows of a split that have a label."""
    rows = pack.rows(split)
    return rows[labels[rows] != DROPPED]


def chosen_rows(
    pack: Pack, protocol: Protocol, labels: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows that are trained on, and rows that choose the checkpoint: none where the last weights are kept.

    Raises:
        NkfError: when there are no such rows.
    """
    rows = np.concatenate([labelled(pack, split, labels) for split in protocol.train])
    rows = rows[~np.isin(rows, fold_rows(pack, protocol, labels))]
    if not len(rows):
        raise NkfError(f"{pack.path}: no labelled image of the protocol's classes in {' and '.join(protocol.train)}")
    if protocol.choose == "last":
        return rows, rows[:0]
    ready = protocol.choose == "carved" and pack.manifest.get("valid_carved") and "valid" not in protocol.train
    if protocol.choose == "carved" and not ready:
        shares = (1 - protocol.valid_share, protocol.valid_share)
        try:
            parts = stratified_groups(labels[rows], linked_rows(pack.table)[rows], shares, protocol.seed)
        except NkfError as error:
            raise NkfError(f"{pack.path}: no images to choose the checkpoint can be carved ({error})") from error
        return rows[parts == 0], rows[parts == 1]
    valid = labelled(pack, "valid", labels)
    if not len(valid):
        raise NkfError(
            f"{pack.path}: no labelled image in its valid split to choose the checkpoint by; set protocol.choose to"
            " carved (a part of the training images), or make a valid split with 'nkf data split'"
        )
    return rows, valid


def fold_rows(pack: Pack, protocol: Protocol, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows of the fold that is left out of training; none without one. Copies of a picture are in one fold."""
    rows = np.concatenate([labelled(pack, split, labels) for split in protocol.train])
    if protocol.fold is None:
        return rows[:0]
    return rows[folds(labels[rows], linked_rows(pack.table)[rows], protocol.folds, protocol.seed) == protocol.fold]


def shares_of_classes(
    distributions: NDArray[np.float32], labels: NDArray[np.int64], classes: tuple[str, ...]
) -> NDArray[np.float32]:
    """Restrict (N, 8) vote shares to some classes: (N, C) with sum 1; the label alone where nobody voted for these.

    Args:
        distributions: in the order of `EXPRESSIONS`.
        labels: (N,) indices into `classes`.
        classes: names.
    """
    kept = distributions[:, [EXPRESSIONS.index(name) for name in classes]]
    others = distributions[:, [row for row, name in enumerate(EXPRESSIONS) if name not in classes]]
    sum_kept, sum_others = (part.sum(axis=1, keepdims=True) for part in (kept, others))
    # The part that is kept of all votes is exactly 1 when no class is left out: shares stay as they are.
    part = np.divide(sum_kept, sum_kept + sum_others, out=np.ones_like(sum_kept), where=sum_kept > 0)
    return np.where(sum_kept > 0, kept / part, np.eye(len(classes), dtype=np.float32)[labels])
