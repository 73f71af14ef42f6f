"""Soft labels: what one or several networks say of every face of a pack, kept in a small file.

Networks are trained on them beside labels (Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv
1503.02531, with temperature 1), or instead of labels where there are none.

    FILE   safetensors: ``probabilities`` (N, C) float16; its metadata tell classes, models and the pack's rows
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn

from nkf import __version__
from nkf.data.dataset import load_crops
from nkf.data.pack import Pack
from nkf.errors import NkfError
from nkf.files import file_sha256, replacing
from nkf.geometry import LANDMARK_MIRROR
from nkf.models import WithProbabilities, load_model
from nkf.preprocess import to_float
from nkf.progress import Progress, no_progress
from nkf.weights import WeightsInfo, find_weights

_BATCH = 128


class SoftLabels(NamedTuple):
    """Probabilities (N, C) float32 of all rows of a pack, and the names of the networks that gave them."""

    probabilities: NDArray[np.float32]
    models: tuple[str, ...]


def make_soft_labels(
    pack_path: Path,
    models: Sequence[str],
    out: Path,
    *,
    device: str = "cpu",
    progress: Progress = no_progress,
) -> Path:
    """Write the mean probabilities of some networks for all rows of a pack.

    Every network sees the faces aligned by the pack's landmarks, at its own input size, and their mirror images; its
    probabilities are the calibrated ones, if it has a calibration.

    Args:
        pack_path: a pack.
        models: packaged NAMEs, run folders or weights files of expression networks with the same classes.
        out: file to write; its folder is made when missing.
        device: a torch device.
        progress: shows how far each network is.

    Returns:
        `out`.

    Raises:
        NkfError: when pack or models are unusable, or the models have different classes.
    """
    pack = Pack(pack_path)
    found = [_expression_network(name) for name in models]
    if not found:
        raise NkfError("soft labels need at least one model")
    classes = found[0][1].classes
    for name, (_, info) in zip(models, found, strict=True):
        if info.classes != classes:
            raise NkfError(f"model {name!r}: tells {', '.join(info.classes)}, the first one {', '.join(classes)}")
    total = np.zeros((len(pack), len(classes)), np.float64)
    for file, info in found:
        network = WithProbabilities(load_model(file, info), info.calibration)
        total += _probabilities(network, info, pack, torch.device(device), progress)
    metadata = {
        "classes": json.dumps(classes),
        "models": json.dumps([info.name for _, info in found]),
        "rows_sha256": _fingerprint(pack),
        "nkf_version": __version__,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as partial:
        save_file({"probabilities": (total / len(found)).astype(np.float16)}, partial, metadata)
        partial.chmod(0o644)  # safetensors makes it readable by the owner alone
    return out


def read_soft_labels(file: Path, pack: Pack, classes: tuple[str, ...]) -> SoftLabels:
    """Read what `make_soft_labels` wrote; probabilities have sum 1 again.

    Args:
        file: the file.
        pack: that it has to be about.
        classes: that it has to be about, in this order.

    Raises:
        NkfError: when it is unreadable, or about other rows or classes.
    """
    try:
        with safe_open(file, framework="np") as content:
            metadata = content.metadata() or {}
            probabilities = content.get_tensor("probabilities").astype(np.float32)
        given, models = (tuple(json.loads(metadata[key])) for key in ("classes", "models"))
        about = metadata["rows_sha256"]
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise NkfError(f"{file}: no soft labels; make them with 'nkf soft-labels' ({error})") from error
    if about != _fingerprint(pack):
        raise NkfError(f"{file}: about other rows than those of {pack.path}; make soft labels of this pack")
    if given != classes:
        raise NkfError(f"{file}: tells {', '.join(given)}; expected {', '.join(classes)}, in this order")
    if probabilities.shape != (len(pack), len(classes)) or not np.isfinite(probabilities).all():
        raise NkfError(f"{file}: damaged, expected {len(pack)} rows of {len(classes)} probabilities")
    return SoftLabels(probabilities / probabilities.sum(axis=1, keepdims=True).clip(1e-6), models)


def _expression_network(name: str) -> tuple[Path, WeightsInfo]:
    file, info = find_weights(name, (".safetensors",))
    if not info.tells_expressions:
        raise NkfError(f"model {name!r}: of the kind {info.kind}, soft labels need networks that tell expressions")
    return file, info


@torch.inference_mode()
def _probabilities(
    network: nn.Module, info: WeightsInfo, pack: Pack, device: torch.device, progress: Progress
) -> NDArray[Any]:
    crops = load_crops(pack, "aligned", info.input_size, progress)
    network = network.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    starts = range(0, len(pack), _BATCH)
    parts = []
    for start in progress(starts, f"soft labels of {info.name}", len(starts)):
        images, landmarks_px = (array[start : start + _BATCH] for array in (crops.images, crops.landmarks_px))
        batch = to_float(torch.from_numpy(np.array(images)).to(device)), torch.from_numpy(landmarks_px).to(device)
        parts.append(_of_both_sides(network, *batch).cpu().numpy())
    return np.concatenate(parts)


def _of_both_sides(network: nn.Module, crops: Tensor, landmarks_px: Tensor) -> Tensor:
    """Mean probabilities (B, C) of crops and their mirror images."""
    mirrored_px = landmarks_px[:, torch.from_numpy(LANDMARK_MIRROR).to(landmarks_px.device)]
    mirrored_px = torch.stack([crops.shape[-1] - mirrored_px[..., 0], mirrored_px[..., 1]], dim=-1)
    return torch.stack([network(crops, landmarks_px), network(crops.flip(-1), mirrored_px)]).mean(dim=0)


def _fingerprint(pack: Pack) -> str:
    """What changes with a pack's rows, their order and their split."""
    return str(pack.manifest.get("rows_sha256") or file_sha256(pack.table.path))
