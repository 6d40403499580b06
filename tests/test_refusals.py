"""What cannot be accelerated is refused before anything is attached, with the reason."""

from __future__ import annotations

import copy
import pickle
import re

import diffusers
import pytest
import torch

import fresco
from fresco import errors
from tests.conftest import FRESCO_5, traces
from tests.families import FAMILIES
from tests.staged import ALL_FINE, STAGED


def refuse(pipe, recipe, kind, match):
    """Accelerate must fail, and leave no trace."""
    before = traces(pipe)
    with pytest.raises(kind, match=match) as caught:
        fresco.accelerate(pipe, recipe)
    assert traces(pipe) == before
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_unknown_recipe_names_the_known_and_the_nearest(tiny_flux_pipe):
    match = (
        r"unknown recipe 'reference_5y'; known: flux1-dev_balanced, .*Did you mean 'reference_5x'\?"
    )
    refuse(tiny_flux_pipe, "reference_5y", errors.RecipeError, match)


def test_a_transformer_without_adapter_is_refused(tiny_flux_pipe):
    tiny_flux_pipe.transformer = torch.nn.Linear(1, 1)
    refuse(
        tiny_flux_pipe, "identity", errors.AdapterError, r"got Linear \(no adapter\).*add-a-model"
    )


def test_something_that_is_no_pipeline_is_refused():
    with pytest.raises(errors.AdapterError, match="a pipeline with a transformer, got int"):
        fresco.accelerate(3, "identity")


def test_a_recipe_for_another_model_is_refused(tiny_flux_pipe):
    raw = {**FRESCO_5, "model": "WanTransformer3DModel"}
    match = "for WanTransformer3DModel, the pipeline has a FluxTransformer2DModel"
    refuse(tiny_flux_pipe, raw, errors.RecipeError, match)


def test_a_stochastic_scheduler_is_refused(tiny_flux_pipe):
    scheduler = tiny_flux_pipe.scheduler
    tiny_flux_pipe.scheduler = type(scheduler).from_config(
        scheduler.config, stochastic_sampling=True
    )
    match = "got FlowMatchEulerDiscreteScheduler with stochastic_sampling=True"
    refuse(tiny_flux_pipe, FRESCO_5, errors.ScheduleError, match)


def test_an_unknown_scheduler_is_refused(tiny_flux_pipe):
    from diffusers import FlowMatchLCMScheduler

    tiny_flux_pipe.scheduler = FlowMatchLCMScheduler()
    match = "got FlowMatchLCMScheduler. Exchange it"
    refuse(tiny_flux_pipe, FRESCO_5, errors.ScheduleError, match)


def test_a_spacing_that_is_no_shift_is_refused(tiny_flux_pipe):
    scheduler = tiny_flux_pipe.scheduler
    tiny_flux_pipe.scheduler = type(scheduler).from_config(scheduler.config, use_karras_sigmas=True)
    refuse(tiny_flux_pipe, FRESCO_5, errors.ScheduleError, "got use_karras_sigmas=True")


def test_a_pipeline_that_starts_from_a_picture_in_its_own_way_is_refused(tiny_flux_pipe):
    from diffusers import FluxControlImg2ImgPipeline

    parts = tiny_flux_pipe.components
    left_out = {name: parts.pop(name) for name in ("image_encoder", "feature_extractor")}
    assert not any(left_out.values())
    pipe = FluxControlImg2ImgPipeline(**parts)
    match = "got FluxControlImg2ImgPipeline, which starts from a picture"
    refuse(pipe, FRESCO_5, errors.AttachError, match)
    fresco.accelerate(pipe, "identity").restore()


def test_accelerating_twice_is_refused_also_through_shared_parts(tiny_flux_pipe):
    from diffusers import FluxPipeline

    other = FluxPipeline(**tiny_flux_pipe.components)
    with fresco.accelerate(tiny_flux_pipe, "identity"):
        match = "whose pipeline and scheduler and transformer already has"
        refuse(tiny_flux_pipe, "identity", errors.AttachError, match)
        match = "whose scheduler and transformer already has"
        refuse(other, "identity", errors.AttachError, match)
        other.scheduler = copy.deepcopy(other.scheduler)
    fresco.accelerate(other, "identity").restore()
    fresco.accelerate(tiny_flux_pipe, "identity").restore()


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"width": 7}, r"7 px is less than a token @ \$.baseline.width"),
        ({"frames": 9}, r"9 of FluxPipeline, which makes pictures @ \$.baseline.frames"),
    ],
)
def test_a_baseline_that_no_call_can_have_is_a_problem_of_the_recipe(tiny_flux_pipe, more, problem):
    recipe = {**FRESCO_5, "baseline": {"steps": 12, "height": 64, "width": 64, **more}}
    with pytest.raises(errors.RecipeError, match=problem):
        fresco.accelerate(tiny_flux_pipe, recipe)
    assert not tiny_flux_pipe.transformer._forward_pre_hooks


REFUSED = {
    ("pixart", "DPMSolverMultistepScheduler"): r"DPMS.*, which extrapolates from the last step",
    ("pixart", "FlowMatchEulerDiscreteScheduler"): r"\(DDIMScheduler\), got FlowMatchEuler",
    ("pixart", "DDIMScheduler"): r"got clip_sample=True, which cuts off clean latents",
    ("cogvideox", "CogVideoXDPMScheduler"): r"CogVideoXDPM.*, which draws fresh noise",
    ("cogvideox", "DDIMScheduler"): r"\(CogVideoXDDIMScheduler\), got DDIMScheduler",
    ("cogvideox", "CogVideoXDDIMScheduler"): r"='v_prediction'.*got prediction_type='epsilon'",
}


@pytest.mark.parametrize(("name", "scheduler"), REFUSED)
@pytest.mark.parametrize("raw", [STAGED, ALL_FINE])
def test_schedulers_are_refused_with_the_reason_and_the_fix(name, scheduler, raw):
    pipe = FAMILIES[name].make()
    own = {"prediction_type": "v_prediction"} if scheduler == "CogVideoXDPMScheduler" else {}
    pipe.scheduler = getattr(diffusers, scheduler)(**own)
    before = traces(pipe)
    with pytest.raises(errors.ScheduleError, match=REFUSED[name, scheduler]) as caught:
        fresco.accelerate(pipe, raw)
    assert traces(pipe) == before
    if fix := re.search(r"pipe\.scheduler = \w+\.from_config\([^)]*\)", caught.value.fix):
        exec(fix[0], {"pipe": pipe, **vars(diffusers)})  # as a user does what it says
        fresco.accelerate(pipe, raw).restore()
    assert bool(fix) == ("which" in str(caught.value))


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"thresholding": True}, "got thresholding=True"),
        ({"rescale_betas_zero_snr": True}, "expected some signal .*rescale_betas_zero_snr=True"),
        ({"prediction_type": "v_prediction"}, "='epsilon'.*got prediction_type='v_prediction'"),
    ],
)
def test_settings_of_ddim_that_bend_its_steps_are_refused(config, match):
    pipe = FAMILIES["pixart"].make()
    pipe.scheduler = diffusers.DDIMScheduler(**{**FAMILIES["pixart"].scheduler, **config})
    with pytest.raises(errors.ScheduleError, match=match):
        fresco.accelerate(pipe, STAGED)
