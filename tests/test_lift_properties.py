"""Laws of lifts: exact latents stay exact."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fresco.layout import TokenLayout
from fresco.lift import Lift, draw_clean, expanded_sigma, lift_latents
from fresco.noise import NoiseField
from tests.strategies import SEEDS, normal


@given(
    SEEDS,
    st.sampled_from(("trajectory", "clean", "latent")),
    st.floats(0.3, 1),
    st.floats(0.1, 0.9),
    st.floats(0, 0.99),
)
def test_a_lift_of_exact_latents_is_exact(seed, form, sigma, end_ratio, to_ratio):
    end = sigma * end_ratio
    to = end + (1 - end) * to_ratio
    clean, field = normal(seed, 1, 2, 8, 8), NoiseField(normal(seed + 1, 1, 2, 8, 8))
    x, v = (1 - sigma) * clean + sigma * field.eps, field.eps - clean
    layout = TokenLayout.whole(8, 8, 1)
    lifted = lift_latents(x, v, field, Lift(form, sigma, end, to), layout)
    torch.testing.assert_close(lifted, (1 - to) * clean + to * field.eps, rtol=0, atol=1e-10)


@given(st.floats(0.01, 0.99), st.sampled_from((2, 4)))
def test_expansion_keeps_the_low_band(sigma, side_ratio):
    to = expanded_sigma(sigma, side_ratio)
    # coarse noise-to-signal, and that of the finer grid averaged to coarse cells
    assert sigma / (1 - sigma) == pytest.approx(to / (1 - to) / side_ratio)


def test_lifts_of_a_pinned_pixel():
    field = NoiseField(torch.full((1, 1, 1, 1), 2.0, dtype=torch.float64))
    x, v = torch.full_like(field.eps, 1.0), torch.full_like(field.eps, 4.0)

    def lifted(form):
        layout = TokenLayout.whole(1, 1, 1)
        return lift_latents(x, v, field, Lift(form, 0.5, 0.25, 0.75), layout).item()

    assert lifted("trajectory") == 2.0  # 1 + .25 * 4
    assert lifted("clean") == 1.25  # .25 * (1 - .5 * 4) + .75 * 2
    assert lifted("fresh") == 1.25
    assert lifted("latent") == pytest.approx(4 / 3)  # beta 1/3, alpha 2/3: 0 / 3 + 2 * 2/3


@pytest.mark.parametrize("up", ["nearest", "bilinear", "bicubic"])
def test_redrawing_keeps_a_flat_picture_of_any_size(up):
    flat = torch.full((1, 2, 10, 6), 3.0, dtype=torch.float64)
    torch.testing.assert_close(draw_clean(flat, TokenLayout.whole(5, 3, 4, 2), up), flat)


def test_redrawing_leaves_fine_tokens_as_they_are():
    layout = TokenLayout(torch.tensor([[2, 2, 1, 1], [2, 2, 1, 1]]))
    clean = torch.tensor([[[[0.0, 0.0, 8.0, 6.0], [0.0, 0.0, 4.0, 2.0]]]])
    drawn = draw_clean(clean, layout, "bilinear")
    assert drawn[..., 2:].equal(clean[..., 2:])
    assert drawn[0, 0, :, :2].tolist() == [[0.0, 1.25], [0.0, 1.25]]  # a quarter of the way to 5
