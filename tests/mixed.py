"""A recipe with a mixed stage for the tiny FLUX pipeline, and variations of it."""

from __future__ import annotations

import copy

import torch

from fresco.score import SCORES
from tests.conftest import draw_latents

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


def draw_three(pipe, **asked):
    """Latents of three pictures of the tiny FLUX pipeline, each with its own prompt and noise."""
    prompts = ["a red circle", "blue", "a large square"]
    generators = [torch.Generator().manual_seed(i) for i in range(3)]
    return draw_latents(pipe, prompt=prompts, generator=generators, **asked)
