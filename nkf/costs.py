"""What a network costs: weights, multiply-adds, milliseconds a face."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nkf.geometry import NUM_LANDMARKS
from nkf.models import count_parameters

Parts = Mapping[str, Sequence[str]]  # name of a part -> names of the network's modules or parameters in it


def parameters_by_part(network: nn.Module, parts: Parts) -> dict[str, int]:
    """Count the parameters of each part."""
    return {part: sum(_size(network, name) for name in names) for part, names in parts.items()}


def _size(network: nn.Module, name: str) -> int:
    *path, last = name.split(".")
    part = getattr(network.get_submodule(".".join(path)), last)
    return part.numel() if isinstance(part, nn.Parameter) else count_parameters(part)


def macs_by_part(network: nn.Module, parts: Parts, *inputs: torch.Tensor) -> dict[str, int]:
    """Count the multiply-adds of one call: all convolutions and matrix products, those of attention included.

    Args:
        network: in evaluation mode; on the meta device nothing is computed.
        parts: to count one by one.
        inputs: of the call.

    Returns:
        For each part that has any, and ``total``.
    """
    # The counter does not see the fused attention of a CPU.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(*inputs)
    counts = {name: sum(ops.values()) // 2 for name, ops in counter.get_flop_counts().items()}
    prefix = type(network).__name__
    sums = {part: sum(counts.get(f"{prefix}.{name}", 0) for name in names) for part, names in parts.items()}
    return {part: total for part, total in sums.items() if total} | {"total": counts["Global"]}


def count_macs(network: nn.Module, *inputs: torch.Tensor) -> int:
    """The ``total`` of `macs_by_part`."""
    return macs_by_part(network, {}, *inputs)["total"]


def milliseconds_a_face(
    networks: Mapping[str, tuple[nn.Module, int]], batch: int, *, device: str = "cpu", rounds: int = 10
) -> dict[str, dict[str, float]]:
    """Time several networks by turns, so that they share the machine's moods.

    Args:
        networks: name -> an expression network and the side of its crops in pixels.
        batch: faces in one call.
        device: a torch device, where the networks are.
        rounds: times that all are called.

    Returns:
        For each what `by_turns` tells, over the batch.
    """
    calls = {name: _caller(network.eval(), size, batch, device) for name, (network, size) in networks.items()}
    times = by_turns(calls, rounds)
    return {name: {what: value / batch for what, value in of.items()} for name, of in times.items()}


def _caller(network: nn.Module, size: int, batch: int, device: str) -> Callable[[], Any]:
    generator = torch.Generator().manual_seed(0)
    crops = torch.rand(batch, 3, size, size, generator=generator).to(device)
    landmarks_px = (size * torch.rand(batch, NUM_LANDMARKS, 2, generator=generator)).to(device)

    def call() -> None:
        with torch.inference_mode():
            network(crops, landmarks_px)
        if device == "cuda":
            torch.cuda.synchronize()

    return call


def by_turns(calls: Mapping[str, Callable[[], Any]], runs: int) -> dict[str, dict[str, float]]:
    """Milliseconds of several calls, each made once before: ``min_ms``, ``p10_ms`` and ``median_ms`` of each."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(runs):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {
        name: {"min_ms": min(t), "p10_ms": float(np.percentile(t, 10)), "median_ms": float(np.median(t))}
        for name, t in times.items()
    }
