"""What is told of a machine, with made-up libraries and files in the place of a GPU."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nkf import machine as module
from nkf.machine import machine


@pytest.fixture(autouse=True)
def processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A machine of two cores; no library that knows a GPU, and no GPU."""
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Fast 9\n\nprocessor\t: 1\nmodel name\t: Fast 9\n")
    monkeypatch.setattr(module, "_PROCESSORS", tmp_path / "cpuinfo")
    monkeypatch.setattr(module, "_GPUS", tmp_path / "gpus")
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 3}, raising=False)
    for name in ("torch", "onnxruntime"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return "Fast 9, 2 cores"


def torch(*, used: bool) -> Any:
    """A torch with a GPU."""
    cuda = {"is_initialized": lambda: used, "is_available": lambda: True}
    return SimpleNamespace(cuda=SimpleNamespace(**cuda, get_device_name=lambda device: f"GPU of {device}"))


def onnxruntime(*providers: str) -> Any:
    return SimpleNamespace(get_available_providers=lambda: [*providers, "CPUExecutionProvider"])


@pytest.mark.parametrize(
    ("device", "libraries", "gpu"),
    [
        ("cpu", {}, ""),
        ("cpu", {"torch": torch(used=True), "onnxruntime": onnxruntime("CUDAExecutionProvider")}, ""),
        ("auto", {}, ""),
        ("auto", {"torch": torch(used=False), "onnxruntime": onnxruntime()}, ""),
        ("auto", {"torch": torch(used=True)}, "GPU of None, "),
        ("auto", {"onnxruntime": onnxruntime("CUDAExecutionProvider")}, "a GPU, "),
        ("cuda", {"torch": torch(used=True)}, "GPU of cuda, "),
        ("cuda:1", {"torch": torch(used=True)}, "GPU of cuda:1, "),
        ("cuda", {}, "a GPU, "),
    ],
)
def test_the_gpu_is_named_where_networks_ran_on_it(
    monkeypatch: pytest.MonkeyPatch, processor: str, device: str, libraries: dict[str, Any], gpu: str
) -> None:
    for name, library in libraries.items():
        monkeypatch.setitem(sys.modules, name, library)
    assert machine(device) == f"{gpu}{processor}"


def test_without_torch_the_driver_tells_the_gpu(tmp_path: Path, processor: str) -> None:
    (tmp_path / "gpus" / "0000:01:00.0").mkdir(parents=True)
    (tmp_path / "gpus" / "0000:01:00.0" / "information").write_text("Model: \t\t NVIDIA Big\nIRQ:   \t\t 1\n")
    assert machine("cuda") == f"NVIDIA Big, {processor}"


def test_without_a_list_of_processors_the_platform_tells(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "_PROCESSORS", tmp_path / "none")
    monkeypatch.setattr("platform.processor", lambda: "arm")
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0})
    assert machine() == "arm, 1 core"
