"""Data parallelism over the processes that `torchrun` started, if it did.

Also worth it on one CPU: a process of one thread per core trains faster than one process of
many threads, and other work on the machine slows it down less.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def start(device: torch.device) -> torch.device:
    """Join the other processes; without torchrun nothing happens.

    Args:
        device: Where to train; `cuda` becomes this process's own card.

    Returns:
        The device of this process.
    """
    if dist.is_torchelastic_launched() and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    if device.type == "cuda" and dist.is_initialized():
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return device


def rank() -> int:
    """Number of this process, 0 if it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def wait() -> None:
    """Until every process is here."""
    if dist.is_initialized():
        dist.barrier()


def stop() -> None:
    """Leave the other processes once all are here.

    A process that ends in the group may abort, and torchrun then ends the others.
    """
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def average_(tensors: Sequence[Tensor]) -> None:
    """Replace tensors of one type by their means over all processes."""
    if world() == 1:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    flat /= world()
    parts = flat.split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))
