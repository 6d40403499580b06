"""Small pipelines that stand in for models whose weights are not here, to check mechanics on."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fresco.pictures import PictureRequest, call_pipe
from fresco.sketch import TinyConfig, tiny_model

_PX = 128


@dataclass(frozen=True)
class Specimen:
    """A pipeline that is small enough to run anywhere, and how it is asked for latents.

    Args:
        name: For the record.
        pipe: The pipeline, on the CPU.
        draw: Latents of one call, by its number of steps; always from the same noise.
    """

    name: str
    pipe: Any
    draw: Callable[[int], Tensor]


def make_specimen(model: str) -> Specimen:
    """Make what a known model's recipes are run on where its weights are not.

    Args:
        model: One of `fresco.sketch.known_models()`.

    Returns:
        A tiny pipeline of the model's own class with random weights and its own scheduler, where
        its config describes one; else the reference pipeline, which is one of FLUX.1's.

    Raises:
        SketchError: If the model is unknown.
    """
    tiny, scheduler = tiny_model(model)
    if tiny is None:
        return _reference()
    pipe = _build(tiny, scheduler)
    asked = {name: _argument(value, i) for i, (name, value) in enumerate(tiny.call.items())}

    def draw(steps: int) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        size = {"height": _PX, "width": _PX, "num_inference_steps": steps}
        more = {"generator": generator, "output_type": "latent", "return_dict": False}
        latents = pipe(**size, **asked, **more)[0]
        return torch.stack(list(latents))

    return Specimen(f"tiny {tiny.pipeline}, random weights", pipe, draw)


def _reference() -> Specimen:
    from fresco.reference import load

    pipe = load()
    picture = PictureRequest("reference", None, "a red ring", 0, None, None, _PX, _PX)

    def draw(steps: int) -> Tensor:
        asked = PictureRequest(**vars(picture) | {"steps": steps})
        latents: Tensor = call_pipe(pipe, asked, output_type="latent")[0]
        return latents

    return Specimen("reference", pipe, draw)


def _build(tiny: TinyConfig, scheduler: Any) -> Any:
    """A pipeline without text encoders and VAE; weights are random, none of them zero."""
    import diffusers

    pipeline = getattr(diffusers, tiny.pipeline)
    wanted = inspect.signature(pipeline.__init__).parameters
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore", FutureWarning)  # of diffusers' own imports
        torch.manual_seed(0)
        transformer = getattr(diffusers, tiny.transformer_class)(**tiny.transformer).eval()
        with torch.no_grad():
            for weight in transformer.parameters():
                if not weight.any():
                    weight.normal_(std=0.1)
        missing = [
            name
            for name, parameter in wanted.items()
            if name != "self" and parameter.default is parameter.empty
        ]
        parts = dict.fromkeys(missing) | {"transformer": transformer, "scheduler": scheduler}
        pipe = pipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _argument(value: Any, seed: int) -> Any:
    """What a config says of an argument: noise of a shape, ones of it, or the value itself."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(value, list):
        return torch.randn(value, generator=generator)
    if isinstance(value, Mapping) and "ones" in value:
        return torch.ones(value["ones"], dtype=torch.long)
    if isinstance(value, Mapping):
        return [torch.randn(value["each"], generator=generator)]
    return value
