"""Caches on dynamic resolution: what hits, what is flushed, whose state is whose."""

from __future__ import annotations

import contextlib

import pytest
import torch

import fresco
from fresco import errors
from tests.conftest import draw_latents
from tests.matrix import RESOLUTIONS
from tests.mixed import MIXED
from tests.stacks import FORCED, NEVER, cache, check_idle, check_reused, counts, run, with_stack


@pytest.mark.parametrize("resolution", RESOLUTIONS)
@pytest.mark.parametrize("method", NEVER)
def test_a_cache_that_never_hits_gives_exactly_the_uncached_picture(intact, method, resolution):
    check_idle(intact, resolution, cache(method, NEVER[method]))


@pytest.mark.parametrize("resolution", RESOLUTIONS)
@pytest.mark.parametrize("method", FORCED)
def test_a_cache_that_hits_differs_and_says_how_often(intact, method, resolution):
    check_reused(intact, resolution, cache(method, FORCED[method]), least=4)


@pytest.mark.parametrize("method", FORCED)
def test_features_are_flushed_by_a_lift_on_the_same_layout(intact, method):
    lifted = {
        "schema": 1,
        "model": "any",
        "stages": [
            {"cell": 1, "steps": 6, "until_sigma": 0.4},
            {"cell": 1, "steps": 6, "lift": {"form": "clean", "to_sigma": 0.6}},
        ],
        "stack": [cache(method, FORCED[method])],
    }
    _, rows, report = run(intact, lifted)
    assert rows["cache"]["flushes"] == 2
    cached = [step.cached for step in report.steps]
    assert cached[0] == cached[6] == 0
    assert cached[1] == cached[7] == 1


@pytest.mark.parametrize("method", FORCED)
@pytest.mark.parametrize("has_contexts", [True, False])
def test_passes_of_guidance_have_state_of_their_own(intact, method, has_contexts):
    """Both passes see the same prompt, so guidance changes nothing, unless they share."""
    raw = with_stack("whole", cache(method, FORCED[method]))
    expected, _, _ = run(intact, raw)
    with fresco.accelerate(intact, raw) as accelerated:
        transformer = intact.transformer
        if not has_contexts:  # as a pipeline that opens none
            named = vars(transformer).pop("cache_context")
            transformer.cache_context = lambda _name: contextlib.nullcontext()
        got = draw_latents(
            intact, num_inference_steps=12, negative_prompt="a red circle", true_cfg_scale=3.0
        )
        assert counts(accelerated, "cache")["calls"] == 24
        assert {step.cached for step in accelerated.report.steps} == {0, 2}
        if not has_contexts:
            transformer.cache_context = named
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", [name for name in FORCED if name != "seacache"])
def test_images_of_a_batch_have_state_of_their_own(intact, method):
    raw = with_stack("mixed", cache(method, FORCED[method]))
    raw["stages"] = [*MIXED["stages"]]
    raw["stages"][1] = MIXED["stages"][1] | {"promote": {"score": "random", "budget": 0.3}}
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    together, rows, _ = run(intact, raw, prompt=["a red circle", "blue"], generator=generators)
    assert rows["cache"]["calls"] > 12  # two groups in mixed steps
    assert rows["cache"]["hits"] > 4
    for i, prompt in enumerate(("a red circle", "blue")):
        alone, _, _ = run(intact, raw, prompt=prompt, seed=i)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", FORCED)
def test_a_run_that_died_leaves_the_next_one_right(intact, method):
    def die(_pipe, step, _timestep, tensors):
        if step == 5:
            raise ValueError("on purpose")
        return tensors

    with fresco.accelerate(intact, with_stack("whole", cache(method, FORCED[method]))):
        expected = draw_latents(intact, num_inference_steps=12)
        with pytest.raises(ValueError, match="on purpose"):
            draw_latents(intact, num_inference_steps=12, callback_on_step_end=die)
        assert draw_latents(intact, num_inference_steps=12).equal(expected)
        other = draw_latents(intact, num_inference_steps=12, height=72, width=40)
        assert other.isfinite().all()
        assert draw_latents(intact, num_inference_steps=12).equal(expected)


@pytest.mark.parametrize("method", FORCED)
def test_another_pipeline_on_the_same_transformer_is_not_cached(intact, method):
    other = type(intact)(**intact.components)
    other.scheduler = type(intact.scheduler).from_config(intact.scheduler.config)
    other.default_sample_size = 16
    other.set_progress_bar_config(disable=True)
    expected = draw_latents(other)
    with fresco.accelerate(intact, with_stack("whole", cache(method, FORCED[method]))):
        mine = draw_latents(intact)
        assert draw_latents(other).equal(expected)
        assert draw_latents(intact).equal(mine)


def test_first_block_cache_is_the_algorithm_written_out(intact):
    """Slow and obvious: the first block is always computed, the others' sum is kept."""
    raw = with_stack("whole", cache("first_block", FORCED["first_block"]))
    got, _, _ = run(intact, raw)
    transformer, kept = intact.transformer, {}
    first, last = transformer.transformer_blocks[0], transformer.single_transformer_blocks[0]

    def after_first(_module, _args, output):
        kept["text"], kept["image"] = output

    def instead_of_last(_module, _args, kwargs, output):
        n_tokens = kept["image"].shape[1]
        if kept.get("n_tokens") != n_tokens:
            kept["n_tokens"] = n_tokens
            kept["sums"] = output[0] - kept["text"], output[1] - kept["image"]
        return tuple(
            a + b for a, b in zip(kept["sums"], (kept["text"], kept["image"]), strict=True)
        )

    with contextlib.ExitStack() as hooks:
        hooks.callback(first.register_forward_hook(after_first).remove)
        handle = last.register_forward_hook(instead_of_last, with_kwargs=True)
        hooks.callback(handle.remove)
        expected, _, _ = run(intact, with_stack("whole"))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_a_cache_that_the_user_enabled_is_refused(tiny_flux_pipe):
    from diffusers import FirstBlockCacheConfig

    tiny_flux_pipe.transformer.enable_cache(FirstBlockCacheConfig())
    with pytest.raises(errors.AttachError, match=r"got one with a cache. Call disable_cache\(\)"):
        fresco.accelerate(tiny_flux_pipe, with_stack("none", cache("first_block", {})))
