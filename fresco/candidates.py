"""Recipes that a search tries: stages, promotion and cache threshold, varied."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, product, zip_longest
from typing import Any

from fresco.api import accelerate
from fresco.checks import check_parts, check_scheduler
from fresco.errors import FrescoError
from fresco.planner import plan as forecast_of
from fresco.registry import adapter_of
from fresco.request import PlanRequest
from fresco.stages import StageConfig, least_of_order_2, stage_bounds

FULL_SHARES = (0.04, 0.08, 0.1, 0.14, 0.2, 0.3, 0.4, 0.6)  # of the requested steps, all full
FINE_SHARES = (0.06, 0.1, 0.14, 0.25, 0.4)  # full or mixed ones after coarse ones
COARSE_SHARES = (0.08, 0.16, 0.24)  # on cells of 2 x 2 tokens
UNTIL_SIGMAS = (0.55, 0.7, 0.8)  # where the coarse stage ends
NEARER = 2.0  # to noise, by the shift: where few steps are best spent
MIXED_UNTIL = (0.15, 0.4)  # where a mixed stage ends
BUDGETS = (0.3, 0.5)  # share of its cells that are fine
STACKS: tuple[list[dict[str, Any]], ...] = (
    [],
    *([{"kind": "cache", "method": "first_block", "threshold": each}] for each in (0.05, 0.1)),
)

Content = dict[str, Any]
Stages = list[dict[str, Any]]


def pick_candidates(
    pipe: Any, baseline: Content, n_text: int, speed: float | None, n: int
) -> list[Content]:
    """Pick candidates by their FLOPs, before anything is sampled.

    Of each kind in turn (sides of the cells; with a cache, and without), since many of one kind
    cost the same. What this pipeline does not take is left out.

    Args:
        pipe: The pipeline.
        baseline: As recipes have it, with height and width.
        n_text: Text tokens of a call.
        speed: The nearest to this speedup by FLOPs are picked, those that reach it first; with a
            cache, which saves more than its stages, on either side. None: evenly over those of a
            kind, by speed.
        n: How many.

    Returns:
        Contents of recipes, the slowest first.

    Raises:
        FrescoError: If no candidate has a plan; that of the first.
        ScheduleError: As `check_searchable`.
    """
    check_searchable(pipe)
    stacks = [stack for stack in STACKS if _takes(pipe, stack)]
    shift = _own_shift(pipe, baseline)
    nearer = {} if shift is None else {"shift": round(NEARER * shift, 3)}
    recipe = {"schema": 1, "model": type(pipe.transformer).__name__, "baseline": baseline}
    found: list[tuple[float, Content]] = []
    refused = None
    for stages in all_stages(baseline["steps"], nearer):
        try:
            plan = forecast_of(pipe, {**recipe, "stages": stages}, text_tokens=n_text)
        except FrescoError as error:
            refused = refused or error
        else:
            found += [
                (plan.flops_speedup, {**recipe, "stages": stages, "stack": s}) for s in stacks
            ]
    if refused and not found:
        raise refused
    found.sort(key=lambda each: each[0])
    if speed is not None:
        found.sort(key=lambda each: _distance(each[0], each[1], speed))
    kinds = _kinds(found)
    if speed is None:
        kinds = [_evenly(kind, math.ceil(n / len(kinds))) for kind in kinds]
    in_turn = [each for turn in zip_longest(*kinds) for each in turn if each]
    return [content for _, content in sorted(in_turn[:n], key=lambda each: each[0])]


def check_searchable(pipe: Any) -> None:
    """Refuse a pipeline that no stages run on, before anything is sampled.

    Raises:
        AdapterError: If it has no transformer, or one used in a way that fresco does not know.
        ScheduleError: If its scheduler is none of those that stages take.
    """
    check_parts(pipe)
    adapter = adapter_of(pipe)
    adapter.check(pipe)
    check_scheduler(pipe.scheduler, adapter)


def all_stages(n: int, nearer: Mapping[str, float]) -> list[Stages]:
    """Make the stages of every candidate, none twice.

    Args:
        n: Steps of the plain run, which shares refer to.
        nearer: The shift of noise levels nearer to noise than the scheduler's own, or nothing.

    Returns:
        Full steps alone; a coarse step, mixed ones that are fine at edges and a full one; two
        whole-grid stages, or three of them (cells of 4 x 4 first). The last stage, and a mixed
        one, are of second order where they have steps enough.

    Example:
        >>> len(all_stages(50, {"shift": 5.0}))
        126
    """
    made = map(_of_second_order, chain(_full(n, nearer), _edges(n, nearer), _whole_grids(n)))
    return list({json.dumps(stages): stages for stages in made}.values())


def _full(n: int, nearer: Mapping[str, float]) -> Iterator[Stages]:
    """Fewer full steps, at the scheduler's noise levels or nearer to noise."""
    for steps in (_share(n, share) for share in FULL_SHARES):
        if steps < n:
            yield [{"cell": 1, "steps": steps}]
        if nearer and steps > 1:  # one step is from pure noise to none
            yield [{"cell": 1, "steps": steps, **nearer}]


def _edges(n: int, nearer: Mapping[str, float]) -> Iterator[Stages]:
    """A coarse step, full resolution where there are edges, and a full step."""
    for share, until, budget in product(FINE_SHARES, MIXED_UNTIL, BUDGETS):
        mixed = {
            "cell": "mixed",
            "steps": _share(n, share),
            "until_sigma": until,
            **nearer,
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


def _kinds(found: Iterable[tuple[float, Content]]) -> list[list[tuple[float, Content]]]:
    """By sides of the cells, and whether there is a cache."""
    kinds: dict[tuple[Any, ...], list[tuple[float, Content]]] = {}
    for speed, content in found:
        kind = (*(stage["cell"] for stage in content["stages"]), bool(content["stack"]))
        kinds.setdefault(kind, []).append((speed, content))
    return list(kinds.values())


def _distance(found: float, content: Content, speed: float) -> tuple[bool, float]:
    """Sorts by how near to the asked speed a candidate is."""
    return found < speed and not content["stack"], abs(math.log(found / speed))


def _evenly(kind: list[tuple[float, Content]], n: int) -> list[tuple[float, Content]]:
    """So many, or all: the middle of each of n equal parts."""
    n = min(n, len(kind))
    return [kind[int((i + 0.5) * len(kind) / n)] for i in range(n)]


def _takes(pipe: Any, stack: list[dict[str, Any]]) -> bool:
    """Whether the model takes these techniques, alone."""
    try:
        accelerate(pipe, {"schema": 1, "model": "any", "stack": stack}).restore()
    except FrescoError:
        return False
    return True


def _own_shift(pipe: Any, baseline: Content) -> float | None:
    """The scheduler's shift for the picture's tokens; None: it has whole timesteps, and none."""
    adapter = adapter_of(pipe)
    rows, columns = adapter.grid(pipe, baseline["height"], baseline["width"])
    frames = adapter.latent_frames(pipe, baseline.get("frames", 1)) - adapter.still_frames(pipe)
    steps = baseline["steps"]
    request = PlanRequest.of(adapter, pipe.scheduler, steps, rows, columns, frames=frames)
    return None if request.levels else request.shift(rows * columns * frames)
