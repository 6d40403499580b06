"""What recipes say beyond stages, the commands about them, and those of models not here."""

from __future__ import annotations

import json

import pytest
import torch

import fresco
import fresco.reference
import fresco.requires
from fresco.errors import RecipeError
from fresco.planner import model_of
from fresco.recipe import Recipe, known_recipes, load_recipe, recipe_schema
from fresco.sketch import load_model_config
from fresco.specimen import make_specimen
from fresco.techniques import techniques
from fresco.validation import check_mechanics, shortfalls
from fresco.weights import weights_digest
from tests.command import run
from tests.conftest import draw_latents

RECORD = {
    "date": "2026-01-31",
    "covers": ["mechanics", "FLOPs"],
    "model": "reference",
    "versions": {"torch": "2.13.0"},
    "hardware": "a laptop",
    "steps": 50,
    "flops_speedup": 5.1,
}
INTENTS = ("quality", "balanced", "fast")
MODELS = (
    *("flux1-dev", "flux1-schnell", "flux2", "hunyuan-video"),
    *("qwen-image", "sd35", "wan21", "z-image"),
)
BY_MODEL = [f"{model}_{intent}" for model in MODELS for intent in INTENTS]


def problems(**content):
    with pytest.raises(RecipeError) as caught:
        load_recipe({"schema": 1, "model": "any", **content})
    return caught.value.problems


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"requires": {"torch": ">=999"}}, "needs torch >=999, got "),
        ({"requires": {"peft": "newest"}}, "'newest' is no version window; write it as"),
        ({"requires": {"numpy": ">=1"}}, "unknown key 'numpy'; known: torch, diffusers, "),
        ({"expects": {"speed_up": 3}}, "Did you mean 'speedup'? @ $.expects.speed_up"),
        ({"expects": {"ssim": 1.2}}, "less than or equal to 1 @ $.expects.ssim"),
        ({"validated": [{**RECORD, "date": "soon"}]}, "@ $.validated[0].date"),
        ({"validated": [{**RECORD, "flop_speedup": 1}]}, "Did you mean 'flops_speedup'?"),
        ({"validated": [{**RECORD, "covers": ["beauty"]}]}, "@ $.validated[0].covers[0]"),
        ({"validated": [{**RECORD, "noise_floor": {"hwo": "x"}}]}, "Did you mean 'how'?"),
    ],
)
def test_requires_expects_and_validated_are_checked(content, expected):
    found = problems(**content)
    assert any(expected in problem for problem in found), found


def test_versions_inside_their_windows_load():
    recipe = load_recipe({"schema": 1, "model": "any", "requires": {"torch": ">=2,<99"}})
    assert recipe.requires.torch == ">=2,<99"


def test_a_missing_package_is_outside_every_window(monkeypatch):
    def missing(name):
        raise fresco.requires.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", missing)
    (problem,) = problems(requires={"torchao": ">=0.1"})
    assert problem.startswith("needs torchao >=0.1, got none; try: pip install 'torchao>=0.1'")


def test_recipes_are_loaded_by_name_path_content_and_as_they_are(tmp_path):
    recipe = load_recipe("reference_5x")
    file = tmp_path / "my.yaml"
    file.write_text(known_recipes()["reference_5x"].read_text())
    content = recipe.model_dump(by_alias=True, exclude_unset=True)
    assert load_recipe(str(file)) == load_recipe(file) == load_recipe(content) == recipe
    assert load_recipe(Recipe.model_validate(content)) == recipe


def test_every_model_has_recipes_at_three_intents():
    expected = {f"{model}_{intent}" for model in (*MODELS, "reference") for intent in INTENTS}
    assert expected <= known_recipes().keys()


@pytest.mark.parametrize("name", BY_MODEL)
def test_records_of_models_without_weights_meet_their_bounds_and_claim_no_quality(name):
    recipe = load_recipe(name)
    assert recipe.model == load_model_config(model_of(name)).transformer["_class_name"]
    assert recipe.expects.model_dump(exclude_none=True).keys() == {"flops_speedup"}
    (record,) = recipe.validated
    assert record.covers == ("mechanics", "FLOPs")
    assert shortfalls(recipe.expects, record) == []
    bound = recipe.expects.flops_speedup
    assert record.flops_speedup < 1.1 * bound  # a bound that says something
    assert record.speedup is record.psnr_db is record.ssim is record.judge is None


@pytest.mark.parametrize(
    "name", [name for name in known_recipes() if name.startswith(("reference_", "rival_"))]
)
def test_bounds_of_recipes_for_the_reference_model_say_something_and_are_met(name):
    bounds, found = load_recipe(name).expects, fresco.plan("reference", name).flops_speedup
    assert bounds.flops_speedup <= found < 1.1 * bounds.flops_speedup
    if name.startswith("reference_"):
        assert 1 < bounds.speedup < found  # time is won by FLOPs that are not spent


@pytest.mark.parametrize("name", ["flux1-dev_fast", "flux1-schnell_fast", "sd35_fast"])
def test_flops_of_a_record_are_counted_again(name):
    (record,) = load_recipe(name).validated
    found = fresco.plan(model_of(name), name)
    assert found.flops_speedup == pytest.approx(record.flops_speedup, rel=1e-3)


@pytest.mark.parametrize("model", [*MODELS, "reference"])
def test_intents_are_in_the_order_of_their_speed(model):
    speeds = [load_recipe(f"{model}_{intent}").expects.flops_speedup for intent in INTENTS]
    assert speeds == sorted(set(speeds))


@pytest.mark.parametrize("name", BY_MODEL[:6])
def test_recipes_of_flux_run_as_planned(name, tiny_flux_pipe):
    recipe = load_recipe(name)
    before = draw_latents(tiny_flux_pipe, num_inference_steps=2)
    with fresco.accelerate(tiny_flux_pipe, recipe) as fast:
        latents = draw_latents(tiny_flux_pipe, num_inference_steps=recipe.baseline_steps)
        assert [step.tokens for step in fast.report.steps] == [s.n_tokens for s in fast.plan.steps]
        assert fast.report.n_passes == sum(stage.steps for stage in recipe.stages)
    assert latents.isfinite().all()
    assert torch.equal(before, draw_latents(tiny_flux_pipe, num_inference_steps=2))


@pytest.mark.parametrize("model", [model for model in MODELS if not model.startswith("flux1")])
def test_recipes_run_as_planned_on_a_tiny_pipeline_of_the_model_s_class(model):
    specimen = make_specimen(model_of(f"{model}_fast"))
    for intent in INTENTS:
        recipe = load_recipe(f"{model}_{intent}")
        check_mechanics(specimen, recipe)
        with fresco.accelerate(specimen.pipe, recipe) as fast:
            specimen.draw(recipe.baseline_steps)
            sides = [step.side for step in fast.report.steps]
        assert sides == [stage.cell for stage in recipe.stages for _ in range(stage.steps)]


def test_a_specimen_is_the_same_every_time_and_leaves_the_seed_alone():
    before = torch.random.get_rng_state()
    one, other = (make_specimen("sd35-large") for _ in range(2))
    assert torch.equal(one.draw(2), other.draw(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert one.pipe.scheduler.config.shift == 3
    assert one.name == "tiny StableDiffusion3Pipeline, random weights"


def test_the_page_of_recipes_and_the_readme_s_table_are_fresh():
    from tests import write_recipes

    why = "run `python -m tests.write_recipes` and commit what it writes"
    assert write_recipes.PAGE.read_text(encoding="utf-8") == write_recipes.make_page(), why
    readme = write_recipes.README.read_text(encoding="utf-8")
    assert readme == write_recipes.make_readme(readme), why
    assert all(f"`{name}`" in write_recipes.make_page() for name in known_recipes())


def test_pictures_of_the_reference_model_are_of_the_weights_that_ship():
    """A record of other weights is stale: `python -m tests.write_records reference`."""
    shipped = weights_digest(fresco.reference.load())[:16]
    measured = [(name, record.weights) for name in known_recipes()
                for record in load_recipe(name).validated
                if "pictures" in record.covers and record.model == "reference"]  # fmt: skip
    assert [name for name, weights in measured if weights != shipped] == []


def test_yaml_that_would_hide_something_is_refused(tmp_path):
    for text, reason in (
        ("schema: 1\nmodel: any\nmodel: any\n", "the key 'model' is there twice"),
        ("schema: 1\nmodel: &m any\nrival: *m\n", "recipes have no anchors"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("a: !!map b", "expected a mapping node"),
        ("{[1]: 2, [1]: 3}", "unhashable key"),
        ("a: 2026-13-45", "month must be in 1..12"),
        ("[" * 10000, "recursion"),
    ):
        file = tmp_path / "bad.yaml"
        file.write_text(text)
        with pytest.raises(RecipeError, match=reason):
            load_recipe(file)


def test_problems_between_fields_are_said_with_those_of_parsing():
    found = problems(
        stagse=[],
        stages=[{"cell": 1, "steps": 1, "until_sigma": 0.5}],
        requires={"torch": ">=999"},
        stack=[{"kind": "cahce"}],
    )
    places = {problem.rpartition(" @ ")[2] for problem in found}
    assert places == {"$.stagse", "$.stages[0]", "$.requires.torch", "$.stack[0].kind"}


def test_wrong_types_are_called_as_in_yaml():
    found = problems(stages=3, baseline=50, stack=[5, {"method": "first_block"}], expects=False)
    assert "Input should be a list @ $.stages" in found
    for place in ("$.baseline", "$.expects", "$.stack[0]"):
        assert f"Input should be a mapping @ {place}" in found
    kind = "a technique needs its kind: cache, cache_dit, compile, lora, quantize @ $.stack[1]"
    assert kind in found


def test_what_is_no_recipe_at_all_is_a_clear_error():
    with pytest.raises(RecipeError, match="expected the name of a recipe, a path"):
        load_recipe(5)


def test_list_says_what_is_expected_and_validated(tmp_path, monkeypatch):
    file = tmp_path / "list.json"
    for arguments in (("recipes",), ("recipes", "list", "--json", str(file))):
        result = run(*arguments)
        assert result.exit_code == 0
        assert "flux1-dev_balanced" in result.output
        assert "flops_speedup 4.8" in result.output
    rows = {row["recipe"]: row for row in json.loads(file.read_text())}
    assert rows.keys() == known_recipes().keys()
    assert rows["reference_5x"]["stages"] == "2 x 3, 1 x 9"
    mine = tmp_path / "mine.yaml"
    mine.write_text(json.dumps({"schema": 1, "model": "any", "validated": [RECORD]}))
    monkeypatch.setattr("fresco.recipe.known_recipes", lambda: {"mine": mine})
    assert "mechanics, FLOPs" in run("recipes").output


def test_a_recipe_that_does_not_load_here_leaves_the_list_whole(tmp_path, monkeypatch):
    mine, file = tmp_path / "mine.yaml", tmp_path / "list.json"
    mine.write_text("schema: 1\nmodel: any\nrequires: {torch: '>=999'}\n")
    known = {"identity": known_recipes()["identity"], "mine": mine}
    monkeypatch.setattr("fresco.recipe.known_recipes", lambda: known)
    result = run("recipes", "--json", str(file))
    assert result.exit_code == 0
    assert "mine: needs torch >=999, got " in result.output
    identity, other = json.loads(file.read_text())
    assert (identity["recipe"], identity["model"]) == ("identity", "any")
    assert other["recipe"] == "mine"
    assert other["problems"]


def test_show_prints_the_file_with_its_comments(tmp_path):
    file = tmp_path / "recipe.json"
    result = run("recipes", "show", "reference_5x", "--json", str(file))
    assert result.exit_code == 0
    assert result.output == known_recipes()["reference_5x"].read_text()
    assert load_recipe(json.loads(file.read_text())) == load_recipe("reference_5x")
    result = run("recipes", "show", "reference_5")
    assert result.exit_code == 2
    assert "Did you mean 'reference_5x'?" in result.output


def test_check_reports_every_problem_of_every_file(tmp_path):
    bad = tmp_path / "bad.yaml"
    bad.write_text("schema: 1\nmodel: any\nstagse: []\nstack: [{kind: cahce}]\n")
    worse = tmp_path / "worse.yaml"
    worse.write_text("a: !!python/object:os.system x")
    file = tmp_path / "problems.json"
    result = run("recipes", "check", "identity", str(bad), str(worse), "--json", str(file))
    assert result.exit_code == 2
    for text in ("identity: valid", "$.stagse", "Did you mean 'cache'?", "worse.yaml: 1 problem"):
        assert text in result.output
    counts = [len(found) for found in json.loads(file.read_text()).values()]
    assert counts == [0, 2, 1]
    assert run("recipes", "check", "identity", "reference_5x").exit_code == 0


def test_the_schema_is_strict_and_knows_every_technique(tmp_path):
    file = tmp_path / "schema.json"
    assert run("recipes", "schema", "--out", str(file)).exit_code == 0
    schema = json.loads(file.read_text())
    assert schema == recipe_schema()
    assert json.loads(run("recipes", "schema").output) == schema
    choices = {choice["$ref"] for choice in schema["properties"]["stack"]["items"]["anyOf"]}
    assert choices == {f"#/$defs/{kind}" for kind in techniques()}
    objects = [schema, *schema["$defs"].values()]
    assert all(each["additionalProperties"] is False for each in objects)
    for reference in _references(schema):
        place = schema
        for key in reference.removeprefix("#/").split("/"):
            place = place[key]


def _references(place):
    """Every $ref of a schema."""
    if isinstance(place, dict):
        if isinstance(place.get("$ref"), str):
            yield place["$ref"]
        place = place.values()
    elif not isinstance(place, list):
        return
    for part in place:
        yield from _references(part)
