"""What the recipes share: the interface that the trainer sees, faces as tensors, starting weights, the sidecar."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from nkf import __version__
from nkf.config import TrainConfig
from nkf.data.dataset import CropRows
from nkf.data.pack import Pack
from nkf.data.sampling import Order
from nkf.errors import NkfError
from nkf.files import file_sha256
from nkf.models import count_parameters, load_model
from nkf.models.face_trunks import LandmarkRegressor, TwoTrunks
from nkf.models.pretrained import load_pretrained
from nkf.preprocess import to_float
from nkf.weights import Kind, WeightsInfo, find_weights

_PRETRAINED_FACES = 256  # from which folded batch norms are estimated
_VALIDATION_BATCH = 64
_UPLOAD = 4096  # crops copied to a GPU at once
TOLD_OF_PACK = ("source", "label_file", "crop", "licence", "images", "leaks_dropped", "valid_carved", "split")
_ALWAYS_TOLD = ("epochs", "batch_size", "learning_rate", "seed")  # of the configuration
_TOLD_IF_CHANGED = (
    "label_smoothing", "limit", "loss", "mix", "optimizer", "accumulate", "sam_rho", "schedule", "decay",
    "decay_epochs", "frozen",
)  # fmt: skip
RESIDENT_SHARE = 0.6  # of a GPU's free memory that crops may take


class Recipe(Protocol):
    """A task, for the trainer."""

    config: TrainConfig
    num_train: int
    order: Order

    def create(self) -> nn.Module:
        """Build what is trained, with its starting weights."""

    def network(self, model: nn.Module) -> nn.Module:
        """The part of what `create` built that is saved; all of it, if nothing serves in training only."""

    def batch(self, rows: NDArray[np.int64], generator: Generator) -> Any:
        """Inputs and targets of some training rows (numbers below `num_train`), augmented, on the device."""

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Mean loss of what `batch` made; asked twice for the same batch by SAM."""

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Metrics of what `create` built, in evaluation mode; the checkpoint with the highest ``score`` is the best.

        Without any metrics the last one is.
        """

    def info(self, model: nn.Module) -> WeightsInfo:
        """The sidecar of the network in what `create` built."""


class FaceTensors:
    """Crops with their landmarks, for training on a device.

    On a GPU with room for them all crops live there. Else a batch is copied out of the memory-mapped cache when it is
    its turn, so that a dataset may be larger than the memory.

    Args:
        crops: N of them, (S, S, 3) uint8 each.
        landmarks_px: (N, 68, 2) in pixels of the crops.
        device: where batches are needed.
    """

    def __init__(self, crops: CropRows, landmarks_px: NDArray[np.float32], device: torch.device) -> None:
        self._crops = crops
        self._device = device
        self.landmarks_px = torch.from_numpy(landmarks_px).to(device)
        self._resident: Tensor | None = None
        if device.type == "cuda" and crops.nbytes < RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]:
            self._resident = torch.empty((len(crops), *crops.shape), dtype=torch.uint8, device=device)
            for start in range(0, len(crops), _UPLOAD):
                rows = np.arange(start, min(start + _UPLOAD, len(crops)))
                self._resident[start : start + len(rows)] = torch.from_numpy(crops.take(rows)).to(device)

    def __len__(self) -> int:
        return len(self._crops)

    def images_uint8(self, rows: NDArray[np.int64]) -> Tensor:
        """Crops (B, S, S, 3) uint8 on the device."""
        if self._resident is not None:
            return self._resident[torch.from_numpy(rows).to(self._device)]
        return torch.from_numpy(self._crops.take(rows)).to(self._device)

    def batch(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Crops (B, 3, S, S) float32 in [0, 1], and their landmarks (B, 68, 2)."""
        return to_float(self.images_uint8(rows)), self.landmarks_px[torch.from_numpy(rows).to(self._device)]

    def batches(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """All of them in order, `batch` by `batch`, each with its slice."""
        for start in range(0, len(self), _VALIDATION_BATCH):
            rows = np.arange(start, min(start + _VALIDATION_BATCH, len(self)))
            yield slice(start, start + len(rows)), *self.batch(rows)


def autocast(config: TrainConfig, device: torch.device) -> torch.autocast:
    """Lower precision for the network alone: landmarks and crops are computed in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.bf16)


def start_from(
    model: nn.Module, config: TrainConfig, faces: FaceTensors, classes: tuple[str, ...] = ()
) -> dict[str, list[str]]:
    """Load the weights that the configuration starts from, if any; returns what `load_weights` does."""
    head_rows = load_weights(config.start, model, classes) if config.start is not None else {}
    if config.pretrained is not None:
        images, _ = faces.batch(np.arange(min(_PRETRAINED_FACES, len(faces))))
        load_pretrained(_backbone(model, config), config.pretrained, images.cpu())
    if config.start_backbone is not None:
        load_backbone(config.start_backbone, _backbone(model, config))
    if config.start_landmark_trunk is not None:
        assert isinstance(model, TwoTrunks)
        load_landmark_trunk(config.start_landmark_trunk, model)
    return head_rows


def _backbone(model: nn.Module, config: TrainConfig) -> nn.Module:
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, nn.Module):
        raise NkfError(f"pretrained and start_backbone: {config.network.system} has no backbone that could take them")
    return backbone


def load_landmark_trunk(name: str, model: TwoTrunks) -> None:
    """Load the frozen trunk of POSTER or POSTER++ from a NAME, run or file of the task landmark_trunk.

    Raises:
        NkfError: when the file is unusable, or holds another network.
    """
    file, info = find_weights(name, (".safetensors",))
    source = load_model(file, info)
    if not isinstance(source, LandmarkRegressor):
        raise NkfError(f"{file}: a network of the kind {info.kind}; expected one that the task landmark_trunk trained")
    model.take_landmark_trunk(source)


def load_backbone(name: str, backbone: nn.Module) -> None:
    """Load the backbone of the network in a NAME, run or file, of whatever kind that network is.

    Raises:
        NkfError: when the file is unusable, or its network has no such backbone.
    """
    file, info = find_weights(name, (".safetensors",))
    source = getattr(load_model(file, info), "backbone", None)
    if source is None:
        raise NkfError(f"{file}: a network of the kind {info.kind} has no backbone that others could start from")
    try:
        backbone.load_state_dict(source.state_dict())
    except RuntimeError as error:
        of_file = info.architecture.get("backbone", info.architecture.get("trunk"))
        message = f"its backbone {of_file!r} is not the configuration's network.backbone or network.trunk"
        raise NkfError(f"{file}: {message}") from error


def load_weights(name: str, model: nn.Module, classes: tuple[str, ...] = ()) -> dict[str, list[str]]:
    """Load the weights of a NAME, run or file into a network.

    Args:
        name: what `find_weights` finds.
        model: a network of the same form; one that tells expressions may have other classes.
        classes: of one that tells expressions.

    Returns:
        Empty, or where the classes differ ``copied``: the classes whose rows of the classifier are those of the same
        name in the file, and ``new``: the classes whose rows keep the network's own fresh weights.

    Raises:
        NkfError: when the file is unusable, or of another network.
    """
    file, info = find_weights(name, (".safetensors",))
    source = load_model(file, info)
    state = source.state_dict()
    head_rows: dict[str, list[str]] = {}
    try:
        if classes and type(model) is type(source) and info.classes != classes:
            state |= _classifier_by_name(model, classes, source, info.classes)
            head_rows = {
                "copied": [one for one in classes if one in info.classes],
                "new": [one for one in classes if one not in info.classes],
            }
        model.load_state_dict(state)
    except RuntimeError as error:
        raise NkfError(f"{file}: another network than the configuration's ({info.architecture})") from error
    return head_rows


def _classifier_by_name(
    model: nn.Module, classes: tuple[str, ...], source: nn.Module, source_classes: tuple[str, ...]
) -> dict[str, Tensor]:
    """State of the model's classifier in which classes that the source has too have the source's rows."""
    classifier, of_source = (getattr(network, "classifier", None) for network in (model, source))
    assert isinstance(classifier, nn.Linear)
    assert isinstance(of_source, nn.Linear)
    place = next(name for name, module in model.named_modules() if module is classifier)
    given = of_source.state_dict()
    state = {key: value.clone() for key, value in classifier.state_dict().items()}
    for row, name in enumerate(classes):
        if name in source_classes:
            for key, value in state.items():
                value[row] = given[key][source_classes.index(name)]
    return {f"{place}.{key}": value for key, value in state.items()}


def describe(
    config: TrainConfig,
    kind: Kind,
    model: nn.Module,
    packs: list[Pack],
    training: Mapping[str, Any] | None = None,
    **more: Any,
) -> WeightsInfo:
    """Make the sidecar; `training` are further facts about the training, `more` further fields."""
    network: Any = model
    normalize = getattr(network, "backbone", network).normalize
    data = [{key: pack.manifest[key] for key in TOLD_OF_PACK if pack.manifest.get(key)} for pack in packs]
    facts: dict[str, Any] = {"data": data, **(training or {}), **_settings(config)}
    if config.pretrained is not None:
        file = config.pretrained
        facts["pretrained"] = {"file": f"{file.absolute().parent.name}/{file.name}", "sha256": file_sha256(file)}
    if config.start is not None:
        _, info = find_weights(config.start, (".safetensors",))
        facts["start"] = {"name": info.name, **info.training}
    for field in ("start_backbone", "start_landmark_trunk", "teacher"):
        if (name := getattr(config, field)) is not None:
            _, info = find_weights(name, (".safetensors",))
            facts[field] = {"name": info.name, "kind": info.kind, **info.training}
    return WeightsInfo(
        name=config.name,
        kind=kind,
        architecture=architecture(config),
        input_size=config.crop_size,
        mean=tuple(normalize.mean.flatten().tolist()),
        std=tuple(normalize.std.flatten().tolist()),
        parameters=count_parameters(model),
        training=facts,
        nkf_version=__version__,
        **more,
    )


def architecture(config: TrainConfig) -> dict[str, Any]:
    """What `nkf.models.create_model` builds the network of a run from."""
    if config.task == "expression":
        return config.network.architecture()
    if config.task in ("landmarks", "contrastive"):
        return config.network.model_dump(mode="json", include={"backbone"})
    return {}


def _settings(config: TrainConfig) -> dict[str, Any]:
    """What a sidecar tells of the configuration itself: the usual four, and what is not as by default."""
    changed = {name for name in _TOLD_IF_CHANGED if getattr(config, name) != TrainConfig.model_fields[name].default}
    if not config.mix.probability:
        changed.discard("mix")
    return config.model_dump(mode="json", include={*_ALWAYS_TOLD, *changed})
