"""Seconds of a pipeline's denoising loop, without text encoders and decoder."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor


class LoopTimer:
    """Seconds of a pipeline's denoising loop, by a hook and the pipeline's own callback.

    Args:
        on_step: Called with the number of every solver step that has ended.
    """

    def __init__(self, on_step: Callable[[int], None]) -> None:
        self.on_step = on_step
        self.start_s = self.end_s = 0.0

    @property
    def loop_s(self) -> float:
        """From the first transformer call to the end of the last solver step."""
        return self.end_s - self.start_s

    def before_forward(self, transformer: torch.nn.Module, *_: object) -> None:
        """Forward pre-hook of the transformer; the first call starts the loop."""
        self.start_s = self.start_s or now_s(next(transformer.parameters()))

    def on_step_end(
        self, _pipe: object, step: int, _timestep: object, tensors: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """`callback_on_step_end`; the last one ends the loop."""
        self.end_s = now_s(tensors["latents"])
        self.on_step(step)
        return tensors


def now_s(latents: Tensor) -> float:
    """Seconds on a clock, once the device has done what was asked of it."""
    if latents.is_cuda:
        torch.cuda.synchronize(latents.device)
    return time.perf_counter()
