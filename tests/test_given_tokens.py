"""Tokens that are given, not predicted: plans count them in every call and never coarsen them."""

from __future__ import annotations

import pytest

import fresco
import fresco.planner
from fresco.errors import ScheduleError
from fresco.sketch import load_model_config, sketch_model
from tests.command import run
from tests.mixed import RUNS
from tests.staged import HALVES


def small(changes, transformer, base="flux1-kontext-dev"):
    """A known model with a small transformer and another run."""
    config = load_model_config(base)
    run_config = config.run.model_copy(update=changes)
    tiny = dict(config.transformer) | transformer
    return config.model_copy(update={"run": run_config, "transformer": tiny})


@pytest.fixture
def kontext(monkeypatch):
    tiny = {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 2}
    size = {"height": 256, "width": 256, "text_tokens": 16, "reference_tokens": 64}
    config = small(size, tiny)
    monkeypatch.setattr("fresco.sketch.load_model_config", lambda _name: config)
    return "flux1-kontext-dev"


def test_reference_tokens_are_in_every_call_and_no_part_of_the_plan(kontext):
    found = fresco.plan(kontext, HALVES)
    assert [step.n_tokens for step in found.plan.steps] == [64, 256]
    assert (found.n_given_tokens, found.as_dict()["given_tokens"]) == (64, 64)
    transformer = sketch_model(kontext).transformer
    counted = [fresco.planner.pass_flops(transformer, n, 16) for n in (64 + 64, 256 + 64)]
    assert list(found.flops) == counted
    assert found.baseline_flops == 2 * counted[1]
    assert found.peak_bytes == fresco.planner.pass_bytes(transformer, 256 + 64, 16)


def test_reference_tokens_are_refused_where_a_run_refuses_them(kontext):
    with pytest.raises(
        ScheduleError, match=r"positions: phase, got 64 others\. Use positions: fine"
    ):
        fresco.plan(kontext, RUNS["phase"], steps=10)


def test_a_still_frame_keeps_its_tokens_and_needs_others_to_predict(monkeypatch):
    tiny = {
        "num_layers": 1,
        "num_single_layers": 1,
        "num_refiner_layers": 1,
        "num_attention_heads": 2,
    }
    config = small({"height": 64, "width": 64, "frames": 9}, tiny, "hunyuan-video-i2v")
    monkeypatch.setattr("fresco.sketch.load_model_config", lambda _name: config)
    found = fresco.plan("hunyuan-video-i2v", HALVES)
    assert [step.n_tokens for step in found.plan.steps] == [2 * 2 * 2, 2 * 4 * 4]
    assert found.n_given_tokens == 4 * 4
    with pytest.raises(
        ScheduleError, match="frames to predict, got 1, of which the first is given"
    ):
        fresco.plan("hunyuan-video-i2v", HALVES, frames=1)


def test_plan_says_what_is_given_on_the_command_line():
    result = run(
        "plan", "identity", "--model", "flux1-kontext-dev", "--steps", "2", "--width", "512"
    )
    assert result.exit_code == 0, result.output
    assert "4096 more tokens" in " ".join(result.output.split())


@pytest.mark.parametrize(("asked", "said"), [("32", "32 more tokens"), ("0", "")])
def test_reference_tokens_can_be_asked_for_on_the_command_line(kontext, asked, said):
    result = run("plan", "identity", "--model", kontext, "--reference-tokens", asked)
    assert result.exit_code == 0, result.output
    printed = " ".join(result.output.split())
    assert said in printed
    assert ("more tokens" in printed) == bool(said)
