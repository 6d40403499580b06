"""Plans without weights: what they say agrees with literature, and with real runs."""

from __future__ import annotations

import json
import re
from itertools import pairwise

import pytest
import torch
from PIL import Image

import fresco
import fresco.planner
import fresco.reference
from fresco.cost import pass_bytes
from fresco.devices import Device, DeviceError, load_device
from fresco.errors import FrescoError, RecipeError, ScheduleError
from fresco.memory import peak_bytes
from fresco.planner import model_of
from fresco.recipe import load_recipe
from fresco.sketch import SketchError, known_models, load_model_config, sketch_model
from fresco.specimen import make_specimen
from tests.command import run
from tests.conftest import FRESCO_5, draw_latents, traces
from tests.staged import MIXED

FILM = {"schema": 1, "model": "any", "baseline": {"steps": 4, "frames": 9}}


def test_flux1_dev_costs_what_the_literature_says():
    found = fresco.plan("flux1-dev", "identity", device="h200")
    # 50 steps at 1024 px: 3719 TFLOPs (Fresco, arXiv 2601.07462; AViTS, arXiv 2608.17995)
    assert found.total_flops / 1e12 == pytest.approx(3719.5, rel=2e-4)
    assert (found.n_text_tokens, len(found.plan.steps)) == (512, 50)
    assert found.flops_speedup == 1
    assert found.weight_bytes == pytest.approx(2 * 11.9e9, rel=1e-3)  # 12 B parameters
    assert sum(found.seconds) == pytest.approx(found.total_flops / 989e12)  # above the roof's ridge


def test_a_forecast_is_what_the_pipeline_then_does(tiny_flux_pipe):
    before = traces(tiny_flux_pipe)
    found = fresco.plan(tiny_flux_pipe, FRESCO_5, steps=5, text_tokens=16)
    assert traces(tiny_flux_pipe) == before
    with fresco.accelerate(tiny_flux_pipe, FRESCO_5) as fast:
        draw_latents(tiny_flux_pipe, num_inference_steps=5)
        assert found.plan == fast.plan
        assert len(found.plan.steps) == 6  # another number than was asked for
        assert [step.tokens for step in fast.report.steps] == [
            step.n_tokens for step in found.plan.steps
        ]
        assert found.total_flops == fast.cost().flops
        assert found.baseline_flops == fast.cost().baseline_flops


def test_a_sketch_plans_as_the_pipeline_it_stands_for():
    pipe = fresco.reference.load()
    real = fresco.plan(pipe, "reference_5x", text_tokens=40)
    assert real == fresco.plan("reference", "reference_5x")


def test_sigmas_follow_the_scheduler_of_the_model():
    dev = fresco.plan("flux1-dev", "identity", steps=4, height=256, width=256)
    schnell = fresco.plan("flux1-schnell", "identity", height=256, width=256)
    assert schnell.plan.sigmas == pytest.approx((1, 0.75, 0.5, 0.25, 0))
    assert all(a > b for a, b in zip(dev.plan.sigmas[1:-1], schnell.plan.sigmas[1:], strict=False))
    assert all(a > b for a, b in pairwise(dev.plan.sigmas))


def test_thresholds_are_said_to_be_upper_bounds():
    stages = [
        {"cell": 2, "steps": 2, "until_sigma": 0.6},
        {"cell": "mixed", "steps": 2, "until_sigma": 0.3, "promote": {"score": "edges", "tau": 1}},
        {"cell": 1, "steps": 1},
    ]
    recipe = {"schema": 1, "model": "any", "stages": stages}
    found = fresco.plan("reference", recipe)
    assert found.unknown_tokens
    assert not fresco.plan("reference", "reference_5x").unknown_tokens


def test_peak_memory_is_that_of_what_is_held_at_once():
    x = torch.empty(1000, device="meta")

    def chain():
        y = x + 1
        for _ in range(5):
            y = y * 2
        return y

    def keep():
        return [x + 1 for _ in range(5)]

    def attend():
        q = x.view(1, 1, 100, 10)
        return torch.nn.functional.scaled_dot_product_attention(q, q, q)

    assert peak_bytes(chain) == 2 * 4000
    assert peak_bytes(keep) == 5 * 4000
    assert peak_bytes(lambda: x.view(10, 100)) == 0
    assert peak_bytes(attend) == 4000  # 100 x 100 scores would be ten times that
    linear = torch.nn.Linear(1000, 10, device="meta")
    assert peak_bytes(lambda: linear(x), linear.parameters()) == 40


def test_activations_grow_with_the_tokens_and_count_their_dtype(tiny_flux_pipe):
    transformer = tiny_flux_pipe.transformer
    few, many = (pass_bytes(transformer, n, 16) for n in (64, 1024))
    assert 4 < many / few < 16
    # rotary tables are float32 in both, and large for so small a model
    assert 1.5 < pass_bytes(transformer, 64, 16, torch.float32) / few <= 2
    tokens_bytes = 2 * (1024 + 16) * transformer.inner_dim
    assert 6 * tokens_bytes < many < 40 * tokens_bytes  # some copies of the stream, no scores


def test_time_is_bound_by_the_slower_of_two_rates(tmp_path):
    device = Device(flops_per_s=100, bytes_per_s=10, source="measured")
    assert device.seconds(flops=1000, n_bytes=10) == 10
    assert device.seconds(flops=10, n_bytes=1000) == 100
    file = tmp_path / "mine.json"
    file.write_text(device.model_dump_json())
    assert load_device(str(file)) == device


@pytest.mark.parametrize(
    ("error", "asked", "message"),
    [
        (SketchError, {"pipe_or_config": "flux1-dv"}, "Did you mean 'flux1-dev'?"),
        (SketchError, {"pipe_or_config": {"_class_name": "Flux"}}, "a class with an adapter"),
        (SketchError, {"pipe_or_config": "none.json"}, "a JSON file"),
        (SketchError, {"pipe_or_config": object()}, "got object"),
        (DeviceError, {"device": "h20"}, "Did you mean 'h200'?"),
        (DeviceError, {"device": "none.json"}, "flops_per_s, bytes_per_s and source"),
        (RecipeError, {"recipe": "reference_5"}, "Did you mean 'reference_5x'?"),
        (RecipeError, {"recipe": {"schema": 1, "model": "Other"}}, "the recipe is for Other"),
        (ScheduleError, {"height": 4}, "got 0 x 32, 40 and 50"),
        (ScheduleError, {"reference_tokens": -1}, "reference_tokens of at least 0, got -1"),
        *(
            (ScheduleError, {name: wrong}, f"{name} of at least 1, got {wrong}")
            for name in ("height", "width", "steps", "frames", "text_tokens")
            for wrong in (0, -1, 2.5)
        ),
        (ScheduleError, {"frames": 5}, "frames of a video model, got 5 of FluxTransformer2DModel"),
        (ScheduleError, {"recipe": FILM}, "frames of a video model, got 9 of FluxTransformer2DM"),
    ],
)
def test_bad_input_is_a_clear_error(error, asked, message):
    size = {"height": 256, "width": 256}
    asked = {"pipe_or_config": "reference", "recipe": "identity"} | size | asked
    with pytest.raises(error) as caught:
        fresco.plan(**asked)
    assert message in str(caught.value)
    assert isinstance(caught.value, FrescoError)


@pytest.mark.parametrize(
    ("model", "positions", "message"),
    [
        ("sana-1600m-1024", "fine", "only whole-grid stages with SanaAdapter"),
        ("qwen-image", "phase", "no phase-aligned attention"),
        ("mochi-1-preview", "coarse", "positions: fine with MochiAdapter"),
    ],
)
def test_a_plan_refuses_layouts_that_a_run_refuses(model, positions, message):
    coarse, mixed, fine = MIXED["stages"]
    raw = {**MIXED, "stages": [coarse, {**mixed, "positions": positions}, fine]}
    with pytest.raises(FrescoError, match=message):
        fresco.plan(model, raw)


def test_every_known_model_says_where_it_is_from():
    files = [path for path in known_models().values() if path]
    assert files
    for path in files:
        assert (
            "huggingface.co/" in json.loads(path.read_text())["source"]
            or "in diffusers v" in json.loads(path.read_text())["source"]
        )
        assert load_model_config(path.stem).run.steps


def test_no_two_models_stand_for_one_name():
    configs = {name: load_model_config(name) for name in known_models()}
    names = [config.stands_for or name for name, config in configs.items()]
    assert len(set(names)) == len(names)
    assert {model_of(f"{name}_fast") for name in names} == configs.keys()


def test_a_config_s_other_settings_are_those_of_a_known_model_of_its_class():
    content = load_model_config("sd35-medium").transformer
    found = fresco.plan(content, "identity", steps=4, height=256, width=256)
    expected = fresco.plan("sd35-medium", "identity", steps=4, height=256, width=256)
    assert found == expected
    assert found.plan.sigmas[1] == pytest.approx(0.8577, abs=1e-4)  # by shift 3


def test_a_config_file_stands_for_the_model_s_transformer(tmp_path):
    config = dict(sketch_model("reference").transformer.config) | {"num_single_layers": 1}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config | {"_class_name": "FluxTransformer2DModel"}))
    less = fresco.plan(sketch_model("reference", file), "identity")
    assert less.total_flops < fresco.plan("reference", "identity").total_flops


def test_the_model_is_read_out_of_the_recipe_s_name():
    assert model_of("recipes/reference_5x.yaml") == "reference"
    with pytest.raises(SketchError, match="Name one with --model"):
        model_of("identity")


def test_plan_prints_writes_and_draws(tmp_path):
    json_file, png = tmp_path / "a" / "plan.json", tmp_path / "b" / "plan.png"
    result = run(
        *("plan", "reference_5x", "--steps", "25", "--height", "128", "--width", "128"),
        *("--device", "h100", "--json", str(json_file), "--png", str(png)),
    )
    assert result.exit_code == 0, result.output
    found = json.loads(json_file.read_text())
    recipe = load_recipe("reference_5x")
    expected = fresco.plan("reference", recipe, steps=25, height=128, width=128, device="h100")
    assert found == {"recipe": "reference_5x", "model": "reference"} | expected.as_dict()
    assert [step["tokens"] for step in found["steps"]] == [64] + [256] * 5
    assert f"{expected.flops_speedup:.2f}x fewer" in result.output
    assert "an estimate" in result.output
    assert re.search(r"counting .* 3/3", result.output)
    with Image.open(png) as picture:
        assert picture.size == (800, 700)


def test_a_plan_is_drawn_as_png_whatever_the_file_is_called(tmp_path):
    size = ("--height", "64", "--width", "64")
    result = run("plan", "reference_5x", *size, "--png", str(tmp_path / "plan.xyz"))
    assert result.exit_code == 0
    assert "plan.xyz" in result.output
    with Image.open(tmp_path / "plan.xyz") as picture:
        assert picture.format == "PNG"


@pytest.mark.parametrize("option", ["--png", "--json"])
def test_a_directory_is_no_file_to_write_a_plan_to(option, tmp_path, monkeypatch):
    monkeypatch.setattr("fresco.planner.plan", lambda *_, **__: pytest.fail("counted"))
    (tmp_path / "there").mkdir()
    result = run("plan", "reference_5x", option, str(tmp_path / "there"))
    assert result.exit_code == 2
    assert f"there'. Name a file with {option}" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("identity",), "Name one with --model"),
        (("reference_5x", "--device", "h20"), "Did you mean 'h200'?"),
        (("reference_5x", "--config", "none.json"), "a JSON file"),
    ],
)
def test_bad_input_to_plan_exits_with_2(arguments, message):
    result = run("plan", *arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert "counting" not in result.output


def test_frames_of_a_video_count_as_tokens():
    recipe = {
        "schema": 1,
        "model": "any",
        "baseline": {"steps": 2},
        "stages": [{"cell": 2, "steps": 1, "until_sigma": 0.5}, {"cell": 1, "steps": 1}],
    }
    size = {"height": 736, "width": 1280}  # an odd number of token rows
    forecast = fresco.plan("wan21-14b", recipe, **size, frames=9)
    assert [step.n_tokens for step in forecast.plan.steps] == [3 * 23 * 40, 3 * 46 * 80]
    still = fresco.plan("wan21-14b", recipe, **size, frames=1)
    assert forecast.flops[1] > 3 * still.flops[1]  # attention is over all frames
    assert fresco.plan("wan21-14b", recipe, **size).plan.frames == 21
    assert fresco.plan("wan21-14b", recipe, **size, frames=80).plan.frames == 21  # it rounds up


def test_a_video_recipe_s_plan_before_any_run_is_of_all_its_frames():
    pipe, name = make_specimen("hunyuan-video").pipe, "hunyuan-video_fast"
    with fresco.accelerate(pipe, name) as accelerated:
        assert accelerated.plan == fresco.plan(pipe, name, text_tokens=8).plan
        assert accelerated.plan.frames == 33  # of 129


def test_many_steps_of_few_shapes_are_counted_once_per_shape(monkeypatch):
    asked, count = [], fresco.planner.pass_flops
    monkeypatch.setattr(
        "fresco.planner.pass_flops", lambda *shape: asked.append(shape[1]) or count(*shape)
    )
    monkeypatch.setattr("fresco.planner.step_flops", lambda *_: pytest.fail("counted per step"))
    found = fresco.plan("reference", "reference_5x", steps=2000)
    assert (len(found.plan.steps), asked) == (400, [256, 1024])
    expected = fresco.plan("reference", "reference_5x", steps=50)
    assert found.flops_speedup == pytest.approx(expected.flops_speedup)
