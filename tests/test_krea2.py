"""Krea 2: what the pipeline itself makes of sizes, of positions and of its distilled checkpoint."""

from __future__ import annotations

import pytest
import torch

import fresco
from fresco.layout import TokenLayout
from fresco.registry import find_adapter
from fresco.sigmas import own_sigmas
from tests.families import FAMILIES
from tests.family import noise
from tests.staged import ALL_FINE, MIXED, RANDOM, STAGED

FAMILY = FAMILIES["krea2"]
FEWER = {**STAGED, "stages": [{"cell": 1, "steps": 4}]}


@pytest.fixture
def pipe():
    return FAMILY.make()


def placed(pipe, layout, units):
    """`position_ids` of a layout of 4 x 6 tokens, behind 5 of text, and those it was made of."""
    call = {
        "hidden_states": torch.zeros(1, 24, 16),
        "encoder_hidden_states": torch.zeros(1, 5, 3, 32),
        "position_ids": pipe.prepare_position_ids(5, 4, 6, "cpu"),
    }
    tokens = torch.zeros(1, layout.n_tokens, 4, 2, 2)
    adapter = find_adapter(pipe.transformer)
    return adapter.embed(call, tokens, layout, layout.positions(units))["position_ids"]


def test_a_coarse_grid_has_the_positions_of_a_smaller_picture(pipe):
    got = placed(pipe, TokenLayout.whole(4, 6, 2, 2), "native")
    assert got.equal(pipe.prepare_position_ids(5, 2, 3, "cpu"))


def test_cells_of_a_mixed_layout_are_at_their_centres_behind_the_text(pipe):
    sides = torch.tensor([[2, 2, 1, 1], [2, 2, 1, 1]]).repeat_interleave(2, 0)
    sides = torch.cat((sides, sides[:, :2]), dim=1)  # 4 x 6
    layout = TokenLayout(sides, 2)
    got = placed(pipe, layout, "fine")
    assert not got[:5].any()
    assert got[5:, 1:].equal(layout.positions("fine"))
    assert not got[5:, 0].any()
    assert got[5:8].tolist() == [[0.0, 0.5, 0.5], [0.0, 0.0, 2.0], [0.0, 0.0, 3.0]]


def test_latents_are_packed_as_the_pipeline_packs_them(pipe):
    latents, adapter = noise(2, 4, 8, 12), find_adapter(pipe.transformer)
    packed = pipe._pack_latents(latents, 2, 4, 8, 12)
    assert adapter.pack(latents).equal(packed)
    assert adapter.unpack(packed, TokenLayout.whole(4, 6, 1, 2)).equal(latents)


@pytest.mark.parametrize("raw", [STAGED, MIXED])
def test_sizes_between_multiples_are_rounded_up_as_the_pipeline_does(pipe, raw):
    found = fresco.plan(pipe, raw, height=50, width=81, text_tokens=5)
    with fresco.accelerate(pipe, raw) as accelerated:
        assert FAMILY.draw(pipe, height=50, width=81).shape == (1, 4 * 6, 16)
        assert accelerated.plan.n_full_tokens == found.plan.n_full_tokens == 4 * 6
    assert find_adapter(pipe.transformer).grid(pipe, None, None) == (64, 64)


@pytest.mark.parametrize("raw", ["identity", FEWER])
@pytest.mark.parametrize("is_distilled", [False, True])
def test_one_shift_for_all_sizes_where_the_pipeline_says_it_is_distilled(pipe, raw, is_distilled):
    pipe.register_to_config(is_distilled=is_distilled)
    found = fresco.plan(pipe, raw, steps=6, height=64, width=96, text_tokens=5)
    with fresco.accelerate(pipe, raw) as accelerated:
        FAMILY.draw(pipe)
        drawn = accelerated.plan.sigmas
    FAMILY.draw(pipe, num_inference_steps=len(drawn) - 1)
    own = own_sigmas(pipe.scheduler)
    assert found.plan.sigmas == pytest.approx(own, abs=1e-6)
    assert drawn == pytest.approx(own, abs=1e-6)
    shifted = own[1] / (1 - own[1]) / (len(own) - 2)  # of (n - 1) / n
    mu = torch.tensor(shifted).log().item()
    assert mu == pytest.approx(1.15 if is_distilled else 0.5 - 0.65 * 232 / 6144, abs=1e-4)


def test_prompts_of_other_lengths_and_masks_stay_with_their_pictures(pipe):
    text = {
        "prompt_embeds": noise(2, 5, 3, 32),
        "prompt_embeds_mask": torch.tensor([[1, 1, 1, 0, 1], [1, 0, 0, 0, 1]]).bool(),
        "negative_prompt_embeds": noise(2, 5, 3, 32, seed=2),
        "negative_prompt_embeds_mask": torch.tensor([[1, 0, 0, 0, 1], [1, 1, 1, 1, 1]]).bool(),
    }
    seeds = (0, 2)  # other layouts
    with fresco.accelerate(pipe, RANDOM) as accelerated:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        together = FAMILY.draw(pipe, **text, generator=generators)
        run = accelerated._middleware.last
        assert len(run.groups(run.plan.steps[2])) == 2
        for i, seed in enumerate(seeds):
            own = {name: each[i : i + 1] for name, each in text.items()}
            alone = FAMILY.draw(pipe, **own, seed=seed)
            torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-4)


def test_patches_of_another_side_are_the_pipeline_s(pipe):
    pipe.patch_size = 1
    pipe.register_to_config(patch_size=1)
    plain = FAMILY.draw(pipe)
    with fresco.accelerate(pipe, ALL_FINE):
        assert FAMILY.draw(pipe).equal(plain)
    with fresco.accelerate(pipe, MIXED) as accelerated:
        assert FAMILY.draw(pipe).shape == plain.shape == (1, 8 * 12, 16)
        assert [step.tokens for step in accelerated.report.steps][:2] == [24, 24]
