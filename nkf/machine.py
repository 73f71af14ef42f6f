"""The machine that a figure comes from, in words."""

import os
import platform
import re
from pathlib import Path


def machine(device: str = "cpu") -> str:
    """Name the processor, and how many cores this process may use of it, or for a CUDA device the GPU."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    told = Path("/proc/cpuinfo")  # Linux; `platform` knows the architecture alone there
    names = re.findall(r"^model name\s*: (.+)$", told.read_text(), re.MULTILINE) if told.exists() else []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{names[0] if names else platform.processor() or platform.machine()}, {cores} core{'s' * (cores != 1)}"
