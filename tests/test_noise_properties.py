"""Laws of the noise field."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fresco.noise import NoiseField
from tests.strategies import SEEDS, field_for, layouts, normal


@given(SEEDS, st.sampled_from((2, 4)), st.integers(61, 64), st.integers(1, 2))
def test_coarse_noise_has_unit_variance(seed, side, width, patch_px):
    view = NoiseField(normal(seed, 1, 8, 64, width * patch_px), patch_px).coarse(side)
    n = view.numel()
    # variance of a sample variance of n Gaussians is 2 / n: six standard deviations, both sides
    assert abs(view.var().item() - 1) < 6 * (2 / n) ** 0.5
    assert abs(view.mean().item()) < 6 / n**0.5


@given(SEEDS, st.integers(3, 13), st.integers(3, 13), st.integers(1, 2))
def test_coarse_views_nest(seed, h, w, patch_px):
    field = NoiseField(normal(seed, 1, 2, h * patch_px, w * patch_px), patch_px)
    coarse, middle = field.coarse(4), field.coarse(2)
    again = 2 * torch.nn.functional.avg_pool2d(middle, 2)
    rows, columns = again.shape[-2:]
    torch.testing.assert_close(coarse[..., :rows, :columns], again, rtol=0, atol=1e-12)


def test_coarse_view_of_a_small_field_is_half_the_sum_of_each_block():
    eps = torch.arange(8.0).view(1, 1, 2, 4)
    assert NoiseField(eps).coarse(2).tolist() == [[[[5.0, 9.0]]]]  # (0+1+4+5)/2, (2+3+6+7)/2


@given(SEEDS)
def test_draws_beyond_the_border_depend_on_the_image_alone(seed):
    eps = normal(seed, 3, 2, 5, 7)
    together = NoiseField(eps).coarse(4)
    for i in range(3):
        assert NoiseField(eps[i : i + 1]).coarse(4).equal(together[i : i + 1])
    assert not NoiseField(eps + 1).coarse(4)[..., -1].equal(together[..., -1] + 4)


def test_the_field_touches_no_generator():
    eps = torch.randn(1, 2, 5, 7)
    before = torch.get_rng_state()
    NoiseField(eps).redrawn(1).coarse(4)
    assert torch.get_rng_state().equal(before)


def test_a_redrawn_field_is_the_same_again_and_unrelated():
    field = NoiseField(normal(0, 2, 8, 32, 32))
    first, second = field.redrawn(1), field.redrawn(2)
    assert field.redrawn(1).eps.equal(first.eps)
    for a, b in ((field.eps, first.eps), (first.eps, second.eps), (first.eps[:1], first.eps[1:])):
        assert abs((a * b).mean().item()) < 6 / b.numel() ** 0.5


@given(layouts(divisible=True, mixed=False), SEEDS)
def test_redrawn_details_keep_the_coarse_view_alone(layout, seed):
    side = layout.sides_used[0]
    field = field_for(layout, seed)
    redrawn = field.redrawn_details(3, side)
    torch.testing.assert_close(redrawn.coarse(side), field.coarse(side), rtol=0, atol=1e-12)
    assert redrawn.eps.equal(field.redrawn_details(3, side).eps)
    if side > 1:
        assert torch.isclose(redrawn.eps, field.eps).double().mean() < 0.05  # by chance
        assert not redrawn.eps.equal(field.redrawn_details(4, side).eps)


def test_redrawn_details_have_unit_variance():
    field = NoiseField(normal(0, 1, 16, 64, 64), 2)
    assert field.redrawn_details(0, 2).eps.var().item() == pytest.approx(1.0, abs=0.02)
