"""FLUX.2 klein: FLUX.2's transformer in a pipeline of its own, with classifier-free guidance."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import diffusers
import pytest

from tests import test_families as of_all
from tests.families import FAMILIES, _noise


def _asked() -> dict[str, Any]:
    texts = ("prompt_embeds", "negative_prompt_embeds")
    own = {name: _noise(1, 5, 32, seed=seed) for seed, name in enumerate(texts, 1)}
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
