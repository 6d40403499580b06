"""FLOPs of a plan, counted on the meta device: no weights, no arithmetic."""

from __future__ import annotations

import functools
import json
from collections import Counter
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.utils.flop_counter import FlopCounterMode

from fresco.ports import AbstractModelAdapter, find_adapter
from fresco.schedule import Plan


@dataclass(frozen=True)
class Cost:
    """Transformer FLOPs of a plan and of the plain run, one picture, one pass per step.

    Args:
        flops: Of the plan.
        baseline_flops: Of the requested number of full steps.
    """

    flops: int
    baseline_flops: int

    @property
    def flops_speedup(self) -> float:
        """How many times fewer FLOPs the plan takes."""
        return self.baseline_flops / self.flops


def pass_flops(transformer: Any, n_tokens: int, n_text_tokens: int) -> int:
    """Count the FLOPs of one transformer call, batch 1.

    Args:
        transformer: A diffusers model; only its class and config are used.
        n_tokens: Image tokens.
        n_text_tokens: Text tokens.

    Returns:
        FLOPs of matrix products and attention (a multiply and an add count as two).
    """
    find_adapter(transformer)
    config = json.dumps(dict(transformer.config), sort_keys=True, default=str)
    return _count(cast(Any, type(transformer)), config, n_tokens, n_text_tokens)


def plan_cost(plan: Plan, transformer: Any, n_text_tokens: int) -> Cost:
    """Count the FLOPs of a plan and of the plain run it stands for.

    Args:
        plan: Of a run.
        transformer: A diffusers model; only its class and config are used.
        n_text_tokens: Text tokens of every call.

    Returns:
        Both counts.
    """
    calls = Counter(step.n_tokens for step in plan.steps)
    flops = sum(n * pass_flops(transformer, tokens, n_text_tokens) for tokens, n in calls.items())
    full = pass_flops(transformer, plan.rows * plan.columns, n_text_tokens)
    return Cost(flops, plan.n_requested * full)


@functools.lru_cache(maxsize=256)
def _count(model: Any, config: str, n_tokens: int, n_text_tokens: int) -> int:
    """Count on a copy without weights; cached per model and shape."""
    transformer = _skeleton(model, config)
    adapter: AbstractModelAdapter = find_adapter(transformer)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        transformer(**adapter.example_call(transformer, n_tokens, n_text_tokens))
    return int(counter.get_total_flops())


@functools.lru_cache(maxsize=4)
def _skeleton(model: Any, config: str) -> Any:
    """Build a model of this config on the meta device."""
    with torch.device("meta"):
        return model.from_config(json.loads(config))
