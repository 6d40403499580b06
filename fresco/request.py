"""What one run asks of a plan: grid, steps, and how its scheduler spaces noise levels."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fresco.ddim import Levels
from fresco.errors import ScheduleError
from fresco.sigmas import own_sigmas, shifted_sigmas, stretched_sigmas

if TYPE_CHECKING:
    from fresco.ports import AbstractModelAdapter


@dataclass(frozen=True)
class PlanRequest:
    """What one run asks for.

    Args:
        n_steps: Requested steps.
        rows: Fine token rows.
        columns: Fine token columns.
        shift: The scheduler's shift for a token count.
        sigmas: The scheduler's own sigmas from the run's first to the final 0, if it made them.
        frames: Latent frames, each of rows x columns tokens.
        levels: Those that a scheduler with whole timesteps has; None: it takes any.
        start: Sigma of the run's first latents, in (0, 1]; below 1 they hold a picture.
        n_skipped: Requested steps that such a run leaves out.
        terminal: Sigma of the last model call, if the scheduler stretches its sigmas to one.
        plain: Makes the sigmas of a plain run, where the scheduler has not made any.
    """

    n_steps: int
    rows: int
    columns: int
    shift: Callable[[int], float]
    sigmas: tuple[float, ...] | None = None
    frames: int = 1
    levels: Levels | None = None
    start: float = 1.0
    n_skipped: int = 0
    terminal: float | None = None
    plain: Callable[[], tuple[float, ...]] | None = None

    @classmethod
    def of(
        cls, adapter: AbstractModelAdapter, scheduler: Any, n_steps: int, rows: int, columns: int,
        **more: Any,
    ) -> PlanRequest:  # fmt: skip
        """What a run asks for whose noise levels are spaced as this scheduler's are."""
        shift = functools.partial(adapter.shift, scheduler, n_steps=n_steps)
        n_tokens = rows * columns * more.get("frames", 1)
        plain = functools.partial(plain_sigmas, adapter, scheduler, n_tokens, n_steps)
        levels, terminal = adapter.levels(scheduler), scheduler.config.get("shift_terminal")
        return cls(
            n_steps, rows, columns, shift, levels=levels, terminal=terminal, plain=plain, **more
        )

    def nearest(self, sigma: float) -> float:
        """The nearest noise level that the scheduler has."""
        return self.levels.nearest(sigma) if self.levels else sigma

    def spaced(
        self, start: float, end: float, n: int, n_tokens: int, shift: float | None = None
    ) -> tuple[float, ...]:
        """Space levels as the scheduler does by itself, for so many tokens or by this shift."""
        if self.levels and shift is None:
            return self.levels.spaced(start, end, n)
        sigmas = shifted_sigmas(start, end, n, self.shift(n_tokens) if shift is None else shift)
        return stretched_sigmas(sigmas, self.terminal) if self.terminal and not end else sigmas


def plain_sigmas(
    adapter: AbstractModelAdapter, scheduler: Any, n_tokens: int, n_steps: int
) -> tuple[float, ...]:
    """Sigmas of a plain run, the final 0 included, as the pipeline has its scheduler make them.

    Args:
        adapter: Says what the pipeline passes.
        scheduler: Of the pipeline; it stays as it is.
        n_tokens: Image tokens.
        n_steps: As requested.

    Raises:
        ScheduleError: If the scheduler cannot make as many.
    """
    own = copy.deepcopy(scheduler)
    takes = inspect.signature(own.set_timesteps).parameters
    asked: dict[str, Any] = {"num_inference_steps": n_steps}
    try:
        if adapter.passes_sigmas and "sigmas" in takes:
            asked = {"sigmas": np.asarray(adapter.spacing(n_steps))}
        if scheduler.config.get("use_dynamic_shifting", False) and "mu" in takes:
            asked["mu"] = adapter.mu(scheduler.config, n_tokens, n_steps)
        own.set_timesteps(**asked)
    except (ValueError, ZeroDivisionError) as error:
        expected = f"a number of steps that {type(own).__name__} makes"
        fix = "Ask for another number of steps."
        raise ScheduleError("a plain run", expected, f"{n_steps} ({error})", fix) from error
    return own_sigmas(own)
