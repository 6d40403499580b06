"""The trajectories that a distillation learns from."""

from __future__ import annotations

import itertools

import pytest
import torch

import fresco
from fresco.reference import GUIDANCE_SCALE, MAX_TOKENS, load, precision
from fresco.reference import trajectories as drawn
from fresco.reference.transformer import Tokens, pack, velocity
from tests.distilled import shorten

CPU = torch.device("cpu")
LIFTED = {
    "schema": 1,
    "model": "FluxTransformer2DModel",
    "baseline": {"steps": 50, "height": 128, "width": 128},
    "stages": [
        {"cell": 2, "steps": 1, "until_sigma": 0.9},
        {"cell": 1, "steps": 1, "lift": {"form": "latent", "to_sigma": 0.99}},
    ],
}


@pytest.fixture
def short(monkeypatch):
    shorten(monkeypatch)
    monkeypatch.setattr(precision, "_faster_dtype", lambda: torch.float32)  # to compare exactly


@pytest.fixture(scope="module")
def pipe():
    return load()


@pytest.fixture(scope="module")
def shard(pipe):
    """The first shard of the series 31, in little; tests read it."""
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        patch.setattr(precision, "_faster_dtype", lambda: torch.float32)
        return drawn.draw_shard(pipe, 31, 0)


def solve(pipe, start, sigmas, caption):
    """Euler's steps through `sigmas`, written out."""
    text, pooled, _ = pipe.encode_prompt(caption, caption, max_sequence_length=MAX_TOKENS)
    side = round(start.shape[1] ** 0.5)
    ids = pipe._prepare_latent_image_ids(1, side, side, CPU, torch.float32)
    x, guidance = start.float(), torch.tensor([GUIDANCE_SCALE])
    for sigma, following in itertools.pairwise(sigmas):
        now = torch.tensor([sigma])
        with torch.no_grad():
            v = velocity(pipe.transformer, Tokens(x, ids), now, guidance, text, pooled)
        x = x + (following - sigma) * v
    return x


def halved(high, low):
    """Two steps, evenly spaced before the scheduler's shift of 2.5."""
    middle = sum(sigma / (2.5 - 1.5 * sigma) for sigma in (high, low)) / 2
    return high, 2.5 * middle / (1 + 1.5 * middle), low


def unpacked(tokens):
    """[n, 16] as [4, rows, columns]: a token is (channel, row, column) of 2 x 2 pixels."""
    side = round(len(tokens) ** 0.5)
    cut = tokens.view(side, side, 4, 2, 2)
    return torch.einsum("yxcij->cyixj", cut).reshape(4, 2 * side, 2 * side)


def test_paths_are_where_the_teacher_goes(pipe, shard):
    assert list(shard) == ["fine", "coarse", "lifted"]
    fine = shard["fine"]
    assert fine.sigmas == (1, 0.95, 0.5, 0)
    (states,) = fine.states
    through_coarse_border = (*halved(0.95, 0.9), *halved(0.9, 0.5)[1:])
    for i, levels in enumerate((halved(1, 0.95), through_coarse_border, halved(0.5, 0))):
        end = solve(pipe, states[i : i + 1], levels, fine.captions[0])
        torch.testing.assert_close(end[0], states[i + 1].float(), rtol=0, atol=5e-3)
        assert not torch.allclose(states[i].float(), states[i + 1].float(), atol=5e-2)


def test_latents_and_noise_levels_stay_exact_where_bfloat16_computes(pipe, short, monkeypatch):
    monkeypatch.setattr(precision, "_faster_dtype", lambda: torch.bfloat16)
    seen = []

    def record(_module, _args, call):
        seen.append((call["hidden_states"].dtype, call["timestep"].dtype))

    with pipe.transformer.register_forward_pre_hook(record, with_kwargs=True):
        drawn.draw_shard(pipe, 31, 0)
    assert len(seen) > 6
    assert {*seen} == {(torch.float32, torch.float32)}
    assert not pipe.transformer._forward_hooks


def test_a_coarse_path_is_cells_averages_at_the_fine_noise_level(pipe, shard):
    fine, coarse = shard["fine"], shard["coarse"]
    assert coarse.sigmas == (1, 0.9)
    solved = solve(pipe, fine.states[:, 1], halved(0.95, 0.9), fine.captions[0])
    eps, at_border = unpacked(fine.states[0, 0].float()), unpacked(solved[0])
    pool = torch.nn.AvgPool2d(2)
    for latents, sigma, tokens in zip(
        (eps, at_border), coarse.sigmas, coarse.states[0], strict=True
    ):
        view = pool(latents - sigma * eps) + sigma * 2 * pool(eps)
        assert torch.allclose(unpacked(tokens.float()), view, atol=1e-2)


def test_views_are_what_a_staged_run_shows_the_transformer(pipe):
    noise = pack(torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(3)))
    tokens, predicted = [], []

    def record(_module, _args, given):
        tokens.append(given["hidden_states"])

    def record_prediction(_module, _args, output):
        predicted.append(output)  # for the tokens of the call, before they are prolonged

    with (
        fresco.accelerate(pipe, LIFTED),
        pipe.transformer.register_forward_pre_hook(record, with_kwargs=True),
        pipe.transformer.proj_out.register_forward_hook(record_prediction),
    ):
        pipe(
            "a red ring left of a green cube", num_inference_steps=50, height=128, width=128,
            latents=noise, max_sequence_length=MAX_TOKENS, output_type="latent",
        )  # fmt: skip
    seen = drawn._Coarse(noise)
    view = tokens[0] - 0.1 * predicted[0]  # at 0.9
    for expected, got in (
        (seen.view(noise, 1.0), tokens[0]),
        (seen.lift(view, 0.9, 0.99), tokens[1]),
    ):
        torch.testing.assert_close(got, expected, rtol=0, atol=2e-4)


def test_lifted_paths_begin_at_a_coarse_view_with_the_fields_noise(pipe, shard):
    lifted = shard["lifted"]
    assert lifted.sigmas == (0.99, 0.7, 0)
    (states,) = lifted.states
    eps = unpacked(shard["fine"].states[0, 0].float())
    view = unpacked(shard["coarse"].states[0, 1].float())
    clean = view - 0.9 * 2 * torch.nn.functional.avg_pool2d(eps, 2)  # a tenth of it
    spread = clean.repeat_interleave(2, 1).repeat_interleave(2, 2)
    start = (1 - 0.99) / (1 - 0.9) * spread + 0.99 * eps
    assert torch.allclose(unpacked(states[0].float()), start, atol=2e-2)
    through_fine_border = (*halved(0.7, 0.5), *halved(0.5, 0)[1:])
    for i, levels in enumerate((halved(0.99, 0.7), through_fine_border)):
        end = solve(pipe, states[i : i + 1], levels, lifted.captions[0])
        torch.testing.assert_close(end[0], states[i + 1].float(), rtol=0, atol=5e-3)


def test_every_shard_has_captions_and_noise_of_its_own_and_always_the_same(
    pipe, short, monkeypatch
):
    monkeypatch.setattr(drawn, "PER_SHARD", 2)
    first, again, other = (drawn.draw_shard(pipe, 31, i)["fine"] for i in (0, 0, 1))
    assert torch.equal(first.states, again.states)
    assert first.captions == again.captions
    assert first.captions != other.captions
    assert len(first.captions) == 2
    noise = torch.cat([first.states[:, 0], other.states[:, 0]])
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(noise, 2))
