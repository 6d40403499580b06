"""Pictures of one batch, each with its own layout, in one call where their tokens are as many."""

from __future__ import annotations

from contextlib import contextmanager

import diffusers
import pytest
import torch
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor

import fresco
from fresco import middleware
from fresco.registry import find_adapter
from fresco.swap import can_merge
from fresco.wraps import is_compiled
from tests.families import FAMILIES
from tests.family import repeated
from tests.mixed import RUNS, draw_three
from tests.staged import RANDOM

NAMES = ["flux", "flux2", "chroma", "ovis_image", "longcat_image"]


@contextmanager
def sizes_of_calls(transformer):
    """Rows and image tokens of the calls of a transformer's first block."""
    sizes = []

    def note(_block, _args, call):
        sizes.append(tuple(call["hidden_states"].shape[:2]))

    block = transformer.transformer_blocks[0]
    handle = block.register_forward_pre_hook(note, with_kwargs=True)
    yield sizes
    handle.remove()


def one_by_one(monkeypatch):
    monkeypatch.setattr(middleware, "can_merge", lambda *_: False)


def told_apart(asked):
    """The second of some pictures has another text and mask."""
    for name, value in asked.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            asked[name] = torch.stack((value[0], value[1].flip(0), *value[2:]))
        elif isinstance(value, torch.Tensor):
            value[1, -1] = 0
    return asked


@pytest.mark.parametrize("name", NAMES)
def test_every_step_is_one_call_and_the_pictures_are_those_of_calls_of_their_own(name, monkeypatch):
    family = FAMILIES[name]
    pipe, asked = family.make(), told_apart(repeated(family.asked(), 3))
    drawn, calls = [], []
    with fresco.accelerate(pipe, RANDOM):
        for _ in range(2):
            with sizes_of_calls(pipe.transformer) as sizes:
                generators = [torch.Generator().manual_seed(seed) for seed in (0, 2, 0)]
                drawn.append(family.draw(pipe, **asked, generator=generators))
            calls.append(sizes)
            one_by_one(monkeypatch)
    torch.testing.assert_close(drawn[0], drawn[1], rtol=1e-5, atol=1e-5)
    merged, apart = ([rows for rows, _ in sizes] for sizes in calls)
    assert min(merged) == max(merged) == 3 * min(apart)
    assert 2 * min(apart) in apart  # the first and the last are alike
    assert sum(merged) == sum(apart)


@pytest.mark.parametrize("raw", [RUNS["edges"], RUNS["injection"], RUNS["coarse units"]])
def test_merged_steps_of_flux_are_equal_to_separate_ones(tiny_flux_pipe, raw, monkeypatch):
    with fresco.accelerate(tiny_flux_pipe, raw):
        with sizes_of_calls(tiny_flux_pipe.transformer) as sizes:
            merged = draw_three(tiny_flux_pipe)
        assert {rows for rows, _ in sizes} == {3}
        one_by_one(monkeypatch)
        torch.testing.assert_close(merged, draw_three(tiny_flux_pipe), rtol=0, atol=1e-5)


def test_layouts_of_other_numbers_of_tokens_go_apart(tiny_flux_pipe, monkeypatch):
    with fresco.accelerate(tiny_flux_pipe, RUNS["threshold"]):
        with sizes_of_calls(tiny_flux_pipe.transformer) as sizes:
            together = draw_three(tiny_flux_pipe)
        assert {rows for rows, _ in sizes} == {1, 2, 3}  # two of them are as long
        one_by_one(monkeypatch)
        torch.testing.assert_close(together, draw_three(tiny_flux_pipe), rtol=0, atol=1e-5)


def compiled(pipe):
    for block in pipe.transformer.transformer_blocks:
        block.compile(backend="eager")
    return RUNS["edges"]


def compiled_norm(pipe):
    attn = pipe.transformer.single_transformer_blocks[0].attn
    attn.norm_q = torch.compile(attn.norm_q, backend="eager")
    return RUNS["edges"]


def compiled_forward(pipe):
    transformer = pipe.transformer
    transformer.forward = torch.compile(transformer.forward, backend="eager")
    return RUNS["edges"]


def cached(_pipe):
    stack = [{"kind": "cache", "method": "first_block", "threshold": 0.5}]
    return {**RUNS["edges"], "stack": stack}


def foreign_attention(pipe):
    class Foreign(FluxAttnProcessor):
        pass

    pipe.transformer.transformer_blocks[0].attn.processor = Foreign()
    return RUNS["edges"]


def phase_aligned(_pipe):
    return RUNS["phase"]


WAYS = [compiled, compiled_norm, compiled_forward, cached, foreign_attention, phase_aligned]


@pytest.mark.parametrize("make", WAYS)
def test_pictures_go_apart_where_hooks_would_be_missed_or_a_call_decides(
    tiny_flux_pipe, make, monkeypatch
):
    raw, entered = make(tiny_flux_pipe), []
    enter = middleware.enter_tokens

    def note(adapter, call, run, step, groups):
        entered.extend(len(group.images) for group in groups)
        assert len(groups) == 1
        return enter(adapter, call, run, step, groups)

    monkeypatch.setattr(middleware, "enter_tokens", note)
    with fresco.accelerate(tiny_flux_pipe, raw):
        draw_three(tiny_flux_pipe)
    assert set(entered) == {1, 3}  # mixed steps and whole-grid ones


def test_with_gradients_or_a_shared_sequence_pictures_go_apart(tiny_flux_pipe):
    adapter = find_adapter(tiny_flux_pipe.transformer)
    with fresco.accelerate(tiny_flux_pipe, RUNS["edges"]) as accelerated:
        draw_three(tiny_flux_pipe)
        step = accelerated._middleware.last.plan.steps[4]
    with torch.no_grad():
        assert can_merge(adapter, step, tiny_flux_pipe.transformer)
        tiny_flux_pipe.transformer._parallel_config = object()  # shares the sequence out
        assert not can_merge(adapter, step, tiny_flux_pipe.transformer)
        del tiny_flux_pipe.transformer._parallel_config
    assert not can_merge(adapter, step, tiny_flux_pipe.transformer)


def test_a_class_s_forward_that_is_compiled_is_noticed():
    class Compiled(torch.nn.Linear):
        forward = torch.compile(torch.nn.Linear.forward, backend="eager")

    assert is_compiled(Compiled(1, 1))
    assert not is_compiled(torch.nn.Linear(1, 1))


def test_blocks_without_attention_of_diffusers_take_stages(tiny_flux_pipe):
    blocks = tiny_flux_pipe.transformer.transformer_blocks

    class Fused(torch.nn.Module):
        def __init__(self, blocks):
            super().__init__()
            self.all = blocks

        def forward(self, hidden_states, encoder_hidden_states, **call):
            for block in self.all:
                encoder_hidden_states, hidden_states = block(
                    hidden_states=hidden_states, encoder_hidden_states=encoder_hidden_states, **call
                )
            return encoder_hidden_states, hidden_states

    with fresco.accelerate(tiny_flux_pipe, RUNS["edges"]):
        expected = draw_three(tiny_flux_pipe)
    tiny_flux_pipe.transformer.transformer_blocks = torch.nn.ModuleList([Fused(blocks)])
    with fresco.accelerate(tiny_flux_pipe, RUNS["edges"]):
        torch.testing.assert_close(draw_three(tiny_flux_pipe), expected, rtol=0, atol=1e-5)


def test_reference_pictures_keep_positions_of_their_own(tiny_flux_pipe, monkeypatch):
    pipe = diffusers.FluxKontextPipeline(**tiny_flux_pipe.components)
    pipe.set_progress_bar_config(disable=True)
    pictures = torch.rand(3, 3, 64, 96, generator=torch.Generator().manual_seed(7))
    asked = {"image": pictures, "height": 64, "width": 96, "_auto_resize": False}
    asked["max_area"] = 64 * 96
    with fresco.accelerate(pipe, RUNS["edges"]):
        with sizes_of_calls(pipe.transformer) as sizes:
            merged = draw_three(pipe, **asked)
        assert {rows for rows, _ in sizes} == {3}
        assert sizes[-1] == (3, 2 * 8 * 12)
        one_by_one(monkeypatch)
        torch.testing.assert_close(merged, draw_three(pipe, **asked), rtol=0, atol=1e-5)


def test_a_part_that_fails_leaves_the_next_run_right(tiny_flux_pipe):
    with fresco.accelerate(tiny_flux_pipe, RUNS["threshold"]) as accelerated:
        expected = draw_three(tiny_flux_pipe)

        def fail_in_a_part(*_):
            if accelerated._middleware.last.is_nested:
                raise ValueError("on purpose")

        norm = tiny_flux_pipe.transformer.norm_out
        with (
            norm.register_forward_hook(fail_in_a_part),
            pytest.raises(ValueError, match="on purpose"),
        ):
            draw_three(tiny_flux_pipe)
        assert draw_three(tiny_flux_pipe).equal(expected)
