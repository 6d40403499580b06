"""A stack beside what else happens to its pipeline: other pipelines, interrupts, foreign caches."""

from __future__ import annotations

import pytest
import torch
from diffusers import FirstBlockCacheConfig, FluxImg2ImgPipeline, MagCacheConfig
from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS
from fresco.adapters.techniques.caching import AbstractCaching

import fresco
from fresco import errors
from tests.conftest import FRESCO_5, draw_latents, traces
from tests.matrix import lora_weights
from tests.stacks import FORCED, cache, with_stack

PLAIN = {"schema": 1, "model": "any"}
FOREIGN = {
    "MagCacheConfig": MagCacheConfig(num_inference_steps=6, mag_ratios=FLUX_MAG_RATIOS),
    "FirstBlockCacheConfig": FirstBlockCacheConfig(),
}


class _Untold(AbstractCaching):
    """A cache in runs that start in the middle of a schedule: none of their calls is planned."""

    hint = "none"

    def restore(self):
        pass

    def flush(self):
        pass

    def enter(self, key, call):
        pass

    def leave(self):
        return 0

    def abandon(self):
        pass


def to_image(pipe):
    """Img2img from the same parts, the scheduler too; draws."""
    other = FluxImg2ImgPipeline.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    image = torch.linspace(0, 1, 3 * 64 * 64).view(1, 3, 64, 64)

    def draw():
        return draw_latents(other, image=image, height=64, width=64, strength=0.5)

    return draw


@pytest.mark.parametrize("name", ["hooks", "weights"])
def test_img2img_from_the_same_parts_shares_weights_and_nothing_else(tiny_flux_pipe, name):
    lora = {"kind": "lora", "state_dict": lora_weights(tiny_flux_pipe)}
    stacks = {
        "hooks": [cache("first_block", FORCED["first_block"])],
        "weights": [lora, {"kind": "quantize"}],
    }
    before = to_image(tiny_flux_pipe)
    plain = before()
    with fresco.accelerate(tiny_flux_pipe, with_stack("whole", *stacks[name])):
        mine = draw_latents(tiny_flux_pipe)
        since = to_image(tiny_flux_pipe)
        for draw in (before, since):
            assert draw().equal(plain) == (name == "hooks")
        assert draw_latents(tiny_flux_pipe).equal(mine)
    assert before().equal(plain)
    assert since().equal(plain)


def test_a_cache_that_no_call_is_told_to_is_warned_of():
    caching = _Untold()
    assert caching.idle() is None  # before any run
    caching.end_run()
    assert "no call of the run was planned" in caching.idle()


@pytest.mark.parametrize("method", FORCED)
def test_an_interrupted_run_leaves_the_next_one_right(tiny_flux_pipe, method):
    def interrupt(pipe, step, _timestep, _tensors):
        pipe._interrupt = step == 4
        return {}

    raw = with_stack("whole", cache(method, FORCED[method]))
    with fresco.accelerate(tiny_flux_pipe, raw) as accelerated:
        asked = {"num_inference_steps": 12}
        right = draw_latents(tiny_flux_pipe, **asked)
        steps = accelerated.report.steps
        draw_latents(tiny_flux_pipe, callback_on_step_end=interrupt, **asked)
        assert [s.reused for s in accelerated.trace()] == [s.reused for s in steps[:5]]
        assert draw_latents(tiny_flux_pipe, **asked).equal(right)


def test_restoring_while_a_call_goes_on_is_refused_and_changes_nothing(tiny_flux_pipe):
    refused = []

    def restore(_pipe, _step, _timestep, _tensors):
        with pytest.raises(errors.AttachError, match="a pipeline between its calls") as caught:
            accelerated.restore()
        refused.append(caught)
        return {}

    before = traces(tiny_flux_pipe)
    accelerated = fresco.accelerate(tiny_flux_pipe, FRESCO_5)
    right = draw_latents(tiny_flux_pipe)
    assert draw_latents(tiny_flux_pipe, callback_on_step_end=restore).equal(right)
    assert len(refused) == 6
    accelerated.restore()
    assert traces(tiny_flux_pipe) == before


@pytest.mark.parametrize("dies", [False, True])
def test_a_pipeline_may_accelerate_itself_for_one_call(tiny_flux_pipe, dies):
    class Own(type(tiny_flux_pipe)):
        def __call__(self, **asked):
            with fresco.accelerate(self, FRESCO_5):
                return super().__call__(**asked)

    def end(_pipe, step, _timestep, _tensors):
        if dies and step == 3:
            raise KeyError(step)
        return {}

    with fresco.accelerate(tiny_flux_pipe, FRESCO_5):
        expected = draw_latents(tiny_flux_pipe)
    own = Own(**tiny_flux_pipe.components)
    own.default_sample_size = 16
    own.set_progress_bar_config(disable=True)
    before = traces(own)
    if dies:
        with pytest.raises(KeyError):
            draw_latents(own, callback_on_step_end=end)
    else:
        assert draw_latents(own, callback_on_step_end=end).equal(expected)
    assert traces(own) == before


@pytest.mark.parametrize("name", FOREIGN)
def test_stages_refuse_a_transformer_that_others_cache(tiny_flux_pipe, name):
    tiny_flux_pipe.transformer.enable_cache(FOREIGN[name])
    before = traces(tiny_flux_pipe)
    match = f"got one with {name}. Call disable_cache"
    with pytest.raises(errors.AttachError, match=match):
        fresco.accelerate(tiny_flux_pipe, FRESCO_5)
    assert traces(tiny_flux_pipe) == before
    fresco.accelerate(tiny_flux_pipe, PLAIN).restore()  # its own schedule: its own business


def test_stages_refuse_a_transformer_that_another_library_marked_as_cached(tiny_flux_pipe):
    tiny_flux_pipe.transformer._is_cached = True  # as cache-dit does
    with pytest.raises(errors.AttachError, match="got one with a cache"):
        fresco.accelerate(tiny_flux_pipe, FRESCO_5)


@pytest.mark.parametrize("stack", [[], [cache("first_block", FORCED["first_block"])]])
def test_caches_are_neither_enabled_nor_disabled_by_hand_meanwhile(tiny_flux_pipe, stack):
    transformer, before = tiny_flux_pipe.transformer, traces(tiny_flux_pipe)
    with fresco.accelerate(tiny_flux_pipe, {**FRESCO_5, "stack": stack}):
        right = draw_latents(tiny_flux_pipe)
        with pytest.raises(errors.AttachError, match=r"enable_cache\(\): .*got MagCacheConfig"):
            transformer.enable_cache(FOREIGN["MagCacheConfig"])
        with pytest.raises(errors.AttachError, match=r"disable_cache\(\): .*Call restore\(\)"):
            transformer.disable_cache()
        assert draw_latents(tiny_flux_pipe).equal(right)
    assert traces(tiny_flux_pipe) == before
    with fresco.accelerate(tiny_flux_pipe, PLAIN):
        transformer.enable_cache(FOREIGN["FirstBlockCacheConfig"])
        transformer.disable_cache()


def test_what_torch_compile_returns_is_refused_in_place_of_the_transformer(tiny_flux_pipe):
    tiny_flux_pipe.transformer = torch.compile(tiny_flux_pipe.transformer, backend="eager")
    match = r"a wrapper of torch.compile \(FluxTransformer2DModel\)"
    with pytest.raises(errors.AdapterError, match=match):
        fresco.accelerate(tiny_flux_pipe, FRESCO_5)


def test_a_transformer_that_is_compiled_whole_is_not_compiled_again(tiny_flux_pipe):
    tiny_flux_pipe.transformer.compile(backend="eager")
    entry = {"kind": "compile", "backend": "eager"}
    with pytest.raises(errors.AttachError, match="got one that is compiled already"):
        fresco.accelerate(tiny_flux_pipe, with_stack("none", entry))


def test_the_trace_says_how_many_modules_every_step_reused(tiny_flux_pipe):
    raw = with_stack("whole", cache("first_block", FORCED["first_block"]))
    with fresco.accelerate(tiny_flux_pipe, raw) as accelerated:
        guided = {"negative_prompt": "blue", "true_cfg_scale": 2.0}
        draw_latents(tiny_flux_pipe, num_inference_steps=12, **guided)
        rows = accelerated.trace()
        (row,) = [row for row in accelerated.summary().rows if row.kind == "cache"]
    assert [step.reused for step in rows] == [0, 2, 2, 2] * 3  # of two passes, one block each
    assert sum(step.reused for step in rows) == row.counts["reused modules"]
    assert str(accelerated.report).splitlines()[2].split()[5:8] == ["2", "2", "2"]
