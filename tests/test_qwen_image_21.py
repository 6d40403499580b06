"""Qwen-Image 2.1: slots of four tokens, behind a text that the first call caches."""

from __future__ import annotations

import itertools

import numpy as np
import PIL.Image
import pytest
import torch
from fresco.adapters.models.qwen_image_21 import _places
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import fresco
from fresco import errors
from fresco.cost import pass_flops
from fresco.layout import TokenLayout
from fresco.registry import find_adapter
from tests.conftest import traces
from tests.families import FAMILIES
from tests.family import noise, repeated
from tests.staged import ALL_FINE, MIXED, RANDOM, STAGED

FAMILY = FAMILIES["qwen_image_21"]
MASK = torch.tensor([[1, 1, 1, 0]], dtype=torch.bool)
GUIDED = {  # by a prompt of another length
    "negative_prompt_embeds": noise(1, 4, 32, seed=2),
    "negative_prompt_embeds_mask": MASK,
    "true_cfg_scale": 2.0,
}


@pytest.fixture
def pipe():
    return FAMILY.make()


def test_tokens_of_cells_are_spread_over_them():
    layout = TokenLayout(torch.tensor([[1, 1, 2, 2], [1, 1, 2, 2]]), 2)

    def rows_and_columns(positions):
        """Of the first slot and of the coarse one, the top left of the picture at 0."""
        units = 2 if positions.equal(layout.positions("coarse", 2)) else 1
        places = _places(layout, positions)[0] + torch.tensor(layout.cells(units))[:, None, None]
        return places[0, :, 0, 1].tolist(), places[2, 0, :, 0].tolist(), places[2, 1, 0].tolist()

    # of the first slot the upper right token; of the coarse one, rows and columns
    assert rows_and_columns(layout.positions("fine")) == ([0, 1], [0.5, 2.5], [4.5, 6.5])
    assert rows_and_columns(layout.positions("anchor")) == ([0, 1], [0, 1], [4, 5])
    assert rows_and_columns(layout.positions("coarse", 2)) == ([0, 0.5], [0, 1], [2, 3])


def test_rotations_of_a_mixed_layout_are_the_model_s_own_at_its_places(pipe):
    """Of a fine token its own; of a coarse one, the middle of the four pixels that it covers."""
    rope, fine = pipe.transformer.pos_embed, torch.arange(5 + 24) >= 5  # after five of text
    own = rope([(1, 8, 12)], fine.repeat_interleave(1 + 3 * fine), "cpu")
    layout = TokenLayout(torch.tensor([[1, 1, 2, 2, 2, 2]] * 2 + [[2] * 6] * 2), 2)
    adapter = find_adapter(pipe.transformer)
    undo = adapter.attach(pipe.transformer, {"fine"})
    call = adapter.example_call(pipe.transformer, 24, 5)
    tokens = noise(1, layout.n_tokens, 4, 2, 2)
    entered = adapter.embed(call, tokens, layout, layout.positions("fine"))
    mask = entered["img_mask"][0]
    got = rope(entered["img_shapes"][0], mask.repeat_interleave(1 + 3 * mask), "cpu")
    undo()
    assert got.shape == (5 + 4 * layout.n_tokens, 8)
    assert got[:5].equal(own[:5])
    seen = entered["hidden_states"].unflatten(1, (2, -1, 2))  # row in a slot, slot, column in it
    got, own = got[5:].unflatten(0, (2, -1, 2)), own[5:].unflatten(0, (8, 12))
    for slot, start in enumerate((2 * layout.token_starts).tolist()):
        side = int(layout.token_sides[slot])
        for row, column in itertools.product((0, 1), (0, 1)):
            assert seen[0, row, slot, column].equal(tokens[0, slot, :, row, column])
            i, j = start[0] + side * row, start[1] + side * column
            last = own[i + side - 1, j + side - 1]
            expected = own[i, j] * (last / own[i, j]).sqrt()
            torch.testing.assert_close(got[row, slot, column], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("raw", [STAGED, RANDOM])
@pytest.mark.parametrize("asked", [{}, GUIDED], ids=["alone", "guided"])
def test_what_the_first_call_caches_holds_in_every_layout(pipe, raw, asked):
    several = repeated(FAMILY.asked() | asked)
    with fresco.accelerate(pipe, raw) as accelerated:
        results = []
        for use_kv_cache in (True, False):
            generators = [torch.Generator().manual_seed(seed) for seed in (0, 2)]
            more = {"generator": generators, "use_kv_cache": use_kv_cache}
            results.append(FAMILY.draw(pipe, **several, **more))
        run = accelerated._middleware.last
        steps = accelerated.report.steps
    assert [step.passes for step in steps] == [2 if asked else 1] * len(steps)
    assert not results[1][0].equal(results[1][1])
    torch.testing.assert_close(*results, rtol=0, atol=1e-4)
    if raw is RANDOM:
        assert len(run.groups(run.plan.steps[2])) == 2


def test_two_prompts_of_other_lengths_are_drawn_as_each_alone(pipe):
    embeds = torch.cat((noise(1, 5, 32), noise(1, 5, 32, seed=3)))
    masks = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], dtype=torch.bool)
    with fresco.accelerate(pipe, RANDOM):
        generators = [torch.Generator().manual_seed(seed) for seed in (0, 2)]
        asked = {"prompt_embeds": embeds, "prompt_embeds_mask": masks, "generator": generators}
        together = FAMILY.draw(pipe, **asked)
        for i, seed in enumerate((0, 2)):
            asked = {"prompt_embeds": embeds[i : i + 1], "prompt_embeds_mask": masks[i : i + 1]}
            alone = FAMILY.draw(pipe, **asked, seed=seed)
            torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-4)


def show_pictures(pipe, monkeypatch):
    """What a call has of one condition picture of 4 x 4 tokens, after two of text."""
    slots = torch.tensor([[0, 0, 1, 1, 1, 1, 0, 0, 0]], dtype=torch.bool)
    encoded = noise(1, 9, 32), None, slots
    monkeypatch.setattr(pipe, "encode_prompt", lambda **_: encoded)
    monkeypatch.setattr(pipe, "_encode_vae_image", lambda *_: noise(1, 4, 1, 4, 4, seed=5))
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    return {"image": PIL.Image.fromarray(pixels), "output_resolution": 64} | {
        "prompt_embeds": None, "prompt_embeds_mask": None, "prompt": "a red circle",
    }  # fmt: skip


@pytest.mark.parametrize("use_kv_cache", [True, False])
@pytest.mark.parametrize("raw", [STAGED, MIXED])
def test_condition_pictures_keep_their_resolution(pipe, monkeypatch, raw, use_kv_cache):
    asked = {**show_pictures(pipe, monkeypatch), "use_kv_cache": use_kv_cache}
    plain, before, seen, lengths = FAMILY.draw(pipe, **asked), traces(pipe), [], []
    transformer = pipe.transformer

    def measure(_module, _given, output):
        lengths.append(output[0].shape[1])

    with (
        transformer.img_in.register_forward_pre_hook(lambda _, args: seen.append(args[0])),
        fresco.accelerate(pipe, raw) as accelerated,
        transformer.register_forward_hook(measure),
    ):
        got = FAMILY.draw(pipe, **asked)
        report = accelerated.report
    assert got.shape == plain.shape
    assert got.isfinite().all()
    assert [x.shape[1] for x in seen] == [16 + 4 * step.tokens for step in report.steps]
    assert all(x[:, :16].equal(seen[-1][:, :16]) for x in seen)
    n_before = [5 + 16] + (len(seen) - 1) * [0 if use_kv_cache else 5 + 16]
    assert lengths == [n + 96 for n in n_before]
    assert (report.n_text_tokens, report.n_given_tokens) == (5 + 16, 0)
    assert traces(pipe) == before
    with fresco.accelerate(pipe, ALL_FINE):
        assert FAMILY.draw(pipe, **asked).equal(plain)


def test_flops_are_those_of_a_call_that_finds_the_text_cached(pipe):
    asked = {"prompt_embeds_mask": None}
    counts = []
    for n_steps in (2, 3):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            FAMILY.draw(pipe, **asked, num_inference_steps=n_steps)
        counts.append(counter.get_total_flops())
    assert pass_flops(pipe.transformer, 24, 5) == counts[1] - counts[0]
    forecast = fresco.plan(pipe, STAGED, height=128, width=192, steps=6, text_tokens=5)
    with fresco.accelerate(pipe, STAGED) as accelerated:
        FAMILY.draw(pipe)
        assert accelerated.cost().flops == forecast.total_flops


def test_sizes_without_a_whole_slot_are_rounded_as_the_pipeline_rounds_them(pipe):
    plain = FAMILY.draw(pipe, height=61, width=90)
    with fresco.accelerate(pipe, STAGED) as accelerated:
        assert FAMILY.draw(pipe, height=61, width=90).shape == plain.shape
        assert accelerated.plan.n_full_tokens == 3 * 5
    assert find_adapter(pipe.transformer).grid(pipe, None, None) == (32, 32)


def test_noise_levels_of_the_pipeline_s_own_are_refused(pipe):
    pipe.register_to_config(sample_sigmas=[1.0, 0.9, 0.5])
    with pytest.raises(errors.AdapterError, match=r"sample_sigmas=\[1.0, 0.9, 0.5\]"):
        fresco.accelerate(pipe, STAGED)
    plain = FAMILY.draw(pipe)
    with fresco.accelerate(pipe, "identity"):
        assert FAMILY.draw(pipe).equal(plain)


def test_a_text_that_sees_the_picture_is_refused(pipe):
    pipe.transformer.register_to_config(causal_condition=False)
    with pytest.raises(errors.AdapterError, match="causal_condition=False"):
        fresco.accelerate(pipe, STAGED)
