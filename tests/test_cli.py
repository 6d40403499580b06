import subprocess
import sys

import pytest
from typer.testing import CliRunner

import fresco.cli
import fresco.reference
from fresco.recipe import known_recipes
from tests.reference_parts import assemble_untrained


def run(*arguments, **environment):
    environment = {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"} | environment
    result = CliRunner().invoke(fresco.cli.app, arguments, env=environment)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(autouse=True)
def _wide_console(monkeypatch):
    monkeypatch.setattr(fresco.cli, "console", fresco.cli.Console(width=200))


def test_version_is_that_of_the_package():
    result = run("--version")
    assert result.exit_code == 0
    assert result.output.startswith("fresco 0.")


@pytest.mark.parametrize(
    "command", [(), ("demo",), ("recipes",), ("reference",), ("reference", "train")]
)
def test_help_is_there(command):
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_the_command_line_imports_nothing_heavy():
    heavy = "('torch', 'diffusers', 'matplotlib')"
    code = f"import sys, fresco.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_recipes_lists_all_of_them():
    result = run("recipes")
    assert result.exit_code == 0
    assert known_recipes()
    for name in known_recipes():
        assert name in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prompt", "a red dog"), "words of the reference grammar, got dog"),
        (("--recipe", "reference_5"), "Did you mean 'reference_5x'? @ $"),
        (("--out", sys.executable), "expected a directory to write to"),
    ],
)
def test_bad_input_to_the_demo_is_a_clear_error(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("demo", *arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


def test_a_package_without_weights_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(fresco.reference, "PIPELINE", tmp_path)
    result = run("reference", "evaluate")
    assert result.exit_code == 2
    assert "Reinstall fresco" in result.output


def test_demo_and_evaluate_print_their_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(fresco.reference, "PIPELINE", assemble_untrained(tmp_path))
    out = tmp_path / "out"
    result = run("demo", "--prompt", "a red ring", "--steps", "2", "--out", str(out), "--seed", "4")
    assert result.exit_code == 0
    for row in ("full", "accelerated", "fewer steps"):
        assert row in result.output
    assert {path.name for path in out.iterdir()} == {"comparison.png", "report.json"}
    result = run("reference", "evaluate", "--prompts", "2", "--steps", "1")
    assert result.exit_code == 0
    assert "2 held-out captions, 1 steps" in result.output
    for name in ("place", "shape", "scene"):
        assert name in result.output


def test_judge_prints_what_it_reads_right():
    result = run("reference", "judge", "--pictures", "8")
    assert result.exit_code == 0
    assert "background_kind" in result.output
