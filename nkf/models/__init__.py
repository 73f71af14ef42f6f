"""The networks: build one from its configuration, load it with its weights, save it with its sidecar."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nkf.errors import NkfError
from nkf.files import file_sha256, replacing
from nkf.models.backbone import create_backbone
from nkf.models.contrastive import FaceEncoder
from nkf.models.detector import FaceDetector
from nkf.models.eac import EAC
from nkf.models.efficientface import EfficientFace
from nkf.models.face_trunks import LandmarkRegressor
from nkf.models.fan import FAN
from nkf.models.nkf import NKF
from nkf.models.poster import POSTER
from nkf.models.poster_pp import POSTERPlusPlus
from nkf.weights import Calibration, WeightsInfo

COMPARED: dict[str, Callable[..., nn.Module]] = {
    "poster": POSTER, "poster_pp": POSTERPlusPlus, "eac": EAC, "efficientface": EfficientFace
}  # fmt: skip
"""The systems that NKF is compared with."""


def create_model(kind: str, architecture: dict[str, Any], num_classes: int = 0) -> nn.Module:
    """Build a network with fresh weights.

    Args:
        kind: one of `nkf.weights.Kind`.
        architecture: fields of the system's configuration in `nkf.network_config` but for its name; ``fan`` and
            ``backbone`` use ``backbone`` alone, ``detector`` and ``landmark_trunk`` none.
        num_classes: of a network that tells expressions.
    """
    options = dict(architecture)
    if kind == "detector":
        return FaceDetector(**options)
    if kind == "landmark_trunk":
        return LandmarkRegressor()
    if kind in COMPARED:
        return COMPARED[kind](num_classes=num_classes, **options)
    backbone = create_backbone(options.pop("backbone"))
    if kind == "fan":
        return FAN(backbone)
    if kind == "backbone":
        return FaceEncoder(backbone)
    sources = options.pop("sources", "backbone")
    fan = FAN(create_backbone("mobile_narrow")) if sources != "backbone" and options["strides"] else None
    return NKF(backbone, num_classes=num_classes, fan=fan, read_backbone=sources != "fan", **options)


def count_parameters(model: nn.Module) -> int:
    """Number of weights, without buffers."""
    return sum(p.numel() for p in model.parameters())


def load_model(file: Path, info: WeightsInfo) -> nn.Module:
    """Rebuild a network from a ``.safetensors`` file and its sidecar, in evaluation mode.

    Raises:
        NkfError: when the file is unreadable or does not fit what the sidecar says.
    """
    try:
        model = create_model(info.kind, info.architecture, len(info.classes))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:  # RuntimeError: sizes that torch cannot make
        reason = f"{(str(error).splitlines() or [type(error).__name__])[0]:.200}"
        raise NkfError(f"{file}: its sidecar describes no network that this nkf knows ({reason})") from error
    try:
        state = {name: value.float() if value.is_floating_point() else value for name, value in load_file(file).items()}
        model.load_state_dict(state, strict=True)
    except (OSError, SafetensorError) as error:
        raise NkfError(f"{file}: not a readable safetensors file ({error})") from error
    except RuntimeError as error:
        raise NkfError(f"{file}: does not fit its sidecar ({str(error).splitlines()[-1].strip()})") from error
    return model.eval()


def save_model(model: nn.Module, file: Path, info: WeightsInfo, *, half: bool = False) -> WeightsInfo:
    """Write ``NAME.safetensors`` and its sidecar ``NAME.json``; returns the sidecar with the file's SHA-256.

    Args:
        model: the network.
        file: path that ends in ``.safetensors``.
        info: what the sidecar says.
        half: round floating-point tensors to float16.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    if half:
        state = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    with replacing(file) as partial:
        save_file(state, partial)
        partial.chmod(0o644)  # safetensors makes it readable by the owner alone
    info = info.model_copy(update={"sha256": info.sha256 | {file.name: file_sha256(file)}})
    info.write(file.with_suffix(".json"))
    return info


class WithProbabilities(nn.Module):
    """An expression network followed by its calibration and softmax, which is what the ONNX file gives."""

    biases: Tensor | None

    def __init__(self, network: nn.Module, calibration: Calibration | None = None) -> None:
        super().__init__()
        self.network = network
        self.scale = None if calibration is None else 1 / calibration.temperature
        biases = calibration.class_biases if calibration else ()
        self.register_buffer("biases", torch.tensor(biases, dtype=torch.float32) if biases else None)  # (N,)

    def forward(self, crops: Tensor, landmarks_px: Tensor | None = None) -> Tensor:
        """Crops (B, 3, S, S), and for NKF landmarks (B, 68, 2), to probabilities (B, N)."""
        return self._probabilities(self.network(crops, landmarks_px))

    @property
    def gives_attention(self) -> bool:
        """Whether `with_attention` can be asked for: of NKF with keypoint features."""
        return isinstance(self.network, NKF) and self.network.has_keypoints

    def with_attention(self, crops: Tensor, landmarks_px: Tensor) -> tuple[Tensor, Tensor]:
        """The same to probabilities (B, N) and what each keypoint gets (B, 68), see `NKF.with_attention`."""
        assert isinstance(self.network, NKF)
        logits, attention = self.network.with_attention(crops, landmarks_px)
        return self._probabilities(logits), attention

    def _probabilities(self, logits: Tensor) -> Tensor:
        if self.scale is not None:
            logits = self.scale * logits
        if self.biases is not None:
            logits = logits + self.biases
        return logits.softmax(dim=-1)


class TorchModel:
    """A network as the callable on numpy arrays that prediction uses, like its ONNX twin.

    Args:
        model: the network, moved to the device.
        device: a torch device.
        probabilities: it is an expression network, whose logits become probabilities.
        calibration: of these.
    """

    def __init__(
        self, model: nn.Module, device: str, *, probabilities: bool, calibration: Calibration | None = None
    ) -> None:
        self.model = (WithProbabilities(model, calibration) if probabilities else model).to(device).eval()
        self.device = device

    def __call__(self, *inputs: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """Run on (B, ...) arrays; returns the outputs that `nkf.weights.OUTPUTS` names."""
        return self._run(self.model, inputs)

    @property
    def gives_attention(self) -> bool:
        """See `WithProbabilities.gives_attention`."""
        return isinstance(self.model, WithProbabilities) and self.model.gives_attention

    def with_attention(self, *inputs: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """Run on (B, ...) arrays; returns probabilities (B, N) and attention (B, 68)."""
        assert isinstance(self.model, WithProbabilities)
        return self._run(self.model.with_attention, inputs)

    @torch.inference_mode()
    def _run(
        self, function: Callable[..., Any], inputs: Sequence[NDArray[np.float32]]
    ) -> tuple[NDArray[np.float32], ...]:
        output = function(*(torch.from_numpy(np.ascontiguousarray(x)).to(self.device) for x in inputs))
        outputs: tuple[Tensor, ...] = output if isinstance(output, tuple) else (output,)
        return tuple(value.cpu().numpy() for value in outputs)
