"""The recipes that `fresco tune` tries, and those that it picks of them."""

from __future__ import annotations

import json

import pytest
from diffusers import UniPCMultistepScheduler

import fresco
import fresco.reference
from fresco.candidates import all_stages, check_searchable, pick_candidates
from fresco.errors import AdapterError, FrescoError, ScheduleError
from fresco.recipe import load_recipe
from fresco.stages import least_of_order_2, stage_bounds
from tests.families import FAMILIES

BASELINE = {"steps": 50, "height": 256, "width": 256}
KINDS = {(1,), (2, "mixed", 1), (2, 1), (4, 2, 1)}


@pytest.fixture
def pipe():
    """The reference pipeline, which no test here samples from."""
    return fresco.reference.load()


@pytest.mark.parametrize("n", [1, 2, 4, 8, 50])
@pytest.mark.parametrize("nearer", [{}, {"shift": 5.0}])
def test_every_candidate_is_valid_and_of_second_order_where_it_can(n, nearer):
    found = all_stages(n, nearer)
    assert len({json.dumps(each) for each in found}) == len(found)
    assert any("shift" in stage for stages in found for stage in stages) == bool(nearer)
    for stages in found:
        recipe = {"schema": 1, "model": "any", "baseline": {"steps": n}, "stages": stages}
        checked = load_recipe(recipe).stages  # every stage keeps a step
        for stage, bounds in zip(checked, stage_bounds(checked), strict=True):
            is_enough = stage.steps >= least_of_order_2(*bounds)
            assert stage.order == (2 if is_enough and stage.cell in ("mixed", 1) else 1)


def test_what_is_best_on_the_reference_model_is_among_the_candidates():
    recipes = [
        {"schema": 1, "model": "any", "stages": stages} for stages in all_stages(50, {"shift": 5.0})
    ]
    tried = [load_recipe(each).stages for each in recipes]
    for name in ("reference_balanced", "reference_quality", "reference_10x"):
        assert tried.count(load_recipe(name).stages) == 1


def cells_of(content):
    return tuple(stage["cell"] for stage in content["stages"])


@pytest.mark.parametrize(("speed", "steps"), [(10, 5), (7, 7)])
def test_candidates_are_picked_around_the_speed_that_is_asked_for(pipe, speed, steps):
    chosen = pick_candidates(pipe, BASELINE, 40, speed, 24)
    speeds = [fresco.plan(pipe, each, text_tokens=40).flops_speedup for each in chosen]
    assert speeds == sorted(speeds)
    bare = [each for each, content in zip(speeds, chosen, strict=True) if not content["stack"]]
    assert all(speed <= each < 1.5 * speed for each in bare)
    assert all(0.7 * speed < each < 1.5 * speed for each in speeds)
    assert min(speeds) < speed  # a cache may save the rest
    kinds = [(cells_of(each), bool(each["stack"])) for each in chosen]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        (cells, cached): 3 for cells in KINDS for cached in (False, True)
    }
    nearer = [{"cell": 1, "steps": steps, "shift": 5.0, "order": 2}]
    assert nearer in [each["stages"] for each in chosen if not each["stack"]]


def test_without_a_speed_candidates_of_every_kind_are_picked_over_all_of_theirs(pipe):
    chosen = pick_candidates(pipe, BASELINE, 40, None, 24)
    assert len(chosen) == 24
    for cells in KINDS:
        alike = [each for each in chosen if cells_of(each) == cells and not each["stack"]]
        speeds = [fresco.plan(pipe, each, text_tokens=40).flops_speedup for each in alike]
        assert len(speeds) == 3
        assert speeds[-1] > 2 * speeds[0]
    few = [fresco.plan(pipe, each, text_tokens=40) for each in
           pick_candidates(pipe, BASELINE, 40, None, 8)]  # fmt: skip
    assert all(3 < each.flops_speedup < 15 for each in few)  # none of the slowest or the fastest


@pytest.mark.parametrize("name", ["sana", "cogvideox"])
def test_a_model_is_searched_in_what_it_takes(name):
    pipe = FAMILIES[name].make()
    baseline = {"steps": 10, "height": 64, "width": 64}
    chosen = pick_candidates(pipe, baseline, 16, 2.0, 500)
    assert ((2, "mixed", 1) in map(cells_of, chosen)) == (name != "sana")
    assert any("shift" in s for each in chosen for s in each["stages"]) == (name == "sana")
    assert any(each["stack"] for each in chosen) == (name != "sana")


def test_a_scheduler_that_stages_do_not_take_is_refused(pipe):
    pipe.scheduler = UniPCMultistepScheduler()
    with pytest.raises(ScheduleError, match="UniPCMultistepScheduler"):
        pick_candidates(pipe, BASELINE, 40, 4.0, 6)


def test_a_pipeline_without_a_transformer_is_refused():
    with pytest.raises(AdapterError, match="a pipeline with a transformer, got object"):
        check_searchable(object())


def test_what_no_candidate_can_do_is_said(pipe):
    with pytest.raises(FrescoError, match="at least"):
        pick_candidates(pipe, BASELINE, 0, 2.0, 6)
