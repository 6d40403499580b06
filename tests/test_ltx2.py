"""LTX-2: a video in stages, its sound beside it at the same noise levels."""

from __future__ import annotations

import itertools

import diffusers
import pytest
import torch

import fresco
from fresco import errors
from fresco.layout import TokenLayout
from fresco.registry import find_adapter
from tests.conftest import traces
from tests.families import FAMILIES
from tests.family import noise, repeated
from tests.staged import ALL_FINE, MIXED, RANDOM, STAGED

FAMILY = FAMILIES["ltx2"]
ALL_GUIDANCE = {  # as the pipeline does by default: three calls of a step
    "stg_scale": 1.0,
    "modality_scale": 3.0,
    "guidance_rescale": 0.7,
    "audio_stg_scale": 1.0,
    "audio_modality_scale": 3.0,
    "audio_guidance_rescale": 0.7,
    "spatio_temporal_guidance_blocks": [1],
}


def draw(pipe, **asked):
    """Video [b, c, f, h, w] and sound [b, c, length, bins]."""
    asked = {"num_inference_steps": 6, "height": 128, "width": 192} | FAMILY.asked() | asked
    asked.setdefault("generator", torch.Generator().manual_seed(0))
    return pipe(**asked, output_type="latent", return_dict=False)


def equal(one, other):
    return all(a.equal(b) for a, b in zip(one, other, strict=True))


class Heard:
    """What the transformer is given and says of sound, and how many tokens its blocks see."""

    def __init__(self, transformer):
        self.given, self.said, self.coords, self.tokens = [], [], [], []
        self.hooks = [
            transformer.register_forward_hook(self._record, with_kwargs=True),
            transformer.transformer_blocks[0].register_forward_pre_hook(
                self._count, with_kwargs=True
            ),
        ]

    def _record(self, _module, _args, call, output):
        self.given.append((float(call["timestep"][0]) / 1000, call["audio_hidden_states"].clone()))
        self.said.append(output[1].clone())
        self.coords.append(call["audio_coords"].clone())

    def _count(self, _block, _args, call):
        self.tokens.append((call["hidden_states"].shape[1], call["audio_hidden_states"].shape[1]))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()


@pytest.fixture
def pipe():
    """A pipeline; after the test, it must be as it was."""
    pipe = FAMILY.make()
    plain, before = draw(pipe), traces(pipe)
    yield pipe
    assert traces(pipe) == before
    assert equal(draw(pipe), plain)


@pytest.mark.parametrize("guidance", [{}, ALL_GUIDANCE], ids=["text", "all"])
def test_identity_recipes_leave_video_and_sound_as_they_are(pipe, guidance):
    plain = draw(pipe, **guidance)
    for raw in ("identity", ALL_FINE):
        with fresco.accelerate(pipe, raw) as accelerated:
            assert equal(draw(pipe, **guidance), plain)
            assert [step.passes for step in accelerated.report.steps] == [3 if guidance else 1] * 6
    draw(pipe)  # the pipeline keeps what it is asked


@pytest.mark.parametrize("raw", [STAGED, MIXED], ids=["whole", "mixed"])
def test_sound_is_stepped_along_at_the_plan_s_sigmas(pipe, raw):
    """One Euler step after another, also where a lift leads up; never cells, never positions."""
    with Heard(pipe.transformer) as plain:
        draw(pipe)
    with fresco.accelerate(pipe, raw) as accelerated, Heard(pipe.transformer) as heard:
        video, sound = draw(pipe)
        sigmas, steps = accelerated.plan.sigmas, accelerated.report.steps
    assert video.isfinite().all()
    assert video.shape == (1, 4, 2, 4, 6)
    assert [sigma for sigma, _ in heard.given] == pytest.approx(sigmas[:-1], abs=1e-6)
    assert heard.tokens == [(step.tokens, 9) for step in steps]  # 0.375 s of 25 per second
    assert heard.given[0][1].equal(plain.given[0][1])
    for k, (sigma, given) in enumerate(heard.given):
        without, predicted = heard.said[k].chunk(2)
        guided = without + FAMILY.asked()["audio_guidance_scale"] * (predicted - without)
        stepped = given[:1] + (sigmas[k + 1] - sigma) * guided
        if k + 1 < len(heard.given):
            got = heard.given[k + 1][1][:1]
        else:
            got = pipe._pack_audio_latents(sound)
        torch.testing.assert_close(got, stepped, rtol=0, atol=1e-5)
        assert heard.coords[k].equal(plain.coords[0])
    assert any(b > a for a, b in itertools.pairwise(sigmas)) == (raw is STAGED)


def test_sound_keeps_its_noise_over_a_lift(pipe):
    """At a lift, sound is at the higher level with the clean sound and noise of that call."""
    with fresco.accelerate(pipe, STAGED) as accelerated, Heard(pipe.transformer) as heard:
        draw(pipe, guidance_scale=1.0, audio_guidance_scale=1.0)
        sigmas = accelerated.plan.sigmas
    k = max(k for k in range(len(sigmas) - 1) if sigmas[k + 1] > sigmas[k])
    (sigma, given), said = heard.given[k], heard.said[k]
    clean, noise = given - sigma * said, given + (1 - sigma) * said
    to_sigma, lifted = heard.given[k + 1]
    torch.testing.assert_close(lifted, (1 - to_sigma) * clean + to_sigma * noise, rtol=0, atol=1e-5)


@pytest.mark.parametrize("raw", [STAGED, MIXED], ids=["whole", "mixed"])
def test_all_guidance_at_two_sizes_and_lengths_in_a_row(pipe, raw):
    with fresco.accelerate(pipe, raw) as accelerated:
        first = draw(pipe, **ALL_GUIDANCE)
        assert {step.passes for step in accelerated.report.steps} == {3}
        video, sound = draw(pipe, **ALL_GUIDANCE, height=160, width=128, num_frames=17)
        assert accelerated.plan.n_full_tokens == 3 * 5 * 4
        assert video.shape == (1, 4, 3, 5, 4)
        assert video.isfinite().all()
        assert sound.isfinite().all()
        assert equal(draw(pipe, **ALL_GUIDANCE), first)
    draw(pipe)


@pytest.mark.parametrize("moved_by", [1e-7, 0.5])
def test_places_of_the_full_grid_are_the_pipeline_s_own(pipe, moved_by):
    """Boxes in image px and seconds; the slow way, token by token."""
    calls = []
    record = pipe.transformer.register_forward_pre_hook(
        lambda _module, _args, call: calls.append(call), with_kwargs=True
    )
    with record:
        draw(pipe)
    call, layout = calls[0], TokenLayout.whole(4, 6, 1, 1)
    adapter = find_adapter(pipe.transformer)
    tokens = adapter.read(call, layout).flatten(2).transpose(1, 2)[..., None, None]
    positions = layout.positions("fine") + moved_by
    entered = adapter.embed(call, tokens, layout, positions)
    own, got = call["video_coords"], entered["video_coords"]
    assert entered["hidden_states"].equal(call["hidden_states"])
    assert got[:, 0].equal(own[:, 0])
    torch.testing.assert_close(got[:, 1:] - own[:, 1:], torch.full_like(own[:, 1:], 32 * moved_by))
    if moved_by < 0.1:
        said = pipe.transformer(**call)
        torch.testing.assert_close(pipe.transformer(**entered), said, rtol=0, atol=1e-5)


def test_places_of_mixed_cells_are_the_middles_of_what_they_cover(pipe):
    sides = torch.tensor([[2, 2, 1, 1], [2, 2, 1, 1]])
    layout, adapter = TokenLayout(sides, 1), find_adapter(pipe.transformer)
    coords = pipe.transformer.rope.prepare_video_coords(1, 2, 2, 4, "cpu", fps=24.0)
    call = {"hidden_states": noise(1, 16, 4), "video_coords": coords}
    tokens = noise(1, layout.n_tokens, 4 * 2)[..., None, None]
    entered = adapter.embed(call, tokens, layout, layout.positions("fine"))["video_coords"]
    middles = coords.mean(-1).unflatten(2, (2, 2, 4))
    places = zip(layout.token_starts.tolist(), layout.token_sides.tolist(), strict=True)
    for i, ((row, column), side) in enumerate(places):
        covered = middles[..., row : row + side, column : column + side].mean((-1, -2))
        got = entered.mean(-1).unflatten(2, (2, -1))[..., i]
        torch.testing.assert_close(got, covered)


def test_places_stay_float32_beside_latents_in_bfloat16():
    transformer, layout = FAMILY.make().transformer, TokenLayout.whole(2, 4, 1, 1)
    call = {
        "hidden_states": noise(1, 16, 4),
        "video_coords": transformer.rope.prepare_video_coords(1, 2, 2, 4, "cpu", fps=24.0),
    }
    tokens, positions = noise(1, 8, 4 * 2)[..., None, None], layout.positions("fine") + 0.3
    embed = find_adapter(transformer).embed
    expected = embed(call, tokens, layout, positions)["video_coords"]
    entered = embed(
        {**call, "hidden_states": call["hidden_states"].bfloat16()}, tokens, layout, positions
    )
    assert entered["hidden_states"].dtype == torch.bfloat16
    assert entered["video_coords"].dtype == torch.float32
    assert entered["video_coords"].equal(expected)


def test_sound_does_not_depend_on_its_batch(pipe):
    with fresco.accelerate(pipe, RANDOM) as accelerated:
        generators = [torch.Generator().manual_seed(seed) for seed in (0, 2)]
        together = draw(pipe, **repeated(FAMILY.asked()), generator=generators)
        run = accelerated._middleware.last
        assert len(run.groups(run.plan.steps[2])) == 2
        for i, seed in enumerate((0, 2)):
            alone = draw(pipe, generator=torch.Generator().manual_seed(seed))
            for one, other in zip(together, alone, strict=True):
                torch.testing.assert_close(one[i : i + 1], other, rtol=0, atol=1e-4)


def test_outputs_by_name_keep_their_sound(pipe):
    adapter = find_adapter(pipe.transformer)
    made = diffusers.models.transformers.transformer_ltx2.AudioVisualModelOutput
    one, other = (made(sample=noise(1, 2, 4), audio_sample=noise(1, 3, 4)) for _ in range(2))
    assert adapter.with_sample(one, noise(1, 5, 4)).audio_sample.equal(one.audio_sample)
    joined = adapter.join((one, other), torch.tensor([1, 0]))
    assert joined.audio_sample.equal(torch.cat((other.audio_sample, one.audio_sample)))


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("LTX2ImageToVideoPipeline", r"with one per token \(image\)"),
        ("LTX2ConditionPipeline", r"with one per token \(conditions\)"),
        ("LTX2HDRPipeline", "expected LTX2Pipeline, got LTX2HDRPipeline, which holds some tokens"),
    ],
)
def test_pipelines_of_other_tokens_are_refused(name, match):
    parts = FAMILY.make().components
    kind = getattr(diffusers, name)
    takes = kind._get_signature_keys(kind)[0]
    other = kind(**{key: value for key, value in parts.items() if key in takes})
    before = traces(other)
    with pytest.raises(errors.AdapterError, match=match):
        fresco.accelerate(other, STAGED)
    assert traces(other) == before
