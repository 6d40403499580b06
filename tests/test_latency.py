"""`fresco bench --suite gpu` on the CPU: tiny configurations, random weights, all that it says."""

from __future__ import annotations

import json
import statistics

import pytest
import torch

from fresco import latency, latency_bench
from fresco.latency import Latency, recipes_for, run_latency
from fresco.latency_bench import LatencyError
from fresco.output import OutputError
from fresco.planner import plan
from fresco.sketch import SketchError, load_model_config
from tests.command import run
from tests.families import FAMILIES

FLUX = {
    "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
    "num_attention_heads": 2, "joint_attention_dim": 16, "pooled_projection_dim": 16,
    "axes_dims_rope": [4, 6, 6], "guidance_embeds": True,
}  # fmt: skip


def write_config(folder, name, **changes):
    content = {
        "source": "made up",
        "transformer": {"_class_name": "FluxTransformer2DModel", **FLUX},
        "scheduler": {
            "_class_name": "FlowMatchEulerDiscreteScheduler",
            "use_dynamic_shifting": True,
        },
        "pipeline": {
            "class_name": "FluxPipeline",
            "default_sample_size": 16,
            "vae_scale_factor": 8,
        },
        "run": {"steps": 10, "height": 128, "width": 128, "text_tokens": 5},
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content | changes))
    return path


@pytest.fixture
def flux(tmp_path):
    return write_config(tmp_path, "tiny")


@pytest.fixture
def video(tmp_path):
    family = FAMILIES["hunyuan_video"]
    return write_config(
        tmp_path,
        "film",
        transformer={"_class_name": family.transformer, **family.config},
        scheduler={"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 7.0},
        pipeline={
            "class_name": family.pipeline,
            "default_sample_size": 16,
            "vae_scale_factor": 8,
            "vae_scale_factor_temporal": 4,
        },
        run={"steps": 10, "height": 64, "width": 128, "text_tokens": 5, "frames": 5},
    )


def asked_for(path, tmp_path, **changes):
    given = {"models": (str(path),), "modes": ("eager",), "device": "cpu", "runs": 2}
    return Latency(tmp_path / "out" / "gpu.json", **given | changes)


def test_every_recipe_is_measured_beside_the_plain_run(flux, tmp_path):
    progress = []
    asked = asked_for(flux, tmp_path)
    report = run_latency(asked, lambda *made: progress.append(made))
    assert json.loads(asked.json.read_text()) == report
    assert {"versions", "hardware", "code", "device", "runs"} <= set(report)
    model = report["models"]["tiny"]
    assert (model["steps"], model["height"], model["text_tokens"]) == (10, 128, 5)
    eager = model["modes"]["eager"]
    rows = {row["name"]: row for row in eager["rows"]}
    assert list(rows) == ["plain", *recipes_for("flux1-dev")]
    assert rows["plain"]["speedup"] == rows["plain"]["speedup_in_mode"] == 1
    assert rows["plain"]["predicted_by_steps"] == rows["plain"]["predicted_by_flops"] == 1
    for name, row in rows.items():
        assert row["loop_s"] == statistics.median(row["runs_s"]) > 0
        assert len(row["runs_s"]) == 2
        assert row["peak_bytes"] is None  # no GPU
        assert not row["has_cache"]
        if name != "plain":
            pairs = zip(rows["plain"]["runs_s"], row["runs_s"], strict=True)
            assert row["speedup"] == statistics.median(a / b for a, b in pairs)
    config = load_model_config(flux)
    bench = latency_bench.build_pipe(config, torch.device("cpu"), torch.bfloat16)
    found = plan(bench, "flux1-dev_fast", height=128, width=128, steps=10, text_tokens=5)
    fast = rows["flux1-dev_fast"]
    assert fast["predicted_by_flops"] == pytest.approx(found.flops_speedup)
    step_s = eager["step_s"]
    assert set(step_s) >= {str(step.n_tokens) for step in found.plan.steps} | {"64"}
    taken = sum(step_s[str(step.n_tokens)] for step in found.plan.steps)
    assert fast["predicted_by_steps"] == pytest.approx(10 * step_s["64"] / taken)
    assert set(model["overhead"]) == {"seconds_per_step", "of_a_step"}
    assert ("tiny, eager: plain", 2, 2) in progress


def test_a_video_model_runs_by_borrowed_stages_over_all_frames(video, tmp_path):
    report = run_latency(asked_for(video, tmp_path, runs=1))
    model = report["models"]["film"]
    assert model["frames"] == 5
    full = 2 * (64 // 16) * (128 // 16)  # latent frames, rows, columns
    assert max(map(int, model["modes"]["eager"]["step_s"])) == full
    rows = {row["name"]: row for row in model["modes"]["eager"]["rows"]}
    assert rows["flux1-dev_fast"]["predicted_by_flops"] > 1


def test_overhead_is_what_an_attached_full_stage_adds(flux, tmp_path, monkeypatch):
    """Seconds by what is attached: a plain step takes 1, one with the middleware 1.25."""
    bench = latency_bench.Bench(load_model_config(flux), {}, torch.device("cpu"), 3, 4)

    def loop_s(steps):
        is_attached = bool(bench.pipe.transformer._forward_pre_hooks)
        return steps * (1.25 if is_attached else 1.0)

    monkeypatch.setattr(bench, "_loop_s", loop_s)
    made = bench.measure((), lambda *_: None)
    assert bench.overhead == {"seconds_per_step": 0.25, "of_a_step": 0.25}
    assert [row["name"] for row in made["rows"]] == ["plain"]


def test_a_mode_adds_to_the_stack_of_every_row(flux, tmp_path, monkeypatch):
    monkeypatch.setitem(latency.MODES, "int8", ({"kind": "quantize", "form": "int8_weight_only"},))
    seen, attach = [], latency_bench.accelerate

    def recorded(pipe, content):
        seen.append([entry["kind"] for entry in content["stack"]] if "stack" in content else [])
        return attach(pipe, content)

    monkeypatch.setattr(latency_bench, "accelerate", recorded)
    report = run_latency(asked_for(flux, tmp_path, modes=("eager", "int8"), runs=1))
    rows = report["models"]["tiny"]["modes"]["int8"]["rows"]
    assert not any("refused" in row for row in rows), rows
    assert seen.count(["quantize"]) == len(rows) + 1  # the plain one again for bare steps
    plain, *others = rows
    assert plain["speedup_in_mode"] == 1
    for row in others:
        in_mode = plain["runs_s"][0] / row["runs_s"][0]
        assert row["speedup_in_mode"] == pytest.approx(in_mode)


def test_what_does_not_run_here_says_why(flux, tmp_path, monkeypatch):
    monkeypatch.setitem(latency.MODES, "bad", ({"kind": "cache", "method": "fastercache"},) * 2)
    report = run_latency(asked_for(flux, tmp_path, modes=("eager", "bad"), runs=1))
    modes = report["models"]["tiny"]["modes"]
    assert all("refused" not in row for row in modes["eager"]["rows"])
    assert all("RecipeError" in row["refused"] for row in modes["bad"]["rows"])
    assert modes["bad"]["step_s"] == {}


def test_weights_are_random_and_of_the_dtype_from_the_start(flux):
    pipe = latency_bench.build_pipe(load_model_config(flux), torch.device("cpu"), torch.bfloat16)
    assert {weight.dtype for weight in pipe.transformer.parameters()} == {torch.bfloat16}
    assert pipe.text_encoder is None
    assert torch.get_default_dtype() is torch.float32


@pytest.mark.parametrize("model", latency.MODELS)
def test_the_published_models_name_a_pipeline_and_have_recipes(model):
    import diffusers

    config = load_model_config(model)
    assert hasattr(diffusers, config.pipeline.class_name)
    assert len(recipes_for(model)) == 3


def test_the_video_has_125_frames(tmp_path, monkeypatch):
    asked = asked_for("hunyuan-video", tmp_path)
    (config,) = latency._check(asked).values()
    assert (config.run.frames, config.run.height, config.run.steps) == (125, 720, 50)


def test_bad_requests_are_refused_before_weights_are_made(flux, tmp_path, monkeypatch):
    monkeypatch.setattr(latency, "Bench", lambda *_: pytest.fail("made"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    sizes = {"default_sample_size": 16, "vae_scale_factor": 8}
    nameless = write_config(tmp_path, "nameless", pipeline=sizes)
    unknown = write_config(tmp_path, "unknown", pipeline=sizes | {"class_name": "FluxPipe"})
    for changes, error, message in (
        ({"modes": ("eagre",)}, LatencyError, "got eagre. Correct --mode[.]"),
        ({"runs": 0}, LatencyError, "at least 1 run"),
        ({"steps": 0}, LatencyError, "at least 1 run and 1 step, got 1 and 0"),
        ({"device": "cuda"}, LatencyError, "expected a GPU, got none"),
        ({"device": "chip"}, LatencyError, "expected a device that is here, got .*chip"),
        ({"models": ("flux9",)}, SketchError, "flux9"),
        ({"models": (str(nameless),)}, LatencyError, "pipeline.class_name"),
        ({"models": (str(unknown),)}, SketchError, "a class of diffusers, got 'FluxPipe'"),
        ({"json": tmp_path}, OutputError, "--json"),
    ):
        given = {"json": tmp_path / "x.json", "models": (str(flux),), "device": "cpu", "runs": 1}
        with pytest.raises(error, match=message):
            run_latency(Latency(**given | changes))


def test_the_command_prints_a_table(flux, tmp_path):
    out = tmp_path / "gpu.json"
    result = run("bench", "--suite", "gpu", "--device", "cpu", "--config", str(flux), "--mode",
                 "eager", "--runs", "1", "--json", str(out))  # fmt: skip
    assert result.exit_code == 0
    assert "flux1-dev_fast" in result.output
    assert "fresco adds" in result.output
    assert "milliseconds of a bare step" in result.output
    assert str(out) in result.output.replace("\n", "")
    refused = run("bench", "--suite", "gpu", "--mode", "eagre", "--json", str(out))
    assert refused.exit_code == 2
