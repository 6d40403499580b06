"""Runs that start from a noisy picture, in bfloat16: the noise level is the plan's all the same."""

from __future__ import annotations

import sys

import pytest
import torch

import fresco
from tests.conftest import traces
from tests.families import FAMILIES
from tests.staged import ALL_FINE, MIXED, STAGED
from tests.started import KINDS, Started, pooled, seen_grid

ROUNDING = 2**-8  # of bfloat16, relative; what is seen is a sum of two such numbers


class Rounded(Started):
    """In one type or the other, from the same draws: those of bfloat16."""

    def __init__(self, kind, dtype, monkeypatch):
        super().__init__(kind)
        self.dtype = dtype
        self.pipe.to(dtype)
        module = sys.modules[type(self.pipe).__module__]
        drawn = module.randn_tensor

        def rounded(*args, dtype, **kwargs):
            return drawn(*args, dtype=torch.float32, **kwargs).bfloat16().to(dtype)

        monkeypatch.setattr(module, "randn_tensor", rounded)

    def draw(self, **asked):
        given = {} if self.is_flux else FAMILIES["sd3"].asked()
        text = {k: v.to(self.dtype) for k, v in given.items() if isinstance(v, torch.Tensor)}
        return super().draw(**(text | asked))


@pytest.fixture(params=KINDS)
def started(request, monkeypatch):
    return Rounded(request.param, torch.bfloat16, monkeypatch)


def test_identity_recipes_leave_runs_from_a_picture_as_they_are_in_bfloat16(started):
    plain, before = started.draw(), traces(started.pipe)
    assert plain.dtype == torch.bfloat16
    for raw in ("identity", ALL_FINE):
        with fresco.accelerate(started.pipe, raw):
            assert started.draw().equal(plain)
        assert traces(started.pipe) == before
    assert started.draw().equal(plain)


def noise_level(seen, picture, noise, sigma, side):
    """Share of the coarse field in what a transformer sees of a picture at `sigma`."""
    eps = side * pooled(noise, side)
    rest = seen - (1 - sigma) * pooled(picture, side)
    return float((rest * eps).sum() / (eps * eps).sum()), rest - sigma * eps


def test_in_bfloat16_the_noise_that_is_seen_is_at_the_step_s_sigma(started):
    """The picture's own half in inpainting, at every step; else the first step."""
    picture, noise, _ = (part.float() for part in started.mixture())
    with fresco.accelerate(started.pipe, STAGED) as accelerated:
        started.draw()
        steps = accelerated.plan.steps
    is_held = "mask_image" in started.asked
    for k, step in enumerate(steps if is_held else steps[:1]):
        seen = seen_grid(started, k, step).float()
        n = seen.shape[-1] // (2 if is_held else 1)
        parts = (picture[..., : n * step.side], noise[..., : n * step.side])
        level, error = noise_level(seen[..., :n], *parts, step.sigma, step.side)
        assert level == pytest.approx(step.sigma, abs=2 * ROUNDING)
        assert error.abs().max() < 4 * ROUNDING * seen.abs().max()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("raw", [STAGED, MIXED], ids=["whole", "mixed"])
def test_staged_runs_from_a_picture_in_bfloat16_are_near_those_in_float32(kind, raw, monkeypatch):
    pictures = []
    for dtype in (torch.float32, torch.bfloat16):
        with monkeypatch.context() as patch:
            started = Rounded(kind, dtype, patch)
            with fresco.accelerate(started.pipe, raw) as accelerated:
                got = started.draw(strength=0.7)
                sigmas = accelerated.plan.sigmas
        assert got.isfinite().all()
        assert got.dtype == dtype
        pictures.append((got.float(), sigmas))
    (exact, sigmas), (rounded, same) = pictures
    assert same == sigmas
    assert (rounded - exact).norm() / exact.norm() < 0.02


FROM_NOISE = {
    **MIXED,
    "baseline": {"steps": 100, "height": 64, "width": 96},
    "stages": [
        {"cell": 2, "steps": 1, "until_sigma": 0.998},
        {"cell": "mixed", "steps": 2, "until_sigma": 0.3,
         "promote": {"score": "channel_variance", "budget": 0.25}},
        {"cell": 1, "steps": 2},
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", ["flux", "sd3"])
def test_in_bfloat16_a_picture_under_much_noise_is_promoted_by_itself(kind, monkeypatch):
    """Taken out of the mixture, it would be rounding more than picture."""
    started = Rounded(kind, torch.bfloat16, monkeypatch)
    picture, *_ = (part.float() for part in started.mixture())
    cells = pooled(picture, 2)[0].unflatten(1, (-1, 2)).unflatten(3, (-1, 2))  # [c, r, 2, c, 2]
    variance = cells.permute(1, 3, 0, 2, 4).flatten(2).var(dim=2, correction=0).flatten()
    chosen = set(variance.argsort(descending=True)[:6].tolist())
    layouts = []
    with fresco.accelerate(started.pipe, FROM_NOISE) as accelerated:
        hook = started.pipe.transformer.register_forward_pre_hook(
            lambda *_: layouts.extend(x.sides for x in accelerated._middleware.last.mixed)
        )
        with hook:
            started.draw(strength=0.99, num_inference_steps=100)
        assert accelerated.plan.steps[0].promotion
        assert 0.99 < accelerated.plan.sigmas[0] < 0.998
    fine = (layouts[0][::2, ::2] == 1).flatten().nonzero().flatten().tolist()
    assert set(fine) == chosen
