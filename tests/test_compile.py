"""torch.compile under dynamic resolution: how many graphs, and inductor itself."""

from __future__ import annotations

import os
import shutil

import pytest
import torch

import fresco
from fresco import errors
from tests.conftest import draw_latents, traces
from tests.mixed import MIXED
from tests.stacks import counts, run, with_stack

N_CLASSES = 2  # of blocks: double and single


@pytest.fixture(autouse=True)
def _fresh_graphs():
    torch._dynamo.reset()


def entry(**more):
    return {"kind": "compile", "backend": "eager", **more}


def growing(*, is_static):
    """A mixed stage that promotes at every step: a token count of its own for each."""
    budget = [0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    coarse, mixed, fine = MIXED["stages"]
    promote = {"score": "channel_variance", "first": "high", "budget": budget}
    stages = [coarse, {**mixed, "steps": 8, "promote": promote}, fine]
    more = {"dynamic": False} if is_static else {}
    return {**MIXED, "stages": stages, "stack": [entry(**more)]}


def draw_all(pipe, accelerated):
    """Runs of three sizes and two batches; returns how many token counts they had."""
    seen = set()
    for asked in (
        {},
        {"height": 72, "width": 40},
        {"height": 96, "width": 96},
        {"prompt": ["a"] * 2},
    ):
        draw_latents(pipe, num_inference_steps=16, **asked)
        seen |= {(step.tokens, len(asked)) for step in accelerated.report.steps}
    return len(seen)


def test_graphs_stay_few_however_many_token_counts_there_are(tiny_flux_pipe):
    with fresco.accelerate(tiny_flux_pipe, growing(is_static=False)) as accelerated:
        n_counts = draw_all(tiny_flux_pipe, accelerated)
        n_graphs = counts(accelerated, "compile")["graphs"]
        assert n_counts > 15
        assert N_CLASSES <= n_graphs <= 2 * N_CLASSES  # a batch of one may be a graph of its own
        draw_all(tiny_flux_pipe, accelerated)
        assert counts(accelerated, "compile")["graphs"] == n_graphs


@pytest.mark.filterwarnings("ignore:torch._dynamo hit config")
def test_with_static_token_counts_every_one_is_a_graph_of_its_own(tiny_flux_pipe):
    with (
        torch._dynamo.config.patch(recompile_limit=64),
        fresco.accelerate(tiny_flux_pipe, growing(is_static=True)) as accelerated,
    ):
        draw_latents(tiny_flux_pipe, num_inference_steps=12)
        n_counts = len({step.tokens for step in accelerated.report.steps})
        assert n_counts > 4
        assert counts(accelerated, "compile")["graphs"] == N_CLASSES * n_counts


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, as it loads inductor
def test_inductor_makes_the_same_picture_or_is_refused_for_want_of_a_compiler(tiny_flux_pipe):
    raw = with_stack("mixed", entry(backend="inductor"))
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        with pytest.raises(errors.AttachError, match=r"a C\+\+ compiler, which inductor needs"):
            fresco.accelerate(tiny_flux_pipe, raw)
        return
    expected, _, _ = run(tiny_flux_pipe, with_stack("mixed"))
    got, rows, _ = run(tiny_flux_pipe, raw)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    assert rows["compile"]["graphs"] == N_CLASSES


def test_inductor_without_a_compiler_is_refused_before_anything_is_attached(tiny_flux_pipe):
    from torch._inductor import config, cpp_builder

    cpp_builder.cpp_compiler_search.cache_clear()
    before = traces(tiny_flux_pipe)
    expected = r"Install g\+\+ or set CXX, or set backend: eage"
    with (
        config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(errors.AttachError, match=expected),
    ):
        fresco.accelerate(tiny_flux_pipe, with_stack("none", entry(backend="inductor")))
    cpp_builder.cpp_compiler_search.cache_clear()
    assert traces(tiny_flux_pipe) == before
