"""Laws of layouts, restrict and prolong, for whole and mixed layouts."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fresco.errors import LayoutError
from fresco.layout import TokenLayout
from fresco.transfer import cut_patches, prolong, restrict
from tests.slow import slow_positions, slow_prolong, slow_restrict
from tests.strategies import SEEDS, field_for, layouts, normal

COEFFICIENTS = st.floats(-1, 1)


@given(layouts())
def test_every_pixel_is_owned_by_exactly_one_token(layout):
    owned = torch.zeros(layout.sides.shape, dtype=torch.int64)
    for token, ((row, column), side) in enumerate(
        zip(layout.token_starts.tolist(), layout.token_sides.tolist(), strict=True)
    ):
        owned[row : row + side, column : column + side] += 1
        assert (layout.owner[row : row + side, column : column + side] == token).all()
    assert (owned == 1).all()
    assert layout.n_tokens == layout.owner.max().item() + 1


def test_owners_of_a_pinned_mixed_layout():
    sides = torch.tensor([[2, 2, 1, 1, 4], [2, 2, 1, 1, 4], [2, 2, 2, 2, 4]])
    layout = TokenLayout(sides)
    assert layout.owner.tolist() == [[0, 0, 1, 2, 3], [0, 0, 4, 5, 3], [6, 6, 7, 7, 3]]
    assert layout.tokens_of(2)[0].tolist() == [0, 6, 7]
    assert layout.tokens_of(2)[1].tolist() == [0, 3, 4]  # of 2 x 3 cells


@pytest.mark.parametrize(
    "sides", [[[2, 1], [1, 1]], [[1, 2, 2, 1], [1, 2, 2, 1]], [[4, 4, 1, 4]] * 4, [[3]], [[]]]
)
def test_a_layout_of_broken_cells_is_refused(sides):
    with pytest.raises(LayoutError, match=r"expected .* got"):
        TokenLayout(torch.tensor(sides, dtype=torch.int64))


@settings(max_examples=15)
@given(layouts(), SEEDS, COEFFICIENTS)
def test_restrict_is_the_formula(layout, seed, a):
    field, latents = field_for(layout, seed), normal(seed + 1, 2, 3, *layout.grid_px)
    expected = slow_restrict(latents, field, a, layout)
    torch.testing.assert_close(restrict(latents, field, a, layout), expected, rtol=0, atol=1e-12)


@settings(max_examples=15)
@given(layouts(), SEEDS, COEFFICIENTS)
def test_prolong_is_the_formula(layout, seed, a):
    p = layout.patch_px
    field, tokens = field_for(layout, seed), normal(seed + 1, 2, layout.n_tokens, 3, p, p)
    expected = slow_prolong(tokens, field, a, layout)
    torch.testing.assert_close(prolong(tokens, field, a, layout), expected, rtol=0, atol=1e-12)


@given(layouts(), st.sampled_from(("fine", "coarse", "anchor", "phase")), st.sampled_from((2, 4)))
def test_positions_are_those_of_each_cell_s_fine_tokens(layout, units, side):
    units = "native" if layout.is_whole and units == "coarse" else units
    positions = layout.positions(units, side)
    assert positions.dtype == torch.float32
    assert positions.equal(slow_positions(layout, units, side))


@given(layouts(divisible=True), SEEDS, COEFFICIENTS)
def test_restrict_is_left_inverse_of_prolong(layout, seed, a):
    p = layout.patch_px
    field, tokens = field_for(layout, seed), normal(seed + 1, 2, layout.n_tokens, 3, p, p)
    again = restrict(prolong(tokens, field, a, layout), field, a, layout)
    torch.testing.assert_close(again, tokens, rtol=0, atol=1e-12)


@given(layouts(), SEEDS, COEFFICIENTS)
def test_restrict_and_prolong_project_on_any_grid(layout, seed, a):
    field, latents = field_for(layout, seed), normal(seed + 1, 2, 3, *layout.grid_px)
    once = prolong(restrict(latents, field, a, layout), field, a, layout)
    twice = prolong(restrict(once, field, a, layout), field, a, layout)
    assert once.shape == latents.shape
    torch.testing.assert_close(twice, once, rtol=0, atol=1e-12)


@given(layouts(), SEEDS, COEFFICIENTS)
def test_fine_tokens_pass_bit_identical(layout, seed, a):
    field, latents = field_for(layout, seed), normal(seed + 1, 2, 3, *layout.grid_px)
    tokens = restrict(latents, field, a, layout)
    fine, cells = layout.tokens_of(1)
    assert tokens[:, fine].equal(cut_patches(latents, layout.patch_px)[:, cells])
    back = cut_patches(prolong(tokens, field, a, layout), layout.patch_px)
    assert back[:, cells].equal(tokens[:, fine])


@given(layouts(divisible=True), SEEDS, st.integers(1, 6))
def test_euler_on_the_carrier_restricts_to_euler_of_the_coarse_model(layout, seed, n):
    field = field_for(layout, seed)
    p = layout.patch_px
    weights = normal(seed + 2, 3, 3, p, p)

    def velocity(tokens, sigma):
        return torch.tanh(torch.einsum("bncij,cdij->bndij", tokens, weights) + sigma)

    sigmas = torch.linspace(1, 0.1, n + 1, dtype=torch.float64).tolist()
    carrier = field.eps
    coarse = restrict(carrier, field, 1.0, layout)
    for sigma, following in pairwise(sigmas):
        seen = velocity(restrict(carrier, field, sigma, layout), sigma)
        carrier = carrier + (following - sigma) * prolong(seen, field, 1.0, layout)
        coarse = coarse + (following - sigma) * velocity(coarse, sigma)
    final = restrict(carrier, field, sigmas[-1], layout)
    torch.testing.assert_close(final, coarse, rtol=0, atol=1e-10)


def test_restrict_of_a_pinned_patch():
    layout = TokenLayout.whole(2, 2, 2, patch_px=2)
    eps = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    eps[0, 0, 0, :2] = 1.0
    from fresco.noise import NoiseField

    latents = torch.arange(16.0, dtype=torch.float64).view(1, 1, 4, 4)
    tokens = restrict(latents, NoiseField(eps, 2), 0.5, layout)
    # clean means 2.25, 4.5, 10.5, 12.5; coarse noise of the first pixel 2 * 0.5
    assert tokens.tolist() == [[[[[2.75, 4.5], [10.5, 12.5]]]]]


def test_coarse_tokens_are_at_the_announced_noise_level():
    layout = TokenLayout.whole(64, 64, 4)
    field, sigma = field_for(layout, 0, b=1, c=8), 0.7
    tokens = restrict((1 - sigma) * 2.0 + sigma * field.eps, field, sigma, layout)
    assert tokens.std().item() == pytest.approx(sigma, abs=6 * sigma / (2 * tokens.numel()) ** 0.5)
    assert tokens.mean().item() == pytest.approx(0.6, abs=6 * sigma / tokens.numel() ** 0.5)


def test_restrict_names_both_grids_when_they_differ():
    layout = TokenLayout.whole(4, 6, 2)
    with pytest.raises(LayoutError, match=r"h=4, w=6\], got \[1, 3, 8, 8\]"):
        restrict(torch.zeros(1, 3, 8, 8), field_for(layout, 0, b=1), 1.0, layout)


def test_prolong_names_both_token_counts_when_they_differ():
    layout = TokenLayout.whole(4, 6, 2)
    with pytest.raises(LayoutError, match=r"\[1, 6, 3, 1, 1\], got \[1, 5, 3, 1, 1\]"):
        prolong(torch.zeros(1, 5, 3, 1, 1), field_for(layout, 0, b=1), 1.0, layout)


def test_float32_is_the_least_precision():
    layout = TokenLayout.whole(4, 4, 2)
    field = field_for(layout, 0)
    assert restrict(field.eps, field, 1.0, layout).dtype == torch.float64
    from fresco.noise import NoiseField

    half = NoiseField(field.eps.bfloat16())
    tokens = restrict(half.eps.bfloat16(), half, 1.0, layout)
    assert tokens.dtype == half.eps.dtype == torch.float32
