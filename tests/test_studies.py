"""A study as a whole: its JSON, its plot, what it refuses."""

import dataclasses
import json

import pytest
import torch
from PIL import Image

from fresco.errors import RecipeError
from fresco.output import OutputError
from fresco.reference import figures, rows, studies
from fresco.reference.ablation import ablation_groups
from fresco.reference.bench import How, Way
from fresco.reference.dataset import make_example
from fresco.reference.plot import save_pareto
from tests.test_figures import row_of


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch):
    monkeypatch.setattr(figures, "FRECHET_DRAWS", 20)


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Two rows of a study, whose pictures are rendered instead of sampled."""
    pictures = torch.stack([torch.from_numpy(make_example(12, i)[1]) for i in range(3)])

    def measured(pipe, way, prompts, how, folder, on_pictures):
        on_pictures(len(prompts))
        spoiled = pictures // (51 - way.steps)
        return row_of(spoiled, way.steps / 10, way.steps)

    monkeypatch.setattr(studies, "measure", measured)
    groups = (
        rows.Group("steps", "fewer steps", (rows.BASELINE, rows.plain(10))),
        rows.Group("again", "the same", (rows.plain(10), rows.plain(49))),
    )
    json_ = tmp_path / "new" / "study.json"
    return studies.Study("fresco ablate", groups, json_, tmp_path / "rows", 3, n_real=4)


def test_a_study_writes_all_its_figures(study):
    progress = []
    report = studies.run_study(study, lambda *made: progress.append(made), pipe=object())
    assert json.loads(study.json.read_text()) == report
    assert list(report["rows"]) == ["50 steps", "10 steps", "49 steps"]
    assert report["rows"]["10 steps"]["speedup"] == pytest.approx(5)
    assert set(report["differences"]["steps"]) == {"10 steps"}
    assert set(report["differences"]["again"]) == {"49 steps"}
    assert report["against"] is None
    assert {"n_prompts", "seeds", "versions", "threads", "code", "hardware"} <= set(report)
    assert ("10 steps", 3, 3) in progress


def test_rows_can_be_compared_with_those_of_another_group(study):
    beside = dataclasses.replace(study, against="again")  # 10 and 49 steps; the others: 50 and 10
    report = studies.run_study(beside, pipe=object())
    assert set(report["differences"]["steps"]) == {"50 steps", "10 steps"}
    assert report["differences"]["again"] == {}
    judged = {name: row["judge"] for name, row in report["rows"].items()}
    for name, other in (("50 steps", "10 steps"), ("10 steps", "49 steps")):
        found = report["differences"]["steps"][name]
        assert found["judge_difference"] == pytest.approx(judged[name] - judged[other])
        nearer = report["rows"][name]["frechet"] - report["rows"][other]["frechet"]
        assert found["frechet_difference"] == pytest.approx(nearer)


def test_an_interrupted_pareto_has_all_methods_at_the_highest_speedups(study, monkeypatch):
    measured, sampled = studies.measure, []

    def interrupted(pipe, way, *given):
        if len(sampled) == 4:
            raise KeyboardInterrupt
        sampled.append(way.name)
        return measured(pipe, way, *given)

    monkeypatch.setattr(studies, "measure", interrupted)
    groups = [
        rows.Group(f"{n}", "speedup", (rows.plain(n + 8), rows.plain(n + 4), rows.plain(n)))
        for n in (2, 3)
    ]
    with pytest.raises(KeyboardInterrupt):
        studies.run_study(dataclasses.replace(study, groups=tuple(groups)), pipe=object())
    assert list(json.loads(study.json.read_text())["rows"]) == [
        "50 steps", "2 steps", "3 steps", "6 steps",
    ]  # fmt: skip


def test_the_pareto_plot_is_a_picture(tmp_path):
    points = {f"{n} steps": {"speedup": 50 / n, "judge": 0.9, "frechet": 9 / n} for n in (50, 9, 5)}
    for point in points.values():
        point |= {"judge_interval": [0.8, 0.95], "frechet_interval": [0.1, 2.0]}
        point |= {"scene": 0.5, "scene_interval": [0.4, 0.6]}
    report = {"baseline": "50 steps", "n_prompts": 3, "rows": points,
              "groups": {"fewer steps": {"rows": ["9 steps", "5 steps"]}}}  # fmt: skip
    save_pareto(report, tmp_path / "pareto.png")
    with Image.open(tmp_path / "pareto.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 400
    for drawn in ("judge", "scene", "frechet"):
        part = {name: {k: v for k, v in row.items() if k != drawn} for name, row in points.items()}
        with pytest.raises(KeyError, match=drawn):
            save_pareto(report | {"rows": part}, tmp_path / "pareto.png")


def test_a_bad_study_is_refused_before_anything_is_loaded(study, tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "load", lambda **_: pytest.fail("loaded"))
    taken = tmp_path / "file"
    taken.touch()
    bad = (rows.Group("bad", "a bad recipe", (Way("bad", {"schema": 1}),)),)
    for changes, error, message in (
        ({"n_prompts": 0}, studies.StudyError, "at least 2 captions, got 0"),
        ({"how": How(batch=0)}, studies.StudyError, "got 0"),
        ({"dtype": "float8"}, studies.StudyError, "got float8"),
        ({"groups": bad}, RecipeError, r"\$\.model"),
        ({"folder": taken}, OutputError, "--folder"),
        ({"json": taken / "x.json"}, OutputError, "--json"),
        ({"json": taken / "x", "json_option": "--out"}, OutputError, "--out"),
        ({"json": tmp_path}, OutputError, "got the directory"),
    ):
        with pytest.raises(error, match=message):
            studies.run_study(dataclasses.replace(study, **changes))


def test_groups_are_picked_by_name():
    groups = ablation_groups()
    assert studies.pick_groups(groups, None) == tuple(groups.values())
    assert [g.name for g in studies.pick_groups(groups, "lift, steps")] == ["lift", "steps"]
    for only, got in (("lift,lfit", "got 'lfit'"), ("", "got none")):
        with pytest.raises(studies.StudyError, match=got):
            studies.pick_groups(groups, only)
