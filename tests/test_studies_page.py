"""The page of studies has the tables of the JSON beside it."""

import json

import pytest

from fresco import cli
from fresco.reference.ablation import ablation_groups
from fresco.reference.rows import pareto_groups
from tests import write_studies


def report_of(study):
    return json.loads((write_studies.FIGURES / f"{study}.json").read_text(encoding="utf-8"))


def test_the_tables_are_those_of_the_json():
    page = write_studies.PAGE.read_text(encoding="utf-8")
    why = "run `python -m tests.write_studies` and commit what it writes"
    assert page == write_studies.make_page(page), why


def test_a_stale_table_is_noticed():
    page = write_studies.PAGE.read_text(encoding="utf-8")
    changed = page.replace("| 5 steps | ", "| 5 steps | 9", 1)
    assert changed != page, "no row of 5 steps"
    assert write_studies.make_page(changed) == write_studies.make_page(page)


def test_paired_differences_are_on_the_page():
    report, page = report_of("ablation"), write_studies.PAGE.read_text(encoding="utf-8")
    assert len(report["differences"]["steps"]) > 4
    for row, found in report["differences"]["steps"].items():
        (line,) = {line for line in page.splitlines() if line.startswith(f"| {row} | ")} & {
            line for line in page.splitlines() if f" {found['scene_difference']:+.1%} (" in line
        }
        low, high = found["frechet_difference_interval"]
        assert f" {found['frechet_difference']:+.1f} ({low:+.1f} to {high:+.1f})" in line


@pytest.mark.parametrize(
    ("study", "groups"),
    [("pareto", pareto_groups), ("ablation", ablation_groups)],
    ids=["pareto", "ablation"],
)
def test_tables_are_of_the_recipes_that_ship(study, groups):
    report, groups = report_of(study), groups()
    assert {n: g["rows"] for n, g in report["groups"].items()} == {
        name: [way.name for way in group.ways] for name, group in groups.items()
    }
    for way in (way for group in groups.values() for way in group.ways):
        found = report["rows"][way.name]
        assert (found["recipe"], found["requested_steps"]) == (way.recipe, way.steps), way.name


@pytest.mark.parametrize("study", ["ablation", "pareto"])
def test_no_figure_that_the_command_prints_is_cut_in_80_columns(study, monkeypatch, capsys):
    report = report_of(study)
    monkeypatch.setattr("fresco.cli_parts.console.width", 80)
    cli._print_study(report)
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert max(map(len, printed.splitlines())) <= 80
    for row in report["rows"].values():
        low, high = row["frechet_interval"]
        for figure in (f"{row['flops_speedup']:.2f}x", f"[{low:.1f},", f"{high:.1f}]"):
            assert figure in printed
    for found in (found for group in report["differences"].values() for found in group.values()):
        for name, form in (("judge", "+.1%"), ("scene", "+.1%"), ("frechet", "+.1f")):
            if f"{name}_difference" in found:
                low, high = found[f"{name}_difference_interval"]
                assert f"{found[f'{name}_difference']:{form}}" in printed
                assert f"[{low:{form}}," in printed
                assert f"{high:{form}}]" in printed
