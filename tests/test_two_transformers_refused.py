"""What is refused because of a second transformer, with nothing left on the first."""

from __future__ import annotations

from typing import ClassVar, Literal

import pytest
from diffusers import FirstBlockCacheConfig

import fresco
from fresco import errors, techniques
from fresco.techniques import TechniqueConfig
from tests.families import FAMILIES
from tests.matrix import lora_weights
from tests.staged import STAGED
from tests.two_transformers import (
    BOUNDARY,
    CACHES,
    COMPILE,
    PLAIN,
    QUANTIZE,
    left_as_they_were,
    make_two,
    state,
)


@pytest.fixture
def two():
    with left_as_they_were() as pipe:
        yield pipe


def test_an_exchanged_second_transformer_is_refused():
    pipe = make_two()
    with fresco.accelerate(pipe, STAGED):
        pipe.transformer_2 = FAMILIES["wan"].make().transformer
        with pytest.raises(errors.RunError, match="expected the transformer that was accelerated"):
            FAMILIES["wan"].draw(pipe)


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
