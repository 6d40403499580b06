"""Recipes: what ships is valid, what is wrong is said all at once and with its place."""

from __future__ import annotations

import pytest
from hypothesis import given

from fresco.errors import RecipeError
from fresco.recipe import known_recipes, load_recipe
from tests.strategies import recipes


def test_recipes_ship():
    assert {"identity", "reference_5x", "reference_10x"} <= set(known_recipes())


@pytest.mark.parametrize("name", sorted(known_recipes()))
def test_shipped_recipe_round_trips(name):
    recipe = load_recipe(name)
    assert load_recipe(recipe.model_dump(by_alias=True, exclude_unset=True)) == recipe
    lines = known_recipes()[name].read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 40
    assert lines[0].startswith("# ")
    assert any(line.startswith("#   fresco ") for line in lines[:3])


@given(recipes())
def test_generated_recipes_are_valid(raw):
    assert len(load_recipe(raw).bounds()) == len(raw["stages"])


WHOLE = {"cell": 2, "steps": 1, "until_sigma": 0.5}
MIXED = {"cell": "mixed", "steps": 2, "until_sigma": 0.2}
PROMOTE = {"score": "edges", "budget": [0.2, 0.4]}


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ({}, "a mixed stage needs promote @ $.stages[1]"),
        ({"promote": {"score": "edge"}}, "unknown score 'edge'; known: "),
        ({"promote": {"score": "edges"}}, "give budget or tau, one of the two"),
        ({"promote": {**PROMOTE, "tau": 1}}, "give budget or tau, one of the two"),
        ({"promote": {**PROMOTE, "budget": [0.4, 0.2]}}, "shares must not fall @"),
        ({"promote": {**PROMOTE, "budget": [0.4]}}, "1 shares for 2 steps @"),
        ({"promote": {**PROMOTE, "split": 0.3}}, "split must let 0.4 of the cells be fine @"),
        ({"promote": PROMOTE, "positions": "native"}, "a mixed layout has no native grid"),
        ({"promote": PROMOTE, "lift": {"form": "clean"}}, "mixed stage needs to_sigma @"),
        (
            {"promote": PROMOTE, "positions": "fine", "restrict": "injection"},
            "anchors keep their own positions",
        ),
        ({"cell": 2, "promote": PROMOTE}, "only a stage with cell: mixed promotes"),
        ({"promote": {"score": "edges", "tau": True}}, "must be a number, got True @"),
        ({"promote": {**PROMOTE, "split": True}}, "must be a number, got True @"),
        ({"promote": {**PROMOTE, "multiple": True}}, "must be a number, got True @"),
        ({"steps": True, "promote": PROMOTE}, "must be a number, got True @ $.stages[1].steps"),
        ({"shift": True, "promote": PROMOTE}, "must be a number, got True @ $.stages[1].shift"),
    ],
)
def test_problems_of_mixed_stages(stage, expected):
    found = problems(stages=[WHOLE, {**MIXED, **stage}, {"cell": 1, "steps": 1}])
    assert any(expected in problem for problem in found), found


@pytest.mark.parametrize("budget", [1.2, True, [0.2, True], [], [-0.1, 0.2], "half"], ids=repr)
def test_budgets_that_are_no_shares_are_said_once(budget):
    stage = {**MIXED, "promote": {"score": "edges", "budget": budget}}
    found = problems(stages=[WHOLE, stage, {"cell": 1, "steps": 1}])
    expected = f"shares must be numbers in [0, 1], got {budget!r} @ $.stages[1].promote.budget"
    assert len(found) == 1, found
    assert expected in found[0]


def test_a_mixed_stage_first_or_after_a_fine_one_is_refused():
    mixed, last = {**MIXED, "promote": PROMOTE}, {"cell": 1, "steps": 1}
    expected = "a mixed stage needs a coarser stage before it @ $.stages[0].cell"
    assert expected in problems(stages=[mixed, last])
    found = problems(stages=[{**WHOLE, "cell": 1}, mixed, last])
    assert "mixed is coarser than the stage before it (1) @ $.stages[1].cell" in found


def test_a_later_mixed_stage_goes_on_from_all_before_it():
    def stage(until, **promote):
        return {**MIXED, "until_sigma": until, "promote": {"score": "edges", **promote}}

    some, any_ = stage(0.4, budget=0.5, split=0.8), stage(0.3, tau=1.0, split=0.8)
    for last, expected in (
        (stage(0.2, budget=0.2), "0.5 of them are @ $.stages[3].promote"),
        (stage(0.2, budget=0.6, split=0.7), "0.8 of them are @ $.stages[3].promote.split"),
    ):
        found = problems(stages=[WHOLE, some, any_, last, {"cell": 1, "steps": 1}])
        assert len(found) == 1, found
        assert expected in found[0]


def test_spectral_details_of_promoted_cells_are_refused():
    last = {"cell": 1, "steps": 1, "lift": {"form": "spectral", "to_sigma": 0.5}}
    found = problems(stages=[WHOLE, {**MIXED, "promote": PROMOTE}, last])
    expected = "spectral redraws the details of whole grids, not of promoted cells"
    assert found == (f"{expected} @ $.stages[2].lift",)


def test_cells_may_grow_again_in_a_rival_s_recipe():
    stages = [{**WHOLE, "cell": 1, "until_sigma": 0.8}, WHOLE, {"cell": 1, "steps": 1}]
    assert "2 is coarser than the stage before it (1) @ $.stages[1].cell" in problems(stages=stages)
    load_recipe({"schema": 1, "model": "any", "rival": "a paper", "stages": stages})


def problems(**content):
    with pytest.raises(RecipeError) as caught:
        load_recipe({"schema": 1, "model": "any", **content})
    return caught.value.problems


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        (
            [{"cell": 2, "steps": 4}],
            "the last stage must end at sigma 0 on the full grid, "
            "got sigma 0 with cell 2 @ $.stages[0]",
        ),
        (
            [{"cell": 1, "steps": 4, "until_sigma": 0.3}],
            "the last stage must end at sigma 0 on the full grid, "
            "got sigma 0.3 with cell 1 @ $.stages[0]",
        ),
        (
            [{"cell": 2, "steps": 4}, {"cell": 1, "steps": 1}],
            "a stage before the last needs until_sigma @ $.stages[0].until_sigma",
        ),
        (
            [{"cell": 2, "steps": 4, "until_sigma": 0}, {"cell": 1, "steps": 1}],
            "only the last stage ends at sigma 0 @ $.stages[0].until_sigma",
        ),
        (
            [
                {"cell": 4, "steps": 1, "until_sigma": 0.4},
                {"cell": 2, "steps": 1, "until_sigma": 0.5},
                {"cell": 1, "steps": 1},
            ],
            "0.5 is not below the stage's start 0.4 @ $.stages[1].until_sigma",
        ),
        (
            [
                {"cell": 2, "steps": 1, "until_sigma": 0.4},
                {"cell": 1, "steps": 1, "lift": {"form": "clean", "to_sigma": 0.3}},
            ],
            "to_sigma 0.3 is below 0.4, where the stage before it ends @ $.stages[1].lift.to_sigma",
        ),
        (
            [
                {"cell": 2, "steps": 1, "until_sigma": 0.4},
                {"cell": 4, "steps": 1, "until_sigma": 0.3},
                {"cell": 1, "steps": 1},
            ],
            "4 is coarser than the stage before it (2) @ $.stages[1].cell",
        ),
        (
            [{"cell": 1, "steps": 1, "lift": {"form": "clean"}}],
            "the first stage starts at sigma 1; it has nothing to lift @ $.stages[0].lift",
        ),
        (
            [{"cell": 1, "steps": 1, "up": "bicubic"}],
            "up needs a next stage that lifts with form clean or fresh @ $.stages[0].up",
        ),
        (
            [{"cell": 1, "steps": 2, "sigmas": [1.0], "shift": 2}],
            "give shift or sigmas, not both @ $.stages[0].shift",
        ),
        (
            [{"cell": 1, "steps": 2, "sigmas": [1.0]}],
            "1 sigmas for 2 steps @ $.stages[0].sigmas",
        ),
        (
            [{"cell": 1, "steps": 2, "sigmas": [0.9, 0.95]}],
            "sigmas must fall from 1 and stay above 0 @ $.stages[0].sigmas",
        ),
        (
            [{"cell": 1, "steps": 3, "order": 2}],
            "order 2 needs 4 steps here or more, got 3: the first step of a stage, the one after "
            "pure noise and the last to sigma 0 are of order 1 @ $.stages[0].order",
        ),
        (
            [
                {"cell": 2, "steps": 1, "until_sigma": 0.4},
                {"cell": 1, "steps": 2, "order": 2},
            ],
            "order 2 needs 3 steps here or more, got 2: the first step of a stage, the one after "
            "pure noise and the last to sigma 0 are of order 1 @ $.stages[1].order",
        ),
        ([{"cell": 1, "steps": 4, "order": 3}], "Input should be 1 or 2 @ $.stages[0].order"),
        (
            [{"cell": 1, "steps": 4, "order": True}],
            "must be a number, got True @ $.stages[0].order",
        ),
        (
            [{"cell": 3, "steps": 2}],
            "cell 3 is not supported; supported: 4, 2, 1, mixed @ $.stages[0].cell",
        ),
        (
            [{"cell": 1, "steps": 0}],
            "Input should be greater than or equal to 1 @ $.stages[0].steps",
        ),
        (
            [{"cell": 1, "steps": 1, "until_sigma": float("nan")}],
            "Input should be a finite number @ $.stages[0].until_sigma",
        ),
    ],
)
def test_stages_are_checked(stages, expected):
    assert expected in problems(stages=stages)


def test_all_problems_are_reported_at_once():
    found = problems(
        stagse=[],
        stages=[{"cell": 2, "stpes": 4, "to_until": 0.5, "lift": {"form": "clear"}}],
        stack=[{"kind": "cahce"}],
    )
    assert len(found) == 6
    assert (
        "unknown key 'stagse'; known: schema, model, requires, rival, baseline, stages, stack, "
        "expects, validated. Did you mean 'stages'? @ $.stagse" in found
    )
    assert "Field required @ $.stages[0].steps" in found
    assert any("Did you mean 'steps'? @ $.stages[0].stpes" in problem for problem in found)
    assert any("Did you mean 'until_sigma'? @ $.stages[0].to_until" in problem for problem in found)
    assert any("'latent', 'fresh' or 'spectral'" in problem for problem in found)
    assert any(
        problem.startswith("unknown technique 'cahce'; known: cache, ")
        and problem.endswith("Did you mean 'cache'? @ $.stack[0].kind")
        for problem in found
    )


def test_a_file_s_problems_name_the_file(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("schema: 1\nmodel: any\nstages:\n  - {cell: 1, steps: 2, until_sigma: 1.5}\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    message = "bad.yaml: 1 problem(s)\n  - Input should be less than 1 @ $.stages[0].until_sigma"
    assert str(caught.value) == message


def test_a_switch_is_no_schema():
    with pytest.raises(RecipeError, match=r"must be a number, got True @ \$.schema"):
        load_recipe({"schema": True, "model": "any"})


@pytest.mark.parametrize("text", ["", "- 1", "schema: [", "a: !!python/object:os.system x"])
def test_files_that_are_no_recipe_are_refused(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=r"bad.yaml: \d problem"):
        load_recipe(str(path))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"no such file; .*`fresco recipes list`"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="no such file"):
        load_recipe("~nobody-of-this-name/one.yaml")
    with pytest.raises(RecipeError, match="unknown recipe"):
        load_recipe("model: any, " * 50)  # longer than a file's name may be


def test_another_schema_is_refused():
    assert problems(schema=2) == ("Input should be 1 @ $.schema",)


def test_a_file_without_an_extension_is_a_file_unless_a_recipe_has_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "reference_5x"):
        (tmp_path / name).write_text("schema: 1\nmodel: any\n")
    assert load_recipe("mine").model == "any"
    assert load_recipe("reference_5x").model == "FluxTransformer2DModel"
