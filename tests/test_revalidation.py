"""What ships is validated again in CI, and the command that writes all records works."""

from __future__ import annotations

import json
import shutil

import pytest
import typer

from fresco.recipe import known_recipes, load_recipe
from fresco.reference.dataset import held_out_captions
from tests import write_records
from tests.command import run


def test_a_reference_recipe_still_meets_what_it_expects(tmp_path):
    """Two captions: it runs as planned, its FLOPs, its speed here, what the judge says."""
    name = "reference_5x"
    recipe, prompts, file = (tmp_path / each for each in (f"{name}.yaml", "prompts", "record"))
    shutil.copy(known_recipes()[name], recipe)
    prompts.write_text("\n".join(caption.text for caption in held_out_captions(2)))
    asked = ("--model", "reference", "--prompts", str(prompts), "--floor", "none")
    result = run("validate", str(recipe), *asked, "--no-write", "--json", str(file))
    assert result.exit_code == 0, result.output
    found, bounds = json.loads(file.read_text()), load_recipe(name).expects
    assert found["speedup"] >= bounds.speedup > 1
    assert found["flops_speedup"] >= bounds.flops_speedup > 1


def test_records_are_written_for_all_recipes_of_a_kind(tmp_path, monkeypatch):
    asked = {}

    def validate(recipe, **more):
        captions = more["prompts"].read_text() if more else None
        asked[recipe] = (more.get("model"), captions, more.get("floor"))
        if recipe.endswith("_5x.yaml") or recipe == "sd35_fast":
            raise typer.Exit(1)

    monkeypatch.setattr(write_records, "validate", validate)
    with pytest.raises(typer.Exit):
        write_records.reference(prompts=2, into=tmp_path / "copies", floor="compile")
    names = [name for name in known_recipes() if name.startswith("reference_")]
    assert list(asked) == [str(tmp_path / "copies" / f"{name}.yaml") for name in names]
    captions = "\n".join(caption.text for caption in held_out_captions(2)) + "\n"
    assert set(asked.values()) == {("reference", captions, "compile")}
    asked.clear()
    with pytest.raises(typer.Exit):
        write_records.mechanics()
    assert {"sd35_fast", "sd35_quality", "flux1-dev_fast"} <= asked.keys()
    assert not {"identity", "rival_ralu", "reference_5x"} & asked.keys()
    assert set(asked.values()) == {(None, None, None)}
    write_records.mechanics(only=["sd35_quality"])
