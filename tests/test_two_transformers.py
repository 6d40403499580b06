"""Wan 2.2: two transformers, of which the timestep says which is called; a stack is on both."""

from __future__ import annotations

import pytest
import torch

import fresco
from fresco.calls import AbstractListener
from tests.conftest import traces
from tests.families import FAMILIES
from tests.staged import MIXED, STAGED
from tests.two_transformers import (
    BOUNDARY,
    CACHES,
    COMPILE,
    PLAIN,
    QUANTIZE,
    draw,
    left_as_they_were,
    make_two,
)

LIFTED = {
    **MIXED,
    "stages": [
        {"cell": 2, "steps": 3, "until_sigma": 0.4},
        {**MIXED["stages"][1], "lift": {"form": "latent", "to_sigma": 0.8}},
        MIXED["stages"][2],
    ],
}


@pytest.fixture
def two():
    with left_as_they_were() as pipe:
        yield pipe


@pytest.mark.parametrize("raw", [STAGED, MIXED, LIFTED])
def test_stages_drive_both_of_two_transformers(raw):
    family = FAMILIES["wan"]
    alone, two = family.make(), make_two()
    with fresco.accelerate(alone, raw), fresco.accelerate(two, raw):
        assert family.draw(two).equal(family.draw(alone))


def test_the_timestep_says_which_of_two_transformers_sees_the_tokens_also_after_a_lift():
    family, pipe = FAMILIES["wan"], make_two(seed=1)
    plain = family.draw(pipe)
    other = type(pipe)(**{**pipe.components, "transformer": pipe.transformer_2})
    before = traces(pipe), traces(other)
    called = []

    def record(module, _args, call):
        of_frame = call["hidden_states"][0, 0, 0].numel() // 4
        called.append((module is pipe.transformer, float(call["timestep"][0]) / 1000, of_frame))

    with fresco.accelerate(pipe, LIFTED) as accelerated:
        handles = [
            each.register_forward_pre_hook(record, with_kwargs=True)
            for each in (pipe.transformer, pipe.transformer_2)
        ]
        assert family.draw(pipe).isfinite().all()
        steps = accelerated.report.steps
        for handle in handles:
            handle.remove()
    assert [step.passes for step in steps] == [2] * 7
    for step, (is_first, sigma, n_tokens) in zip(steps, called[::2], strict=True):
        assert sigma == pytest.approx(step.sigma, abs=1e-4)
        assert is_first == (step.sigma >= BOUNDARY)
        assert 2 * n_tokens == step.tokens
    order = [is_first for is_first, _, _ in called[::2]]
    assert order[:5] == [True, True, False, True, False]  # the lift goes back to the first
    assert (traces(pipe), traces(other)) == before
    assert family.draw(pipe).equal(plain)


def attachments(accelerated):
    """What is attached, by technique and then transformer."""
    return [layer.attachment for layer in accelerated._stack.layers]


def counts(accelerated):
    return {row.kind: row.counts for row in accelerated.summary().rows}


class Switch(AbstractListener):
    """Says that features are stale where another transformer would be called."""

    def __init__(self, told):
        self.told, self.was_high = told, None

    def on_layout(self, call):
        pass

    def before_call(self, call):
        is_high = call.sigma >= BOUNDARY
        if self.was_high not in (None, is_high):
            self.told.on_layout(call)
        self.was_high = is_high

    def after_call(self):
        return 0


@pytest.mark.parametrize("raw", [PLAIN, LIFTED, MIXED], ids=["own", "lifted", "mixed"])
@pytest.mark.parametrize("name", CACHES)
def test_each_transformer_s_cache_has_state_of_its_own(name, raw):
    """Like one transformer whose features are dropped wherever the other takes over."""
    recipe = {**raw, "stack": [CACHES[name]]}
    alone, two = FAMILIES["wan"].make(), make_two()
    with fresco.accelerate(alone, recipe) as one, fresco.accelerate(two, recipe) as both:
        (told,) = attachments(one)
        one._middleware.listeners.on_layout.insert(0, Switch(told))
        assert draw(two).equal(draw(alone))
        assert counts(both) == counts(one)
        assert both.report.steps[0].passes == 2
        cached = [(step.cached, step.reused) for step in both.report.steps]
        assert cached == [(step.cached, step.reused) for step in one.report.steps]
        hits = [each.counts()["hits"] for each in attachments(both)]
    assert len(hits) == 2
    assert min(hits) > 0


@pytest.mark.parametrize("name", CACHES)
def test_a_cache_on_both_comes_off_again(two, name):
    plain = draw(two)
    with fresco.accelerate(two, {**PLAIN, "stack": [CACHES[name]]}):
        first = draw(two)
        assert 0 < (first - plain).norm() / plain.norm() < 1
        assert draw(two).equal(first)


@pytest.mark.parametrize("raw", [PLAIN, LIFTED], ids=["own", "lifted"])
def test_both_are_quantized_as_one_is(raw):
    recipe = {**raw, "stack": [QUANTIZE]}
    alone, two = FAMILIES["wan"].make(), make_two()
    with fresco.accelerate(alone, recipe) as one, fresco.accelerate(two, recipe) as both:
        assert draw(two).equal(draw(alone))
        parts = [each.counts() for each in attachments(both)]
        expected = counts(one)["quantize"]
        assert parts == [expected, expected]
        for name in ("layers", "bytes", "bytes before"):
            assert counts(both)["quantize"][name] == 2 * expected[name] > 0


def test_both_are_compiled(two):
    plain = draw(two)
    with fresco.accelerate(two, {**PLAIN, "stack": [COMPILE]}) as accelerated:
        torch.testing.assert_close(draw(two), plain, rtol=0, atol=1e-5)
        parts = [each.counts() for each in attachments(accelerated)]
        assert [part["blocks"] for part in parts] == [2, 2]
        assert min(part["graphs"] for part in parts) > 0
        numbers = counts(accelerated)["compile"]
        assert numbers == {name: sum(part[name] for part in parts) for name in parts[0]}


def test_a_whole_stack_on_both_comes_off_again(two):
    plain = draw(two)
    stack = [CACHES["first_block"], QUANTIZE]
    with fresco.accelerate(two, {**LIFTED, "stack": stack}) as accelerated:
        for each in (two.transformer, two.transformer_2):
            quantized = [
                module
                for module in each.modules()
                if isinstance(module, torch.nn.Linear)
                and type(module.weight.data) is not torch.Tensor
            ]
            assert len(quantized) == counts(accelerated)["quantize"]["layers"] / 2 > 0
        assert not draw(two).equal(plain)
        assert counts(accelerated)["quantize"]["originals"] == "kept"
        kinds = [row.kind for row in accelerated.summary().rows]
        assert kinds == ["quantize", "resolution", "cache"]


def test_a_run_that_dies_in_the_second_leaves_the_next_one_right(two):
    def die(*_):
        raise ValueError("on purpose")

    stack = [QUANTIZE, CACHES["first_block"]]
    with fresco.accelerate(two, {**LIFTED, "stack": stack}):
        expected = draw(two)
        with (
            two.transformer_2.blocks[0].register_forward_pre_hook(die),
            pytest.raises(ValueError, match="on purpose"),
        ):
            draw(two)
        assert draw(two).equal(expected)


def test_what_is_asked_of_a_stack_is_asked_of_both(monkeypatch):
    settled, looked_at = [], []

    def settle(attachment):
        settled.append(attachment)

    monkeypatch.setattr("fresco.techniques.AbstractAttachment.settle", settle)
    monkeypatch.setattr("fresco.stack.offload_of", lambda all_: looked_at.append(len(all_)))
    with fresco.accelerate(make_two(), {**PLAIN, "stack": [CACHES["first_block"]]}) as accelerated:
        assert settled == attachments(accelerated)
    assert set(looked_at) == {2}
