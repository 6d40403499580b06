"""Seconds of a pipeline's denoising loop, without text encoders and decoder."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Self

import torch
from torch import Tensor

from fresco.wraps import wrap_method


class LoopTimer:
    """Seconds of a pipeline's denoising loop, of one call within its `with` block.

    It listens to the scheduler, since some pipelines have no `callback_on_step_end`.

    Args:
        pipe: The pipeline, accelerated or not.
        on_step: Called with the number of every solver step that has ended.
    """

    def __init__(self, pipe: Any, on_step: Callable[[int], None] = lambda _: None) -> None:
        self.pipe, self.on_step = pipe, on_step
        self.start_s = self.end_s = 0.0
        self._n_steps = 0
        self._undo = ExitStack()

    @property
    def loop_s(self) -> float:
        """From the first transformer call to the end of the last solver step."""
        return self.end_s - self.start_s

    def __enter__(self) -> Self:
        unwrap = wrap_method(self.pipe.scheduler, "step", self._around_step, self._on_copy)
        self._undo.callback(unwrap)
        transformer: torch.nn.Module = self.pipe.transformer
        hook = transformer.register_forward_pre_hook(self._before_forward, prepend=True)
        self._undo.callback(hook.remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _before_forward(self, transformer: torch.nn.Module, _given: object) -> None:
        self.start_s = self.start_s or now_s(next(transformer.parameters()))

    def _on_copy(self, _scheduler: object) -> None:
        """A copy of the scheduler has made a step of its own, of sound or of a part of a video."""
        self.end_s = now_s(next(self.pipe.transformer.parameters()))

    def _around_step(
        self, step: Callable[..., Any], given: tuple[Any, ...], named: dict[str, Any]
    ) -> Any:
        stepped = step(*given, **named)
        self.end_s = now_s(stepped[0])
        self.on_step(self._n_steps)
        self._n_steps += 1
        return stepped


def now_s(latents: Tensor) -> float:
    """Seconds on a clock, once the device has done what was asked of it."""
    if latents.is_cuda:
        torch.cuda.synchronize(latents.device)
    return time.perf_counter()
