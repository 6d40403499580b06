import itertools
import json

import pytest
import torch
from PIL import Image

from fresco.comparison import Row, save_comparison, save_sheet
from fresco.demo import PROMPTS, DemoRequest, run_demo
from fresco.errors import RecipeError
from fresco.output import OutputError
from fresco.reference import load
from fresco.reference.captions import CaptionError, parse
from tests.reference_parts import assemble_untrained

KEYS = {
    *("baseline_s", "accelerated_s", "speedup", "flops_speedup", "psnr_db", "ssim", "n_prompts"),
    *("judge_baseline", "judge_accelerated", "judge_fewer_steps", "versions"),
    *("judge_baseline_scene", "judge_accelerated_scene", "judge_fewer_steps_scene"),
    *("baseline_call_s", "accelerated_call_s", "call_speedup", "recipe", "seed"),
    *("fewer_steps_n_steps", "fewer_steps_psnr_db", "fewer_steps_ssim", "fewer_steps_s"),
}


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return load(assemble_untrained(tmp_path_factory.mktemp("run")))


@pytest.fixture(scope="module")
def result(pipe, tmp_path_factory):
    out, progress = tmp_path_factory.mktemp("demo"), []
    request = DemoRequest(("a red ring at the top", "a blue box"), out=out, steps=5, seed=3)
    report = run_demo(request, lambda *figures: progress.append(figures), pipe)
    return out, report, progress


def test_report_has_every_promised_figure(result):
    out, report, _ = result
    assert set(report) >= KEYS
    assert json.loads((out / "report.json").read_text()) == report
    assert report["n_prompts"] == 2
    for key in ("baseline_s", "accelerated_s", "fewer_steps_s"):
        assert 0 < report[key] < report[f"{key.removesuffix('_s')}_call_s"]
    assert report["speedup"] == report["baseline_s"] / report["accelerated_s"]


def test_fewer_steps_are_those_that_cost_the_same(result):
    _, report, _ = result
    assert report["flops_speedup"] > 1
    assert report["baseline_n_steps"] == 5
    assert report["fewer_steps_n_steps"] == max(1, round(5 / report["flops_speedup"]))


def test_progress_names_the_rows_and_ends_where_it_said(result):
    _, report, progress = result
    names = ("full", "accelerated", "fewer steps")
    assert [name for name, _ in itertools.groupby(progress, key=lambda p: p[0])] == list(names)
    for name, key in zip(names, ("baseline", "accelerated", "fewer_steps"), strict=True):
        done = [(n, total) for row, n, total in progress if row == name]
        total = 2 * report[f"{key}_n_steps"]
        assert done == [(n, total) for n in range(1, total + 1)]


def test_comparison_is_a_picture(result):
    with Image.open(result[0] / "comparison.png") as sheet:
        assert sheet.format == "PNG"
        assert min(sheet.size) > 400


def test_identity_recipe_gives_the_same_pictures(pipe, tmp_path):
    request = DemoRequest(("a red ring",), "identity", out=tmp_path, steps=2)
    report = run_demo(request, pipe=pipe)
    assert report["psnr_db"] is None  # infinite
    assert report["ssim"] == pytest.approx(1)
    assert report["flops_speedup"] == 1
    assert report["fewer_steps_n_steps"] == 2
    assert report["fewer_steps_psnr_db"] is None  # the same noise in all rows


def test_the_pipeline_is_left_as_it_was(result, pipe):
    assert not pipe.transformer._forward_pre_hooks
    assert not pipe.transformer._forward_hooks


def test_the_default_prompts_are_captions_with_everything_but_the_ground_said():
    assert len(PROMPTS) == 4
    for prompt in PROMPTS:
        for thing in parse(prompt).objects:
            assert None not in vars(thing).values()


def test_bad_input_is_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("fresco.demo.load", lambda: pytest.fail("loaded"))
    taken = tmp_path / "file"
    taken.touch()
    for request, error, message in (
        (DemoRequest(("a red dog",), out=tmp_path), CaptionError, "got dog"),
        (DemoRequest((), out=tmp_path), CaptionError, "at least one prompt"),
        (DemoRequest(recipe="reference_5", out=tmp_path), RecipeError, "Did you mean"),
        (DemoRequest(out=taken), OutputError, "--out"),
    ):
        with pytest.raises(error, match=message):
            run_demo(request)


def test_sheets_take_any_number_of_pictures(tmp_path):
    images = torch.rand(5, 3, 8, 8)
    save_sheet(images, ["a"] * 5, tmp_path / "sheet.png")
    rows = [Row("full", 4, images[:1], 2.0, 3.0), Row("fewer", 2, images[:1], 1.0, 2.0)]
    save_comparison(rows, ["a"], tmp_path / "one.png")
    assert (tmp_path / "sheet.png").exists()
    assert (tmp_path / "one.png").exists()
