"""FLUX.2 klein: FLUX.2's transformer in a pipeline of its own, with classifier-free guidance."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import diffusers
import pytest
from PIL import Image

import fresco
from tests import test_families as of_all
from tests.conftest import traces
from tests.families import FAMILIES
from tests.family import noise
from tests.staged import ALL_FINE, MIXED, STAGED


def _asked() -> dict[str, Any]:
    texts = ("prompt_embeds", "negative_prompt_embeds")
    own = {name: noise(1, 5, 32, seed=seed) for seed, name in enumerate(texts, 1)}
    return {**own, "guidance_scale": 2.0}


def _parts() -> dict[str, Any]:
    vae = diffusers.AutoencoderKLFlux2(
        latent_channels=4, block_out_channels=(4,) * 4, layers_per_block=1, norm_num_groups=2,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    return {"vae": vae.eval()}


KLEIN = replace(
    FAMILIES["flux2"],
    pipeline="Flux2KleinPipeline",
    asked=_asked,
    parts=_parts,
    passes=2,
    missing=("text_encoder", "tokenizer"),
)


@pytest.fixture
def name(monkeypatch):
    monkeypatch.setitem(FAMILIES, "klein", KLEIN)
    return "klein"


@pytest.mark.parametrize("raw", [STAGED, MIXED])
def test_reference_pictures_keep_their_tokens(raw):
    picture = Image.new("RGB", (64, 64), "red")
    seen = []

    def record(_module, _args, call):
        seen.append((call["hidden_states"].shape[1], call["img_ids"].shape[-2]))

    pipe = KLEIN.make()
    with pipe.transformer.register_forward_pre_hook(record, with_kwargs=True):
        plain = KLEIN.draw(pipe, image=picture)
    full, before = seen[0][0], traces(pipe)
    seen.clear()
    with fresco.accelerate(pipe, raw) as accelerated:
        with pipe.transformer.register_forward_pre_hook(record, with_kwargs=True):
            assert KLEIN.draw(pipe, image=picture).isfinite().all()
        report = accelerated.report
    n_given = full - report.steps[-1].tokens
    assert report.n_given_tokens == n_given > 0
    assert seen[::2] == [(step.tokens + n_given,) * 2 for step in report.steps]  # two passes each
    assert traces(pipe) == before
    with fresco.accelerate(pipe, ALL_FINE):
        assert KLEIN.draw(pipe, image=picture).equal(plain)


def test_identity_recipes_and_restore_leave_no_trace():
    of_all.test_identity_recipes_and_restore_leave_no_trace(KLEIN, KLEIN.make())


def test_runs_of_other_sizes_and_after_a_death_are_right():
    of_all.test_runs_of_other_sizes_and_after_a_death_are_right(KLEIN, KLEIN.make())


def test_coarse_steps_are_those_of_the_coarse_model():
    of_all.test_coarse_steps_are_those_of_the_coarse_model(KLEIN, KLEIN.make())


def test_positions_of_a_mixed_stage_that_is_all_fine_are_the_model_s_own(name):
    of_all.test_positions_of_a_mixed_stage_that_is_all_fine_are_the_model_s_own(name)


def test_an_image_of_a_mixed_stage_does_not_depend_on_its_batch(name):
    of_all.test_an_image_of_a_mixed_stage_does_not_depend_on_its_batch(name)


def test_quantization_stacks_and_comes_off():
    of_all.test_quantization_stacks_and_comes_off(KLEIN, KLEIN.make())
