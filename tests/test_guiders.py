"""Guiders of diffusers: HunyuanVideo 1.5 makes as many calls a step as its guider asks for."""

from __future__ import annotations

from dataclasses import replace

import diffusers
import pytest

import fresco
from tests import test_families as of_all
from tests.conftest import traces
from tests.families import FAMILIES
from tests.family import noise
from tests.staged import ALL_FINE, MIXED, STAGED

OWN = FAMILIES["hunyuan_video_15"]
GUIDERS = {
    "guidance": (diffusers.ClassifierFreeGuidance, {"guidance_scale": 2.0}),
    "adaptive projected": (diffusers.AdaptiveProjectedGuidance, {"guidance_scale": 2.0}),
}


def asked():
    positive = OWN.asked()
    texts = {f"negative_{name}": noise(*text.shape, seed=9) if text.is_floating_point() else text
             for name, text in positive.items() if name.startswith("prompt")}  # fmt: skip
    return positive | texts


@pytest.fixture(params=GUIDERS)
def guided(request):
    kind, settings = GUIDERS[request.param]

    def parts():
        return OWN.parts() | {"guider": kind(**settings)}

    return replace(OWN, asked=asked, parts=parts, passes=2)


def test_identity_recipes_and_restore_leave_no_trace(guided):
    of_all.test_identity_recipes_and_restore_leave_no_trace(guided, guided.make())


@pytest.mark.parametrize("raw", [STAGED, MIXED])
def test_the_passes_of_a_step_see_one_layout(guided, raw):
    pipe, seen = guided.make(), []
    plain, before = guided.draw(pipe), traces(pipe)

    def record(_module, _args, call):
        seen.append(call["hidden_states"].shape[2:].numel() // OWN.frames)

    with fresco.accelerate(pipe, raw) as accelerated:
        with pipe.transformer.register_forward_pre_hook(record, with_kwargs=True):
            picture = guided.draw(pipe)
        steps = accelerated.report.steps
    assert picture.isfinite().all()
    assert not picture.equal(plain)
    assert seen[::2] == seen[1::2] == [step.tokens // OWN.frames for step in steps]
    assert traces(pipe) == before
    with fresco.accelerate(pipe, ALL_FINE):
        assert guided.draw(pipe).equal(plain)
