"""Recipes that a search tries: stages, promotion and cache threshold, varied."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, product
from typing import Any

from fresco.stages import StageConfig, least_of_order_2, stage_bounds

FULL_SHARES = (0.08, 0.1, 0.14, 0.2, 0.3, 0.4)  # of the requested steps, all on the full grid
FINE_SHARES = (0.06, 0.1, 0.14, 0.25, 0.4)  # full or mixed ones after coarse ones
COARSE_SHARES = (0.08, 0.16, 0.24)  # on cells of 2 x 2 tokens
UNTIL_SIGMAS = (0.55, 0.7, 0.8)  # where the coarse stage ends
SHIFT = 5.0  # of noise levels near to noise, where few steps are best spent
MIXED_UNTIL = (0.15, 0.4)  # where a mixed stage ends
BUDGETS = (0.3, 0.5)  # share of its cells that are fine
THRESHOLDS = (None, 0.05, 0.1)  # of the first-block cache; None: no cache

Stages = list[dict[str, Any]]


def candidates(model: str, baseline: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Make every recipe of the search, no two the same unless steps are few.

    Args:
        model: Class of the transformer.
        baseline: As recipes have it; its steps are what shares refer to.

    Returns:
        Contents of recipes: full steps alone; a coarse step, mixed ones that are fine at edges
        and a full one; two whole-grid stages, or three of them (cells of 4 x 4 first). Stages
        of second order where they have steps enough.

    Example:
        >>> len(list(candidates("FluxTransformer2DModel", {"steps": 50})))
        366
    """
    n = baseline["steps"]
    for stages, threshold in product(chain(_full(n), _edges(n), _whole_grids(n)), THRESHOLDS):
        stack = [{"kind": "cache", "method": "first_block", "threshold": threshold}]
        yield {
            "schema": 1,
            "model": model,
            "baseline": baseline,
            "stages": _of_second_order(stages),
            "stack": stack if threshold else [],
        }


def _full(n: int) -> Iterator[Stages]:
    """Fewer full steps, at the scheduler's noise levels or nearer to noise."""
    for share, shift in product(FULL_SHARES, ({}, {"shift": SHIFT})):
        yield [{"cell": 1, "steps": _share(n, share), **shift}]


def _edges(n: int) -> Iterator[Stages]:
    """A coarse step, full resolution where there are edges, and a full step."""
    for share, until, budget in product(FINE_SHARES, MIXED_UNTIL, BUDGETS):
        mixed = {
            "cell": "mixed",
            "steps": _share(n, share),
            "until_sigma": until,
            "shift": SHIFT,
            "lift": {"form": "latent", "to_sigma": 0.99},
            "promote": {"score": "edges", "budget": budget},
        }
        yield [{"cell": 2, "steps": 1, "until_sigma": 0.9}, mixed, {"cell": 1, "steps": 1}]


def _whole_grids(n: int) -> Iterator[Stages]:
    """A coarse grid and the full one, or a coarser one before both."""
    for fine, coarse, until in product(FINE_SHARES, COARSE_SHARES, UNTIL_SIGMAS):
        n_coarse = _share(n, coarse)
        second = {"cell": 2, "steps": n_coarse, "until_sigma": until}
        last = {"cell": 1, "steps": _share(n, fine), "lift": {"form": "latent"}}
        yield [second, last]
        first = {"cell": 4, "steps": max(1, n_coarse // 2), "until_sigma": (1 + until) / 2}
        yield [first, second | {"lift": {"form": "latent"}}, last]


def _share(n: int, share: float) -> int:
    return max(1, round(share * n))


def _of_second_order(stages: Stages) -> Stages:
    """The same with the last stage, and a mixed one, of second order if steps are enough."""
    bounds = stage_bounds([StageConfig(**stage) for stage in stages])
    enough = [s["steps"] >= least_of_order_2(*b) for s, b in zip(stages, bounds, strict=True)]
    may = [stage["cell"] in ("mixed", 1) and so for stage, so in zip(stages, enough, strict=True)]
    return [s | {"order": 2} if so else s for s, so in zip(stages, may, strict=True)]
