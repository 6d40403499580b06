"""Noise levels of a plain run, which the pipeline's scheduler makes, before it has made any."""

from __future__ import annotations

import diffusers
import pytest

import fresco
from fresco.errors import ScheduleError
from fresco.registry import find_adapter
from fresco.request import plain_sigmas
from fresco.sigmas import own_sigmas
from tests.families import FAMILIES


@pytest.mark.parametrize("name", FAMILIES)
def test_a_plain_run_is_planned_at_the_sigmas_that_its_scheduler_makes(name):
    family = FAMILIES[name]
    pipe = family.make()
    size = {"height": 64 * family.zoom, "width": 96 * family.zoom, "text_tokens": 5}
    before = own_sigmas(pipe.scheduler)
    found = fresco.plan(pipe, "identity", steps=6, frames=family.asked().get("num_frames"), **size)
    assert own_sigmas(pipe.scheduler) == before
    family.draw(pipe, num_inference_steps=6)
    assert found.plan.sigmas == pytest.approx(own_sigmas(pipe.scheduler), abs=1e-6)


@pytest.mark.parametrize("model", ["pixart-sigma-1024", "cogvideox-2b"])
def test_more_steps_than_a_scheduler_has_are_refused(model):
    with pytest.raises(ScheduleError, match=r"expected a number of steps that .*, got 2000"):
        fresco.plan(model, "identity", steps=2000)


def test_another_flow_scheduler_is_asked_as_the_pipeline_asks_it():
    """With a shift by tokens, and without the settings of that shift: the pipelines have them."""
    family = FAMILIES["qwen_image"]
    pipe = family.make()
    pipe.scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, use_dynamic_shifting=True
    )
    found = plain_sigmas(find_adapter(pipe.transformer), pipe.scheduler, 24, 6)
    family.draw(pipe, num_inference_steps=6)
    assert found == pytest.approx(own_sigmas(pipe.scheduler), abs=1e-6)
