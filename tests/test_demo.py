import inspect
import itertools
import json
import math

import pytest
import torch
from PIL import Image

from fresco import cli, demo, quality
from fresco.comparison import Row
from fresco.demo import PROMPTS, DemoRequest, run_demo
from fresco.errors import RecipeError
from fresco.output import OutputError
from fresco.reference import load
from fresco.reference.captions import CaptionError, parse
from fresco.reference.evaluate import judge_pictures
from tests.reference_parts import assemble_untrained, scene_and_caption
from tests.write_headline import README

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


def test_fewer_steps_cost_as_much_and_less_than_one_more(result):
    _, report, _ = result
    assert report["flops_speedup"] > 1
    assert report["baseline_n_steps"] == 5
    assert report["fewer_steps_n_steps"] == math.ceil(5 / report["flops_speedup"])


@pytest.mark.parametrize(
    ("flops_speedup", "n"), [(14.55, 4), (12.5, 4), (13.12, 4), (5.0 - 1e-9, 10), (1.0, 50)]
)
def test_full_steps_never_cost_less_than_what_they_are_compared_with(flops_speedup, n):
    assert demo._as_costly(50, flops_speedup) == n


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


def test_the_recipe_is_the_one_that_readme_has_the_figures_of():
    recipe = DemoRequest().recipe
    assert inspect.signature(cli.demo).parameters["recipe"].default == recipe
    assert f"4 prompts, recipe `{recipe}`" in README.read_text(encoding="utf-8")


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


def test_every_figure_is_of_its_own_row():
    captions, pictures = zip(*(scene_and_caption(i) for i in range(3)), strict=True)
    rendered = torch.stack(pictures).float() / 255
    rows = (
        Row("full", 50, rendered, 8.0, 9.0),
        Row("accelerated", 9, rendered * 0.9, 2.0, 3.0),
        Row("fewer steps", 4, torch.ones_like(rendered), 1.0, 1.5),
    )
    found = demo._compare(rows, [caption.asked for caption in captions])
    assert (found["speedup"], found["call_speedup"], found["fewer_steps_speedup"]) == (4, 3, 8)
    for key, row in (("", rows[1]), ("fewer_steps_", rows[2])):
        psnr = quality.psnr_db(row.images, rendered).mean().item()
        assert found[f"{key}psnr_db"] == pytest.approx(psnr)
        assert found[f"{key}ssim"] == pytest.approx(
            quality.ssim(row.images, rendered).mean().item()
        )
    for key, row in zip(("baseline", "accelerated", "fewer_steps"), rows, strict=True):
        verdict = judge_pictures(row.images, [caption.asked for caption in captions])
        assert found[f"judge_{key}"] == verdict["attributes"]
        assert found[f"judge_{key}_scene"] == verdict["scene"]
    assert found["judge_baseline_scene"] == 1
    assert found["judge_fewer_steps_scene"] == 0


def test_every_picture_has_the_noise_of_its_own_seed(pipe):
    def pictures(seed):
        request = DemoRequest(("a red ring",) * 2, seed=seed)
        return demo._sample(pipe, request, lambda *_: None, "full", 2).images

    first, second = pictures(3), pictures(4)
    assert torch.equal(first[1], second[0])
    assert not torch.equal(first[0], first[1])
