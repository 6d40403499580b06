"""Compute in bfloat16 what may be rounded, with weights as they are."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def bfloat16_autocast(device: torch.device) -> Iterator[None]:
    """Autocast to bfloat16 without the warnings of layers that keep float32 weights.

    Args:
        device: Where is computed.
    """
    with warnings.catch_warnings(), torch.autocast(device.type, torch.bfloat16):
        # norms keep float32 weights under autocast, and say that they are slower so
        warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
        yield
