"""One network trained by several processes that torchrun starts; every function works in a single process too.

    torchrun --standalone --nproc-per-node 2 -m nkf train CONFIG     # several machines: by torchrun's other options

Each process computes the gradient of its share of a batch, and `DistributedDataParallel` averages them. Processes wait
for each other in these exchanges alone; one that is waited for in vain for `TIMEOUT` ends the run.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nkf.errors import NkfError, NkfWarning

TIMEOUT = timedelta(minutes=30)  # a validation takes less, and so does cutting the crops of a large pack


def launched() -> bool:
    """Whether torchrun started this process."""
    return dist.is_torchelastic_launched()


def rank() -> int:
    """Number of this process, from 0; known before `start` and after `stop` too."""
    if dist.is_initialized():
        return dist.get_rank()
    return int(os.environ["RANK"]) if launched() else 0


def world_size() -> int:
    """Number of processes that train together; 1 before `start` and after `stop`."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process is the one that writes, validates and speaks."""
    return rank() == 0


def start(device: str) -> str:
    """Join the processes that torchrun started, if it did; returns this one's device.

    Args:
        device: a torch device; of several CUDA devices each process takes its own.
    """
    if not launched():
        return device
    cuda = torch.device(device).type == "cuda"
    if cuda:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    place = torch.device(device) if cuda else None
    dist.init_process_group("nccl" if cuda else "gloo", timeout=TIMEOUT, device_id=place)
    return device


def stop() -> None:
    """Leave the processes that `start` joined."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def joined(device: str) -> Iterator[str]:
    """`start` before a block, which gets the device, and `stop` after it, when all are there; the main one warns."""
    try:
        with warnings.catch_warnings():
            device = start(device)
            if not is_main():
                warnings.simplefilter("ignore", NkfWarning)
            yield device
        barrier()  # not after an error: the others would be waited for in vain
    finally:
        stop()


def barrier() -> None:
    """Wait until all processes are here."""
    if dist.is_initialized():
        dist.barrier()


def wrap(module: nn.Module) -> nn.Module:
    """Make backward passes average the gradients of all processes; a single process gets the module itself.

    Batch norm sees a process's share of a batch, and the main one's statistics are kept. Parameters without a gradient,
    frozen or unused, are allowed; torch notes once where it looked for them in vain.
    """
    return DistributedDataParallel(module, find_unused_parameters=True) if world_size() > 1 else module


def no_sync(module: nn.Module) -> AbstractContextManager[None]:
    """Context in which a backward pass through what `wrap` returned adds to this process's gradients alone."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


def share(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """This process's part of a batch's rows: as many as the others', next to each other.

    Raises:
        NkfError: when they cannot be shared evenly.
    """
    size, rest = divmod(len(rows), world_size())
    if rest:
        raise NkfError(f"batch_size {len(rows)}: cannot be shared evenly by {world_size()} processes")
    return rows[rank() * size :][:size] if world_size() > 1 else rows


def mean(value: Tensor) -> Tensor:
    """Mean over the processes of a tensor without gradient."""
    if world_size() == 1:
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value / world_size()


def decided(choice: bool) -> bool:
    """What the main process chose."""
    if world_size() == 1:
        return choice
    value = torch.tensor(choice, device=_place())
    dist.broadcast(value, 0)
    return bool(value)


def from_main(content: bytes) -> bytes:
    """Bytes that the main process has; what the others pass does not matter. They may be on another machine."""
    if world_size() == 1:
        return content
    length = torch.tensor(len(content), device=_place())
    dist.broadcast(length, 0)
    data = torch.zeros(int(length), dtype=torch.uint8, device=_place())
    if is_main() and content:
        data.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    dist.broadcast(data, 0)
    return data.cpu().numpy().tobytes()


def _place() -> torch.device:
    """Where the engine exchanges tensors."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
