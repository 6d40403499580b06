"""FLOPs and memory of a plan, counted on the meta device: no weights, no arithmetic."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.utils.flop_counter import FlopCounterMode

from fresco.memory import peak_bytes
from fresco.meta import FullMasks
from fresco.ports import AbstractModelAdapter
from fresco.registry import find_adapter
from fresco.schedule import Plan, Step


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
    return _count(*_identity(transformer), n_tokens, n_text_tokens)


def pass_bytes(
    transformer: Any, n_tokens: int, n_text_tokens: int, dtype: torch.dtype = torch.bfloat16
) -> int:
    """Estimate the activations that one transformer call holds at its peak, batch 1.

    Args:
        transformer: A diffusers model; only its class and config are used.
        n_tokens: Image tokens.
        n_text_tokens: Text tokens.
        dtype: Of weights and activations.

    Returns:
        Bytes besides the weights, with fused attention; what allocators round up is not in it.
    """
    return _follow(*_identity(transformer), n_tokens, n_text_tokens, dtype)


def weight_bytes(transformer: Any, dtype: torch.dtype = torch.bfloat16) -> int:
    """Count the bytes of a transformer's weights in a dtype, from its class and config."""
    model, config = _identity(transformer)
    n_weights: int = sum(weight.numel() for weight in skeleton(model, config).parameters())
    return n_weights * dtype.itemsize


def step_flops(
    plan: Plan, step: Step, transformer: Any, n_text_tokens: int, n_given: int = 0
) -> int:
    """Count the FLOPs of one step of a plan, one pass.

    Args:
        plan: Of a run.
        step: One of its steps.
        transformer: A diffusers model; only its class and config are used.
        n_text_tokens: Text tokens of the call.
        n_given: Image tokens beside the plan's: of pictures that are given.

    Returns:
        FLOPs; with phase-aligned positions those of the second attention too.
    """
    identity = _identity(transformer)
    again = (plan.frames * n for n in step.n_seen_again)
    return pass_flops(transformer, step.n_tokens + n_given, n_text_tokens) + sum(
        _count_attention(*identity, n, n_text_tokens) for n in again
    )


def plan_cost(plan: Plan, transformer: Any, n_text_tokens: int, n_given: int = 0) -> Cost:
    """Count the FLOPs of a plan and of the plain run it stands for.

    Args:
        plan: Of a run.
        transformer: A diffusers model; only its class and config are used.
        n_text_tokens: Text tokens of every call.
        n_given: Image tokens of every call beside the plan's: of pictures that are given.

    Returns:
        Both counts.
    """
    flops = (step_flops(plan, step, transformer, n_text_tokens, n_given) for step in plan.steps)
    full = pass_flops(transformer, plan.n_full_tokens + n_given, n_text_tokens)
    return Cost(sum(flops), plan.n_requested * full)


@functools.lru_cache(maxsize=256)
def _count(model: Any, config: str, n_tokens: int, n_text_tokens: int) -> int:
    """Count on a copy without weights; cached per model and shape."""
    transformer = skeleton(model, config)
    adapter: AbstractModelAdapter = find_adapter(transformer)
    with torch.no_grad(), FlopCounterMode(display=False) as counter, FullMasks():
        transformer(**adapter.example_call(transformer, n_tokens, n_text_tokens))
    return int(counter.get_total_flops())


@functools.lru_cache(maxsize=64)
def _count_attention(model: Any, config: str, n_tokens: int, n_text_tokens: int) -> int:
    """FLOPs of the attention modules alone, in one call; cached per model and shape."""
    transformer = skeleton(model, config)
    adapter: AbstractModelAdapter = find_adapter(transformer)
    with torch.no_grad(), FlopCounterMode(display=False) as counter, FullMasks():
        transformer(**adapter.example_call(transformer, n_tokens, n_text_tokens))
    by_module = counter.get_flop_counts()
    return sum(sum(counts.values()) for name, counts in by_module.items() if name.endswith(".attn"))


@functools.lru_cache(maxsize=64)
def _follow(model: Any, config: str, n_tokens: int, n_text_tokens: int, dtype: torch.dtype) -> int:
    """Follow the allocations of a copy without weights; cached per model and shape."""
    transformer = _build(model, config)
    _cast(transformer, dtype)
    adapter: AbstractModelAdapter = find_adapter(transformer)
    call = adapter.example_call(transformer, n_tokens, n_text_tokens)
    with FullMasks():
        return peak_bytes(lambda: transformer(**call), transformer.parameters())


def _cast(transformer: Any, dtype: torch.dtype) -> None:
    """Cast weights as diffusers does where it loads them: some stay in float32."""
    kept = set(transformer._keep_in_fp32_modules or ())
    for name, weight in (*transformer.named_parameters(), *transformer.named_buffers()):
        if weight.is_floating_point() and kept.isdisjoint(name.split(".")):
            weight.data = weight.data.to(dtype)


@functools.lru_cache(maxsize=4)
def skeleton(model: Any, config: str) -> Any:
    """Build a model without weights, on the meta device; only ever read, since it is cached.

    Args:
        model: Class of a diffusers model.
        config: Its config as JSON.
    """
    return _build(model, config)


def _build(model: Any, config: str) -> Any:
    """A new copy without weights that its adapter can count with."""
    with torch.device("meta"):
        transformer = model.from_config(json.loads(config))
    find_adapter(transformer).make_countable(transformer)
    return transformer


def _identity(transformer: Any) -> tuple[Any, str]:
    """What counts are cached by: class and config."""
    find_adapter(transformer)
    config = json.dumps(dict(transformer.config), sort_keys=True, default=str)
    return cast(Any, type(transformer)), config
