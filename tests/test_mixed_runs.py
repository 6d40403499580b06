"""Laws of runs with mixed layouts, on a real pipeline class with random weights."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import fresco
from fresco import errors
from fresco.score import SCORES
from fresco.transfer import restrict
from tests.conftest import FRESCO_5, draw_latents, traces

MIXED = {
    "schema": 1,
    "model": "FluxTransformer2DModel",
    "baseline": {"steps": 12, "height": 64, "width": 64},
    "stages": [
        {"cell": 4, "steps": 4, "until_sigma": 0.7},
        {
            "cell": "mixed",
            "steps": 6,
            "until_sigma": 0.3,
            "lift": {"form": "latent", "to_sigma": 0.8},
            "promote": {"score": "channel_variance", "budget": [0, 0.1, 0.2, 0.2, 0.5, 0.5]},
        },
        {"cell": 1, "steps": 2, "lift": {"form": "clean", "to_sigma": 0.5}},
    ],
}


def varied(**mixed):
    raw = copy.deepcopy(MIXED)
    raw["stages"][1] |= mixed
    return raw


RUNS = {
    **{name: varied(promote={"score": name, "budget": 0.3}) for name in SCORES},
    "threshold": varied(promote={"score": "random", "first": "low", "tau": 0.0}),
    "split": varied(promote={"score": "edges", "budget": 0.2, "split": 0.6}),
    "injection": varied(restrict="injection"),
    "coarse units": varied(positions="coarse"),
    "phase": varied(positions="phase"),
    "phase of three sides": varied(
        positions="phase", promote={"score": "edges", "budget": 0.2, "split": 0.6}
    ),
    "phase of none": varied(positions="phase", promote={"score": "edges", "budget": 1.0}),
    "fresh": varied(lift={"form": "fresh", "to_sigma": 0.8}),
    "spectral": varied(lift={"form": "spectral", "to_sigma": 0.8}),
}


@pytest.mark.parametrize("raw", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize("size", [(64, 64), (72, 40)], ids=str)
def test_an_image_does_not_depend_on_its_batch(tiny_flux_pipe, raw, size):
    generators = [torch.Generator().manual_seed(i) for i in range(3)]
    asked = {"height": size[0], "width": size[1], "num_inference_steps": 6}
    prompts = ["a red circle", "blue", "a large square"]
    with fresco.accelerate(tiny_flux_pipe, raw) as accelerated:
        together = draw_latents(tiny_flux_pipe, prompt=prompts, generator=generators, **asked)
        layouts = accelerated._middleware.last.mixed
        alone = draw_latents(tiny_flux_pipe, prompt="blue", seed=1, **asked)
        assert accelerated._middleware.last.mixed[0].sides.equal(layouts[1].sides)
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-4)


def test_images_of_one_batch_have_layouts_of_their_own(tiny_flux_pipe):
    with fresco.accelerate(tiny_flux_pipe, RUNS["random"]) as accelerated:
        draw_latents(tiny_flux_pipe, prompt=["a red circle", "blue"])
        one, other = accelerated._middleware.last.mixed
        assert not one.sides.equal(other.sides)
    with fresco.accelerate(tiny_flux_pipe, RUNS["evenly_spaced"]) as accelerated:
        draw_latents(tiny_flux_pipe, prompt=["a red circle", "blue"])
        run = accelerated._middleware.last
        assert len(run.groups(run.plan.steps[4])) == 1  # equal layouts go together


def test_groups_that_interleave_come_back_in_the_batch_s_order(tiny_flux_pipe):
    seeds, prompts = (0, 1, 0), ["a red circle", "blue", "a red circle"]
    with fresco.accelerate(tiny_flux_pipe, RUNS["random"]) as accelerated:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        together = draw_latents(tiny_flux_pipe, prompt=prompts, generator=generators)
        run = accelerated._middleware.last
        assert [group.images for group in run.groups(run.plan.steps[4])] == [(0, 2), (1,)]
        for image, (seed, prompt) in enumerate(zip(seeds, prompts, strict=True)):
            alone = draw_latents(tiny_flux_pipe, prompt=prompt, seed=seed)
            torch.testing.assert_close(together[image : image + 1], alone, rtol=0, atol=1e-4)


def test_true_guidance_sees_one_layout_in_both_passes(tiny_flux_pipe):
    seen = []
    with fresco.accelerate(tiny_flux_pipe, MIXED) as accelerated:
        handle = tiny_flux_pipe.transformer.register_forward_pre_hook(
            lambda _m, _a, kwargs: seen.append(kwargs["img_ids"]), with_kwargs=True
        )
        draw_latents(tiny_flux_pipe, negative_prompt="blue", true_cfg_scale=2.0)
        handle.remove()
        assert [step.passes for step in accelerated.report.steps] == [2] * 6
    assert len(seen) == 12
    for one, other in zip(seen[::2], seen[1::2], strict=True):
        assert one.equal(other)
    assert [len(ids) for ids in seen[::2]] == [4, 4, 16, 25, 40, 64]


def test_promoted_cells_stay_promoted_and_the_plan_is_kept(tiny_flux_pipe):
    layouts = []

    def watch(pipe, _step, _timestep, tensors):
        layouts.append(accelerated._middleware.last.mixed)
        return tensors

    with fresco.accelerate(tiny_flux_pipe, MIXED) as accelerated:
        planned = [step.n_tokens for step in accelerated.plan.steps]
        draw_latents(tiny_flux_pipe, num_inference_steps=12, callback_on_step_end=watch)
        assert [step.tokens for step in accelerated.report.steps] == planned
        assert planned == [4] * 4 + [16, 22, 25, 25, 40, 40] + [64] * 2
        assert all(a <= b for a, b in pairwise(planned))
    sides = [layout[0].sides for layout in layouts if layout]
    assert len(sides) == 9
    for before, after in pairwise(sides):
        assert (after <= before).all()


def test_the_plan_of_a_threshold_is_what_the_run_found(tiny_flux_pipe):
    with fresco.accelerate(tiny_flux_pipe, RUNS["threshold"]) as accelerated:
        draw_latents(tiny_flux_pipe, num_inference_steps=12)
        tokens = [step.tokens for step in accelerated.report.steps]
        assert [step.n_tokens for step in accelerated.plan.steps] == tokens
        assert 16 < tokens[4] < 64
        full = accelerated.cost().baseline_flops
        assert accelerated.cost().flops < full


@pytest.mark.parametrize(
    ("tau", "reason"),
    [(-1e9, "the first of its steps promoted every cell"), (1e9, "no cell has reached it")],
)
def test_a_threshold_that_makes_no_difference_is_said(tiny_flux_pipe, tau, reason):
    raw = varied(promote={"score": "edges", "tau": tau})
    with (
        fresco.accelerate(tiny_flux_pipe, raw),
        pytest.warns(errors.FrescoWarning, match=f"promotion by tau did nothing: {reason}"),
    ):
        draw_latents(tiny_flux_pipe)


def test_a_threshold_that_makes_a_difference_is_not_warned_of(tiny_flux_pipe, recwarn):
    with fresco.accelerate(tiny_flux_pipe, RUNS["threshold"]):
        draw_latents(tiny_flux_pipe)
    assert not [each for each in recwarn if issubclass(each.category, errors.FrescoWarning)]


@pytest.mark.parametrize(
    "name",
    ["edges", "phase", "phase of three sides", "phase of none", "injection", "threshold"],
)
def test_the_cost_is_what_a_counter_counts_in_the_run(tiny_flux_pipe, name):
    with (
        fresco.accelerate(tiny_flux_pipe, RUNS[name]) as accelerated,
        sdpa_kernel(SDPBackend.MATH),  # the counter does not know the fused attention of the CPU
        FlopCounterMode(display=False) as counter,
    ):
        draw_latents(tiny_flux_pipe)
    counted = counter.get_flop_counts()["FluxTransformer2DModel"]
    assert accelerated.cost().flops == sum(counted.values())


def test_a_mixed_stage_that_promotes_everything_is_a_fine_one(tiny_flux_pipe):
    whole = copy.deepcopy(FRESCO_5)
    whole["stages"][1] = {"cell": 1, "steps": 4, "until_sigma": 0.4}
    whole["stages"][2].pop("lift")
    mixed = copy.deepcopy(whole)
    mixed["stages"][1] |= {"cell": "mixed", "promote": {"score": "edges", "budget": 1.0}}
    with fresco.accelerate(tiny_flux_pipe, whole):
        expected = draw_latents(tiny_flux_pipe)
    with fresco.accelerate(tiny_flux_pipe, mixed):
        torch.testing.assert_close(draw_latents(tiny_flux_pipe), expected, rtol=0, atol=1e-5)


def test_the_transformer_sees_the_tokens_of_the_layout(tiny_flux_pipe):
    """Slow and obvious: one token at a time, from the latents before the call."""
    calls, latents = [], []
    tiny_flux_pipe.transformer.register_forward_pre_hook(
        lambda _m, _a, kwargs: latents.append(kwargs), with_kwargs=True
    )
    with fresco.accelerate(tiny_flux_pipe, MIXED) as accelerated:
        tiny_flux_pipe.transformer.register_forward_pre_hook(
            lambda _m, _a, kwargs: calls.append((kwargs, accelerated._middleware.last.mixed)),
            with_kwargs=True,
        )
        draw_latents(tiny_flux_pipe)
        run = accelerated._middleware.last
        plan = run.plan
    checked = 0
    for step, given, (seen, mixed) in zip(plan.steps, latents, calls, strict=True):
        if step.promotion is None:
            continue
        (layout,) = mixed
        carrier = accelerated._middleware.adapter.read(given, run.fine)
        tokens = restrict(carrier, run.noise, step.sigma, layout)
        for n, ((row, column), side) in enumerate(
            zip(layout.token_starts.tolist(), layout.token_sides.tolist(), strict=True)
        ):
            centre = [0.0, row + (side - 1) / 2, column + (side - 1) / 2]
            assert seen["img_ids"][n].tolist() == centre
            assert seen["hidden_states"][0, n].equal(tokens[0, n].flatten())
            checked += 1
    assert checked > 60


def test_positions_that_an_adapter_cannot_align_are_refused(tiny_flux_pipe, monkeypatch):
    from fresco.ports import AbstractModelAdapter, find_adapter

    adapter = type(find_adapter(tiny_flux_pipe.transformer))
    monkeypatch.setattr(adapter, "units", AbstractModelAdapter.units)
    before = traces(tiny_flux_pipe)
    with pytest.raises(fresco.errors.AdapterError, match="phase-aligned attention"):
        fresco.accelerate(tiny_flux_pipe, RUNS["phase"])
    assert traces(tiny_flux_pipe) == before


def test_a_part_that_fails_leaves_the_next_run_right(tiny_flux_pipe):
    with fresco.accelerate(tiny_flux_pipe, MIXED):
        expected = draw_latents(tiny_flux_pipe)
        handle = tiny_flux_pipe.transformer.register_forward_pre_hook(_fail_on_mixed)
        with pytest.raises(ValueError, match="on purpose"):
            draw_latents(tiny_flux_pipe, prompt=["a red circle", "blue"])
        handle.remove()
        assert draw_latents(tiny_flux_pipe).equal(expected)


def test_batches_with_ip_adapter_images_are_refused_in_mixed_stages(tiny_flux_pipe):
    embeds = {"ip_adapter_image_embeds": [torch.zeros(2, 1, 4, 16)]}
    adapter_error = fresco.errors.AdapterError
    from fresco.ports import find_adapter

    adapter = find_adapter(tiny_flux_pipe.transformer)
    call = {"hidden_states": torch.zeros(2, 4, 16), "joint_attention_kwargs": embeds}
    with pytest.raises(adapter_error, match="got 2 pictures with them"):
        adapter.select(call, [0])


def _fail_on_mixed(_module, _args, _kwargs=None):
    raise ValueError("on purpose")


def test_another_pipeline_on_the_same_transformer_is_left_alone_after_a_run_died(tiny_flux_pipe):
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

    own = {"scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)}
    other = FluxPipeline(**{**tiny_flux_pipe.components, **own})
    other.default_sample_size = 16
    other.set_progress_bar_config(disable=True)
    expected, inside = draw_latents(other), []

    def within(_pipe, step, _timestep, tensors):
        if step == 2:
            inside.append(draw_latents(other))
        return tensors

    def fail(*_):
        raise ValueError("on purpose")

    with fresco.accelerate(tiny_flux_pipe, MIXED):
        plain = draw_latents(tiny_flux_pipe)
        assert draw_latents(tiny_flux_pipe, callback_on_step_end=within).equal(plain)
        assert inside[0].equal(expected)
        with pytest.raises(ValueError, match="on purpose"):
            draw_latents(tiny_flux_pipe, callback_on_step_end=fail)
        assert draw_latents(other).equal(expected)
        assert draw_latents(tiny_flux_pipe).equal(plain)


def test_shares_that_fall_from_one_mixed_stage_to_the_next_are_refused():
    stages = copy.deepcopy(MIXED["stages"])
    less = {"score": "edges", "budget": 0.1}
    stages.insert(2, {"cell": "mixed", "steps": 1, "until_sigma": 0.2, "promote": less})
    with pytest.raises(fresco.errors.RecipeError, match=r"0.5 of them are @ \$.stages\[2\]"):
        fresco.load_recipe({**MIXED, "stages": stages})


@pytest.mark.parametrize("shape", [(2, 64, 16), (1, 64, 6), (1, 63, 16)], ids=str)
def test_latents_of_another_shape_are_refused(tiny_flux_pipe, shape):
    with fresco.accelerate(tiny_flux_pipe, MIXED):
        with pytest.raises(fresco.errors.LayoutError, match=r"expected latents \[1, 64, 16\]"):
            draw_latents(tiny_flux_pipe, latents=torch.zeros(shape))
        assert draw_latents(tiny_flux_pipe).isfinite().all()


def test_a_denoising_loop_written_by_hand_is_accelerated_too(tiny_flux_pipe):
    pipe = tiny_flux_pipe
    with fresco.accelerate(pipe, MIXED) as accelerated, torch.no_grad():
        expected = draw_latents(pipe)
        tokens = [step.tokens for step in accelerated.report.steps]
        text, pooled, text_ids = pipe.encode_prompt("a red circle", None, max_sequence_length=16)
        draw = torch.Generator().manual_seed(0)
        latents, ids = pipe.prepare_latents(1, 4, 64, 64, torch.float32, "cpu", draw)
        pipe.scheduler.set_timesteps(sigmas=[1 - i / 6 for i in range(6)], mu=0.5)
        for timestep in pipe.scheduler.timesteps:
            velocity = pipe.transformer(
                hidden_states=latents,
                encoder_hidden_states=text,
                pooled_projections=pooled,
                timestep=timestep.expand(1) / 1000,
                img_ids=ids,
                txt_ids=text_ids,
                return_dict=False,
            )[0]
            latents = pipe.scheduler.step(velocity, timestep, latents, return_dict=False)[0]
        pipe.maybe_free_model_hooks()
        assert [step.tokens for step in accelerated.report.steps] == tokens
    torch.testing.assert_close(latents, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("is_joint", [False, True], ids=["double", "single"])
def test_coarse_queries_attend_at_their_own_stride(tiny_flux_pipe, is_joint):
    """Slow and obvious: the attention of the seen tokens alone, at positions in cells."""
    from fresco.adapters.models.flux_attention import Strides

    from fresco.layout import TokenLayout

    transformer, n_text = tiny_flux_pipe.transformer, 3
    blocks = transformer.single_transformer_blocks if is_joint else transformer.transformer_blocks
    attn = blocks[0].attn
    layout = TokenLayout(torch.tensor([[2, 2, 1, 1], [2, 2, 1, 1]]))
    draw = torch.Generator().manual_seed(0)
    image, text = torch.randn(1, 5, 32, generator=draw), torch.randn(1, n_text, 32, generator=draw)

    def attend(image, positions):
        ids = torch.cat((torch.zeros(n_text + len(positions), 1), torch.cat(
            (torch.zeros(n_text, 2), torch.tensor(positions)))), dim=1)  # fmt: skip
        rotary = transformer.pos_embed(ids)
        if is_joint:
            joint = torch.cat((text, image), dim=1)
            both = attn(hidden_states=joint, image_rotary_emb=rotary)
            return both[:, n_text:], both[:, :n_text]
        given = {"hidden_states": image, "encoder_hidden_states": text}
        return attn(**given, image_rotary_emb=rotary)

    positions = layout.positions("phase").tolist()
    with torch.no_grad():
        plain, plain_text = attend(image, positions)
        small, _ = attend(image[:, [0, 1]], [[0.0, 0.0], [0.0, 1.0]])  # the upper left one of four
        strides = Strides(transformer)
        strides.aim({"img_ids": torch.zeros(5, 3), "txt_ids": torch.zeros(n_text, 3)}, layout)
        seen, seen_text = attend(image, positions)
        strides.remove()
    torch.testing.assert_close(seen[:, 0], small[:, 0])
    assert not torch.isclose(seen[:, 0], plain[:, 0]).all()
    assert seen[:, 1:].equal(plain[:, 1:])
    assert seen_text.equal(plain_text)
