"""What is trained: data, network, loss and validation of each task, behind one small interface for the trainer."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from nkf import __version__
from nkf.config import AugmentConfig, TrainConfig
from nkf.data.dataset import load_crops, training_targets
from nkf.data.labels import DROPPED, EXPRESSIONS
from nkf.data.pack import Pack
from nkf.errors import NkfError
from nkf.geometry import CROP_TEMPLATE, LEFT_EYE_OUTER, RIGHT_EYE_OUTER
from nkf.metrics import accuracy, mean_class_accuracy
from nkf.models import count_parameters, create_model, load_model
from nkf.models.fan import FAN
from nkf.models.nkf import NKF
from nkf.models.pretrained import load_pretrained
from nkf.preprocess import augment, similarity_matrices, to_float, transform_landmarks, warp
from nkf.progress import Progress, no_progress
from nkf.weights import DEFAULT_FAN, Kind, WeightsInfo, file_sha256, find_weights

_PRETRAINED_FACES = 256  # from which folded batch norms are estimated
_VALIDATION_BATCH = 64
HELD_OUT_SHARE = 10  # one pack row in so many is kept out of landmark training, copies of a picture together
WHOLE_SIZE = 128  # side in pixels at which pictures wait for their loose crops; FER-2013's and FairFace's are smaller
FAN_FACE_SCALE = 1.3  # side of an unchanged loose crop over the longer side of the landmarks' box


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


def create_recipe(config: TrainConfig, device: torch.device, progress: Progress = no_progress) -> Recipe:
    """Load the data of a run and return its task."""
    recipe = ExpressionRecipe if config.task == "expression" else LandmarkRecipe
    return recipe(config, device, progress)


@dataclass(frozen=True, slots=True)
class _Faces:
    """Crops of one split as tensors: images (N, S, S, 3) uint8, landmarks (N, 68, 2)."""

    images: Tensor
    landmarks_px: Tensor

    @classmethod
    def load(cls, images: NDArray[np.uint8], landmarks_px: NDArray[np.float32], device: torch.device) -> "_Faces":
        return cls(torch.from_numpy(images).to(device), torch.from_numpy(landmarks_px).to(device))

    def batch(self, rows: NDArray[np.int64] | slice) -> tuple[Tensor, Tensor]:
        index = torch.from_numpy(rows).to(self.images.device) if isinstance(rows, np.ndarray) else rows
        return to_float(self.images[index]), self.landmarks_px[index]

    def batches(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        for start in range(0, len(self.images), _VALIDATION_BATCH):
            rows = slice(start, start + _VALIDATION_BATCH)
            yield rows, *self.batch(rows)


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
        self.train = _Faces.load(crops.images[train], crops.landmarks_px[train], device)
        self.valid = _Faces.load(crops.images[valid], crops.landmarks_px[valid], device)
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
            _load_from(DEFAULT_FAN, model.fan)
        _start(model, self.config, self.train)
        return model.to(self.device)

    def loss(self, model: nn.Module, rows: NDArray[np.int64], generator: Generator) -> Tensor:
        images, landmarks_px = self.train.batch(rows)
        size = images.shape[-1]
        base = torch.tensor([size / 2, size / 2, size], device=self.device).expand(len(images), 3)
        crops, landmarks_px = augment(images, landmarks_px, base, size, self.config.augment, generator)
        with _autocast(self.config, self.device):
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
        return _describe(self.config, self.kind, model, [self.pack], classes=EXPRESSIONS, crop_template=template)


class LandmarkRecipe:
    """Face alignment network: loose crops cut at random from whole pictures, distance to the teacher's landmarks.

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
        self.held_out_pack = np.repeat(np.arange(len(parts)), [len(rows) for _, rows in held_out])
        self.train, self.held_out = self._join(train), self._join(held_out)
        self.num_train = len(self.train.images)
        if not len(self.held_out.images):
            raise NkfError(
                f"{config.data[0]}: too few faces with landmarks, none falls into the tenth that is held out"
            )

    def _join(self, parts: list[tuple[Any, NDArray[np.int64]]]) -> _Faces:
        images = np.concatenate([crops.images[rows] for crops, rows in parts])
        landmarks = np.concatenate([crops.landmarks_px[rows] for crops, rows in parts])
        return _Faces.load(images, landmarks, self.device)

    def create(self) -> nn.Module:
        model = create_model(self.kind, {"backbone": self.config.network.backbone})
        assert isinstance(model, FAN)
        _start(model, self.config, self.train)
        return model.to(self.device)

    def loss(self, model: nn.Module, rows: NDArray[np.int64], generator: Generator) -> Tensor:
        images, landmarks_px = self.train.batch(rows)
        size = self.config.crop_size
        crops, target = augment(images, landmarks_px, loose_squares(landmarks_px), size, self.config.augment, generator)
        with _autocast(self.config, self.device):
            predicted = model(crops.contiguous(memory_format=torch.channels_last))
        # Over the face's size, not the distance of the eyes, which vanishes in profile and would blow the loss up.
        face_size = (target.amax(dim=1) - target.amin(dim=1)).amax(dim=1)[:, None]
        return ((predicted - target).norm(dim=-1) / face_size).mean()

    @torch.no_grad()
    def validate(self, model: nn.Module) -> dict[str, float]:
        errors = self.held_out_errors(model, self.config.augment)["error"]
        return {"score": -float(errors.mean()), "error": float(errors.mean()), "median_error": float(np.median(errors))}

    @torch.no_grad()
    def held_out_errors(self, model: nn.Module, placement: AugmentConfig) -> dict[str, NDArray[Any]]:
        """Error of each held-out face from one random loose crop, the same for every network.

        Args:
            model: in evaluation mode.
            placement: its rotation, scale and shift are drawn; the colours stay.

        Returns:
            ``error``: mean distance over the distance of the outer eye corners; ``rotation_deg``: of the crop;
            ``pack``: index into the run's packs; each (N,).
        """
        generator = torch.Generator().manual_seed(1)
        count = len(self.held_out.images)
        angle, scale, x, y = (2 * torch.rand(4, count, generator=generator) - 1).to(self.device)
        angle = angle * math.radians(placement.rotation_deg)
        scale, shift = 1 + placement.scale * scale, placement.shift * torch.stack([x, y], dim=-1)
        size, errors = self.config.crop_size, []
        for rows, images, landmarks_px in self.held_out.batches():
            upright = torch.zeros(len(images), dtype=torch.bool, device=self.device)
            base = loose_squares(landmarks_px)
            matrices = similarity_matrices(
                base, size, angle=angle[rows], scale=scale[rows], shift=shift[rows], mirrored=upright
            )
            target = transform_landmarks(landmarks_px, matrices, upright)
            distance = (model(warp(images, matrices, size)) - target).norm(dim=-1).mean(dim=1)
            eyes = (target[:, LEFT_EYE_OUTER] - target[:, RIGHT_EYE_OUTER]).norm(dim=-1)
            errors.append(distance / eyes.clamp(min=1))  # in exact profile the corners may coincide
        return {
            "error": torch.cat(errors).cpu().numpy(),
            "rotation_deg": np.degrees(angle.cpu().numpy()),
            "pack": self.held_out_pack,
        }

    def info(self, model: nn.Module) -> WeightsInfo:
        return _describe(self.config, self.kind, model, self.packs)


def is_held_out(pixels_md5: NDArray[np.str_]) -> NDArray[np.bool_]:
    """Choose the rows that landmark training never sees: about one in ten, copies of a picture together."""
    return np.array([int(digest[:8], 16) % HELD_OUT_SHARE == 0 for digest in pixels_md5], dtype=bool)


def loose_squares(landmarks_px: Tensor) -> Tensor:
    """Centre and side (B, 3) of the loose square around (B, 68, 2) landmarks; raised, since detectors add forehead."""
    low, high = landmarks_px.amin(dim=1), landmarks_px.amax(dim=1)
    side = (high - low).amax(dim=1) * FAN_FACE_SCALE
    centre = (low + high) / 2 - torch.stack([torch.zeros_like(side), 0.05 * side], dim=-1)
    return torch.cat([centre, side[:, None]], dim=-1)


def _autocast(config: TrainConfig, device: torch.device) -> torch.autocast:
    """Lower precision for the network alone: landmarks and crops are computed in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.bf16)


def _start(model: NKF | FAN, config: TrainConfig, faces: _Faces) -> None:
    """Load the weights that the configuration starts from, if any."""
    if config.start is not None:
        _load_from(config.start, model)
    if config.pretrained is not None:
        images, _ = faces.batch(slice(0, _PRETRAINED_FACES))
        load_pretrained(model.backbone, config.pretrained, images.cpu())


def _load_from(name: str, model: nn.Module) -> None:
    file, info = find_weights(name, (".safetensors",))
    try:
        model.load_state_dict(load_model(file, info).state_dict())
    except RuntimeError as error:
        raise NkfError(f"{file}: another network than the configuration's ({info.architecture})") from error


def _describe(config: TrainConfig, kind: Kind, model: nn.Module, packs: list[Pack], **more: Any) -> WeightsInfo:
    network: Any = model
    normalize = network.backbone.normalize
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
    return WeightsInfo(
        name=config.name,
        kind=kind,
        architecture=config.network.model_dump(mode="json") if kind == "nkf" else {"backbone": config.network.backbone},
        input_size=config.crop_size,
        mean=tuple(normalize.mean.flatten().tolist()),
        std=tuple(normalize.std.flatten().tolist()),
        parameters=count_parameters(model),
        training=training,
        nkf_version=__version__,
        **more,
    )
