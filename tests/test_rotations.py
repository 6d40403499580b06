"""Queries and keys of merged calls: turned once, for their own call alone, and no hook stays on."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from diffusers.models.transformers import transformer_flux
from fresco.adapters.models import rotations

import fresco
from fresco.registry import find_adapter
from tests.mixed import RUNS, draw_three


def test_queries_and_keys_are_turned_once(tiny_flux_pipe, monkeypatch):
    turned = Counter()
    for module in (transformer_flux, rotations):

        def count(*args, turn=module.apply_rotary_emb, module=module, **kwargs):
            turned[module] += 1
            return turn(*args, **kwargs)

        monkeypatch.setattr(module, "apply_rotary_emb", count)
    transformer = tiny_flux_pipe.transformer
    side_by_side, joint = transformer.transformer_blocks, transformer.single_transformer_blocks
    with fresco.accelerate(tiny_flux_pipe, RUNS["edges"]) as accelerated:
        draw_three(tiny_flux_pipe)
        mixed = [step.promotion is not None for step in accelerated.plan.steps]
    assert 0 < sum(mixed) < len(mixed)
    by_model = 2 * (len(side_by_side) + len(joint))
    assert turned[transformer_flux] == by_model * mixed.count(False)
    of_text = 2 * len(side_by_side)
    assert turned[rotations] == (by_model + of_text) * mixed.count(True)


def hooks_of_attention(transformer):
    attention = [m for name, m in transformer.named_modules() if "attn" in name.split(".")]
    assert len(attention) > 10
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in attention)


@torch.no_grad()
def test_turns_are_made_once_for_the_same_ids(tiny_flux_pipe):
    transformer, made, counts = tiny_flux_pipe.transformer, [], []
    turns = rotations.Rotations(transformer)
    ids, text = torch.rand(2, 6, 3), torch.zeros(4, 3)
    with transformer.pos_embed.register_forward_hook(lambda *_: made.append(None)):
        for image, words in ((ids, text), (ids.clone(), text[None]), (ids, text + 1), (-ids, text)):
            turns.start(image, words)
            counts.append(len(made))
    turns.stop()
    assert counts == [3, 3, 6, 9]
    assert hooks_of_attention(transformer) == 0


def own_call(transformer):
    """Arguments of a call that is not fresco's."""
    call = find_adapter(transformer).example_call(transformer, 16, 6)
    call["img_ids"] = torch.arange(48.0).view(16, 3)
    call["hidden_states"] = torch.randn_like(call["hidden_states"])
    return call


@torch.no_grad()
def test_a_call_outside_of_a_run_that_died_is_the_model_s_own(tiny_flux_pipe):
    transformer = tiny_flux_pipe.transformer
    call = own_call(transformer)
    expected = transformer(**call)[0]

    def fail(*_):
        if hooks_of_attention(transformer):
            raise KeyboardInterrupt

    with fresco.accelerate(tiny_flux_pipe, RUNS["edges"]):
        handle = transformer.norm_out.register_forward_hook(fail)
        with pytest.raises(KeyboardInterrupt):
            draw_three(tiny_flux_pipe)
        assert hooks_of_attention(transformer) > 0
        handle.remove()
        assert torch.equal(transformer(**call)[0], expected)
        assert hooks_of_attention(transformer) == 0
        handle = transformer.norm_out.register_forward_hook(fail)
        with pytest.raises(KeyboardInterrupt):
            draw_three(tiny_flux_pipe)
        handle.remove()
    assert hooks_of_attention(transformer) == 0


@torch.no_grad()
def test_a_call_of_another_thread_meanwhile_is_the_model_s_own(tiny_flux_pipe):
    transformer = tiny_flux_pipe.transformer
    call, seen = own_call(transformer), []
    expected = transformer(**call)[0]
    block = transformer.single_transformer_blocks[0]

    def call_elsewhere(*_):
        if threading.current_thread() is threading.main_thread():
            with ThreadPoolExecutor(1) as other:
                seen.append(other.submit(torch.no_grad()(transformer), **call).result()[0])

    with fresco.accelerate(tiny_flux_pipe, RUNS["edges"]):
        right = draw_three(tiny_flux_pipe)
        with block.register_forward_pre_hook(call_elsewhere):
            assert torch.equal(draw_three(tiny_flux_pipe), right)
    assert seen
    assert all(torch.equal(output, expected) for output in seen)
