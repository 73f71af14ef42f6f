"""The machine that a figure comes from, in words."""

import os
import platform
import re
import sys
from pathlib import Path

_PROCESSORS, _GPUS = Path("/proc/cpuinfo"), Path("/proc/driver/nvidia/gpus")  # Linux; elsewhere less is known


def machine(device: str = "cpu") -> str:
    """Name the processor, and how many cores this process may use of it; before it the GPU, if networks run there.

    Args:
        device: where networks run. To be asked when they have run: with ``auto`` the GPU is named if torch has used it,
            or ONNX Runtime offers it.
    """
    names = re.findall(r"^model name\s*: (.+)$", _PROCESSORS.read_text(), re.M) if _PROCESSORS.exists() else []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    processor = f"{names[0] if names else platform.processor() or platform.machine()}, {cores} core{'s' * (cores != 1)}"
    return f"{_gpu(device)}, {processor}" if _on_gpu(device) else processor


def _on_gpu(device: str) -> bool:
    if device != "auto":
        return device.startswith("cuda")
    torch, onnxruntime = sys.modules.get("torch"), sys.modules.get("onnxruntime")  # what did not run is not imported
    offered = onnxruntime is not None and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    return offered or (torch is not None and torch.cuda.is_initialized())


def _gpu(device: str) -> str:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return str(torch.cuda.get_device_name(None if device == "auto" else device))
    told = "".join(file.read_text() for file in sorted(_GPUS.glob("*/information")))
    names = re.findall(r"^Model:\s*(.+?)\s*$", told, re.M)
    return names[0] if names else "a GPU"
