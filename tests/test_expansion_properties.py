"""Laws of the Hadamard expansion and of injection."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fresco.hadamard import details, expand
from fresco.injection import inject, interpolate
from fresco.layout import TokenLayout
from fresco.lift import Lift, lift_latents
from fresco.noise import NoiseField
from fresco.transfer import cut_patches, prolong
from tests.slow import slow_interpolate
from tests.strategies import SEEDS, field_for, layouts, normal


@given(SEEDS)
def test_expansion_restores_the_field_from_its_coarse_view(seed):
    field = NoiseField(normal(seed, 2, 3, 8, 6))
    restored = expand(field.coarse(2), details(field.eps))
    torch.testing.assert_close(restored, field.eps, rtol=0, atol=1e-12)


@given(SEEDS, st.floats(0.05, 0.95))
def test_scaled_expansion_of_latents_is_the_latent_lift(seed, sigma):
    field, layout = NoiseField(normal(seed, 1, 2, 8, 8)), TokenLayout.whole(8, 8, 2)
    x0 = normal(seed + 1, 1, 2, 4, 4)
    coarse = (1 - sigma) * x0 + sigma * field.coarse(2)
    kappa = 2 / (1 + sigma)
    expanded = kappa * expand(coarse, sigma * details(field.eps))
    tokens = coarse.flatten(2).transpose(1, 2)[..., None, None]
    carrier = prolong(tokens, field, sigma, layout)
    lift = Lift("latent", sigma, sigma, kappa * sigma)
    lifted = lift_latents(carrier, torch.zeros_like(carrier), field, lift, layout)
    torch.testing.assert_close(expanded, lifted, rtol=0, atol=1e-12)


def test_literal_expansion_halves_the_signal():
    parent = torch.full((1, 1, 1, 1), 3.0)
    assert expand(parent, torch.zeros(1, 3, 1, 1, 1)).eq(1.5).all()


@given(layouts(), SEEDS, st.floats(-1, 1))
def test_anchors_keep_what_was_predicted_for_them(layout, seed, a):
    field, p = field_for(layout, seed), layout.patch_px
    tokens = normal(seed + 1, 2, layout.n_tokens, 3, p, p)
    again = inject(interpolate(tokens, field, a, layout), layout)
    assert again.equal(tokens)


@given(layouts(), SEEDS, st.floats(-1, 1))
def test_a_flat_clean_part_is_interpolated_exactly(layout, seed, a):
    field = field_for(layout, seed)
    grid = 3.0 + a * field.eps
    spread = interpolate(inject(grid, layout), field, a, layout)
    torch.testing.assert_close(spread, grid, rtol=0, atol=1e-12)


@settings(max_examples=5)
@given(layouts(), SEEDS, st.floats(-1, 1))
def test_between_anchors_is_their_blur(layout, seed, a):
    field, p = field_for(layout, seed, b=1, c=2), layout.patch_px
    tokens = normal(seed + 1, 1, layout.n_tokens, 2, p, p)
    expected = slow_interpolate(tokens, field, a, layout)
    got = interpolate(tokens, field, a, layout)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@given(layouts(), SEEDS)
def test_fine_tokens_are_their_own_anchors(layout, seed):
    latents = normal(seed, 2, 3, *layout.grid_px)
    fine, cells = layout.tokens_of(1)
    patches = cut_patches(latents, layout.patch_px)
    assert inject(latents, layout)[:, fine].equal(patches[:, cells])


@pytest.mark.parametrize(
    ("units", "expected"),
    [
        ("fine", [[0.5, 0.5], [0.0, 2.0], [0.0, 3.0], [1.0, 2.0], [1.0, 3.0]]),
        ("coarse", [[0.0, 0.0], [0.0, 1.0], [0.0, 1.5], [0.5, 1.0], [0.5, 1.5]]),
        ("anchor", [[0.0, 0.0], [0.0, 2.0], [0.0, 3.0], [1.0, 2.0], [1.0, 3.0]]),
    ],
)
def test_positions_of_a_pinned_mixed_layout(units, expected):
    layout = TokenLayout(torch.tensor([[2, 2, 1, 1], [2, 2, 1, 1]]))
    assert layout.positions(units, side=2).tolist() == expected
    assert layout.positions(units).dtype == torch.float32


def test_coarse_units_stay_when_the_last_coarse_cell_is_promoted():
    fine = TokenLayout.whole(2, 2, 1).positions("coarse", side=2)
    assert fine.tolist() == [[0.0, 0.0], [0.0, 0.5], [0.5, 0.0], [0.5, 0.5]]
