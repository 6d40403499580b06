"""Runs with mixed layouts against the algorithm and its attention, written the slow way."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from fresco.adapters.models.flux_attention import Strides

import fresco
from fresco.injection import inject
from fresco.layout import TokenLayout
from fresco.lift import draw_clean
from fresco.noise import NoiseField
from fresco.promotion import promote
from fresco.registry import find_adapter
from fresco.score import SCORES, Evidence
from fresco.transfer import restrict
from tests.conftest import draw_latents
from tests.mixed import MIXED, RUNS, varied
from tests.slow import slow_interpolate, slow_positions, slow_prolong, slow_restrict

SIZES = [(64, 64), (72, 40)]
RISING = [0, 0.1, 0.2, 0.3, 0.5, 0.5]
SECOND = varied(promote={"score": "edges", "budget": RISING}, order=2)
CHANGE = varied(promote={"score": "temporal_variance", "budget": RISING})


def lifted(lift, x, v, eps, layout):
    """The two lifts of these recipes."""
    if lift.form == "clean":
        clean = draw_clean(x - lift.sigma * v, layout, lift.up)
        return (1 - lift.to_sigma) * clean + lift.to_sigma * eps
    end = x + (lift.end_sigma - lift.sigma) * v
    beta = (1 - lift.to_sigma) / (1 - lift.end_sigma)
    return beta * end + (lift.to_sigma - beta * lift.end_sigma) * eps


def half_step(plan, k):
    """How far half of a step goes, over the whole step before it."""
    end = plan.steps[k].lift.end_sigma if plan.steps[k].lift else plan.steps[k].next_sigma
    a, b, c = (math.log(1 / s - 1) for s in (plan.steps[k - 1].sigma, plan.steps[k].sigma, end))
    return (c - b) / (b - a) / 2


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(
    "name", ["edges", "change", "threshold", "split", "injection", "coarse units", "second order"]
)
def test_a_mixed_run_is_the_algorithm_written_out(tiny_flux_pipe, name, size):
    pipe, layouts = tiny_flux_pipe, []
    raw = {**RUNS, "change": CHANGE, "second order": SECOND}[name]
    with fresco.accelerate(pipe, raw) as accelerated:
        hook = pipe.transformer.register_forward_pre_hook(
            lambda *_: layouts.append(accelerated._middleware.last.mixed)
        )
        got = draw_latents(pipe, height=size[0], width=size[1])
        hook.remove()
        plan = accelerated.plan
    text, pooled, text_ids = pipe.encode_prompt("a red circle", None, max_sequence_length=16)
    x = torch.randn(
        1, 4, 2 * plan.rows, 2 * plan.columns, generator=torch.Generator().manual_seed(0)
    )
    field, clean, layout = NoiseField(x, 2), [], None
    for k, step in enumerate(plan.steps):
        if step.promotion is None or plan.steps[k - 1].promotion is None:
            layout = TokenLayout.whole(plan.rows, plan.columns, step.side, 2)
        if step.promotion:
            score = SCORES[step.promotion.score][0](Evidence(tuple(clean[-3:]), field))[0]
            layout = promote(layout, score, step.promotion)
            assert layouts[k][0].sides.equal(layout.sides)
        is_injected = name == "injection" and step.promotion
        tokens = inject(x, layout) if is_injected else slow_restrict(x, field, step.sigma, layout)
        units = step.units if step.promotion else "native"
        positions = slow_positions(layout, units, step.side)
        with torch.no_grad():
            predicted = pipe.transformer(
                hidden_states=tokens.flatten(2),
                encoder_hidden_states=text,
                pooled_projections=pooled,
                timestep=torch.tensor([step.sigma]),
                img_ids=torch.cat((torch.zeros(layout.n_tokens, 1), positions), dim=1),
                txt_ids=text_ids,
                return_dict=False,
            )[0].unflatten(2, (4, 2, 2))
        v = (slow_interpolate if is_injected else slow_prolong)(predicted, field, 1.0, layout)
        clean.append(x - step.sigma * v)
        own = v
        if name == "second order" and k and plan.steps[k - 1].promotion and step.promotion:
            v = (x - clean[-1] - half_step(plan, k) * (clean[-1] - clean[-2])) / step.sigma
        if step.lift:
            x = lifted(step.lift, x, v if step.lift.form == "latent" else own, field.eps, layout)
        else:
            x = x + (step.next_sigma - step.sigma) * v
    expected = pipe._pack_latents(x, *x.shape)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


class SlowPhase:
    """Every query by itself: the keys that it sees at its own stride, and where."""

    def __init__(self, mixed):
        self.mixed, self.plain = mixed, FluxAttnProcessor()

    def place(self, token, side, n_text):
        """Position of a token for queries of one side; None if they do not see it."""
        if token < n_text:
            return 0.0, 0.0
        row, column = self.layout.token_starts[token - n_text].tolist()
        return None if row % side or column % side else (row / side, column / side)

    def __call__(self, attn, image, text=None, mask=None, rotary=None):
        self.layout = self.mixed()
        if self.layout is None:
            return self.plain(attn, image, text, mask, rotary)
        query, key, value = (part(image) for part in (attn.to_q, attn.to_k, attn.to_v))
        query, key = attn.norm_q(heads(query)), attn.norm_k(heads(key))
        value = heads(value)
        if text is not None:
            added = (part(text) for part in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj))
            q, k, v = map(heads, added)
            query = torch.cat((attn.norm_added_q(q), query))
            key, value = torch.cat((attn.norm_added_k(k), key)), torch.cat((v, value))
        n, rows = len(query), []
        n_text = n - self.layout.n_tokens
        for i in range(n):
            side = 1 if i < n_text else int(self.layout.token_sides[i - n_text])
            places = {j: self.place(j, side, n_text) for j in range(n)}
            seen = [j for j, place in places.items() if place]
            own = turned(query[i : i + 1], [places[i]])
            keys = turned(key[seen], [places[j] for j in seen])
            weights = (torch.einsum("qhd,khd->hqk", own, keys) / 4).softmax(dim=-1)
            rows.append(torch.einsum("hqk,khd->qhd", weights, value[seen]).flatten(1))
        out = torch.cat(rows)[None]
        if text is None:
            return out
        return attn.to_out[1](attn.to_out[0](out[:, n_text:])), attn.to_add_out(out[:, :n_text])


def heads(x):
    return x[0].unflatten(-1, (2, 16))


def turned(x, places):
    """Rotary embedding of the axes 4, 6 and 6 as complex numbers, [n, 2, 16]."""
    angles = [
        [at * 10000 ** (-2 * i / width) for at, width in ((0, 4), (place[0], 6), (place[1], 6))
         for i in range(width // 2)]
        for place in places
    ]  # fmt: skip
    turn = torch.polar(torch.ones(len(places), 1, 8), torch.tensor(angles)[:, None])
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (8, 2))) * turn).flatten(-2)


PHASES = {
    "two sides": RUNS["phase"],
    "three sides": RUNS["phase of three sides"],
    "nothing fine": varied(positions="phase", promote={"score": "edges", "budget": 0.0}),
}


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", PHASES)
def test_phase_aligned_attention_is_that_of_every_query_by_itself(
    tiny_flux_pipe, monkeypatch, name, size
):
    pipe, asked = tiny_flux_pipe, {"height": size[0], "width": size[1]}
    with fresco.accelerate(pipe, PHASES[name]):
        got = draw_latents(pipe, **asked)
    monkeypatch.setattr(Strides, "aim", lambda *_: None)
    with fresco.accelerate(pipe, PHASES[name]) as accelerated:
        unaligned = draw_latents(pipe, **asked)

        def mixed():
            run = accelerated._middleware.last
            return run.mixed[0] if run.step.promotion else None

        pipe.transformer.set_attn_processor(SlowPhase(mixed))
        expected = draw_latents(pipe, **asked)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    assert (unaligned - expected).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["edges", "coarse units", "phase", "injection"])
def test_the_last_steps_are_at_the_model_s_own_positions(tiny_flux_pipe, name):
    """Also where a mixed stage has promoted everything, in units of its own."""
    raw = {**RUNS[name], "stages": [dict(stage) for stage in RUNS[name]["stages"]]}
    raw["stages"][1]["promote"] = {"score": "edges", "budget": [0, 0.2, 0.4, 0.6, 1, 1]}
    seen = []
    tiny_flux_pipe.transformer.pos_embed.register_forward_hook(
        lambda _module, args, _output: seen.append(args[0].clone())
    )
    draw_latents(tiny_flux_pipe)
    own = seen[-1]
    seen.clear()
    with fresco.accelerate(tiny_flux_pipe, raw):
        draw_latents(tiny_flux_pipe, num_inference_steps=12)
    calls = [ids for ids in seen if ids.shape == own.shape]
    assert calls[-1].equal(own)
    assert calls[-2].equal(own)
    assert calls[0].equal(own) == (name != "coarse units")  # all promoted, still in its own units


def test_positions_are_told_in_float32_to_a_transformer_in_half_precision(tiny_flux_pipe):
    adapter = find_adapter(tiny_flux_pipe.transformer)
    layout = TokenLayout.whole(2, 600, 2, 2)
    like = torch.zeros(1, dtype=torch.bfloat16)
    call = {"hidden_states": like.new_zeros(1, 1200, 16), "img_ids": like.new_zeros(1200, 3)}
    positions = layout.positions("fine")
    tokens = torch.zeros(1, layout.n_tokens, 4, 2, 2)
    ids = adapter.embed(call, tokens, layout, positions)["img_ids"]
    assert ids.dtype == torch.float32
    assert ids[:, 1:].equal(positions)  # 598.5 is 600 in bfloat16


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


@pytest.mark.parametrize("is_joint", [False, True], ids=["double", "single"])
def test_coarse_queries_attend_at_their_own_stride(tiny_flux_pipe, is_joint):
    """Slow and obvious: the attention of the seen tokens alone, at positions in cells."""
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
