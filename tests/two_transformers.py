"""Wan 2.2 of two tiny transformers, and what stacks are tested on them."""

from __future__ import annotations

import contextlib

import torch

from tests.conftest import traces
from tests.families import FAMILIES
from tests.matrix import FORCED

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


@contextlib.contextmanager
def left_as_they_were():
    """Two transformers of other weights; once the block ends they must be as they were."""
    torch._dynamo.reset()
    pipe = make_two(seed=1)
    plain, before = draw(pipe), state(pipe)
    yield pipe
    assert state(pipe) == before
    assert draw(pipe).equal(plain)
