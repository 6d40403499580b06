"""`fresco tune` keeps every result, goes on where it stopped, and picks by its goal."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import fresco.reference
import fresco.tuning
from fresco.candidates import all_stages
from fresco.errors import RecipeError, ScheduleError
from fresco.pictures import PictureRequest
from fresco.recipe import load_recipe
from fresco.tuning import Found, Goal, Plain, baseline_of, best_of, pareto
from tests.command import run
from tests.reference_parts import assemble_untrained


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A directory with an untrained pipeline."""
    return assemble_untrained(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture
def arguments(folder, tmp_path, monkeypatch):
    """Of a small search."""
    monkeypatch.setattr(fresco.reference, "PIPELINE", folder)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red ring\n")
    size = ("--steps", "8", "--height", "64", "--width", "64", "--tries", "3")
    where = ("--folder", str(tmp_path / "study"), "--out", str(tmp_path / "tuned.yaml"))
    return ("tune", "--model", "reference", "--prompts", str(prompts), *size, *where)


@pytest.fixture
def few(monkeypatch):
    """A search among three candidates, which need no long choice."""
    monkeypatch.setattr("fresco.candidates.all_stages", lambda *given: all_stages(*given)[:1])


def test_a_search_prints_its_pareto_set_and_writes_the_best(arguments, tmp_path, monkeypatch):
    file = tmp_path / "all.json"
    result = run(*arguments, "--speedup", "1", "--json", str(file))
    assert result.exit_code == 0, result.output
    found = json.loads(file.read_text())
    written = load_recipe(tmp_path / "tuned.yaml")
    assert written == load_recipe(found["best"]["recipe"])
    assert found["best"]["quality"] == max(each["quality"] for each in found["pareto"])
    assert "Pareto set" in result.output
    assert "PSNR dB" in result.output
    kept = sorted(path.name for path in (tmp_path / "study").iterdir())
    assert len(kept) == 3 + 2  # candidates, study.json and plain.pt
    monkeypatch.setattr(fresco.tuning, "call_pipe", lambda *_, **__: pytest.fail("sampled again"))
    again = run(*arguments, "--speedup", "1", "--json", str(file))
    assert again.exit_code == 0
    assert json.loads(file.read_text()) == found


def test_the_command_above_a_found_recipe_runs(arguments, tmp_path, few):
    out = tmp_path / "one of mine.yaml"
    more = ("--dtype", "bfloat16", "--metric", "tests.test_validation:brightness")
    asked = (*arguments, "--speedup", "1", "--tries", "1", "--out", str(out), *more)
    assert run(*asked).exit_code == 0
    command = shlex.split(out.read_text().split("\n")[1].removeprefix("#   fresco "))
    assert command[-4:] == list(more)
    result = run(*command, "--floor", "none")
    assert result.exit_code == 0, result.output
    assert load_recipe(out).validated


def test_results_of_another_judge_or_of_other_weights_are_not_mixed(arguments, few, monkeypatch):
    asked = (*arguments, "--speedup", "1", "--tries", "1")
    assert run(*asked).exit_code == 0
    result = run(*asked, "--metric", "tests.test_validation:brightness")
    assert result.exit_code == 2
    assert "expected this search's folder, got another's" in result.output
    monkeypatch.setattr("fresco.tuning._weights", lambda _: "others")
    assert run(*asked).exit_code == 2


@pytest.mark.parametrize("name", ["????????????.json", "plain.pt"])
def test_a_search_s_file_that_cannot_be_read_is_named(name, arguments, tmp_path, few):
    asked = (*arguments, "--speedup", "1", "--tries", "1")
    assert run(*asked).exit_code == 0
    (kept,) = (tmp_path / "study").glob(name)
    for content in ("{", ""):
        kept.write_text(content)
        result = run(*asked)
        assert result.exit_code == 2
        assert f"{kept.name}' (" in result.output
        assert "Delete it." in result.output
        assert "weights_only" not in result.output  # torch's advice


def test_an_interrupted_search_goes_on(arguments, tmp_path, few, monkeypatch):
    calls, call = [], fresco.tuning.call_pipe

    def interrupted(*given, **more):
        calls.append(1)
        if len(calls) == 5:  # warm-up, plain, text tokens, the first candidate, the second
            raise KeyboardInterrupt
        return call(*given, **more)

    monkeypatch.setattr(fresco.tuning, "call_pipe", interrupted)
    assert run(*arguments, "--speedup", "1").exit_code == 130  # neither falls short nor is wrong
    assert not (tmp_path / "tuned.yaml").exists()
    assert len(list((tmp_path / "study").glob("????????????.json"))) == 1
    assert run(*arguments, "--speedup", "1").exit_code == 0
    assert len(calls) == 5 + 2


def test_a_goal_that_nothing_meets_falls_short(arguments, tmp_path):
    metric = ("--metric", "tests.test_validation:brightness")
    result = run(*arguments, "--min-judge", "1.1", *metric)
    assert result.exit_code == 1
    assert "no candidate meets the goal" in result.output
    assert not (tmp_path / "tuned.yaml").exists()


def test_candidates_that_do_not_fit_are_kept_and_left_out(arguments, tmp_path, monkeypatch):
    def refuse(*_):
        raise RecipeError("x", ["does not fit @ $"])

    monkeypatch.setattr(fresco.tuning, "accelerate", _refusing(fresco.tuning.accelerate, refuse))
    assert run(*arguments, "--speedup", "1").exit_code == 1
    kept = [json.loads(path.read_text()) for path in (tmp_path / "study").glob("????????????.json")]
    assert len(kept) == 3
    assert all("does not fit" in each["refused"] for each in kept)


def _refusing(original, refuse):
    return lambda pipe, recipe: original(pipe, recipe) if recipe == "identity" else refuse()


def found(speedup, quality):
    return Found({}, speedup, 10 / speedup, quality)


POINTS = [found(2, 30), found(5, 20), found(4, 10), found(8, 12), found(1, 25)]


def test_the_pareto_set_is_what_nothing_beats_in_both():
    front = pareto(POINTS)
    assert [(each.speedup, each.quality) for each in front] == [(2, 30), (5, 20), (8, 12)]
    assert all(a.speedup < b.speedup and a.quality > b.quality for a, b in pairwise(front))


@pytest.mark.parametrize(
    ("goal", "speedup"),
    [
        (Goal(speedup=4), 5),
        (Goal(seconds=1.5), 8),
        (Goal(min_judge=20), 5),
        (Goal(min_judge=24), 2),
        (Goal(speedup=9), None),
    ],
)
def test_the_best_is_what_the_goal_says(goal, speedup):
    best = best_of(POINTS, goal)
    assert (best.speedup if best else None) == speedup


@pytest.mark.parametrize("goal", [Goal(speedup=2), Goal(seconds=5), Goal(min_judge=19)])
def test_the_best_is_one_that_nothing_beats(goal):
    equal = [found(2, 20), found(4, 19), found(4, 20), found(3, 20)]
    assert best_of(equal, goal) in pareto(equal)
    assert best_of(equal, goal) == found(4, 20)


def test_the_plain_run_of_a_search_says_what_its_recipes_are_for():
    plain = Plain(torch.zeros(18, 3, 64, 96), 1.0, 40)
    found = {"steps": 8, "height": 64, "width": 96}
    picture = PictureRequest("m", None, "", 0, 8)
    assert baseline_of(picture, plain, 18) == found
    assert baseline_of(picture, plain, 2) == found | {"frames": 9}
    assert baseline_of(replace(picture, guidance=2.0), plain, 18) == found | {"guidance": 2.0}


def test_what_no_candidate_runs_on_is_refused_before_anything_is_sampled(arguments, monkeypatch):
    def refuse(_):
        raise ScheduleError("x", "a scheduler of stages", "another", "Exchange it.")

    monkeypatch.setattr("fresco.candidates.check_searchable", refuse)
    monkeypatch.setattr(fresco.tuning, "call_pipe", lambda *_, **__: pytest.fail("sampled"))
    result = run(*arguments, "--speedup", "2")
    assert result.exit_code == 2
    assert "expected a scheduler of stages, got another. Exchange it." in result.output


def test_a_search_s_own_metric_is_named_as_its_option(arguments):
    result = run(*arguments, "--speedup", "2", "--metric", "os:name")
    assert result.exit_code == 2
    assert "fresco tune --metric: expected module:function" in result.output


def test_a_goal_of_seconds_is_one_of_speed():
    assert Goal(seconds=2).speed(10) == 5
    assert Goal(speedup=3).speed(10) == 3
    assert Goal(min_judge=1).speed(10) is None


@pytest.mark.parametrize(
    ("goal", "message"),
    [
        ((), "expected one goal, got none"),
        (("--speedup", "2", "--seconds", "3"), "expected one goal, got speedup and seconds"),
    ],
)
def test_one_goal_is_needed(arguments, goal, message, monkeypatch):
    monkeypatch.setattr("fresco.reference.load", lambda **_: pytest.fail("loaded"))
    result = run(*arguments, *goal)
    assert result.exit_code == 2
    assert message in result.output


def test_a_judge_is_needed_for_its_goal(arguments, folder):
    arguments = [str(folder) if each == "reference" else each for each in arguments]
    result = run(*arguments, "--min-judge", "0.5")
    assert result.exit_code == 2
    assert "a judge for --min-judge" in result.output


def test_a_folder_of_another_search_is_refused(arguments, tmp_path):
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "study.json").write_text("{}")
    result = run(*arguments, "--speedup", "2")
    assert result.exit_code == 2
    assert "Name another --folder" in result.output
