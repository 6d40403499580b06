import json
import re
import subprocess
import sys

import pytest
import torch
import typer

import fresco.cli
import fresco.cli_parts
import fresco.reference
from fresco.output import OutputError, write_text
from fresco.quality import psnr_db
from fresco.recipe import known_recipes
from fresco.reference.dataset import make_example
from fresco.reference.measured import Measured
from tests.command import run
from tests.reference_parts import assemble_untrained


@pytest.fixture(autouse=True)
def _wide_console(monkeypatch):
    monkeypatch.setattr(fresco.cli_parts.console, "width", 200)


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


def test_every_command_that_prints_a_table_writes_it_as_json_too():
    without = []

    def visit(command, name):
        options = {option for each in command.params for option in each.opts}
        commands = getattr(command, "commands", {})
        if not commands and "--json" not in options:
            without.append(name)
        for key, each in commands.items():
            visit(each, f"{name} {key}".strip())

    visit(typer.main.get_command(fresco.cli.app), "")
    # pictures, weights and a schema: no tables
    assert sorted(without) == ["recipes schema", "reference distill", "reference train", "run"]


def test_json_that_cannot_be_written_exits_with_2(monkeypatch):
    monkeypatch.setattr(fresco.reference, "load", lambda *_, **__: pytest.fail("loaded"))
    quick = (("recipes",), ("recipes", "list"), ("recipes", "check", "identity"))
    slow = ("demo",), ("pareto",), *(("reference", n) for n in ("evaluate", "overhead", "judge"))
    for command in (*quick, *slow):
        result = run(*command, "--json", f"{sys.executable}/file.json")
        assert result.exit_code == 2
        assert "a directory to write to" in result.output


def test_a_file_is_written_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "file"
    write_text(file, "before")

    def interrupted(self, target):
        raise KeyboardInterrupt

    monkeypatch.setattr("pathlib.Path.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_text(file, "after")
    assert file.read_text() == "before"
    assert list(tmp_path.iterdir()) == [file]
    with pytest.raises(OutputError, match="a file to write to"):
        write_text(tmp_path / "none" / "file", "text")


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
    file = tmp_path / "new" / "report.json"
    asked = ("--steps", "2", "--out", str(out), "--seed", "4", "--json", str(file))
    result = run("demo", "--prompt", "a red ring", *asked)
    assert result.exit_code == 0
    for row in ("full", "accelerated", "fewer steps"):
        assert row in result.output
    assert {path.name for path in out.iterdir()} == {"comparison.png", "report.json"}
    assert json.loads(file.read_text()) == json.loads((out / "report.json").read_text())
    arguments = ("--prompts", "2", "--steps", "1", "--dtype", "bfloat16", "--json", str(file))
    result = run("reference", "evaluate", *arguments)
    assert "place" in json.loads(file.read_text())["fractions"]
    assert result.exit_code == 0
    assert "2 held-out captions, 1 steps, guidance 2.5, bfloat16" in " ".join(result.output.split())
    for name in ("place", "shape", "scene"):
        assert name in result.output


def test_judge_prints_what_it_reads_right(tmp_path):
    file = tmp_path / "judge.json"
    result = run("reference", "judge", "--pictures", "8", "--json", str(file))
    assert result.exit_code == 0
    assert "background_kind" in result.output
    assert "background_kind" in json.loads(file.read_text())


def test_evaluate_says_how_another_number_of_steps_differs(monkeypatch, tmp_path):
    rendered = torch.stack([torch.from_numpy(make_example(13, i)[1]) for i in range(4)])
    steps = []

    def measured(pipe, way, prompts, how, folder, on_pictures, *, timed):
        assert not timed  # what was kept is told without sampling it again
        steps.append(way.steps)
        on_pictures(len(prompts))
        seconds = (1.0,) * len(prompts)
        return Measured(rendered // (3 - way.steps), seconds, seconds, way.steps, seconds, seconds)

    monkeypatch.setattr("fresco.reference.load", lambda *_: object())
    monkeypatch.setattr("fresco.reference.evaluate.measure", measured)
    file = tmp_path / "evaluate.json"
    asked = ("--prompts", "4", "--steps", "2", "--against", "1")
    files = ("--json", str(file), "--rows", str(tmp_path))
    result = run("reference", "evaluate", *asked, *files)
    assert result.exit_code == 0
    assert steps == [2, 1]
    assert "2 steps minus 1" in result.output
    assert re.search(
        r"attributes .* [+-]\d+\.\d\d .* [+-]\d+\.\d\d to [+-]\d+\.\d\d", result.output
    )
    decibels = psnr_db(rendered / 255, rendered // 2 / 255).mean().item()
    assert f"PSNR between the two: {decibels:.1f} dB" in result.output
    assert json.loads(file.read_text())["psnr_db"] == pytest.approx(decibels)


@pytest.mark.parametrize("steps", ["50", "0"])
def test_evaluate_refuses_to_compare_a_number_of_steps_with_itself(steps, monkeypatch):
    monkeypatch.setattr(fresco.reference, "load", lambda *_: pytest.fail("loaded"))
    result = run("reference", "evaluate", "--against", steps)
    assert result.exit_code == 2
    assert f"at least 1 step, and not 50, got {steps}" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ablate", "--only", "lfit"), "restrict, levels, got 'lfit'"),
        (("ablate", "--only", "steps", "--prompts", "0"), "at least 2 captions, got 0"),
        (("ablate", "--only", "steps", "--folder", sys.executable), "a directory to write to"),
        (("ablate", "--only", "steps", "--dtype", "float8"), "'float8' is not one of"),
        (
            ("ablate", "--only", "steps", "--json", sys.executable + "/x"),
            "another one with --json.",
        ),
        (("pareto", "--prompts", "1"), "at least 2 captions, got 1"),
        (("pareto", "--out", sys.executable), "Name another one with --out."),
    ],
)
def test_bad_input_to_a_study_is_a_clear_error(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fresco.reference.studies.load", lambda **_: pytest.fail("loaded"))
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.output


REPORT = {
    "baseline": "50 steps",
    "n_prompts": 2,
    "groups": {"fewer": {"question": "how many", "rows": ["5 steps"]}},
    "rows": {
        name: {"speedup": speedup, "flops_speedup": speedup, "psnr_db": None, "hf": 1.0}
        | {"ssim": 0.5, "judge": 0.75, "scene": 0.5, "frechet": 3.25}
        | {f"{figure}_interval": [0.25, 4.0] for figure in ("ssim", "judge", "scene", "hf")}
        | {"frechet_interval": [3.0, 4.0]}
        for name, speedup in (("50 steps", 1.0), ("5 steps", 9.5))
    },
    "differences": {
        "fewer": {
            "5 steps": {"judge_difference": -0.5, "judge_difference_interval": [-0.75, 0.0]}
            | {"frechet_difference": 1.5, "frechet_difference_interval": [-2.0, 2.0]}
        }
    },
}


@pytest.mark.parametrize("command", ["ablate", "pareto"])
def test_a_study_is_printed_with_its_intervals(command, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "fresco.reference.studies.run_study", lambda study, _: asked.append(study) or REPORT
    )
    files = {"ablate": ("--only", "steps", "--json", str(tmp_path / "study.json")),
             "pareto": ("--out", str(tmp_path))}  # fmt: skip
    result = run(command, "--prompts", "2", "--folder", str(tmp_path), *files[command])
    assert result.exit_code == 0
    assert (asked[0].n_prompts, asked[0].folder) == (2, tmp_path)
    assert asked[0].against == {"ablate": None, "pareto": "fewer steps"}[command]
    assert "9.50x" in result.output
    assert "75.0% [25.0%, 400.0%]" in result.output
    assert "-50.0% [-75.0%, +0.0%]" in result.output
    assert "+1.5 [-2.0, +2.0]" in result.output
    assert (tmp_path / "pareto.png").exists() == (command == "pareto")


@pytest.mark.parametrize(
    ("suite", "options", "named"),
    [
        ("gpu", ("--prompts", "8", "--lora", "a"), "--prompts, --lora"),
        ("headline", ("--runs", "3", "--mode", "eager"), "--mode, --runs"),
    ],
)
def test_bench_refuses_options_of_its_other_suite(suite, options, named):
    result = run("bench", "--suite", suite, *options)
    assert result.exit_code == 2
    assert f"expected options of this suite, got {named}" in result.stderr
