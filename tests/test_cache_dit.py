"""cache-dit's blocks under dynamic resolution: right, flushed, counted, off again to the bit."""

from __future__ import annotations

import contextlib
import sys

import pytest
import torch
from diffusers import FluxTransformer2DModel

import fresco
from fresco import errors
from tests.conftest import draw_latents, left_as_it_was, traces
from tests.families import FAMILIES
from tests.matrix import RESOLUTIONS, lora_weights
from tests.stacks import check_idle, check_reused, counts, run, with_stack

FORCED = {
    "plain": {"threshold": 1.0},
    "taylor": {"threshold": 1.0, "warmup": 2, "taylor_order": 1},
    "last": {"threshold": 1.0, "last": 1},
}
NEVER = {"kind": "cache_dit", "threshold": 0.0}


def forced(name="plain"):
    return {"kind": "cache_dit", **FORCED[name]}


def deepen(pipe):
    """Put in a transformer with blocks in the middle of both lists; returns the pipeline."""
    torch.manual_seed(1)
    layers = {"num_layers": 3, "num_single_layers": 4}
    deeper = FluxTransformer2DModel.from_config({**pipe.transformer.config, **layers})
    pipe.register_modules(transformer=deeper.eval())
    return pipe


@pytest.fixture
def deep(tiny_flux_pipe):
    """A pipeline with blocks in the middle; after the test, it must be as it was."""
    pipe = deepen(tiny_flux_pipe)
    with left_as_it_was(pipe):
        yield pipe


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_blocks_that_are_never_skipped_give_exactly_the_uncached_picture(deep, resolution):
    check_idle(deep, resolution, NEVER)


@pytest.mark.parametrize("resolution", RESOLUTIONS)
@pytest.mark.parametrize("name", FORCED)
def test_skipped_blocks_differ_and_are_counted(deep, resolution, name):
    found = check_reused(deep, resolution, forced(name), least=2)
    n_skipped = {"plain": 2 + 3, "taylor": 2 + 3, "last": 1 + 2}[name]
    assert found["reused modules"] == n_skipped * found["hits"]


def test_calls_that_are_skipped_do_not_call_the_blocks_in_the_middle(deep):
    n_calls = dict.fromkeys(range(4), 0)
    with contextlib.ExitStack() as hooks:
        for i, block in enumerate(deep.transformer.single_transformer_blocks):

            def count(*_, i=i):
                n_calls[i] += 1

            hooks.callback(block.register_forward_hook(count).remove)
        _, rows, _ = run(deep, with_stack("none", forced("last")))
    assert rows["cache_dit"]["hits"] == 11
    assert n_calls == {0: 12, 1: 1, 2: 1, 3: 12}


def test_warmup_begins_anew_after_every_flush(deep):
    _, rows, report = run(deep, with_stack("whole", {**forced(), "warmup": 3}))
    assert rows["cache_dit"]["flushes"] == 3
    assert [step.cached for step in report.steps] == [0, 0, 0, 1] * 3
    _, _, report = run(deep, with_stack("whole", {**forced(), "max_skips": 1}))
    assert [step.cached for step in report.steps] == [0, 1, 0, 1] * 3


def test_features_are_flushed_by_a_lift_on_the_same_layout(deep):
    lifted = {
        "schema": 1,
        "model": "any",
        "stages": [
            {"cell": 1, "steps": 6, "until_sigma": 0.4},
            {"cell": 1, "steps": 6, "lift": {"form": "clean", "to_sigma": 0.6}},
        ],
        "stack": [forced()],
    }
    _, rows, report = run(deep, lifted)
    assert rows["cache_dit"]["flushes"] == 2
    assert [step.cached for step in report.steps] == ([0] + [1] * 5) * 2


@pytest.mark.parametrize("has_contexts", [True, False])
def test_passes_of_guidance_have_state_of_their_own(deep, has_contexts):
    """Both passes see the same prompt, so guidance changes nothing, unless they share."""
    raw = with_stack("whole", forced())
    expected, _, _ = run(deep, raw)
    with fresco.accelerate(deep, raw) as accelerated:
        if not has_contexts:  # as a pipeline that opens none
            named = vars(deep.transformer).pop("cache_context")
            deep.transformer.cache_context = lambda _name: contextlib.nullcontext()
        got = draw_latents(
            deep, num_inference_steps=12, negative_prompt="a red circle", true_cfg_scale=3.0
        )
        assert counts(accelerated, "cache_dit")["calls"] == 24
        assert {step.cached for step in accelerated.report.steps} == {0, 2}
        if not has_contexts:
            deep.transformer.cache_context = named
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_images_of_a_batch_have_state_of_their_own(deep):
    raw = with_stack("mixed", forced())
    raw["stages"] = [*raw["stages"]]
    raw["stages"][1] = raw["stages"][1] | {"promote": {"score": "random", "budget": 0.3}}
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    together, rows, _ = run(deep, raw, prompt=["a red circle", "blue"], generator=generators)
    assert rows["cache_dit"]["calls"] > 12  # two groups in mixed steps
    for i, prompt in enumerate(("a red circle", "blue")):
        alone, _, _ = run(deep, raw, prompt=prompt, seed=i)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-4)


def test_a_run_that_died_leaves_the_next_one_right(deep):
    def die(_module, _args):
        if len(accelerated.report.steps) == 5:
            raise ValueError("on purpose")

    lists = [deep.transformer.transformer_blocks, deep.transformer.single_transformer_blocks]
    with fresco.accelerate(deep, with_stack("whole", forced())) as accelerated:
        expected = draw_latents(deep, num_inference_steps=12)
        assert draw_latents(deep, num_inference_steps=12).equal(expected)  # two in a row
        hook = lists[1][0].register_forward_pre_hook(die)
        with pytest.raises(ValueError, match="on purpose"):  # inside the transformer
            draw_latents(deep, num_inference_steps=12)
        hook.remove()
        names = ("transformer_blocks", "single_transformer_blocks")
        assert [getattr(deep.transformer, name) for name in names] == lists
        assert draw_latents(deep, num_inference_steps=12).equal(expected)
        other = draw_latents(deep, num_inference_steps=12, height=72, width=40)
        assert other.isfinite().all()
        assert draw_latents(deep, num_inference_steps=12).equal(expected)


def test_another_pipeline_on_the_same_transformer_is_not_cached(deep):
    other = type(deep)(**deep.components)
    other.scheduler = type(deep.scheduler).from_config(deep.scheduler.config)
    other.default_sample_size = 16
    other.set_progress_bar_config(disable=True)
    expected = draw_latents(other)
    call, step = type(deep).__call__, type(deep.scheduler).step
    with fresco.accelerate(deep, with_stack("whole", forced())):
        assert type(deep).__call__ is call  # no class is patched
        assert type(deep.scheduler).step is step
        mine = draw_latents(deep)
        assert draw_latents(other).equal(expected)
        assert draw_latents(deep).equal(mine)


def test_it_is_the_algorithm_written_out(deep):
    """Slow and obvious: the first of each list is computed, the others' sum is kept."""
    got, _, _ = run(deep, with_stack("whole", forced()))
    kept, transformer = {}, deep.transformer

    def watch(blocks, hooks):
        def after_first(_module, _args, _kwargs, output):
            kept[blocks, "first"] = output

        def instead_of_last(_module, _args, _kwargs, output):
            first, n_tokens = kept[blocks, "first"], output[1].shape[1]
            if kept.get((blocks, "n_tokens")) != n_tokens:
                kept[blocks, "n_tokens"] = n_tokens
                kept[blocks, "sums"] = [b - a for a, b in zip(first, output, strict=True)]
            return tuple(a + b for a, b in zip(first, kept[blocks, "sums"], strict=True))

        for block, hook in ((blocks[0], after_first), (blocks[-1], instead_of_last)):
            hooks.callback(block.register_forward_hook(hook, with_kwargs=True).remove)

    with contextlib.ExitStack() as hooks:
        watch(transformer.transformer_blocks, hooks)
        watch(transformer.single_transformer_blocks, hooks)
        expected, _, _ = run(deep, with_stack("whole"))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_residuals_of_a_controlnet_are_computed_whole(deep):
    """They are spread over the lists' own lengths."""

    def add(_module, args, kwargs):
        residuals = [torch.full((1, 64, 32), float(i)) for i in range(3)]
        return args, {**kwargs, "controlnet_block_samples": residuals}

    hook = deep.transformer.register_forward_pre_hook(add, with_kwargs=True, prepend=True)
    expected, _, _ = run(deep, with_stack("none"))
    with pytest.warns(errors.FrescoWarning, match="cache_dit is on, but did nothing"):
        got, _, _ = run(deep, with_stack("none", forced()))
    hook.remove()
    assert got.equal(expected)


@pytest.mark.parametrize("entry", ["lora kept", "lora fused", "quantize", "compile"])
def test_every_other_technique_goes_with_it(deep, entry):
    lora = {"kind": "lora", "state_dict": lora_weights(deep)}
    entries = {
        "lora kept": lora,
        "lora fused": {**lora, "fuse": True},
        "quantize": {"kind": "quantize"},
        "compile": {"kind": "compile", "backend": "eager", "fullgraph": True},
    }
    torch._dynamo.reset()
    plain, _, _ = run(deep, with_stack("whole", forced()))
    got, rows, _ = run(deep, with_stack("whole", forced(), entries[entry]))
    assert rows["cache_dit"]["hits"] == 9
    assert got.isfinite().all()
    change = (got - plain).norm() / plain.norm()
    if entry == "compile":
        assert change < 1e-5
        assert 2 <= rows["compile"]["graphs"] <= 4  # two classes of blocks, first and later
    else:
        assert change > 1e-5


def test_two_caches_are_refused(deep):
    stack = [forced(), {"kind": "cache"}]
    with pytest.raises(errors.RecipeError, match="both would skip the same blocks"):
        fresco.accelerate(deep, with_stack("none", *stack))


def test_lists_without_a_middle_are_refused(tiny_flux_pipe):
    before = traces(tiny_flux_pipe)
    match = r"more than 1 \+ 0 blocks \(first \+ last\), got none in FluxTransformer2DModel"
    with pytest.raises(errors.AttachError, match=match):
        fresco.accelerate(tiny_flux_pipe, with_stack("none", forced()))
    assert traces(tiny_flux_pipe) == before


def test_a_short_list_is_computed_whole_beside_a_long_one(deep):
    _, rows, _ = run(deep, with_stack("none", {**forced(), "first": 2, "last": 1}))
    assert rows["cache_dit"]["reused modules"] == 11  # one single block, no double one


def test_blocks_whose_second_argument_is_a_mask_get_text_by_name():
    family = FAMILIES["pixart"]
    pipe = family.make()
    raw = {"schema": 1, "model": "any", "stack": [forced()]}
    with fresco.accelerate(pipe, raw) as accelerated:
        assert family.draw(pipe).isfinite().all()
        assert counts(accelerated, "cache_dit")["hits"] >= 1


def test_unknown_blocks_are_refused(deep, monkeypatch):
    class Unknown(torch.nn.Module):
        pass

    blocks = torch.nn.ModuleList([Unknown(), Unknown()])
    own, deep.transformer.transformer_blocks = deep.transformer.transformer_blocks, blocks
    with pytest.raises(errors.AttachError, match="blocks that diffusers' caches know, got Unknown"):
        fresco.accelerate(deep, with_stack("none", forced()))
    deep.transformer.transformer_blocks = own


def test_without_the_package_the_extra_is_named(deep, monkeypatch):
    monkeypatch.setitem(sys.modules, "cache_dit", None)
    with pytest.raises(errors.AttachError, match=r"pip install 'fresco\[cache-dit\]'"):
        fresco.accelerate(deep, with_stack("none", forced()))
