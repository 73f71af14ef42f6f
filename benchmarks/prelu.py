"""Backward pass of `nkf.models.layers.PReLU` beside torch's own, alternating in one run.

LD_PRELOAD=libtcmalloc_minimal.so.4 python benchmarks/prelu.py
"""

import statistics
import time

import torch
from torch import nn

from nkf.models.layers import PReLU


def backward_ms(layer: nn.Module, x: torch.Tensor, gradient: torch.Tensor) -> float:
    x.grad = None
    y = layer(x)
    start = time.perf_counter()
    y.backward(gradient)
    return 1000 * (time.perf_counter() - start)


def main() -> None:
    torch.set_num_threads(2)
    x = torch.randn(32, 128, 56, 56).contiguous(memory_format=torch.channels_last).requires_grad_()
    gradient = torch.randn_like(x)
    layers = {"torch": nn.PReLU(128), "nkf": PReLU(128)}
    times: dict[str, list[float]] = {name: [] for name in layers}
    for _ in range(18):
        for name, layer in layers.items():
            times[name].append(backward_ms(layer, x, gradient))
    median = {name: statistics.median(values[3:]) for name, values in times.items()}
    print(f"backward pass, median ms: {median}, ratio {median['torch'] / median['nkf']:.2f}")


if __name__ == "__main__":
    main()
