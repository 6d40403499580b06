"""Wan 2.2: two transformers, of which the timestep says which is called; a stack is on both."""

from __future__ import annotations

from typing import ClassVar, Literal

import pytest
import torch
from diffusers import FirstBlockCacheConfig

import fresco
from fresco import errors, techniques
from fresco.calls import AbstractListener
from fresco.techniques import TechniqueConfig
from tests.conftest import traces
from tests.families import FAMILIES
from tests.matrix import FORCED, lora_weights
from tests.staged import MIXED, STAGED

BOUNDARY = 0.79
PLAIN = {"schema": 1, "model": "any"}
MAGCACHE = FORCED["magcache"] | {"ratios": (1.0, 1.0)}  # they are calibrated per model
FOR_WAN = {name: each for name, each in FORCED.items() if name != "taylorseer"}
CACHES = {
    name: {"kind": "cache", "method": name, **settings}
    for name, settings in (FOR_WAN | {"magcache": MAGCACHE}).items()
    if name != "cache_dit"
} | {"cache_dit": {"kind": "cache_dit", **FORCED["cache_dit"]}}
QUANTIZE = {"kind": "quantize", "form": "int8_weight_only"}
COMPILE = {"kind": "compile", "backend": "eager", "dynamic": False}


def make_two(seed=None):
    """Wan 2.2 of two transformers; of the same weights unless there is a seed."""
    family = FAMILIES["wan"]
    first, second = family.make(), family.make().transformer
    if seed is not None:
        torch.manual_seed(seed)
        for weight in second.parameters():
            torch.nn.init.normal_(weight, std=0.1)
    parts = {**first.components, "transformer_2": second}
    pipe = type(first)(**parts, boundary_ratio=BOUNDARY)
    pipe.set_progress_bar_config(disable=True)
    return pipe


LIFTED = {
    **MIXED,
    "stages": [
        {"cell": 2, "steps": 3, "until_sigma": 0.4},
        {**MIXED["stages"][1], "lift": {"form": "latent", "to_sigma": 0.8}},
        MIXED["stages"][2],
    ],
}


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


def test_an_exchanged_second_transformer_is_refused():
    pipe = make_two()
    with fresco.accelerate(pipe, STAGED):
        pipe.transformer_2 = FAMILIES["wan"].make().transformer
        with pytest.raises(errors.RunError, match="expected the transformer that was accelerated"):
            FAMILIES["wan"].draw(pipe)


def draw(pipe):
    """Seven steps above the boundary and five below, by the pipeline's own schedule."""
    return FAMILIES["wan"].draw(pipe, num_inference_steps=12)


def state(pipe):
    """Everything that a stack could leave behind on both transformers."""
    both = (pipe.transformer, pipe.transformer_2)
    swapped = type(pipe)(**{**pipe.components, "transformer": pipe.transformer_2})
    modules = [{name: id(module) for name, module in each.named_modules()} for each in both]
    own = [sorted(vars(module)) for each in both for module in each.modules()]
    return traces(pipe), traces(swapped), modules, own


@pytest.fixture
def two():
    """Two transformers of other weights; after the test they must be as they were."""
    torch._dynamo.reset()
    pipe = make_two(seed=1)
    plain, before = draw(pipe), state(pipe)
    yield pipe
    assert state(pipe) == before
    assert draw(pipe).equal(plain)


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


def _cache_second(pipe):
    pipe.transformer_2.enable_cache(FirstBlockCacheConfig())
    return pipe.transformer_2.disable_cache


def _compile_second(pipe):
    pipe.transformer_2.compile(backend="eager")
    return lambda: vars(pipe.transformer_2).pop("_compiled_call_impl")


def _hook_second(pipe):
    linear = pipe.transformer_2.blocks[1].attn1.to_q
    linear.forward = linear.forward
    return lambda: vars(linear).pop("forward")


@pytest.mark.parametrize(
    ("spoil", "entry", "match"),
    [
        (_cache_second, CACHES["first_block"], r"cache.attach\(pipe\): .*got one with a cache"),
        (_compile_second, COMPILE, "got one that is compiled already"),
        (_hook_second, QUANTIZE, "got 1 with, as leaf-level offload puts them"),
    ],
    ids=["cache", "compile", "quantize"],
)
def test_where_the_second_refuses_nothing_stays_on_the_first(spoil, entry, match):
    pipe = make_two(seed=1)
    mend = spoil(pipe)
    before = state(pipe)
    with pytest.raises(errors.AttachError, match=match):
        fresco.accelerate(pipe, {**PLAIN, "stack": [entry]})
    assert state(pipe) == before
    mend()
    fresco.accelerate(pipe, {**PLAIN, "stack": [entry]}).restore()


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


def test_the_second_is_not_cached_by_hand_meanwhile(two):
    with (
        fresco.accelerate(two, STAGED),
        pytest.raises(errors.AttachError, match=r"transformer.enable_cache\(\)"),
    ):
        two.transformer_2.enable_cache(FirstBlockCacheConfig())


def test_stages_refuse_a_second_that_others_cache():
    pipe = make_two()
    pipe.transformer_2.enable_cache(FirstBlockCacheConfig())
    with pytest.raises(errors.AttachError, match="got one with FirstBlockCacheConfig"):
        fresco.accelerate(pipe, STAGED)


@pytest.mark.parametrize("name", ["transformer", "transformer_2"])
def test_a_second_that_is_accelerated_already_is_refused_in_either_place(two, name):
    others = {**FAMILIES["wan"].make().components, name: two.transformer_2}
    other = type(two)(**others, boundary_ratio=BOUNDARY)
    with (
        fresco.accelerate(two, STAGED),
        pytest.raises(errors.AttachError, match="whose transformer already has fresco"),
    ):
        fresco.accelerate(other, STAGED)


class Pointed(TechniqueConfig):
    """Of others, who know nothing of a second transformer."""

    kind: Literal["pointed"] = "pointed"
    phase: ClassVar = "weights"
    touches: ClassVar = "the first"

    def attach(self, pipe):
        raise AssertionError(pipe)


def test_what_acts_on_one_transformer_is_refused_with_the_reason(two, monkeypatch):
    monkeypatch.setattr(techniques, "_TECHNIQUES", dict(techniques.techniques()))
    techniques.register_technique(Pointed)
    stacks = {
        "got 2 in WanPipeline: each has a LoRA of its own": {
            "kind": "lora",
            "state_dict": lora_weights(two),
        },
        "got 2 in WanPipeline: it attaches to the first": {"kind": "pointed"},
    }
    for match, entry in stacks.items():
        with pytest.raises(errors.AttachError, match=match):
            fresco.accelerate(two, {**STAGED, "stack": [QUANTIZE, entry]})


def test_what_is_asked_of_a_stack_is_asked_of_both(monkeypatch):
    settled, looked_at = [], []

    def settle(attachment):
        settled.append(attachment)

    monkeypatch.setattr("fresco.techniques.AbstractAttachment.settle", settle)
    monkeypatch.setattr("fresco.stack.offload_of", lambda all_: looked_at.append(len(all_)))
    with fresco.accelerate(make_two(), {**PLAIN, "stack": [CACHES["first_block"]]}) as accelerated:
        assert settled == attachments(accelerated)
    assert set(looked_at) == {2}
