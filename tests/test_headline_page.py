"""README's headline table has the figures of the JSON."""

import json

import pytest

from fresco import cli_bench
from fresco.reference.headline_rows import RECIPES, find_lora, recipe_way
from tests import write_headline


@pytest.mark.parametrize("name", RECIPES)
def test_the_table_is_of_the_recipes_that_ship(name):
    rows = {row["name"]: row for row in json.loads(write_headline.FIGURES.read_text())["rows"]}
    lora, _ = find_lora(None)
    assert rows[name]["recipe"] == recipe_way(name, lora).recipe, "run the command in README"


def test_the_table_is_of_the_lora_that_ships():
    lora, _ = find_lora(None)
    assert json.loads(write_headline.FIGURES.read_text())["lora"]["sha256"] == lora.digest


def test_the_table_is_that_of_the_json():
    text = write_headline.README.read_text(encoding="utf-8")
    why = "run `python -m tests.write_headline` and commit what it writes"
    assert text == write_headline.make_readme(text), why


def test_a_stale_table_is_noticed():
    text = write_headline.README.read_text(encoding="utf-8")
    changed = text.replace("| reference_10x | ", "| reference_10x | 9", 1)
    assert changed != text, "no row of reference_10x"
    assert write_headline.make_readme(changed) == write_headline.make_readme(text)


def test_no_figure_that_the_command_prints_is_cut_in_80_columns(monkeypatch, capsys):
    rows = json.loads(write_headline.FIGURES.read_text())["rows"]
    for row in rows:
        row |= {"scene_lead": -0.111, "scene_lead_interval": [-0.222, 0.333]}
    rows.append({"name": "a recipe whose LoRA is not there", "missing": "why"})
    monkeypatch.setattr("fresco.cli_parts.console.width", 80)
    cli_bench._print_headline(rows, "256 held-out captions")
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert max(map(len, printed.splitlines())) <= 80
    for row in rows[:-1]:
        assert f"{row['call_speedup']:.2f}x" in printed
        for name in ("scene_difference_interval", "scene_lead_interval"):
            low, high = row[name]
            assert f"[{low:+.1%}," in printed
            assert f"{high:+.1%}]" in printed
