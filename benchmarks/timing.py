"""What the latency benchmarks share: the machine's measured peak, a network's work, and times taken by turns."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np


def seconds(call: Callable[[], Any]) -> float:
    """Time one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def peak_macs_per_second(side: int = 1024, runs: int = 60) -> float:
    """Multiply-accumulates of the best of many float32 matrix products, on all threads that numpy uses."""
    matrix = np.random.default_rng(0).random((side, side), np.float32)
    return side**3 / min(seconds(lambda: matrix @ matrix) for _ in range(runs))


def count_macs(network: Any, *inputs: Any) -> int:
    """Multiply-accumulates of all convolutions and linear layers of a torch network in one call."""
    import torch

    total = 0

    def convolution(module: Any, _: Any, output: Any) -> None:
        nonlocal total
        total += output[0, 0].numel() * module.weight.numel()

    def linear(module: Any, _: Any, output: Any) -> None:
        nonlocal total
        total += output[0].numel() * module.in_features

    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(convolution)
        elif isinstance(module, torch.nn.Linear):
            module.register_forward_hook(linear)
    with torch.no_grad():
        network(*inputs)
    return total


def by_turns(calls: dict[str, Callable[[], Any]], runs: int) -> dict[str, dict[str, float]]:
    """Milliseconds of several calls, taken by turns so that they share the machine's moods."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(runs):
        for name, call in calls.items():
            times[name].append(1e3 * seconds(call))
    return {
        name: {"min_ms": min(t), "p10_ms": float(np.percentile(t, 10)), "median_ms": float(np.median(t))}
        for name, t in times.items()
    }
