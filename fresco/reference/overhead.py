"""What fresco itself costs: the time of a step beyond the bare transformer."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from fresco.api import accelerate
from fresco.recipe import Recipe
from fresco.reference import GUIDANCE_SCALE, MAX_TOKENS
from fresco.wraps import wrap_method

if TYPE_CHECKING:
    from diffusers import FluxPipeline

LIMIT = 0.03  # of a step on the full grid


@dataclass(frozen=True)
class Overhead:
    """Steps of one stage.

    Args:
        stage: Which, from 0.
        n_tokens: Image tokens of its last step.
        bare_s: Median seconds of the transformer's forward.
        beyond_s: Median seconds of a step beyond it, the scheduler's own included.
        share: Of a step on the full grid, `beyond_s` over that step's forward.
    """

    stage: int
    n_tokens: int
    bare_s: float
    beyond_s: float
    share: float


def measure_overhead(
    pipe: FluxPipeline,
    recipe: Recipe,
    prompt: str,
    runs: int = 3,
    on_run: Callable[[int], None] = lambda _: None,
) -> list[Overhead]:
    """Time the transformer's forward inside the steps of an accelerated run.

    Args:
        pipe: The reference pipeline, not accelerated; it is left as it is.
        recipe: With stages; its last one is on the full grid.
        prompt: A caption.
        runs: Measured runs, after one that warms up.
        on_run: Called with the number of runs done, that one included.

    Returns:
        One row per stage.
    """
    forward_s: list[float] = []

    def timed(original: Any, args: Any, kwargs: Any) -> Any:
        start_s = time.perf_counter()
        output = original(*args, **kwargs)
        forward_s.append(time.perf_counter() - start_s)
        return output

    bare: dict[int, list[float]] = {}
    beyond: dict[int, list[float]] = {}
    n_tokens: dict[int, int] = {}
    undo = wrap_method(pipe.transformer, "forward", timed)
    try:
        with accelerate(pipe, recipe) as accelerated:
            for run in range(runs + 1):
                forward_s.clear()
                _sample(pipe, prompt, recipe.baseline_steps)
                steps = accelerated.report.steps if run else ()
                for step, inside_s in zip(steps, forward_s, strict=False):
                    bare.setdefault(step.stage, []).append(inside_s)
                    beyond.setdefault(step.stage, []).append(step.seconds - inside_s)
                    n_tokens[step.stage] = step.tokens
                on_run(run + 1)
    finally:
        undo()
    full_s = median(bare[max(bare)])
    return [
        Overhead(s, n_tokens[s], median(bare[s]), median(beyond[s]), median(beyond[s]) / full_s)
        for s in sorted(bare)
    ]


def _sample(pipe: FluxPipeline, prompt: str, steps: int) -> None:
    pipe(
        prompt,
        num_inference_steps=steps,
        guidance_scale=GUIDANCE_SCALE,
        generator=torch.Generator().manual_seed(0),
        max_sequence_length=MAX_TOKENS,
        output_type="latent",
    )
