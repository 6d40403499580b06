"""Laws of promotion: monotone, within budget, rounded, and each image by itself."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fresco.layout import TokenLayout
from fresco.noise import NoiseField
from fresco.promotion import Promotion, budget_tokens, promote
from fresco.score import SCORES, Evidence
from tests.strategies import SEEDS, layouts, normal

SHARES = st.floats(0, 1)


def cell_shape(layout):
    rows, columns = layout.sides.shape
    return math.ceil(rows / 2), math.ceil(columns / 2)


@st.composite
def promotions(draw):
    limit = {"budget": draw(SHARES)} if draw(st.booleans()) else {"tau": draw(st.floats(-2, 2))}
    first, split = draw(st.sampled_from(("high", "low"))), draw(SHARES)
    return Promotion("edges", first, split=split, multiple=draw(st.integers(1, 16)), **limit)


@given(layouts(), SEEDS, promotions())
def test_promotion_only_splits_cells(layout, seed, how):
    score = normal(seed, *cell_shape(layout))
    after = promote(layout, score, how)
    assert (after.sides <= layout.sides).all()
    assert after.n_tokens >= layout.n_tokens
    assert promote(after, score, how).sides.equal(after.sides)  # nothing else is due


@given(layouts(), SEEDS, SHARES, st.sampled_from(("high", "low")))
def test_a_budget_promotes_the_first_cells(layout, seed, budget, first):
    score = normal(seed, *cell_shape(layout))
    after = promote(layout, score, Promotion("edges", first, budget=budget)).sides[::2, ::2]
    was_fine = layout.sides[::2, ::2] == 1
    n_fine = int((after == 1).sum())
    assert n_fine == max(math.floor(budget * after.numel() + 0.5), int(was_fine.sum()))
    chosen, left = score[(after == 1) & ~was_fine], score[after > 1]
    if len(chosen) and len(left):
        assert chosen.min() >= left.max() if first == "high" else chosen.max() <= left.min()


@given(layouts(), SEEDS, st.floats(-2, 2))
def test_a_threshold_promotes_all_beyond_it(layout, seed, tau):
    score = normal(seed, *cell_shape(layout))
    after = promote(layout, score, Promotion("edges", "low", tau=tau)).sides[::2, ::2]
    assert (after == 1).equal((layout.sides[::2, ::2] == 1) | (score <= tau))


@given(st.integers(1, 6), st.integers(1, 6), SEEDS, SHARES, st.integers(2, 16))
def test_token_counts_are_rounded_up_where_they_can_be(rows, columns, seed, budget, multiple):
    layout = TokenLayout.whole(2 * rows, 2 * columns, 2)
    score = normal(seed, rows, columns)
    plain = promote(layout, score, Promotion("edges", "high", budget=budget)).n_tokens
    how = Promotion("edges", "high", budget=budget, multiple=multiple)
    rounded = promote(layout, score, how).n_tokens
    reachable = [n for n in range(plain, 4 * rows * columns + 1, 3) if n % multiple == 0]
    assert rounded == (reachable[0] if reachable else plain)
    assert budget_tokens(2 * rows, 2 * columns, 2, how) == rounded


def test_two_coarse_sides_beside_fine_tokens():
    score = torch.tensor([[5.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0]])  # means 1.25 and .75
    how = Promotion("edges", "high", budget=1 / 8, split=0.5)
    sides = promote(TokenLayout.whole(4, 8, 4), score, how).sides
    assert sides.tolist() == [
        [1, 1, 2, 2, 4, 4, 4, 4],
        [1, 1, 2, 2, 4, 4, 4, 4],
        [2, 2, 2, 2, 4, 4, 4, 4],
        [2, 2, 2, 2, 4, 4, 4, 4],
    ]


def evidence(seed, b, rows=6, columns=5, patch_px=2, n=3):
    shape = (b, 4, rows * patch_px, columns * patch_px)
    field = NoiseField(normal(seed, *shape), patch_px)
    return Evidence(tuple(normal(seed + 1 + i, *shape) for i in range(n)), field)


@pytest.mark.parametrize("name", sorted(SCORES))
@given(seed=SEEDS, n=st.integers(1, 3))
def test_a_score_is_of_each_image_alone(name, seed, n):
    score, first = SCORES[name]
    assert first in {"high", "low"}
    seen = evidence(seed, 3, n=n)
    values = score(seen)
    assert values.shape == (3, 3, 3)
    assert values.isfinite().all()
    alone = Evidence(tuple(x[1:2] for x in seen.clean), seen.field.images(torch.tensor([1])))
    torch.testing.assert_close(score(alone)[0], values[1])


def test_scores_of_a_pinned_scene():
    """Left half: flat and settled. Upper right: detailed, settled. Lower right: still moving."""
    clean = torch.zeros(3, 1, 2, 8, 8, dtype=torch.float64)
    clean[:, 0, 0, :4, 4:] = 2.0
    clean[:, 0, :, 4:, 4:] = torch.tensor([0.0, 1.0, 2.0]).view(3, 1, 1, 1)
    seen = Evidence(tuple(clean), NoiseField(normal(0, 1, 2, 8, 8), 2))
    assert SCORES["temporal_variance"][0](seen)[0].tolist() == [[0, 0], [0, pytest.approx(2 / 3)]]
    assert SCORES["channel_variance"][0](seen)[0].tolist() == [[0, 1], [0, 0]]
    assert SCORES["decided_detail"][0](seen)[0].argmax() == 1
    for name in ("edges", "velocity_variance"):
        assert (SCORES[name][0](seen) > 0).all()
        flat = Evidence((torch.ones_like(clean[0]),), seen.field)
        torch.testing.assert_close(SCORES[name][0](flat), torch.zeros(1, 2, 2, dtype=torch.float64))


def test_evenly_spaced_is_spread_from_the_first_cells_on():
    spaced = SCORES["evenly_spaced"][0](evidence(0, 1, rows=16, columns=16))[0]
    first = spaced >= spaced.flatten().sort(descending=True).values[15]
    quarters = first.view(4, 2, 4, 2).sum(dim=(1, 3))
    assert quarters.eq(1).all()  # 16 of 64 cells: one in every 2 x 2


def test_a_random_order_belongs_to_the_image():
    random = SCORES["random"][0]
    one, other = evidence(0, 1), evidence(5, 1)
    assert random(one).equal(random(evidence(0, 1)))
    assert not random(one).equal(random(other))
