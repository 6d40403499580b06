"""What a distillation shows its student is what a staged run shows the transformer."""

from __future__ import annotations

import pytest
import torch

import fresco
from fresco.reference import MAX_TOKENS, load
from fresco.reference.trajectories import _ids
from fresco.reference.transformer import pack
from fresco.reference.views import Views

BUDGET = 0.3
STAGED = {
    "schema": 1,
    "model": "FluxTransformer2DModel",
    "baseline": {"steps": 50, "height": 128, "width": 128},
    "stages": [
        {"cell": 2, "steps": 1, "until_sigma": 0.9},
        {
            "cell": "mixed", "steps": 2, "sigmas": [0.99, 0.85], "until_sigma": 0.5,
            "lift": {"form": "latent", "to_sigma": 0.99},
            "promote": {"score": "edges", "budget": BUDGET},
        },
        {"cell": 1, "steps": 1},
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def noise():
    return pack(torch.randn(2, 4, 32, 32, generator=torch.Generator().manual_seed(3)))


@pytest.fixture(scope="module")
def calls(noise):
    """Tokens, positions and predictions of the four calls of staged runs of two pictures."""
    pipe, made = load(), []

    def record(_module, _args, given):
        made.append([given["hidden_states"], given["img_ids"][None]])

    def record_prediction(_module, _args, output):
        made[-1].append(output)  # of the tokens that the call has, before they are prolonged

    with fresco.accelerate(pipe, STAGED):
        for one in noise.split(1):  # each in calls of its own, with its own positions
            with (
                pipe.transformer.register_forward_pre_hook(record, with_kwargs=True),
                pipe.transformer.proj_out.register_forward_hook(record_prediction),
            ):
                pipe(
                    "a red ring left of a green cube", num_inference_steps=50, height=128,
                    width=128, latents=one, max_sequence_length=MAX_TOKENS, output_type="latent",
                )  # fmt: skip
    pairs = zip(made[:4], made[4:], strict=True)
    return [tuple(torch.cat(part) for part in zip(*pair, strict=True)) for pair in pairs]


def same(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=2e-4)


def test_a_coarse_step_sees_the_view_of_the_noise(noise, calls):
    same(Views(noise).coarse(noise, 1.0), calls[0][0])


def test_mixed_steps_see_the_lifted_view_where_the_coarse_step_found_edges(noise, calls):
    views, ((coarse, _, velocity), (mixed, ids, _), *_) = Views(noise), calls
    view = coarse - 0.1 * velocity
    layouts = views.layouts(view, 0.9, BUDGET)
    same(_ids(layouts), ids)
    assert not ids[0].equal(ids[1])
    assert ids.shape[1] == 64 + 3 * 19  # 30% of 64 cells have four tokens
    same(views.mixed(views.lift(view, 0.9, 0.99), 0.99, layouts), mixed)


def test_the_full_grid_goes_on_from_what_mixed_steps_leave(noise, calls):
    views, (first, last_mixed, fine) = Views(noise), (calls[0], calls[2], calls[3])
    layouts = views.layouts(first[0] - 0.1 * first[2], 0.9, BUDGET)
    left = last_mixed[0] + (0.5 - 0.85) * last_mixed[2]
    same(views.spread(left, 0.5, layouts), fine[0])
    same(views.mixed(fine[0], 0.5, layouts), left)
