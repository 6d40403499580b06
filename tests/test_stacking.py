"""Techniques on dynamic resolution: what is right, what is off again, what is refused."""

from __future__ import annotations

import contextlib

import pytest
import torch

import fresco
from fresco import errors
from tests import matrix
from tests.conftest import draw_latents, traces
from tests.matrix import RESOLUTIONS, lora_weights
from tests.test_mixed_runs import MIXED

LITE = {"method": "taylorseer", "interval": 2, "warmup": 1, "lite": True}
NEVER = {name: settings for name, settings in matrix.NEVER.items() if name != "cache_dit"}
FORCED = {name: matrix.FORCED[name] for name in NEVER} | {"taylorseer_lite": LITE}

RUNS_HERE = ("int8_weight_only", "int8_dynamic", "float8_weight_only", "quanto_qint8")
REFUSED_HERE = {
    "int4_weight_only": "torchao left the layer as it was with Int4WeightOnlyConfig",
    "float8_dynamic": "CUDA compute capability",
}


def cache(name, settings):
    return {"kind": "cache", "method": name, **settings}


def with_stack(resolution, *stack):
    return {**RESOLUTIONS[resolution], "stack": list(stack)}


@pytest.fixture(autouse=True)
def _fresh_graphs():
    torch._dynamo.reset()


@pytest.fixture
def intact(tiny_flux_pipe):
    """The pipeline; after the test, it must be as it was, to the bit."""
    pipe = tiny_flux_pipe
    plain, before = draw_latents(pipe), traces(pipe)
    modules = {name: id(module) for name, module in pipe.transformer.named_modules()}
    yield pipe
    assert traces(pipe) == before
    assert {name: id(module) for name, module in pipe.transformer.named_modules()} == modules
    assert draw_latents(pipe).equal(plain)


def counts(accelerated, kind):
    (row,) = [row for row in accelerated.summary().rows if row.kind == kind]
    return row.counts


def run(pipe, raw, **asked):
    """Picture, summary rows by kind, report."""
    asked.setdefault("num_inference_steps", 12)
    with fresco.accelerate(pipe, raw) as accelerated:
        picture = draw_latents(pipe, **asked)
        rows = {row.kind: row.counts for row in accelerated.summary().rows}
        return picture, rows, accelerated.report


@pytest.mark.parametrize("resolution", RESOLUTIONS)
@pytest.mark.parametrize("method", NEVER)
def test_a_cache_that_never_hits_gives_exactly_the_uncached_picture(intact, method, resolution):
    expected, _, _ = run(intact, with_stack(resolution))
    with pytest.warns(errors.FrescoWarning, match="cache is on, but did nothing: no hit in"):
        got, rows, _ = run(intact, with_stack(resolution, cache(method, NEVER[method])))
    assert got.equal(expected)
    assert rows["cache"]["hits"] == 0


@pytest.mark.parametrize("resolution", RESOLUTIONS)
@pytest.mark.parametrize("method", FORCED)
def test_a_cache_that_hits_differs_and_says_how_often(intact, method, resolution):
    expected, _, _ = run(intact, with_stack(resolution))
    got, rows, report = run(intact, with_stack(resolution, cache(method, FORCED[method])))
    assert got.isfinite().all()
    assert 0 < (got - expected).norm() / expected.norm() < 0.2
    assert rows["cache"]["calls"] == 12
    assert rows["cache"]["hits"] == sum(step.cached for step in report.steps) >= 4
    side = None
    for step in report.steps:  # features of another layout are never reused
        assert not (step.cached and step.side != side)
        side = step.side


@pytest.mark.parametrize("method", FORCED)
def test_features_are_flushed_by_a_lift_on_the_same_layout(intact, method):
    lifted = {
        "schema": 1,
        "model": "any",
        "stages": [
            {"cell": 1, "steps": 6, "until_sigma": 0.4},
            {"cell": 1, "steps": 6, "lift": {"form": "clean", "to_sigma": 0.6}},
        ],
        "stack": [cache(method, FORCED[method])],
    }
    _, rows, report = run(intact, lifted)
    assert rows["cache"]["flushes"] == 2
    cached = [step.cached for step in report.steps]
    assert cached[0] == cached[6] == 0
    assert cached[1] == cached[7] == 1


@pytest.mark.parametrize("method", FORCED)
@pytest.mark.parametrize("has_contexts", [True, False])
def test_passes_of_guidance_have_state_of_their_own(intact, method, has_contexts):
    """Both passes see the same prompt, so guidance changes nothing, unless they share."""
    raw = with_stack("whole", cache(method, FORCED[method]))
    expected, _, _ = run(intact, raw)
    with fresco.accelerate(intact, raw) as accelerated:
        transformer = intact.transformer
        if not has_contexts:  # as a pipeline that opens none
            named = vars(transformer).pop("cache_context")
            transformer.cache_context = lambda _name: contextlib.nullcontext()
        got = draw_latents(
            intact, num_inference_steps=12, negative_prompt="a red circle", true_cfg_scale=3.0
        )
        assert counts(accelerated, "cache")["calls"] == 24
        assert {step.cached for step in accelerated.report.steps} == {0, 2}
        if not has_contexts:
            transformer.cache_context = named
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", [name for name in FORCED if name != "seacache"])
def test_images_of_a_batch_have_state_of_their_own(intact, method):
    raw = with_stack("mixed", cache(method, FORCED[method]))
    raw["stages"] = [*MIXED["stages"]]
    raw["stages"][1] = MIXED["stages"][1] | {"promote": {"score": "random", "budget": 0.3}}
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    together, rows, _ = run(intact, raw, prompt=["a red circle", "blue"], generator=generators)
    assert rows["cache"]["calls"] > 12  # two groups in mixed steps
    assert rows["cache"]["hits"] > 4
    for i, prompt in enumerate(("a red circle", "blue")):
        alone, _, _ = run(intact, raw, prompt=prompt, seed=i)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", FORCED)
def test_a_run_that_died_leaves_the_next_one_right(intact, method):
    def die(_pipe, step, _timestep, tensors):
        if step == 5:
            raise ValueError("on purpose")
        return tensors

    with fresco.accelerate(intact, with_stack("whole", cache(method, FORCED[method]))):
        expected = draw_latents(intact, num_inference_steps=12)
        with pytest.raises(ValueError, match="on purpose"):
            draw_latents(intact, num_inference_steps=12, callback_on_step_end=die)
        assert draw_latents(intact, num_inference_steps=12).equal(expected)
        other = draw_latents(intact, num_inference_steps=12, height=72, width=40)
        assert other.isfinite().all()
        assert draw_latents(intact, num_inference_steps=12).equal(expected)


@pytest.mark.parametrize("method", FORCED)
def test_another_pipeline_on_the_same_transformer_is_not_cached(intact, method):
    other = type(intact)(**intact.components)
    other.scheduler = type(intact.scheduler).from_config(intact.scheduler.config)
    other.default_sample_size = 16
    other.set_progress_bar_config(disable=True)
    expected = draw_latents(other)
    with fresco.accelerate(intact, with_stack("whole", cache(method, FORCED[method]))):
        mine = draw_latents(intact)
        assert draw_latents(other).equal(expected)
        assert draw_latents(intact).equal(mine)


def test_first_block_cache_is_the_algorithm_written_out(intact):
    """Slow and obvious: the first block is always computed, the others' sum is kept."""
    raw = with_stack("whole", cache("first_block", FORCED["first_block"]))
    got, _, _ = run(intact, raw)
    transformer, kept = intact.transformer, {}
    first, last = transformer.transformer_blocks[0], transformer.single_transformer_blocks[0]

    def after_first(_module, _args, output):
        kept["text"], kept["image"] = output

    def instead_of_last(_module, _args, kwargs, output):
        n_tokens = kept["image"].shape[1]
        if kept.get("n_tokens") != n_tokens:
            kept["n_tokens"] = n_tokens
            kept["sums"] = output[0] - kept["text"], output[1] - kept["image"]
        return tuple(
            a + b for a, b in zip(kept["sums"], (kept["text"], kept["image"]), strict=True)
        )

    with contextlib.ExitStack() as hooks:
        hooks.callback(first.register_forward_hook(after_first).remove)
        handle = last.register_forward_hook(instead_of_last, with_kwargs=True)
        hooks.callback(handle.remove)
        expected, _, _ = run(intact, with_stack("whole"))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_a_cache_that_the_user_enabled_is_refused(tiny_flux_pipe):
    from diffusers import FirstBlockCacheConfig

    tiny_flux_pipe.transformer.enable_cache(FirstBlockCacheConfig())
    with pytest.raises(errors.AttachError, match=r"got one with a cache. Call disable_cache\(\)"):
        fresco.accelerate(tiny_flux_pipe, with_stack("none", cache("first_block", {})))


@pytest.mark.parametrize("form", RUNS_HERE)
def test_quantized_layers_are_the_blocks_own_and_smaller(intact, form):
    expected, _, _ = run(intact, with_stack("whole"))
    with fresco.accelerate(intact, with_stack("whole", {"kind": "quantize", "form": form})) as on:
        got = draw_latents(intact, num_inference_steps=12)
        quantized = {
            name
            for name, module in intact.transformer.named_modules()
            if isinstance(module, torch.nn.Linear) and type(module.weight.data) is not torch.Tensor
        }
        numbers = counts(on, "quantize")
    assert len(quantized) == numbers["layers"] == 17
    assert all("blocks.0." in name and "norm" not in name for name in quantized)
    assert numbers["bytes"] < 0.4 * numbers["bytes before"]
    assert 0 < (got - expected).norm() / expected.norm() < 0.01


@pytest.mark.parametrize("form", REFUSED_HERE)
def test_what_cannot_run_here_is_refused_with_the_reason(intact, form):
    with pytest.raises(errors.AttachError, match=REFUSED_HERE[form]):
        fresco.accelerate(intact, with_stack("whole", {"kind": "quantize", "form": form}))


def test_nothing_left_to_quantize_is_warned_of(intact):
    entry = {"kind": "quantize", "exclude": ["blocks"]}
    with pytest.warns(errors.FrescoWarning, match="no linear layer of a block was left"):
        run(intact, with_stack("none", entry))


def test_a_lora_makes_the_same_picture_kept_and_fused(intact):
    plain, _, _ = run(intact, with_stack("whole"))
    entry = {"kind": "lora", "state_dict": lora_weights(intact)}
    kept, rows, _ = run(intact, with_stack("whole", entry))
    fused, fused_rows, _ = run(intact, with_stack("whole", {**entry, "fuse": True}))
    half, half_rows, _ = run(intact, with_stack("whole", {**entry, "strength": 0.5}))
    assert (kept - plain).norm() / plain.norm() > 0.005
    assert (half - kept).norm() / plain.norm() > 0.001
    torch.testing.assert_close(kept, fused, rtol=0, atol=1e-4)
    weights = lora_weights(intact)
    pairs = [(k, k.replace("_A.", "_B.")) for k in weights if "lora_A" in k]
    norm = sum(float((weights[b] @ weights[a]).pow(2).sum()) for a, b in pairs) ** 0.5
    assert rows["lora"]["layers"] == fused_rows["lora"]["layers"] == len(pairs)
    assert rows["lora"]["norm of delta"] == pytest.approx(norm, rel=1e-4)
    assert half_rows["lora"]["norm of delta"] == pytest.approx(norm / 2, rel=1e-4)


def test_a_lora_without_effect_is_warned_of(intact):
    entry = {"kind": "lora", "state_dict": lora_weights(intact, factor=0.0)}
    with pytest.warns(errors.FrescoWarning, match="its difference to the weights is zero"):
        run(intact, with_stack("none", entry))


def test_a_lora_may_bring_its_scheduler_settings(intact):
    own = intact.scheduler
    entry = {
        "kind": "lora",
        "state_dict": lora_weights(intact),
        "scheduler": {"use_dynamic_shifting": False, "shift": 3.0},
    }
    with fresco.accelerate(intact, with_stack("whole", entry)):
        assert intact.scheduler is not own
        assert intact.scheduler.config.shift == 3.0
        draw_latents(intact)
    assert intact.scheduler is own


@pytest.mark.filterwarnings("ignore:TorchaoLoraLinear was instantiated")  # peft's, of merging
def test_a_lora_loaded_after_accelerate_must_be_unloaded_first(intact):
    accelerated = fresco.accelerate(intact, with_stack("whole", {"kind": "quantize"}))
    intact.load_lora_weights(lora_weights(intact), adapter_name="late")
    with pytest.raises(errors.AttachError, match="Unload the LoRA that was loaded since"):
        accelerated.restore()
    intact.unload_lora_weights()
    accelerated.restore()
    vars(intact.transformer).pop("_hf_peft_config_loaded", None)  # diffusers leaves it


LATE = {
    "resolution": [],
    "cache": [cache("first_block", FORCED["first_block"])],
    "compile": [{"kind": "compile", "backend": "eager"}],
}


@pytest.mark.parametrize("name", LATE)
def test_a_lora_loaded_after_accelerate_works_as_one_loaded_before(intact, name):
    raw = with_stack("whole", *LATE[name])
    plain, _, _ = run(intact, raw)
    weights = lora_weights(intact)
    intact.load_lora_weights(weights, adapter_name="own")
    expected, _, _ = run(intact, raw)
    intact.unload_lora_weights()
    with fresco.accelerate(intact, raw):
        intact.load_lora_weights(weights, adapter_name="own")
        late = draw_latents(intact, num_inference_steps=12)
        intact.unload_lora_weights()
        torch.testing.assert_close(
            draw_latents(intact, num_inference_steps=12), plain, rtol=0, atol=1e-6
        )
    assert (expected - plain).norm() / plain.norm() > 0.001
    torch.testing.assert_close(late, expected, rtol=0, atol=1e-6)
    vars(intact.transformer).pop("_hf_peft_config_loaded", None)  # diffusers leaves it


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")  # peft's, of two LoRAs
@pytest.mark.filterwarnings("ignore:Adapter late was active which is now deleted")
def test_a_second_lora_is_deleted_before_the_recipe_s_own_comes_off(intact):
    late = lora_weights(intact, 0.1)
    entry = {"kind": "lora", "state_dict": lora_weights(intact)}
    accelerated = fresco.accelerate(intact, with_stack("whole", entry))
    intact.load_lora_weights(late, adapter_name="late")
    with pytest.raises(errors.AttachError, match="delete_adapters leaves the recipe's"):
        accelerated.restore()
    intact.delete_adapters("late")
    accelerated.restore()


def test_a_recipe_s_lora_that_the_user_unloaded_comes_off_nevertheless(intact):
    entry = {"kind": "lora", "state_dict": lora_weights(intact)}
    accelerated = fresco.accelerate(intact, with_stack("whole", entry))
    intact.unload_lora_weights()
    assert draw_latents(intact).isfinite().all()
    accelerated.restore()


def test_a_lora_with_text_encoder_weights_is_refused_and_nothing_stays(intact):
    weights = lora_weights(intact) | {"text_encoder.x.lora_A.weight": torch.zeros(2, 2)}
    with pytest.raises(errors.AttachError, match="1 tensors for text encoders"):
        fresco.accelerate(intact, with_stack("whole", {"kind": "lora", "state_dict": weights}))


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_compiled_blocks_give_the_same_picture_in_few_graphs(intact, resolution):
    expected, _, _ = run(intact, with_stack(resolution))
    entry = {"kind": "compile", "backend": "eager"}
    got, rows, _ = run(intact, with_stack(resolution, entry))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    assert rows["compile"] == {"blocks": 2, "graphs": 2}


def test_blocks_that_stay_eager_are_warned_of(intact):
    entry = {"kind": "compile", "backend": "eager"}
    message = "compile is on, but did nothing: no graph was captured"
    with (
        fresco.accelerate(intact, with_stack("none", entry)),
        torch.compiler.set_stance("force_eager"),
        pytest.warns(errors.FrescoWarning, match=message),
    ):
        draw_latents(intact)


def test_an_unknown_backend_is_refused(intact):
    entry = {"kind": "compile", "backend": "eagre"}
    with pytest.raises(errors.AttachError, match=r"expected a backend of .*eager.*, got eagre"):
        fresco.accelerate(intact, with_stack("none", entry))


def test_a_full_graph_under_a_cache_that_breaks_it_is_refused(intact):
    stack = [{"kind": "compile", "fullgraph": True}, cache("first_block", {})]
    with pytest.raises(errors.RecipeError, match="which breaks a full graph"):
        fresco.accelerate(intact, with_stack("none", *stack))


@pytest.mark.parametrize("method", ["pab", "fastercache"])
def test_a_cache_that_compiles_anew_at_every_step_is_refused(intact, method):
    stack = [{"kind": "compile"}, cache(method, FORCED[method])]
    with pytest.raises(errors.RecipeError, match="step counter becomes a constant of the graph"):
        fresco.accelerate(intact, with_stack("none", *stack))


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_all_phases_at_once_come_off_to_the_bit(intact, resolution):
    stack = [cache("first_block", FORCED["first_block"]), {"kind": "quantize"}]
    stack.append({"kind": "lora", "state_dict": lora_weights(intact)})
    picture, rows, _ = run(intact, with_stack(resolution, *stack))
    assert list(rows) == ["lora", "quantize", "resolution", "cache"]
    assert picture.isfinite().all()


@pytest.mark.parametrize("entry", ["quantize", "fused"])
def test_restoring_follows_a_pipeline_that_has_moved(tiny_flux_pipe, entry):
    fused = {"kind": "lora", "state_dict": lora_weights(tiny_flux_pipe), "fuse": True}
    stack = [{"kind": "quantize"} if entry == "quantize" else fused]
    accelerated = fresco.accelerate(tiny_flux_pipe, {"schema": 1, "model": "any", "stack": stack})
    tiny_flux_pipe.to(torch.bfloat16)
    accelerated.restore()
    types = {weight.dtype for weight in tiny_flux_pipe.transformer.parameters()}
    assert types == {torch.bfloat16}
    assert draw_latents(tiny_flux_pipe).isfinite().all()


def test_a_scheduler_that_was_put_in_since_stays(tiny_flux_pipe):
    entry = {
        "kind": "lora",
        "state_dict": lora_weights(tiny_flux_pipe),
        "scheduler": {"use_dynamic_shifting": False, "shift": 3.0},
    }
    accelerated = fresco.accelerate(tiny_flux_pipe, with_stack("none", entry))
    own = type(tiny_flux_pipe.scheduler).from_config(tiny_flux_pipe.scheduler.config)
    tiny_flux_pipe.scheduler = own
    accelerated.restore()
    assert tiny_flux_pipe.scheduler is own
