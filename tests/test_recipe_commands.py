"""What recipes say beyond their stages, and the commands that list, show and check them."""

from __future__ import annotations

import json

import pytest

import fresco.requires
from fresco.errors import RecipeError
from fresco.recipe import Recipe, known_recipes, load_recipe, recipe_schema
from fresco.techniques import techniques
from tests.command import run

RECORD = {
    "date": "2026-01-31",
    "covers": ["mechanics", "FLOPs"],
    "model": "reference",
    "versions": {"torch": "2.13.0"},
    "hardware": "a laptop",
    "steps": 50,
    "flops_speedup": 5.1,
}


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
    assert rows["reference_5x"]["stages"] == "2 x 1, 1 x 9"
    mine = tmp_path / "mine.yaml"
    mine.write_text(json.dumps({"schema": 1, "model": "any", "validated": [RECORD]}))
    monkeypatch.setattr("fresco.recipe.known_recipes", lambda: {"mine": mine})
    assert "mechanics, FLOPs" in run("recipes").output


def test_records_of_other_stages_are_said_to_be_stale(tmp_path, monkeypatch):
    file = tmp_path / "mine.yaml"
    content = {"schema": 1, "model": "any", "stages": [{"cell": 1, "steps": 2}]}
    record = {**RECORD, "recipe": load_recipe(content).digest}
    file.write_text(json.dumps({**content, "expects": {"ssim": 0.5}, "validated": [record]}))
    assert load_recipe(file).stale == ()  # a bound changes no picture
    in_full = {"stages": [{"cell": 1, "steps": 2.0, "until_sigma": 0, "order": 1}], "stack": []}
    assert load_recipe({**content, **in_full}).digest == record["recipe"]
    quantized, cached = {"kind": "quantize", "form": "int8_weight_only"}, {"kind": "cache"}
    cached["method"] = "first_block"
    orders = [[quantized, cached], [cached, quantized]]
    assert len({load_recipe({**content, "stack": order}).digest for order in orders}) == 1
    by_default = [[{"kind": "compile"}], [{"kind": "cache_dit"}]]
    assert len({load_recipe({**content, "stack": stack}).digest for stack in by_default}) == 2
    assert run("recipes", "check", str(file)).output == f"{file}: valid\n"
    monkeypatch.setattr("fresco.recipe.known_recipes", lambda: {"mine": file})
    assert "mechanics, FLOPs" in run("recipes").output
    for change in (
        {"stages": [{"cell": 1, "steps": 3}]},
        {"stack": [{"kind": "compile"}]},
        {"baseline": {"steps": 9}},
        {"model": "FluxTransformer2DModel"},
    ):
        file.write_text(json.dumps({**content, **change, "validated": [record]}))
        assert [each.recipe for each in load_recipe(file).stale] == [record["recipe"]]
        result = run("recipes", "check", str(file))
        assert result.exit_code == 0
        assert "its record of 2026-01-31 on reference is of other stages or stack" in result.output
        listed = run("recipes").output
        assert "stale" in listed
        assert "mechanics" not in listed


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
