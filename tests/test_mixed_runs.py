"""Laws of runs with mixed layouts, on a real pipeline class with random weights."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import fresco
from fresco import errors
from tests.conftest import FRESCO_5, draw_latents, traces
from tests.mixed import MIXED, RUNS, varied


def test_true_guidance_sees_one_layout_in_both_passes(tiny_flux_pipe):
    seen = []
    with fresco.accelerate(tiny_flux_pipe, MIXED) as accelerated:
        handle = tiny_flux_pipe.transformer.register_forward_pre_hook(
            lambda _m, _a, kwargs: seen.append(kwargs["img_ids"]), with_kwargs=True
        )
        draw_latents(tiny_flux_pipe, negative_prompt="blue", true_cfg_scale=2.0)
        handle.remove()
        assert [step.passes for step in accelerated.report.steps] == [2] * 6
    assert len(seen) == 12
    for one, other in zip(seen[::2], seen[1::2], strict=True):
        assert one.equal(other)
    assert [len(ids) for ids in seen[::2]] == [4, 4, 16, 25, 40, 64]


def test_promoted_cells_stay_promoted_and_the_plan_is_kept(tiny_flux_pipe):
    layouts = []

    def watch(pipe, _step, _timestep, tensors):
        layouts.append(accelerated._middleware.last.mixed)
        return tensors

    with fresco.accelerate(tiny_flux_pipe, MIXED) as accelerated:
        planned = [step.n_tokens for step in accelerated.plan.steps]
        draw_latents(tiny_flux_pipe, num_inference_steps=12, callback_on_step_end=watch)
        assert [step.tokens for step in accelerated.report.steps] == planned
        assert planned == [4] * 4 + [16, 22, 25, 25, 40, 40] + [64] * 2
        assert all(a <= b for a, b in pairwise(planned))
    sides = [layout[0].sides for layout in layouts if layout]
    assert len(sides) == 9
    for before, after in pairwise(sides):
        assert (after <= before).all()


def test_the_plan_of_a_threshold_is_what_the_run_found(tiny_flux_pipe):
    with fresco.accelerate(tiny_flux_pipe, RUNS["threshold"]) as accelerated:
        draw_latents(tiny_flux_pipe, num_inference_steps=12)
        tokens = [step.tokens for step in accelerated.report.steps]
        assert [step.n_tokens for step in accelerated.plan.steps] == tokens
        assert 16 < tokens[4] < 64
        full = accelerated.cost().baseline_flops
        assert accelerated.cost().flops < full


@pytest.mark.parametrize(
    ("tau", "reason"),
    [(-1e9, "the first of its steps promoted every cell"), (1e9, "no cell has reached it")],
)
def test_a_threshold_that_makes_no_difference_is_said(tiny_flux_pipe, tau, reason):
    raw = varied(promote={"score": "edges", "tau": tau})
    with (
        fresco.accelerate(tiny_flux_pipe, raw),
        pytest.warns(errors.FrescoWarning, match=f"promotion by tau did nothing: {reason}"),
    ):
        draw_latents(tiny_flux_pipe)


def test_a_threshold_that_makes_a_difference_is_not_warned_of(tiny_flux_pipe, recwarn):
    with fresco.accelerate(tiny_flux_pipe, RUNS["threshold"]):
        draw_latents(tiny_flux_pipe)
    assert not [each for each in recwarn if issubclass(each.category, errors.FrescoWarning)]


@pytest.mark.parametrize(
    "name",
    ["edges", "phase", "phase of three sides", "phase of none", "injection", "threshold"],
)
def test_the_cost_is_what_a_counter_counts_in_the_run(tiny_flux_pipe, name):
    with (
        fresco.accelerate(tiny_flux_pipe, RUNS[name]) as accelerated,
        sdpa_kernel(SDPBackend.MATH),  # the counter does not know the fused attention of the CPU
        FlopCounterMode(display=False) as counter,
    ):
        draw_latents(tiny_flux_pipe)
    counted = counter.get_flop_counts()["FluxTransformer2DModel"]
    assert accelerated.cost().flops == sum(counted.values())


def test_a_mixed_stage_that_promotes_everything_is_a_fine_one(tiny_flux_pipe):
    whole = copy.deepcopy(FRESCO_5)
    whole["stages"][1] = {"cell": 1, "steps": 4, "until_sigma": 0.4}
    whole["stages"][2].pop("lift")
    mixed = copy.deepcopy(whole)
    mixed["stages"][1] |= {"cell": "mixed", "promote": {"score": "edges", "budget": 1.0}}
    with fresco.accelerate(tiny_flux_pipe, whole):
        expected = draw_latents(tiny_flux_pipe)
    with fresco.accelerate(tiny_flux_pipe, mixed):
        torch.testing.assert_close(draw_latents(tiny_flux_pipe), expected, rtol=0, atol=1e-5)


def test_positions_that_an_adapter_cannot_align_are_refused(tiny_flux_pipe, monkeypatch):
    from fresco.ports import AbstractModelAdapter
    from fresco.registry import find_adapter

    adapter = type(find_adapter(tiny_flux_pipe.transformer))
    monkeypatch.setattr(adapter, "units", AbstractModelAdapter.units)
    before = traces(tiny_flux_pipe)
    with pytest.raises(fresco.errors.AdapterError, match="phase-aligned attention"):
        fresco.accelerate(tiny_flux_pipe, RUNS["phase"])
    assert traces(tiny_flux_pipe) == before


def test_a_part_that_fails_leaves_the_next_run_right(tiny_flux_pipe):
    with fresco.accelerate(tiny_flux_pipe, MIXED):
        expected = draw_latents(tiny_flux_pipe)
        handle = tiny_flux_pipe.transformer.register_forward_pre_hook(_fail_on_mixed)
        with pytest.raises(ValueError, match="on purpose"):
            draw_latents(tiny_flux_pipe, prompt=["a red circle", "blue"])
        handle.remove()
        assert draw_latents(tiny_flux_pipe).equal(expected)


def _fail_on_mixed(_module, _args, _kwargs=None):
    raise ValueError("on purpose")


def test_another_pipeline_on_the_same_transformer_is_left_alone_after_a_run_died(tiny_flux_pipe):
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

    own = {"scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)}
    other = FluxPipeline(**{**tiny_flux_pipe.components, **own})
    other.default_sample_size = 16
    other.set_progress_bar_config(disable=True)
    expected, inside = draw_latents(other), []

    def within(_pipe, step, _timestep, tensors):
        if step == 2:
            inside.append(draw_latents(other))
        return tensors

    def fail(*_):
        raise ValueError("on purpose")

    with fresco.accelerate(tiny_flux_pipe, MIXED):
        plain = draw_latents(tiny_flux_pipe)
        assert draw_latents(tiny_flux_pipe, callback_on_step_end=within).equal(plain)
        assert inside[0].equal(expected)
        with pytest.raises(ValueError, match="on purpose"):
            draw_latents(tiny_flux_pipe, callback_on_step_end=fail)
        assert draw_latents(other).equal(expected)
        assert draw_latents(tiny_flux_pipe).equal(plain)


def test_shares_that_fall_from_one_mixed_stage_to_the_next_are_refused():
    stages = copy.deepcopy(MIXED["stages"])
    less = {"score": "edges", "budget": 0.1}
    stages.insert(2, {"cell": "mixed", "steps": 1, "until_sigma": 0.2, "promote": less})
    with pytest.raises(fresco.errors.RecipeError, match=r"0.5 of them are @ \$.stages\[2\]"):
        fresco.load_recipe({**MIXED, "stages": stages})


@pytest.mark.parametrize("shape", [(2, 64, 16), (1, 64, 6), (1, 63, 16)], ids=str)
def test_latents_of_another_shape_are_refused(tiny_flux_pipe, shape):
    with fresco.accelerate(tiny_flux_pipe, MIXED):
        with pytest.raises(fresco.errors.LayoutError, match=r"expected latents \[1, 64, 16\]"):
            draw_latents(tiny_flux_pipe, latents=torch.zeros(shape))
        assert draw_latents(tiny_flux_pipe).isfinite().all()


def test_a_denoising_loop_written_by_hand_is_accelerated_too(tiny_flux_pipe):
    pipe = tiny_flux_pipe
    with fresco.accelerate(pipe, MIXED) as accelerated, torch.no_grad():
        expected = draw_latents(pipe)
        tokens = [step.tokens for step in accelerated.report.steps]
        text, pooled, text_ids = pipe.encode_prompt("a red circle", None, max_sequence_length=16)
        draw = torch.Generator().manual_seed(0)
        latents, ids = pipe.prepare_latents(1, 4, 64, 64, torch.float32, "cpu", draw)
        pipe.scheduler.set_timesteps(sigmas=[1 - i / 6 for i in range(6)], mu=0.5)
        for timestep in pipe.scheduler.timesteps:
            velocity = pipe.transformer(
                hidden_states=latents,
                encoder_hidden_states=text,
                pooled_projections=pooled,
                timestep=timestep.expand(1) / 1000,
                img_ids=ids,
                txt_ids=text_ids,
                return_dict=False,
            )[0]
            latents = pipe.scheduler.step(velocity, timestep, latents, return_dict=False)[0]
        pipe.maybe_free_model_hooks()
        assert [step.tokens for step in accelerated.report.steps] == tokens
    torch.testing.assert_close(latents, expected, rtol=0, atol=1e-5)
