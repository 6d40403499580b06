"""`fresco stack-table`: cumulative rows, all measured in one run."""

import dataclasses
import json
import re
import sys

import pytest

import fresco.cli
from fresco import errors
from fresco.output import OutputError
from fresco.recipe import load_recipe
from fresco.reference import bench, waterfall
from fresco.reference.studies import StudyError
from fresco.reference.waterfall import StackTable, run_stack_table
from tests.command import run
from tests.conftest import FRESCO_5

EAGER = {"kind": "compile", "backend": "eager"}
FIGURES = {"loop_s", "speedup", "gain", "psnr_db", "ssim", "judge", "scene", "notes"}


@pytest.fixture
def pipe(tiny_flux_pipe):
    """Random weights, pictures of a size that the judge reads."""
    tiny_flux_pipe.default_sample_size = 64
    return tiny_flux_pipe


@pytest.fixture
def recipe_file(tmp_path):
    def write(*stack, stages=FRESCO_5["stages"]):
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps({**FRESCO_5, "stages": stages, "stack": list(stack)}))
        return path

    return write


def test_every_row_adds_one_technique_and_is_measured(pipe, tmp_path, recipe_file, monkeypatch):
    ways, measure = [], waterfall.measure
    monkeypatch.setattr(
        waterfall, "measure", lambda *args: (ways.append(args[1]), measure(*args))[1]
    )
    progress, file = [], tmp_path / "new" / "table.json"
    forced = {"kind": "cache", "method": "first_block", "threshold": 1e6}
    table = StackTable(recipe_file(forced, EAGER), 1, 12, file)
    report = run_stack_table(table, lambda *made: progress.append(made), pipe)
    assert json.loads(file.read_text()) == report
    names = [row["name"] for row in report["rows"]]
    assert names == [
        "baseline",
        "+ dynamic resolution",
        "+ cache first_block",
        "+ quantize int8_weight_only",
        "+ compile eager",
    ]
    stacks = [[e["kind"] for e in way.recipe["stack"]] if way.recipe else None for way in ways]
    kinds = ["cache", "quantize", "compile"]
    assert stacks == [None, [], kinds[:1], kinds[:2], kinds]
    assert {way.steps for way in ways} == {12}
    baseline, resolution, *others = report["rows"]
    above = baseline
    for row in report["rows"]:
        assert set(row) >= FIGURES
        assert row["speedup"] == pytest.approx(baseline["loop_in_steps"] / row["loop_in_steps"])
        assert row["gain"] == pytest.approx(above["loop_in_steps"] / row["loop_in_steps"])
        assert any("slower than the row above" in note for note in row["notes"]) == (
            row["gain"] < 1
        )
        above = row
    assert baseline["psnr_db"] is None  # equal
    assert all(row["psnr_db"] < 100 for row in (resolution, *others))
    assert resolution["flops_speedup"] > 1
    assert {row["flops_speedup"] for row in others} == {None}
    assert not any("did nothing" in note for row in report["rows"] for note in row["notes"])
    assert ("baseline", 1, 1) in progress
    assert not pipe.transformer._forward_pre_hooks


def test_what_cannot_run_says_why_and_is_left_out_of_the_rows_after_it(pipe, recipe_file):
    refused = {"kind": "quantize", "form": "int4_weight_only"}
    idle = {"kind": "cache", "threshold": 0.0}
    table = StackTable(recipe_file(refused, idle, EAGER, stages=[]), 1, 3)
    report = run_stack_table(table, pipe=pipe)
    by_name = {row["name"]: row for row in report["rows"]}
    assert list(by_name) == [
        "baseline",
        "+ cache",
        "+ quantize int4_weight_only",
        "+ compile eager",
    ]
    quantized = by_name["+ quantize int4_weight_only"]
    assert "torchao left the layer as it was" in quantized["refused"]
    assert "speedup" not in quantized
    last = by_name["+ compile eager"]
    assert [entry["kind"] for entry in last["recipe"]["stack"]] == ["cache", "compile"]
    (note,) = [n for n in by_name["+ cache"]["notes"] if "slower" not in n]
    assert "cache is on, but did nothing: no hit in 3 calls" in note  # not of the warm-up's 2


def test_a_slower_row_is_called_slower(pipe, recipe_file, monkeypatch):
    sampled, seconds = waterfall.measure, iter((4.0, 1.0, 2.0, 0.5, 0.25))

    def timed(pipe, way, *args):
        row = sampled(pipe, bench.Way(way.name, None, 1), *args)
        return dataclasses.replace(row, loop_s=(next(seconds),), step_s=(1.0,))

    monkeypatch.setattr(waterfall, "measure", timed)
    report = run_stack_table(StackTable(recipe_file(EAGER), 1, 1), pipe=pipe)
    assert [row["speedup"] for row in report["rows"]] == [1, 4, 2, 8, 16]
    assert [row["gain"] for row in report["rows"]] == [1, 4, 0.5, 4, 2]
    notes = [row["notes"] for row in report["rows"]]
    assert notes == [[], [], ["slower than the row above: 2.00 times its seconds"], [], []]


def test_a_lora_comes_first_and_cache_dit_in_the_place_of_the_cache():
    lora = {"kind": "lora", "source": "somewhere"}
    recipe = load_recipe({"schema": 1, "model": "any", "stack": [EAGER, lora]})
    assert [entry["kind"] for _, entry in waterfall.additions(recipe)] == [
        "lora",
        "cache",
        "quantize",
        "compile",
    ]


def test_a_bad_table_is_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(waterfall, "load", lambda **_: pytest.fail("loaded"))
    for table, error, message in (
        (StackTable(n_prompts=0), StudyError, "at least 1 caption, got 0"),
        (StackTable(steps=0), StudyError, "at least 1 step, got 0"),
        (StackTable(dtype="float8"), StudyError, "got float8"),
        (StackTable("reference_5y"), errors.RecipeError, "Did you mean"),
        (StackTable(json=tmp_path), OutputError, "got the directory"),
    ):
        with pytest.raises(error, match=message):
            run_stack_table(table)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prompts", "0"), "at least 1 caption, got 0"),
        (("--recipe", "reference_5y"), "Did you mean 'reference_5x'?"),
        (("--json", sys.executable + "/x.json"), "a directory to write to"),
    ],
)
def test_bad_input_to_the_command_is_a_clear_error(arguments, message, monkeypatch):
    monkeypatch.setattr(waterfall, "load", lambda **_: pytest.fail("loaded"))
    result = run("stack-table", *arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_the_command_prints_figures_and_reasons(pipe, recipe_file, tmp_path, monkeypatch):
    monkeypatch.setattr(waterfall, "load", lambda **_: pipe)
    monkeypatch.setattr("fresco.cli_parts.console.width", 200)
    refused = {"kind": "quantize", "form": "int4_weight_only"}
    path, file = recipe_file(refused, EAGER), tmp_path / "table.json"
    arguments = ("--prompts", "1", "--steps", "2", "--recipe", str(path), "--json", str(file))
    result = run("stack-table", *arguments)
    assert result.exit_code == 0
    assert re.search(r"baseline +2 +\d+\.\d\d +1\.00x +1\.00x +1\.00x", result.output)
    assert re.search(r"\+ quantize int4_weight_only +refused", result.output)
    assert "+ quantize int4_weight_only: quantize.attach(pipe): expected" in result.output
    assert json.loads(file.read_text())["requested_steps"] == 2


def test_no_figure_of_the_table_is_cut_in_80_columns(monkeypatch, capsys):
    row = {"name": "+ quantize int8_weight_only", "recipe": {}, "steps": 12, "loop_s": 13.44,
           "speedup": 10.25, "gain": 10.75, "flops_speedup": 10.5, "psnr_db": None, "ssim": 0.968,
           "judge": 1.0, "scene": 1.0, "notes": []}  # fmt: skip
    report = {"recipe": "reference_5x", "n_prompts": 8, "dtype": "float32", "rows": [row]}
    monkeypatch.setattr("fresco.cli_parts.console.width", 80)
    fresco.cli._print_stack_table(report)
    printed = capsys.readouterr().out
    for figure in ("12", "13.44", "10.25x", "10.75x", "10.50x", "equal", "0.968", "100.0%"):
        assert re.search(rf"(?<!\S){re.escape(figure)}(?!\S)", printed), figure
    assert "…" not in printed
