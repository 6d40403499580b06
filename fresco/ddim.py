"""Plans on a DDIM scheduler: noise levels of whole timesteps, and steps between any two."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fresco.errors import RunError, ScheduleError
from fresco.sigmas import flow_sigmas

if TYPE_CHECKING:  # plans have levels
    from fresco.schedule import Plan, Step


@dataclass(frozen=True)
class Levels:
    """Noise levels of a scheduler with whole timesteps.

    Args:
        sigmas: Of timesteps 0, 1, ..., rising, in (0, 1]; noise / (signal + noise).

    Example:
        >>> levels = Levels((0.1, 0.2, 0.4, 0.8))
        >>> levels.nearest(0.45), levels.nearest(0), levels.timesteps((0.8, 0.2, 0.0))
        (0.4, 0.0, (3, 1, -1))
    """

    sigmas: tuple[float, ...] = field(repr=False)

    @classmethod
    def of(cls, scheduler: Any) -> Levels:
        """Read them out of a scheduler's `alphas_cumprod`.

        Example:
            >>> from diffusers import DDIMScheduler
            >>> round(Levels.of(DDIMScheduler()).sigmas[999], 4)
            0.9937
        """
        return cls(flow_sigmas(scheduler.alphas_cumprod))

    def timesteps(self, sigmas: Sequence[float]) -> tuple[int, ...]:
        """Timesteps of the nearest levels; -1, where the last step leads, for sigma 0."""
        nearest = np.abs(np.subtract.outer(sigmas, self.sigmas)).argmin(axis=1)
        return tuple(int(t) if s else -1 for s, t in zip(sigmas, nearest, strict=True))

    def nearest(self, sigma: float) -> float:
        """The level that is nearest to a sigma; 0 for 0."""
        return self.sigmas[self.timesteps((sigma,))[0]] if sigma else 0.0

    def spaced(self, start: float, end: float, n: int) -> tuple[float, ...]:
        """Space levels evenly in time, as the scheduler does with spacing `trailing`.

        Args:
            start: First level, in (0, 1].
            end: Where the last step leads to, in [0, start).
            n: Number of steps, >= 1.

        Returns:
            The `n` levels from `start` on, without `end`.

        Raises:
            ScheduleError: If there are fewer timesteps than steps.

        Example:
            >>> Levels((0.1, 0.2, 0.4, 0.8)).spaced(0.8, 0.0, 2)
            (0.8, 0.2)

        Source:
            Lin et al., arXiv 2305.08891, table 2.
        """
        first, last = self.timesteps((start, end))
        times = np.linspace(first, last, n + 1).round()[:-1]
        return self.distinct([self.sigmas[int(time)] for time in times], end)

    def distinct(self, sigmas: Sequence[float], end: float) -> tuple[float, ...]:
        """Move falling sigmas to their nearest levels.

        Raises:
            ScheduleError: If two of them, or the last and `end`, have one level.
        """
        times = self.timesteps((*sigmas, end))
        if any(now <= then for now, then in pairwise(times)):
            raise ScheduleError(
                "make_plan(recipe, request)",
                f"at most {max(times[0] - times[-1], 0)} steps, one per timestep, of a stage "
                f"between timesteps {times[0]} and {times[-1]}",
                f"{len(sigmas)}, at timesteps {list(times[:-1])}",
                "Take fewer steps there, or a smaller shift.",
            )
        return tuple(self.sigmas[time] for time in times[:-1])


def install_timesteps(scheduler: Any, plan: Plan) -> None:
    """Overwrite a scheduler's timesteps by those of a plan with levels.

    In place where there are as many: the pipeline may have them already.
    """
    assert plan.levels
    timesteps = torch.tensor(plan.levels.timesteps(plan.sigmas[:-1])).to(scheduler.timesteps)
    if len(scheduler.timesteps) == len(timesteps):
        scheduler.timesteps.copy_(timesteps)
    else:
        scheduler.timesteps = timesteps
    scheduler.num_inference_steps = len(plan.steps)


@contextmanager
def following(scheduler: Any, plan: Plan | None, step: Step | None, eta: float) -> Iterator[None]:
    """Let a DDIM scheduler's step lead where the plan's does.

    By itself it steps as far as its number of steps divides all timesteps. With one step, it
    leads past the first timestep, to `final_alpha_cumprod`.

    Args:
        scheduler: Of the pipeline; others than DDIM, whose plans have no levels, are left alone.
        plan: Of the run; None outside of any.
        step: Its step at hand.
        eta: What the step is asked for: how much fresh noise it draws.

    Raises:
        RunError: If the step draws any.

    Source:
        `step` of huggingface/diffusers@v0.42.1:src/diffusers/schedulers/scheduling_ddim.py and
        scheduling_ddim_cogvideox.py (Apache-2.0).
    """
    if plan is None or step is None or plan.levels is None or plan.keeps_schedule:
        yield
        return
    if eta:
        raise RunError(
            "pipe(eta=...)",
            "eta=0: later stages continue toward one target only without fresh noise",
            eta,
            "Leave eta out, or use a recipe without stages.",
        )
    own = scheduler.num_inference_steps, scheduler.final_alpha_cumprod
    (timestep,) = plan.levels.timesteps((step.end_sigma,))
    scheduler.num_inference_steps = 1
    if timestep >= 0:
        scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[timestep]
    try:
        yield
    finally:
        scheduler.num_inference_steps, scheduler.final_alpha_cumprod = own
