"""Caches that reuse wherever they may, against their algorithms written out: slow and obvious."""

from __future__ import annotations

import contextlib

import pytest
import torch

import fresco
from tests.conftest import draw_latents, make_flux_pipe
from tests.matrix import AXES, RESOLUTIONS, entries

N_STEPS = 24  # three stages of eight steps


def run(pipe, *stack):
    with fresco.accelerate(pipe, {**RESOLUTIONS["whole"], "stack": list(stack)}) as accelerated:
        return draw_latents(pipe, num_inference_steps=N_STEPS), accelerated.report


class Kept:
    """What one module gave in the calls since the number of tokens last changed."""

    def __init__(self):
        self.n_tokens, self.given = None, []

    def calls_before(self, n_tokens):
        if n_tokens != self.n_tokens:
            self.n_tokens, self.given = n_tokens, []
        return len(self.given)


def instead(pipe, modules, rule):
    """Let `rule(call, computed, given before)` say what each module gives."""
    hooks = contextlib.ExitStack()
    for module in modules:
        kept = Kept()

        def hook(_module, _args, output, kept=kept):
            outputs = (output,) if isinstance(output, torch.Tensor) else output
            call = kept.calls_before([part.shape[1] for part in outputs])
            before = [[given[i] for given in kept.given] for i in range(len(outputs))]
            now = tuple(rule(call, *each) for each in zip(outputs, before, strict=True))
            kept.given.append(now)
            return now[0] if isinstance(output, torch.Tensor) else now

        hooks.callback(module.register_forward_hook(hook).remove)
    return hooks


def taylor(call, computed, given):
    """Every second call goes on along the line through the last two that were computed."""
    if call % 2 == 0:
        return computed
    slope = (given[-1] - given[-3]) / 2 if call > 2 else 0
    return given[-1] + slope


def broadcast(call, computed, given):
    """Every second call gives what the one before gave."""
    return computed if call % 2 == 0 else given[-1]


def extrapolated(call, computed, given):
    """Every second call goes on by half the change of the last two calls, reused ones too."""
    if call % 2 == 0:
        return computed
    return given[-1] + 0.5 * (given[-1] - given[-2]) if call > 1 else given[-1]


def never_again(call, residuals, _is_last):
    """The first residual of a layout stands for all others."""
    return residuals[0] if call else None


def two_of_three(call, residuals, is_last):
    """Two calls go on along the line through the last two residuals, then one is computed."""
    if call % 3 == 0 or is_last:
        return None
    slope = (residuals[-1] - residuals[-2]) / 3 if call > 3 else 0
    return residuals[-1] + slope * (call % 3)


def instead_of_stack(pipe, rule):
    """Let `rule` say by how much all blocks change the image tokens.

    It is given the call's number in its layout, the computed residuals, and whether the run ends.
    """
    first = pipe.transformer.transformer_blocks[0]
    last = pipe.transformer.single_transformer_blocks[-1]
    state = {"n_tokens": None, "calls in all": 0}

    def before(_module, args, kwargs):
        state["into"] = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]

    def after(_module, _args, output):
        into = state["into"]
        if state["n_tokens"] != into.shape[1]:
            state.update(n_tokens=into.shape[1], calls=0, residuals=[])
        state["calls in all"] += 1
        is_last = state["calls in all"] == N_STEPS
        residual = rule(state["calls"], state["residuals"], is_last)
        state["calls"] += 1
        if residual is None:
            state["residuals"].append(output[1] - into)
            return output
        return output[0], into + residual

    hooks = contextlib.ExitStack()
    hooks.callback(first.register_forward_pre_hook(before, with_kwargs=True).remove)
    hooks.callback(last.register_forward_hook(after).remove)
    return hooks


def instead_of_all_but_the_first(*blocks):
    """The first block is always computed; the first sum of the others stands for all."""
    first, last = blocks[0], blocks[-1]
    state = {"n_tokens": None}

    def after_first(_module, _args, output):
        state["given"] = output

    def after_last(_module, _args, output):
        given = state["given"]
        if state["n_tokens"] != given[1].shape[1]:
            state["n_tokens"] = given[1].shape[1]
            state["sums"] = [a - b for a, b in zip(output, given, strict=True)]
        return tuple(a + b for a, b in zip(given, state["sums"], strict=True))

    hooks = contextlib.ExitStack()
    hooks.callback(first.register_forward_hook(after_first).remove)
    hooks.callback(last.register_forward_hook(after_last).remove)
    return hooks


def of_each_list(pipe):
    """The same in each list of blocks by itself."""
    hooks = contextlib.ExitStack()
    for some in (pipe.transformer.transformer_blocks, pipe.transformer.single_transformer_blocks):
        hooks.enter_context(instead_of_all_but_the_first(*some))
    return hooks


def blocks(pipe):
    return [*pipe.transformer.transformer_blocks, *pipe.transformer.single_transformer_blocks]


def attentions(pipe):
    return [block.attn for block in blocks(pipe)]


BY_HAND = {
    "first_block": lambda pipe: instead_of_all_but_the_first(*blocks(pipe)),
    "magcache": lambda pipe: instead_of_stack(pipe, never_again),
    "taylorseer": lambda pipe: instead(pipe, attentions(pipe), taylor),
    "pab": lambda pipe: instead(pipe, attentions(pipe), broadcast),
    "fastercache": lambda pipe: instead(pipe, attentions(pipe), extrapolated),
    "seacache": lambda pipe: instead_of_stack(pipe, two_of_three),
    "cache_dit": of_each_list,
}


def test_every_cache_of_the_matrix_is_written_out_here():
    assert set(AXES["cache"]) == {"none", *BY_HAND}


@pytest.mark.parametrize("method", BY_HAND)
def test_a_cache_that_hits_is_its_algorithm_written_out(method):
    pipe = make_flux_pipe(n_blocks=2)
    got, report = run(pipe, *entries({"cache": method}))
    plain, _ = run(pipe)
    with BY_HAND[method](pipe):
        expected, _ = run(pipe)
    assert sum(step.cached for step in report.steps) >= 12
    away = (got - plain).norm()
    assert away > 5e-4 * plain.norm()  # some hundred times the rounding
    assert (got - expected).norm() < 1e-2 * away
