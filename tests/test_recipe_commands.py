"""What recipes say beyond stages, the commands about them, and the recipes of FLUX.1."""

from __future__ import annotations

import json

import pytest
import torch

import fresco
import fresco.requires
from fresco.errors import RecipeError
from fresco.recipe import Recipe, known_recipes, load_recipe, recipe_schema
from fresco.techniques import techniques
from tests.conftest import draw_latents
from tests.test_cli import run

RECORD = {
    "date": "2026-01-31",
    "covers": ["mechanics", "FLOPs"],
    "model": "reference",
    "versions": {"torch": "2.13.0"},
    "hardware": "a laptop",
    "steps": 50,
    "flops_speedup": 5.1,
}
FLUX = [f"{model}_{intent}" for model in ("flux1-dev", "flux1-schnell")
        for intent in ("quality", "balanced", "fast")]  # fmt: skip


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


@pytest.mark.parametrize("name", FLUX)
def test_recipes_of_flux_do_what_they_expect_in_flops(name):
    model, _, _ = name.partition("_")
    found, recipe = fresco.plan(model, name), load_recipe(name)
    assert recipe.expects.model_dump(exclude_none=True).keys() == {"flops_speedup"}
    bound = recipe.expects.flops_speedup
    assert bound <= found.flops_speedup < 1.1 * bound  # a bound that says something
    assert all("pictures" not in record.covers for record in recipe.validated)


@pytest.mark.parametrize("model", ["flux1-dev", "flux1-schnell"])
def test_intents_are_in_the_order_of_their_speed(model):
    speeds = [load_recipe(f"{model}_{intent}").expects.flops_speedup
              for intent in ("quality", "balanced", "fast")]  # fmt: skip
    assert speeds == sorted(set(speeds))


@pytest.mark.parametrize("name", FLUX)
def test_recipes_of_flux_run_as_planned(name, tiny_flux_pipe):
    recipe = load_recipe(name)
    before = draw_latents(tiny_flux_pipe, num_inference_steps=2)
    with fresco.accelerate(tiny_flux_pipe, recipe) as fast:
        latents = draw_latents(tiny_flux_pipe, num_inference_steps=recipe.baseline_steps)
        assert [step.tokens for step in fast.report.steps] == [s.n_tokens for s in fast.plan.steps]
        assert fast.report.n_passes == sum(stage.steps for stage in recipe.stages)
    assert latents.isfinite().all()
    assert torch.equal(before, draw_latents(tiny_flux_pipe, num_inference_steps=2))


def test_list_says_what_is_expected_and_validated(tmp_path, monkeypatch):
    file = tmp_path / "list.json"
    for arguments in (("recipes",), ("recipes", "list", "--json", str(file))):
        result = run(*arguments)
        assert result.exit_code == 0
        assert "flux1-dev_balanced" in result.output
        assert "flops_speedup 4.8" in result.output
    rows = {row["recipe"]: row for row in json.loads(file.read_text())}
    assert rows.keys() == known_recipes().keys()
    assert rows["reference_5x"]["stages"] == "2 x 8, 1 x 8"
    mine = tmp_path / "mine.yaml"
    mine.write_text(json.dumps({"schema": 1, "model": "any", "validated": [RECORD]}))
    monkeypatch.setattr("fresco.recipe.known_recipes", lambda: {"mine": mine})
    assert "mechanics, FLOPs" in run("recipes").output


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
