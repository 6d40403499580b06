"""Recipes that a search tries: stages, promotion and cache threshold, varied."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

FINE_SHARES = (0.06, 0.1, 0.16, 0.25, 0.4)  # of the requested steps, on the full grid
COARSE_SHARES = (0.08, 0.16, 0.24)  # on cells of 2 x 2 tokens
UNTIL_SIGMAS = (0.55, 0.7, 0.8)  # where the coarse stage ends
THRESHOLDS = (None, 0.05, 0.1)  # of the first-block cache; None: no cache
SHAPES = ("two", "three", "mixed")


def candidates(model: str, baseline: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Make every recipe of the search, each in a different cell of its grid.

    Args:
        model: Class of the transformer.
        baseline: As recipes have it; its steps are what shares refer to.

    Returns:
        Contents of recipes: two whole-grid stages, three of them (cells of 4 x 4 first), or a
        mixed stage in between that promotes half of the cells.

    Example:
        >>> len(list(candidates("FluxTransformer2DModel", {"steps": 50})))
        405
    """
    steps = baseline["steps"]
    for shape, fine, coarse, until, threshold in product(
        SHAPES, FINE_SHARES, COARSE_SHARES, UNTIL_SIGMAS, THRESHOLDS
    ):
        n_fine, n_coarse = (max(1, round(share * steps)) for share in (fine, coarse))
        stages = [{"cell": 2, "steps": n_coarse, "until_sigma": until}]
        last: dict[str, Any] = {"cell": 1, "steps": n_fine, "lift": {"form": "latent"}}
        if shape == "three":
            first = {"cell": 4, "steps": max(1, n_coarse // 2), "until_sigma": (1 + until) / 2}
            stages = [first, stages[0] | {"lift": {"form": "latent"}}]
        if shape == "mixed":
            promote = {"score": "channel_variance", "budget": 0.5}
            half = {"cell": "mixed", "steps": max(1, n_fine // 2), "until_sigma": 0.6 * until}
            stages.append(half | {"promote": promote})
            last = {"cell": 1, "steps": max(1, n_fine - n_fine // 2)}
        stack = [{"kind": "cache", "method": "first_block", "threshold": threshold}]
        yield {
            "schema": 1,
            "model": model,
            "baseline": baseline,
            "stages": [*stages, last],
            "stack": stack if threshold else [],
        }
