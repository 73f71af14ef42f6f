"""Run trained networks: ONNX models in ONNX Runtime, torch weights through `nkf.models`, behind one numpy contract.

This is the only file that imports onnxruntime, and it does so when the first model is loaded.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nkf.errors import NkfError
from nkf.geometry import NUM_LANDMARKS
from nkf.weights import (
    ATTENTION,
    DEFAULT_DETECTOR,
    DEFAULT_FAN,
    EXPRESSION_KINDS,
    INPUTS,
    OUTPUTS,
    Kind,
    WeightsInfo,
    find_weights,
)

if TYPE_CHECKING:
    from nkf.models import TorchModel

Device = Literal["auto", "cpu", "cuda"]
FloatArray = NDArray[np.float32]

BATCH_SIZE = 16  # crops in one call of a network: more gain no speed, and cost memory that is kept


class OnnxModel:
    """An ONNX network as a callable: named input arrays in, named output arrays out."""

    def __init__(
        self, model: Path | bytes, device: Device = "auto", *, threads: int | None = None, name: str = ""
    ) -> None:
        """Load a network.

        Args:
            model: the file, or its content.
            device: ``auto`` takes CUDA where ONNX Runtime offers it.
            threads: CPU threads for one call; None takes all the cores that this process may use.
            name: what error messages call the network; by default the file.

        Raises:
            NkfError: when the device cannot be used, or the content is no network that ONNX Runtime can run.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.enable_mem_pattern = False  # kept for every shape of input; pictures have many
        options.log_severity_level = 3  # errors only: warnings are about graph details that no user can change
        options.intra_op_num_threads = threads or usable_cores()
        # Waiting threads spin by default: beside anything else that computes, a prediction took 1.6 times as long.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        name = name or (str(model) if isinstance(model, Path) else "ONNX model")
        providers = _providers(device, onnxruntime.get_available_providers())
        try:
            content = model if isinstance(model, bytes) else str(model)
            self._session = onnxruntime.InferenceSession(content, options, providers=providers)
        except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
            raise NkfError(f"{name}: not a network that ONNX Runtime can load ({_first_line(error)})") from error
        if device == "cuda" and providers[0] not in self._session.get_providers():
            raise NkfError("device 'cuda': ONNX Runtime could not start CUDA (driver or CUDA libraries missing)")
        self.name = name
        self.inputs: tuple[str, ...] = tuple(value.name for value in self._session.get_inputs())
        self.outputs: tuple[str, ...] = tuple(value.name for value in self._session.get_outputs())

    def __call__(self, outputs: Sequence[str] | None = None, /, **inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Run the network once and return the named outputs, by default all, by name."""
        names = self.outputs if outputs is None else tuple(outputs)
        return dict(zip(names, self._session.run(names, inputs), strict=True))


class FoundLandmarks(NamedTuple):
    """Landmarks of B faces: `points_px` (B, 68, 2), and `spread_px` (B, 68), the expected distance to the truth."""

    points_px: NDArray[np.floating]
    spread_px: NDArray[np.floating]


@dataclass(frozen=True)
class LandmarkModel:
    """A face alignment network: crops to 68 landmarks, in any number."""

    info: WeightsInfo
    network: Callable[[FloatArray], tuple[FloatArray, ...]]

    def __call__(self, crops: FloatArray) -> FoundLandmarks:
        """Find landmarks.

        Args:
            crops: (B, 3, S, S) float32 RGB in [0, 1], S = ``info.input_size``.

        Returns:
            float32, pixels of the crop.
        """
        parts = [self.network(part) for part in _batches(crops)]
        if not parts:
            return FoundLandmarks(np.zeros((0, NUM_LANDMARKS, 2), np.float32), np.zeros((0, NUM_LANDMARKS), np.float32))
        return FoundLandmarks(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


@dataclass(frozen=True)
class ExpressionModel:
    """An expression network: aligned crops and their landmarks to probabilities, in any number.

    `network` gives probabilities; `explained` gives the attention too, and is None where there is none.
    """

    info: WeightsInfo
    network: Callable[[FloatArray, FloatArray], FloatArray]
    explained: Callable[[FloatArray, FloatArray], tuple[FloatArray, ...]] | None = None

    def __call__(self, crops: FloatArray, landmarks_px: FloatArray) -> FloatArray:
        """Find expressions.

        Args:
            crops: (B, 3, S, S) float32 RGB in [0, 1], S = ``info.input_size``.
            landmarks_px: (B, 68, 2) float32, pixels of the crop.

        Returns:
            (B, C) float32 probabilities in the order of ``info.classes``, calibrated if the network has
            ``info.calibration``.
        """
        pairs = zip(_batches(crops), _batches(landmarks_px), strict=True)
        parts = [self.network(*pair) for pair in pairs]
        return np.concatenate(parts) if parts else np.zeros((0, len(self.info.classes)), np.float32)

    def with_attention(self, crops: FloatArray, landmarks_px: FloatArray) -> tuple[FloatArray, FloatArray | None]:
        """Find expressions, and what the network's attention gives each keypoint.

        Args:
            crops: as in a call.
            landmarks_px: also there.

        Returns:
            The probabilities (B, C) of a call, and (B, 68) float32 whose rows sum to 1 (see
            `nkf.models.keypoints.RKFA.emphasis`); None of a network without keypoint features, and of a file that was
            exported before there was this output.
        """
        if self.explained is None:
            return self(crops, landmarks_px), None
        pairs = zip(_batches(crops), _batches(landmarks_px), strict=True)
        parts = [self.explained(*pair) for pair in pairs]
        if not parts:
            return self(crops, landmarks_px), np.zeros((0, NUM_LANDMARKS), np.float32)
        probabilities, attention = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return probabilities, attention


@dataclass(frozen=True)
class DetectorModel:
    """A face detector: one picture to what each cell of its grid says."""

    info: WeightsInfo
    network: Callable[[FloatArray], tuple[FloatArray, ...]]

    def __call__(self, images: FloatArray) -> tuple[FloatArray, ...]:
        """Look at (B, 3, H, W) float32 RGB in [0, 1], sides that are multiples of 64.

        Returns:
            scores (B, h, w), boxes (B, h, w, 4) and points (B, h, w, 5, 2) in pixels, h = H / 8 and w = W / 8.
        """
        return self.network(images)


def load_detector(
    model: str = DEFAULT_DETECTOR, device: Device = "auto", *, threads: int | None = None
) -> DetectorModel:
    """Load a face detector by NAME, run folder or weights file (see `nkf.weights.find_weights`)."""
    file, info = _find(model, "detector")
    if file.suffix != ".onnx":
        return DetectorModel(info, _load_torch(file, info, device))
    onnx = _load_onnx(file, info, device, threads)
    return DetectorModel(info, lambda images: tuple(onnx(images=images).values()))


def load_fan(model: str = DEFAULT_FAN, device: Device = "auto", *, threads: int | None = None) -> LandmarkModel:
    """Load a face alignment network by NAME, run folder or weights file (see `nkf.weights.find_weights`)."""
    file, info = _find(model, "fan")
    if file.suffix != ".onnx":
        return LandmarkModel(info, _load_torch(file, info, device))
    onnx = _load_onnx(file, info, device, threads)
    return LandmarkModel(info, lambda crops: tuple(onnx(crops=crops).values()))


def load_expression_model(
    model: str, device: Device = "auto", *, threads: int | None = None
) -> tuple[ExpressionModel, WeightsInfo]:
    """Load an expression network by NAME, run folder or weights file (see `nkf.weights.find_weights`)."""
    file, info = _find(model, *EXPRESSION_KINDS)
    if file.suffix != ".onnx":
        torch_network = _load_torch(file, info, device)
        return ExpressionModel(
            info,
            lambda crops, landmarks_px: torch_network(crops, landmarks_px)[0],
            torch_network.with_attention if torch_network.gives_attention else None,
        ), info
    onnx = _load_onnx(file, info, device, threads)

    def run(crops: FloatArray, landmarks_px: FloatArray, outputs: Sequence[str]) -> tuple[FloatArray, ...]:
        given = {"crops": crops, "landmarks_px": landmarks_px}
        return tuple(onnx(outputs, **{name: given[name] for name in INPUTS[info.kind]}).values())

    return ExpressionModel(
        info,
        lambda crops, landmarks_px: run(crops, landmarks_px, OUTPUTS[info.kind])[0],
        (lambda crops, landmarks_px: run(crops, landmarks_px, onnx.outputs)) if ATTENTION in onnx.outputs else None,
    ), info


def _find(model: str, *kinds: Kind) -> tuple[Path, WeightsInfo]:
    file, info = find_weights(model)
    if info.kind not in kinds:
        purpose: dict[Kind, str] = {
            "fan": "finds landmarks",
            **dict.fromkeys(EXPRESSION_KINDS, "tells expressions"),
            "detector": "finds faces",
            "backbone": "is a backbone to start from",
            "landmark_trunk": "is a landmark trunk to start from",
        }
        raise NkfError(f"model {model!r}: it {purpose[info.kind]}, one that {purpose[kinds[0]]} is needed here")
    return file, info


def _load_onnx(file: Path, info: WeightsInfo, device: Device, threads: int | None) -> OnnxModel:
    model = OnnxModel(file, device, threads=threads)
    inputs, outputs = INPUTS[info.kind], OUTPUTS[info.kind]
    accepted = (outputs, (*outputs, ATTENTION)) if info.kind == "nkf" else (outputs,)
    if set(model.inputs) != set(inputs) or model.outputs not in accepted:
        found = f"{', '.join(model.inputs)} -> {', '.join(model.outputs)}"
        raise NkfError(f"{file}: inputs and outputs are {found}; expected {', '.join(inputs)} -> {', '.join(outputs)}")
    return model


def _load_torch(file: Path, info: WeightsInfo, device: Device) -> "TorchModel":
    place = torch_device(device)
    from nkf.models import TorchModel, load_model

    network = load_model(file, info)
    return TorchModel(network, place, probabilities=info.tells_expressions, calibration=info.calibration)


def torch_device(device: Device) -> Literal["cpu", "cuda"]:
    """Choose torch's device.

    Raises:
        NkfError: without torch, or for ``cuda`` where torch finds none.
    """
    try:
        import torch
    except ModuleNotFoundError as error:
        raise NkfError("this needs torch: pip install '.[train]' in nkf's folder") from error
    if device == "cuda" and not torch.cuda.is_available():
        raise NkfError("device 'cuda': the installed torch finds no CUDA device")
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"


def _batches(array: FloatArray) -> list[FloatArray]:
    return [array[start : start + BATCH_SIZE] for start in range(0, len(array), BATCH_SIZE)]


def _providers(device: Device, available: list[str]) -> list[str]:
    cuda, cpu = "CUDAExecutionProvider", "CPUExecutionProvider"
    if device not in ("auto", "cpu", "cuda"):
        raise NkfError(f"device {device!r}: unknown; known are auto, cpu, cuda")
    if device == "cuda" and cuda not in available:
        raise NkfError(
            "device 'cuda': the installed onnxruntime has no CUDA; "
            "pip uninstall onnxruntime && pip install onnxruntime-gpu"
        )
    return [cuda, cpu] if device != "cpu" and cuda in available else [cpu]


def usable_cores() -> int:
    """Number of cores that this process may use."""
    # ONNX Runtime counts the machine's cores, also those that a container or taskset keeps from this process.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _first_line(error: Exception) -> str:
    line = (str(error) or type(error).__name__).splitlines()[0]
    return line.rpartition(" : ")[2]  # without "[ONNXRuntimeError] : 7 : INVALID_PROTOBUF : "
