"""Pipelines that make a video from a picture: channels that cells average, or a frame that stays.

What holds for every family is asked of them by the tests of `tests.test_families`.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

import fresco
from fresco import errors
from fresco.cost import pass_flops
from fresco.layout import TokenLayout
from fresco.registry import find_adapter
from fresco.wraps import call_by_name
from tests import test_families as of_all
from tests.conftest import traces
from tests.families import FAMILIES
from tests.matrix import FORCED
from tests.picture_families import FROM_PICTURES
from tests.staged import ALL_FINE, MIXED, STAGED
from tests.test_mixed_videos import SIDES, angles
from tests.watch import Watch

STILL = ("token_replace", "wan_ti2v")  # whose first frame keeps its tokens
CHANNELS = tuple(name for name in FROM_PICTURES if name not in STILL)
N = 4 * 6  # tokens of a full frame


@pytest.fixture(params=FROM_PICTURES)
def name(request, monkeypatch):
    monkeypatch.setitem(FAMILIES, request.param, FROM_PICTURES[request.param])
    return request.param


@pytest.fixture
def family(name):
    return FROM_PICTURES[name]


@pytest.fixture
def pipe(family):
    return family.make()


def test_identity_recipes_and_restore_leave_no_trace(family, pipe):
    of_all.test_identity_recipes_and_restore_leave_no_trace(family, pipe)


def test_runs_of_other_sizes_and_after_a_death_are_right(family, pipe):
    of_all.test_runs_of_other_sizes_and_after_a_death_are_right(family, pipe)


def test_a_video_does_not_depend_on_its_batch(family, pipe):
    of_all.test_an_image_does_not_depend_on_its_batch(family, pipe)


def test_a_video_of_a_mixed_stage_does_not_depend_on_its_batch(name):
    of_all.test_an_image_of_a_mixed_stage_does_not_depend_on_its_batch(name)


def test_positions_of_a_mixed_stage_that_is_all_fine_are_the_model_s_own(name):
    of_all.test_positions_of_a_mixed_stage_that_is_all_fine_are_the_model_s_own(name)


def test_quantization_stacks_and_comes_off(family, pipe):
    of_all.test_quantization_stacks_and_comes_off(family, pipe)


def test_a_cache_stacks_and_comes_off(family, pipe):
    plain = family.draw(pipe)
    with fresco.accelerate(pipe, STAGED):
        uncached = family.draw(pipe)
    entry = {"kind": "cache", "method": "first_block", **FORCED["first_block"]}
    with fresco.accelerate(pipe, {**STAGED, "stack": [entry]}) as accelerated:
        got = family.draw(pipe)
        (row,) = [row for row in accelerated.summary().rows if row.kind == "cache"]
    assert row.counts["hits"] > 0
    assert got.isfinite().all()
    assert not got.equal(uncached)
    assert family.draw(pipe).equal(plain)


@pytest.mark.parametrize("name", CHANNELS)
def test_coarse_steps_are_those_of_the_coarse_model(name):
    family = FROM_PICTURES[name]
    of_all.test_coarse_steps_are_those_of_the_coarse_model(family, family.make())


@pytest.mark.parametrize("name", CHANNELS)
def test_channels_of_a_picture_are_averaged_without_noise(name):
    family = FROM_PICTURES[name]
    pipe = family.make()
    watch, channels = Watch(pipe, family.is_frames_first), family.config["out_channels"]
    with fresco.accelerate(pipe, MIXED) as accelerated:
        assert family.draw(pipe).isfinite().all()
        tokens = [step.tokens for step in accelerated.report.steps]
        layout = accelerated._middleware.last.mixed[0]
    assert [x[0, 0].numel() // 4 // family.patch_frames for x in watch.seen] == tokens
    whole, mixed, fine = (watch.seen[k][:, channels:] for k in (0, 2, -1))
    assert fine.any()
    coarse = functional.avg_pool3d(fine, (1, 2, 2))
    torch.testing.assert_close(whole, coarse, rtol=0, atol=1e-6)
    assert layout.sides_used == (2, 1)
    places = zip(layout.token_starts.tolist(), layout.token_sides.tolist(), strict=True)
    for i, ((row, column), side) in enumerate(places):
        y, x = 2 * row // side, 2 * column // side  # px, two to a token
        expected = (fine if side == 1 else coarse)[..., y : y + 2, x : x + 2]
        torch.testing.assert_close(mixed[..., 2 * i : 2 * i + 2], expected, rtol=0, atol=1e-6)


class Spy:
    """What the transformer and its first block are given after fresco's hooks, and predict."""

    def __init__(self, transformer):
        self.calls, self.blocks, self.said = [], [], []
        first = getattr(transformer, "blocks", None) or transformer.transformer_blocks
        self.hooks = [
            transformer.register_forward_hook(self.hear, with_kwargs=True, prepend=True),
            first[0].register_forward_pre_hook(self.enter, with_kwargs=True),
        ]

    def hear(self, module, args, kwargs, output):
        self.calls.append(call_by_name(module, args, kwargs))
        self.said.append(output[0])

    def enter(self, block, args, kwargs):
        self.blocks.append(call_by_name(block, args, kwargs))


def embedded(transformer, latents):
    """The model's own tokens of latents [b, c, f, h, w], [b, n, d]."""
    if hasattr(transformer, "x_embedder"):
        return transformer.x_embedder(latents)
    return transformer.patch_embedding(latents).flatten(2).transpose(1, 2)


def turned(name, places):
    """Angles of tokens at (frame, row, column), every one twice in a row."""
    model = "wan" if name == "wan_ti2v" else "hunyuan_video"
    each = [angles(model, None, place).repeat_interleave(2) for place in places]
    return torch.stack(each)


@pytest.mark.parametrize("raw", [STAGED, MIXED])
@pytest.mark.parametrize("name", STILL)
@torch.no_grad()
def test_the_first_frame_s_tokens_stay_those_of_the_full_grid_and_come_first(name, raw):
    family = FROM_PICTURES[name]
    pipe = family.make()
    spy = Spy(pipe.transformer)
    plain = family.draw(pipe)
    picture = spy.calls[0]["hidden_states"][:, :, :1]
    still = embedded(pipe.transformer, picture)
    with fresco.accelerate(pipe, raw) as accelerated:
        spy = Spy(pipe.transformer)
        result = family.draw(pipe)
        steps, run = accelerated.report.steps, accelerated._middleware.last
    assert result.isfinite().all()
    assert result[:, :, :1].equal(plain[:, :, :1])
    assert result[:, :, :1].equal(picture)
    assert not result[:, :, 1:].equal(plain[:, :, 1:])
    assert [step.passes for step in steps] == [family.passes] * len(steps)
    blocks, calls = spy.blocks[:: family.passes], spy.calls[:: family.passes]
    assert [block["hidden_states"].shape[1] - N for block in blocks] == [s.tokens for s in steps]
    for block, call, step in zip(blocks, calls, steps, strict=True):
        torch.testing.assert_close(block["hidden_states"][:, :N], still, rtol=0, atol=1e-5)
        if name == "token_replace":
            assert block["num_tokens"] == N
            continue
        times = call["timestep"]
        assert times.shape == (1, N + step.tokens)
        assert times[:, :N].eq(0).all()
        torch.testing.assert_close(times[:, N:], torch.full_like(times[:, N:], 1000 * step.sigma))
    side = raw["stages"][0]["cell"]
    eps = run.noise.eps.unflatten(1, (-1, 2))  # of the frames behind the picture
    rows, columns = -(-4 // side), -(-6 // side)
    if side == 2:  # the border of the others goes on in draws of its own
        coarse = 2 * functional.avg_pool3d(eps, (1, 2, 2))
        expected = embedded(pipe.transformer, coarse)
        torch.testing.assert_close(blocks[0]["hidden_states"][:, N:], expected, rtol=0, atol=1e-5)
    rotary = next(value for value in blocks[0].values() if isinstance(value, tuple))
    fine = [(0, (r - (side - 1) / 2) / side, (c - (side - 1) / 2) / side)
            for r in range(4) for c in range(6)]  # fmt: skip
    cells = [(f, r, c) for f in (1, 2) for r in range(rows) for c in range(columns)]
    angle = turned(name, fine + cells)
    for got, expected in zip(rotary, (angle.cos(), angle.sin()), strict=True):
        torch.testing.assert_close(got.squeeze().float(), expected.float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", STILL)
@torch.no_grad()
def test_mixed_cells_behind_the_first_frame_are_at_their_centres(name):
    family = FROM_PICTURES[name]
    pipe = family.make()
    spy = Spy(pipe.transformer)
    with fresco.accelerate(pipe, MIXED) as accelerated:
        family.draw(pipe)
        layout = accelerated._middleware.last.mixed[0]
    block = spy.blocks[2 * family.passes]
    starts = list(zip(layout.token_starts.tolist(), layout.token_sides.tolist(), strict=True))
    places = [(0, r, c) for r in range(4) for c in range(6)]
    for frame in (1, 2):
        places += [(frame, r + (side - 1) / 2, c + (side - 1) / 2) for (r, c), side in starts]
    angle = turned(name, places)
    rotary = next(value for value in block.values() if isinstance(value, tuple))
    for got, expected in zip(rotary, (angle.cos(), angle.sin()), strict=True):
        torch.testing.assert_close(got.squeeze().float(), expected.float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("units", "unit"), [("coarse", 4), ("anchor", 1), ("fine", 1)])
def test_the_first_frame_is_placed_in_the_units_of_the_cells_behind_it(units, unit):
    adapter = find_adapter(FROM_PICTURES["token_replace"].make().transformer)
    layout = TokenLayout(SIDES, 2)
    tokens, call = torch.zeros(1, 15, 8, 2, 2), {"hidden_states": torch.zeros(1, 4, 3, 8, 12)}
    adapter.embed(call, tokens, layout, layout.positions(units, side=4))
    fine = torch.tensor([[r, c] for r in range(4) for c in range(6)])
    assert adapter._still.equal(fine / unit)


@pytest.mark.parametrize("name", STILL)
def test_frames_behind_the_first_follow_their_predictions_by_euler(name):
    family = FROM_PICTURES[name]
    pipe = family.make()
    spy = Spy(pipe.transformer)
    with fresco.accelerate(pipe, STAGED) as accelerated:
        family.draw(pipe, width=128)  # cells of 4 tokens divide it
        steps = accelerated.report.steps
    n, n_still = family.passes, 2 * 4 * 8  # px of the first frame's tokens in the row
    for k in (0, 2, 3):  # inside stages
        seen, then = (spy.calls[i * n]["hidden_states"][..., n_still:] for i in (k, k + 1))
        said = [each[..., n_still:] for each in spy.said[k * n : (k + 1) * n]]
        velocity = said[0] if n == 1 else said[1] + 2 * (said[0] - said[1])
        expected = seen + (steps[k + 1].sigma - steps[k].sigma) * velocity
        torch.testing.assert_close(then, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", STILL)
def test_costs_count_the_first_frame_s_tokens(name):
    family = FROM_PICTURES[name]
    pipe = family.make()
    with fresco.accelerate(pipe, STAGED) as accelerated:
        family.draw(pipe)
        report, cost = accelerated.report, accelerated.cost()
    assert report.n_given_tokens == N
    n_text = report.n_text_tokens
    counts = [pass_flops(pipe.transformer, N + step.tokens, n_text) for step in report.steps]
    assert cost.flops == sum(counts)
    assert cost.baseline_flops == 6 * counts[-1]
    frames = 4 * (family.frames + family.still_frames - 1) + 1
    of_video = {**STAGED, "baseline": {**STAGED["baseline"], "frames": frames}}
    with fresco.accelerate(pipe, of_video) as accelerated:  # nothing has run yet
        assert accelerated.plan.frames == family.frames
        assert accelerated.cost(n_text) == cost
    with fresco.accelerate(pipe, STAGED) as accelerated:  # which says no frames
        assert accelerated.plan.frames == 1
    forecast = fresco.plan(pipe, STAGED, height=64, width=96, frames=frames, text_tokens=n_text)
    assert (forecast.n_given_tokens, forecast.total_flops) == (N, cost.flops)
    assert [step.n_tokens for step in forecast.plan.steps] == [s.tokens for s in report.steps]


@pytest.mark.parametrize("name", STILL)
def test_a_picture_without_further_frames_is_refused(name):
    family = FROM_PICTURES[name]
    pipe = family.make()
    plain, before = family.draw(pipe, num_frames=1), traces(pipe)
    with fresco.accelerate(pipe, STAGED):
        right = family.draw(pipe)
        match = "expected latent frames to predict, got the picture alone"
        with pytest.raises(errors.AdapterError, match=match):
            family.draw(pipe, num_frames=1)
        assert family.draw(pipe).equal(right)
    with fresco.accelerate(pipe, ALL_FINE):
        assert family.draw(pipe, num_frames=1).equal(plain)
    assert traces(pipe) == before


def test_one_timestep_per_token_without_a_picture_is_one_per_cell():
    family, videos = FAMILIES["wan"], []
    for is_expanded in (False, True):
        pipe = family.make()
        pipe.register_to_config(expand_timesteps=is_expanded)
        videos.append(family.draw(pipe))
        spy = Spy(pipe.transformer)
        for raw in (ALL_FINE, STAGED, MIXED):
            with fresco.accelerate(pipe, raw) as accelerated:
                videos.append(family.draw(pipe))
                tokens = [step.tokens for step in accelerated.report.steps]
            times = [call["timestep"] for call in spy.calls[:: family.passes]]
            spy.calls.clear()
            if is_expanded:
                assert [time.shape[1] for time in times] == tokens
    assert videos[5].equal(videos[4])  # all fine
    for one, each in zip(videos[:4], videos[4:], strict=True):
        torch.testing.assert_close(each, one, rtol=0, atol=1e-5)
