"""The rows of the studies: what they vary, and what they cost."""

import json
import math

import pytest

from fresco.cost import pass_flops
from fresco.recipe import load_recipe
from fresco.reference import ablation, rows, studies
from fresco.reference.transformer import build_transformer
from fresco.request import PlanRequest
from fresco.schedule import make_plan


def all_ways():
    groups = {**ablation.ablation_groups(), **rows.pareto_groups()}
    ways = [way for group in groups.values() for way in group.ways]
    assert len(ways) > 30
    return {way.name: way for way in ways}, ways


def test_a_name_stands_for_one_way_and_no_two_names_for_the_same():
    named, ways = all_ways()
    assert all(named[way.name] == way for way in ways)
    contents = {json.dumps([way.recipe, way.steps], sort_keys=True) for way in ways}
    assert len(contents) == len(named)


def test_every_group_can_be_asked_for():
    for groups in (ablation.ablation_groups(), rows.pareto_groups()):
        asked = list(groups)[::-1]
        found = studies.pick_groups(groups, ",".join(asked))  # no name has a comma
        assert [group.name for group in found] == asked


def test_every_row_is_a_valid_recipe():
    ways = [way for way in all_ways()[0].values() if way.recipe is not None]
    assert len(ways) > 25
    for way in ways:
        assert load_recipe(way.recipe).baseline_steps == 50


def test_groups_vary_one_thing():
    base = ablation.ablation_groups()["lift"].ways[0].recipe["stages"]
    changed = {
        "solver": {None: {"order", "shift"}, "first order": {"order"}, "no shift": {"shift"}},
        "field": {None: {"lift"}},
        "lift": {None: {"lift"}},
        "score": {None: {"promote"}},
        "promotion": {None: {"promote"}},
        "positions": {None: {"positions"}},
    }
    for name, keys in changed.items():
        group = ablation.ablation_groups()[name]
        assert len(group.ways) > 1
        for way in group.ways[1:]:
            first, mixed, last = way.recipe["stages"]
            assert (first, last) == (base[0], base[2])
            differ = {k for k in mixed | base[1] if mixed.get(k) != base[1].get(k)}
            assert differ == keys.get(way.name, keys[None])
    for way in ablation.ablation_groups()["score"].ways:
        assert way.recipe["stages"][1]["promote"]["budget"] == 0.3
    for way in ablation.ablation_groups()["coarse"].ways:
        assert way.recipe["stages"][1:] == base[1:]


def test_the_base_is_a_recipe_that_ships_with_a_coarse_step_more():
    shipped = rows.content_of(load_recipe("reference_10x"))
    _, one, *_ = ablation.ablation_groups()["coarse"].ways
    assert one.recipe["stages"] == shipped["stages"]
    coarse, *rest = shipped["stages"]
    assert list(ablation.base_stages()) == [{**coarse, "steps": 2}, *rest]


@pytest.fixture(scope="module")
def transformer():
    return build_transformer()


def flops(transformer, stages):
    """In full steps, of 1024 fine tokens; a mixed stage has 30% of the cells fine."""
    tokens = {4: 64, 2: 256, 1: 1024, "mixed": int(256 * (1 + 3 * 0.3))}
    full = pass_flops(transformer, 1024, 40)
    return sum(s["steps"] * pass_flops(transformer, tokens[s["cell"]], 40) / full for s in stages)


def test_one_and_two_coarse_levels_cost_the_same(transformer):
    base, two = ablation.ablation_groups()["levels"].ways
    assert flops(transformer, two.recipe["stages"]) == pytest.approx(
        flops(transformer, base.recipe["stages"]), rel=0.02
    )


def test_fresco_is_the_recipes_that_ship_and_rivals_those_that_name_a_paper():
    groups = rows.pareto_groups()
    rivals = {"bottleneck", "jit", "mrflow", "ralu", "spectral"}
    assert set(groups) == {"fresco", "fewer steps", "mixed steps", *rivals}
    assert [way.name for way in groups["ralu"].ways] == [f"ralu {x}x" for x in rows.SPEEDUPS]
    assert [way.steps for way in groups["ralu"].ways] == [150, 100, 60, 43, 30]  # 50 at 6x
    shipped = ("quality", "quality", "balanced", "balanced", "balanced")
    for name, way in zip(shipped, groups["fresco"].ways, strict=True):
        assert load_recipe(way.recipe).stages == load_recipe(f"reference_{name}").stages
    *below, mixed = groups["mixed steps"].ways
    assert tuple(below) == groups["fresco"].ways[:-1]
    assert load_recipe(mixed.recipe).stages == load_recipe("reference_10x").stages


@pytest.mark.parametrize(
    ("method", "within"),
    [("fresco", 0.05), *((n, 0.25) for n in ("bottleneck", "jit", "mrflow", "ralu", "spectral"))],
)
def test_methods_cost_about_what_their_rows_are_named_for(transformer, method, within):
    for speedup, way in zip(rows.SPEEDUPS, rows.pareto_groups()[method].ways, strict=True):
        request = PlanRequest(way.steps, 32, 32, lambda _n_tokens: 2.5)
        plan = make_plan(load_recipe(way.recipe), request)
        cost = sum(pass_flops(transformer, step.n_tokens, 40) for step in plan.steps)
        assert 50 * pass_flops(transformer, 1024, 40) / cost == pytest.approx(speedup, rel=within)


def test_fewer_steps_are_rounded_half_up():
    assert [w.steps for w in rows.pareto_groups()["fewer steps"].ways] == [
        math.floor(50 / x + 0.5) for x in rows.SPEEDUPS
    ]


def test_shifted_steps_are_as_many_nearer_to_noise_and_of_second_order():
    groups = rows.pareto_groups()
    fewer = [way.steps for way in groups["fewer steps"].ways]
    ways = [*zip(fewer, groups["fresco"].ways, strict=True), *((n, rows.shifted(n)) for n in fewer)]
    for n, way in ways:
        plan = make_plan(load_recipe(way.recipe), PlanRequest(way.steps, 32, 32, lambda _: 1.0))
        assert len(plan.steps) == n
        even = [1 - i / n for i in range(n)]
        expected = [5 * u / (1 + 4 * u) for u in even]
        assert [step.sigma for step in plan.steps] == pytest.approx(expected)
        assert {step.order for step in plan.steps[1:-1]} == {2}
