"""Seconds of a full step, to time other calls by."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from fresco.reference import MAX_TOKENS
from fresco.registry import find_adapter
from fresco.timing import now_s

if TYPE_CHECKING:
    from diffusers import FluxPipeline


N_STEPS = 3  # of a reading; the first finds the processor's caches full of something else


def step_clock(pipe: FluxPipeline) -> Callable[[int], float]:
    """Make a clock of full steps.

    Args:
        pipe: The reference pipeline, not accelerated; the clock has a copy of its transformer.

    Returns:
        A function of the pictures of a call; it gives the seconds of a forward pass of the plain
        transformer for them, at the pipeline's default size: the median of three in a row.
    """
    transformer = copy.deepcopy(pipe.transformer)
    adapter = find_adapter(transformer)
    rows, columns = adapter.grid(pipe, None, None)
    call = adapter.example_call(transformer, rows * columns, MAX_TOKENS)

    @torch.inference_mode()
    def seconds(n_pictures: int) -> float:
        batch = {
            name: torch.cat([given] * n_pictures) if _is_of_one_picture(given) else given
            for name, given in call.items()
        }
        marks_s = [now_s(call["hidden_states"])]
        for _ in range(N_STEPS):
            transformer(**batch)
            marks_s.append(now_s(call["hidden_states"]))
        return statistics.median(end - start for start, end in pairwise(marks_s))

    return seconds


def _is_of_one_picture(given: object) -> bool:
    return isinstance(given, torch.Tensor) and len(given) == 1
