"""What a run takes of a recipe's stages: all of them, or what a noisy picture leaves of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fresco.recipe import Recipe
from fresco.stages import StageConfig


@dataclass(frozen=True)
class Stretch:
    """The part of one stage that a run takes; its last steps, if it takes fewer than all.

    Args:
        index: Which stage it is, from 0.
        stage: The stage.
        side: Cell side in fine tokens; of what is not promoted yet, in a mixed stage.
        start: Sigma of the first step, in (0, 1].
        end: Where the last step leads to, in [0, start).
        n_steps: Steps taken, >= 1.
        n_whole: Steps of the whole stage, >= n_steps.
        sigmas: Of the steps, where the recipe lists them.
    """

    index: int
    stage: StageConfig
    side: int
    start: float
    end: float
    n_steps: int
    n_whole: int
    sigmas: tuple[float, ...] | None = None


def scaled_steps(steps: int, n_requested: int, n_baseline: int) -> int:
    """Scale a stage's steps to the requested number, rounded half up, at least 1.

    Example:
        >>> scaled_steps(6, n_requested=28, n_baseline=50)
        3
    """
    return max(1, int(steps * n_requested / n_baseline + 0.5))


def stretches(recipe: Recipe, n_requested: int, start: float = 1.0) -> tuple[Stretch, ...]:
    """Lay out what a run takes of each stage.

    A run that starts from a noisy picture is never noisier than that picture: stages begin, and
    lifts lead, to `start` at most. Stages that end above it are left out, with all before them.
    A stage that begins lower by that keeps the share of its steps that its range of sigmas keeps,
    rounded up; so the number of steps does not depend on the grid.

    Args:
        recipe: With stages.
        n_requested: Steps that a run from noise alone was asked for, >= 1.
        start: Sigma of the run's first latents, in (0, 1]; 1 is noise alone.

    Returns:
        At least the last stage, which ends at sigma 0.

    Example:
        >>> from fresco.recipe import load_recipe
        >>> stages = [
        ...     {"cell": 4, "steps": 4, "until_sigma": 0.7},
        ...     {"cell": 2, "steps": 4, "until_sigma": 0.4},
        ...     {"cell": 1, "steps": 4, "lift": {"form": "clean", "to_sigma": 0.6}}]
        >>> recipe = load_recipe({"schema": 1, "model": "any", "stages": stages})
        >>> [(each.side, each.start, each.n_steps) for each in stretches(recipe, 12, start=0.5)]
        [(2, 0.5, 2), (1, 0.5, 4)]
    """
    bounds = recipe.bounds()
    first = max((i + 1 for i, (_, end) in enumerate(bounds) if end >= start), default=0)
    taken: list[Stretch] = []
    side = 1
    for i, (stage, (highest, end)) in enumerate(zip(recipe.stages, bounds, strict=True)):
        side = side if stage.cell == "mixed" else stage.cell
        if i < first:
            continue
        n_whole = scaled_steps(stage.steps, n_requested, recipe.baseline_steps)
        n_steps, sigmas = n_whole, _listed(stage, end, n_whole)
        if highest > start:
            share = (start - end) / (highest - end)
            n_steps = max(1, math.ceil(n_whole * share - 1e-9))
            if sigmas is not None:
                sigmas = (start, *(sigma for sigma in sigmas if sigma < start))
                n_steps = len(sigmas)
        begins = min(highest, start)
        taken.append(Stretch(i, stage, side, begins, end, n_steps, n_whole, sigmas))
    return tuple(taken)


def _listed(stage: StageConfig, end: float, n: int) -> tuple[float, ...] | None:
    """A stage's own list of sigmas, resampled to `n`."""
    if stage.sigmas is None or len(stage.sigmas) == n:
        return stage.sigmas
    own = (*stage.sigmas, end)
    places = np.linspace(0, len(stage.sigmas), n + 1)[:-1]
    return tuple(float(sigma) for sigma in np.interp(places, np.arange(len(own)), own))
