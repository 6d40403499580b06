"""Steps of second order: they extrapolate the clean estimate from the step before."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fresco.noise import working_dtype

if TYPE_CHECKING:
    from fresco.ports import AbstractModelAdapter
    from fresco.run import Run
    from fresco.schedule import Step


def extrapolate(clean: Tensor, before: Tensor, sigmas: tuple[float, float, float]) -> Tensor:
    """Guess the clean estimate in the middle of a step from those of its start and of the last.

    With it, a first-order step of any deterministic scheduler is one of second order.

    Args:
        clean: Of the step's own call, any float type and shape.
        before: Of the call of the step before, the same shape.
        sigmas: Noise levels, falling: of that call, of the step's own, and where the step ends.

    Returns:
        The guess; `clean` itself after pure noise (sigma 1) and on the way to sigma 0, where log
        ratios of signal to noise are infinite.

    Example:
        >>> clean, before = 3.0, 1.0
        >>> extrapolate(clean, before, (0.8, 0.5, 0.2))  # equal steps in the log ratio
        4.0
        >>> extrapolate(clean, before, (0.8, 0.5, 0.0))
        3.0

    Source:
        DPM-Solver++(2M), Lu et al., arXiv 2211.01095v2, algorithm 2, with the last step of first
        order. A flow's log ratio of signal to noise is `log((1 - sigma) / sigma)`.
    """
    earlier, now, end = sigmas
    if earlier == 1 or end == 0:
        return clean
    to_here = _log_ratio(now) - _log_ratio(earlier)
    onward = _log_ratio(end) - _log_ratio(now)
    return clean + onward / (2 * to_here) * (clean - before)


def _log_ratio(sigma: float) -> float:
    return math.log((1 - sigma) / sigma)


def solver_velocity(run: Run, step: Step, latents: Tensor, velocity: Tensor) -> Tensor:
    """Say with which velocity the scheduler is to step: the model's, or one of second order.

    Args:
        run: It has the clean estimate of the step before.
        step: At hand.
        latents: Of a flow, at its `sigma`, on the full grid, [b, c, h, w].
        velocity: Guided prediction for them, the same shape.

    Returns:
        `velocity` itself in steps of first order, and in the first step of a stage: after a lift,
        or where cells become finer, estimates of before say little of what changes.
    """
    before = run.plan.steps[run.n_done - 1] if run.plan and run.n_done else None
    if step.order == 1 or before is None or before.stage != step.stage:
        return velocity
    clean = latents - step.sigma * velocity
    guess = extrapolate(clean, run.clean[-1], (before.sigma, step.sigma, step.end_sigma))
    return velocity if guess is clean else (latents - guess) / step.sigma


def read_flow(
    adapter: AbstractModelAdapter, run: Run, step: Step, asked: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    """Read latents and guided prediction of a scheduler's step as those of a flow.

    Args:
        adapter: Of the transformer.
        run: The run at hand.
        step: Its step at hand.
        asked: Arguments of the scheduler's `step`, by name.

    Returns:
        Latents and velocity on the full grid, float32 or finer, [b, c, h, w].
    """
    x, v = (
        adapter.unpack(asked[name].to(working_dtype(asked[name])), run.fine)
        for name in ("sample", "model_output")
    )
    return adapter.target(step.sigma).to_flow(x, -v if adapter.inverts_sigmas else v)


def write_velocity(
    adapter: AbstractModelAdapter, step: Step, latents: Tensor, velocity: Tensor, like: Tensor
) -> Tensor:
    """Say a flow's velocity as the prediction that the scheduler is given.

    Args:
        adapter: Of the transformer.
        step: The step at hand.
        latents: Of a flow, on the full grid, [b, c, h, w].
        velocity: For them, the same shape.
        like: The model's own prediction, packed.

    Returns:
        Shape and dtype of `like`.
    """
    predicted = adapter.target(step.sigma).from_velocity(latents, velocity)
    return adapter.pack(-predicted if adapter.inverts_sigmas else predicted).to(like.dtype)
