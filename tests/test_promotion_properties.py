"""Laws of promotion: monotone, within budget, rounded, and each image by itself."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fresco.expected import expected_layout
from fresco.layout import TokenLayout
from fresco.noise import NoiseField
from fresco.promotion import Promotion, is_met, promote, seen_again
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


@given(layouts(), SEEDS, promotions())
def test_where_a_budget_is_met_no_score_promotes_anything(layout, seed, how):
    score = normal(seed, *cell_shape(layout))
    after = promote(layout, score, how)
    if is_met(layout, how):
        assert after.sides.equal(layout.sides)
    if how.budget is not None and how.multiple == 1 and not (after.sides == 4).any():
        assert is_met(after, how)


@pytest.mark.parametrize(("multiple", "met"), [(1, True), (7, True), (10, False)])
def test_a_budget_is_not_met_before_tokens_are_a_multiple(multiple, met):
    layout = promote(TokenLayout.whole(4, 4, 2), normal(0, 2, 2), Promotion("edges", "high", 0.25))
    assert layout.n_tokens == 7  # 4 fine ones and 3 cells
    how = Promotion("edges", "high", 0.25, multiple=multiple)
    assert is_met(layout, how) == met
    assert promote(layout, normal(1, 2, 2), how).n_tokens == (7 if met else 10)


@given(layouts(), SEEDS, SHARES, st.sampled_from(("high", "low")), SHARES)
def test_a_budget_promotes_the_first_cells(layout, seed, budget, first, split):
    score = normal(seed, *cell_shape(layout))
    how = Promotion("edges", first, budget=budget, split=split)
    after = promote(layout, score, how).sides[::2, ::2]
    was_fine = layout.sides[::2, ::2] == 1
    n_fine = int((after == 1).sum())
    assert n_fine == max(math.floor(budget * after.numel() + 0.5), int(was_fine.sum()))
    chosen, left = score[(after == 1) & ~was_fine], score[after == 2]
    if len(chosen) and len(left):
        assert chosen.min() >= left.max() if first == "high" else chosen.max() <= left.min()


@given(layouts(), SEEDS, st.floats(-2, 2))
def test_a_threshold_promotes_all_beyond_it(layout, seed, tau):
    score = normal(seed, *cell_shape(layout))
    after = promote(layout, score, Promotion("edges", "low", tau=tau)).sides[::2, ::2]
    assert (after == 1).equal((layout.sides[::2, ::2] == 1) | (score <= tau))


@given(layouts(), SEEDS, SHARES, st.integers(2, 16))
def test_token_counts_are_rounded_up_where_they_can_be(layout, seed, budget, multiple):
    """Slow and obvious: one cell more after another, until the count is a multiple."""
    score = normal(seed, *cell_shape(layout))
    plain = promote(layout, score, Promotion("edges", "high", budget=budget))
    how = Promotion("edges", "high", budget=budget, multiple=multiple)
    rounded = promote(layout, score, how)
    sides, places = plain.sides.clone(), [divmod(int(i), score.shape[1]) for i in order(score)]
    while TokenLayout(sides).n_tokens % multiple:
        left = [(2 * r, 2 * c) for r, c in places if sides[2 * r, 2 * c] == 2]
        if not left:
            assert rounded.sides.equal(plain.sides)
            return
        row, column = left[0]
        sides[row : row + 2, column : column + 2] = 1
    assert rounded.sides.equal(sides)


def order(score):
    return score.flatten().argsort(descending=True, stable=True)


@st.composite
def successive_budgets(draw):
    shares = sorted(draw(st.lists(SHARES, min_size=1, max_size=3)))
    split = draw(st.floats(shares[-1], 1))
    return [Promotion("edges", "high", budget=share, split=split) for share in shares]


@given(st.integers(1, 13), st.integers(1, 13), st.sampled_from((2, 4)), SEEDS, successive_budgets())
def test_a_plan_expects_what_a_run_of_budgets_has(rows, columns, side, seed, hows):
    expected = layout = TokenLayout.whole(rows, columns, side)
    for k, how in enumerate(hows):
        layout = promote(layout, normal(seed + k, *cell_shape(layout)), how)
        expected = expected_layout(expected, how)
        if side == 2:  # larger ones may have to split once more at the border
            assert layout.n_tokens <= expected.n_tokens
        if rows % side == columns % side == 0:
            assert layout.n_tokens == expected.n_tokens
        assert (layout.sides[::2, ::2] == 1).sum() == (expected.sides[::2, ::2] == 1).sum()


@pytest.mark.parametrize("multiple", [1, 4, 16])
def test_a_plan_expects_rounded_counts_on_grids_that_cells_divide(multiple):
    for budget in (0.0, 0.1, 0.37, 0.8):
        how = Promotion("edges", "high", budget=budget, multiple=multiple)
        layout = TokenLayout.whole(8, 12, 2)
        found = promote(layout, normal(3, *cell_shape(layout)), how)
        assert expected_layout(layout, how).n_tokens == found.n_tokens


@given(st.lists(layouts(), min_size=1, max_size=3))
def test_what_coarse_queries_see_is_counted_by_the_token(batch):
    expected = []
    for side in (4, 2):
        seen = 0
        for layout in batch:
            starts, sides = layout.token_starts.tolist(), layout.token_sides.tolist()
            if side in sides:
                seen += sum(row % side == column % side == 0 for row, column in starts)
        if seen:
            expected.append(round(seen / len(batch)))
    assert seen_again(batch) == tuple(expected)


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


def test_equals_do_not_rank_by_their_place():
    """With one estimate nothing has changed anywhere: only the detail decides."""
    seen = evidence(0, 2, n=1)
    detail = SCORES["channel_variance"][0](seen)
    assert SCORES["decided_detail"][0](seen).flatten(1).argsort().equal(detail.flatten(1).argsort())


def clamped(features, row, column):
    rows, columns = features.shape[-2:]
    return features[..., min(max(row, 0), rows - 1), min(max(column, 0), columns - 1)]


@pytest.mark.parametrize("size", [(6, 5), (1, 1), (7, 4)], ids=str)
def test_scores_of_neighbourhoods_are_the_formulas(size):
    """Slow and obvious: one cell at a time; beyond the border its own value goes on."""
    seen = evidence(7, 2, *size)
    x = seen.features()
    slope = ((-1, -1, 1), (-1, 1, -1), (0, -1, 2), (0, 1, -2), (1, -1, 1), (1, 1, -1))
    found = {name: SCORES[name][0](seen) for name in ("edges", "velocity_variance")}
    for row in range(x.shape[2]):
        for column in range(x.shape[3]):
            across = sum(weight * clamped(x, row + i, column + j) for i, j, weight in slope) / 8
            down = sum(weight * clamped(x, row + j, column + i) for i, j, weight in slope) / 8
            edges = (across**2 + down**2).sqrt().mean(dim=1)
            torch.testing.assert_close(found["edges"][:, row, column], edges)
            around = [clamped(x, row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
            variance = torch.stack(around).var(dim=0, correction=0).mean(dim=1)
            torch.testing.assert_close(found["velocity_variance"][:, row, column], variance)


def test_the_end_that_is_promoted_first_is_that_of_each_paper():
    firsts = {name: first for name, (_, first) in SCORES.items()}
    assert firsts.pop("temporal_variance") == "low"  # Fresco: converged first
    assert set(firsts.values()) == {"high"}


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
