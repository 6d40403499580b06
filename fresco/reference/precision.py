"""In which type the training computes."""

from __future__ import annotations

import functools
import time
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F

from fresco.casting import bfloat16_autocast

N_TRIALS = 5


def compute_dtype(device: torch.device) -> torch.dtype:
    """bfloat16, unless the device is a processor that multiplies float32 faster."""
    return torch.bfloat16 if device.type != "cpu" else _faster_dtype()


@functools.cache
def _faster_dtype() -> torch.dtype:
    """The type in which this processor multiplies matrices of the model's sizes faster.

    Instructions for bfloat16 do not tell: some processors have them and are 1.6 times slower.
    """
    return min((torch.bfloat16, torch.float32), key=_seconds_of_product)


def _seconds_of_product(dtype: torch.dtype) -> float:
    """Least time of several products, after one to warm up."""
    tokens, weight = torch.ones(2048, 192, dtype=dtype), torch.ones(768, 192, dtype=dtype)
    seconds = []
    for _ in range(1 + N_TRIALS):
        start = time.perf_counter()
        F.linear(tokens, weight)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def autocast(device: torch.device) -> AbstractContextManager[None]:
    """Compute in `compute_dtype` what may be rounded."""
    is_rounded = compute_dtype(device) is torch.bfloat16
    return bfloat16_autocast(device) if is_rounded else nullcontext()
