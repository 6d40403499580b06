"""What README, docs and recipes tell to run: the code runs, the commands have those options."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

import fresco.cli
import fresco.reference
from fresco.overrides import override
from fresco.recipe import known_recipes, load_recipe
from tests.reference_parts import assemble_untrained

ROOT = Path(__file__).parents[1]
TEXTS = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")), *known_recipes().values()]
COMMAND = re.compile(r"(?:`|&& |^ {4}|^#   )(fresco [a-z-]+[^`\n]*)", re.MULTILINE)
CHANGE = re.compile(r"--set (\S+\]\.\w+=\d+)")


def commands():
    """Every command, with the file that has it."""
    for path in TEXTS:
        for command in COMMAND.findall(path.read_text(encoding="utf-8")):
            yield path.name, command.replace("[", "").replace("]", "")


def test_commands_are_found_in_all_kinds_of_text():
    names = {name for name, _ in commands()}
    assert {"README.md", "changelog.md", "bench.md", "reference_5x.yaml"} <= names


def test_every_command_that_is_told_is_there_with_its_options():
    wrong = []
    for name, text in commands():
        words = shlex.split(text, comments=True)[1:]
        command = typer.main.get_command(fresco.cli.app)
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        known = {option for each in command.params for option in each.opts}
        if hasattr(command, "commands") and words:
            wrong.append(f"{name}: {text}")
        asked = {word.partition("=")[0] for word in words if word.startswith("--")}
        wrong += [f"{name}: {text} ({option})" for option in asked - known]
    assert wrong == []


@pytest.mark.parametrize("name", sorted(known_recipes()))
def test_a_change_that_a_recipe_tells_of_fits_it(name):
    for change in CHANGE.findall(known_recipes()[name].read_text(encoding="utf-8")):
        assert override(load_recipe(name), [change]) != load_recipe(name)


def test_the_readme_s_code_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fresco.reference, "PIPELINE", assemble_untrained(tmp_path))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    small = code.replace("num_inference_steps=50", "num_inference_steps=6, height=64, width=64")
    assert small != code
    exec(compile(small, "README.md", "exec"), {})
    assert "stage  sigma side tokens" in capsys.readouterr().out
