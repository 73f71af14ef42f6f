"""What the latency benchmarks share: the machine's measured peak."""

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
