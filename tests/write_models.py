"""`python -m tests.write_models`: what every model family was run with, as a page."""

from __future__ import annotations

import copy
import logging
import warnings
from pathlib import Path

import diffusers
import torch

import fresco
from fresco.errors import FrescoError, FrescoWarning, RecipeError
from tests.families import FAMILIES
from tests.matrix import FORCED, lora_weights
from tests.staged import MIXED, STAGED
from tests.started import KINDS, Started

PAGE = Path(__file__).parents[1] / "docs/reference/models.md"
INTRODUCTION = """\
# Models

Written by `python -m tests.write_models`; a test fails if it is stale. Every cell ran through the
family's real diffusers pipeline with tiny random weights on a CPU, with whole-grid stages (mixed
ones in that column): `yes` is a finite picture with the technique at work, anything else the
reason. It says nothing about picture quality. FLUX.1, the first family, has [a matrix of its
own](combinations.md) beside its row. PixArt and CogVideoX run with DDIM, not with the schedulers
that their pipelines bring ([why](../explanation/noise.md)). `img2img` starts from a noisy
picture, at strength 0.7; so do the inpainting pipelines of FLUX.1 and SD3, FLUX.1 Fill and
Kontext inpainting (`pytest tests/test_start.py`), and all others are refused. ControlNets work
with stages on FLUX.1 and SD3 (`pytest tests/test_controlnet.py`); residuals of others are
refused. Pictures as conditions work with stages, whole-grid and mixed: reference pictures of
FLUX.1 Kontext, Qwen-Image-Edit (Plus) and LongCat-Image-Edit keep their resolution, the mask and
picture of FLUX.1 Fill and Control are averaged without a swap of noise, and what Kontext does not
inpaint stays (`pytest tests/test_conditions.py tests/test_longcat_image_edit.py`). So do videos
from a picture: its channels are averaged (HunyuanVideo `latent_concat` and SkyReels, HunyuanVideo
1.5, Wan 2.1, CogVideoX 1.0 and 1.5), a first frame that is given keeps its tokens (HunyuanVideo
`token_replace`, Wan 2.2 TI2V; `pytest tests/test_videos_from_pictures.py
tests/test_hunyuan_video_15_from_a_picture.py`). The sound of LTX-2 keeps its tokens and is
stepped at the noise levels of the video (`pytest tests/test_ltx2.py`); its pipelines for pictures
are refused. On Wan 2.2, quantization, caches and compilation are on both transformers (`pytest
tests/test_two_transformers.py`). For `cache_dit`, which computes the first block of every list,
lists of one tiny block were given a second.
"""
MAGCACHE = {**FORCED["magcache"], "ratios": (1.0, 1.0)}  # they are calibrated per model
STACKS = {
    "whole-grid": (STAGED, []),
    "mixed": (MIXED, []),
    **{
        name: (STAGED, [{"kind": "cache", "method": name, **settings}])
        for name, settings in (FORCED | {"magcache": MAGCACHE}).items()
        if name != "cache_dit"
    },
    "cache_dit": (STAGED, [{"kind": "cache_dit", **FORCED["cache_dit"]}]),
    "int8": (STAGED, [{"kind": "quantize", "form": "int8_weight_only"}]),
    "LoRA": (STAGED, [{"kind": "lora"}]),
    "compile": (STAGED, [{"kind": "compile", "backend": "eager"}]),
}


IMG2IMG = "img2img"


def run_img2img(name):
    """`yes`, or why a family's pipeline does not start from a noisy picture."""
    if name in KINDS:
        started = Started(name)
        with fresco.accelerate(started.pipe, STAGED):
            picture = started.draw()
        return "yes" if bool(picture.isfinite().all()) else "values that are not finite"
    family = FAMILIES[name]
    pipeline = family.pipeline.replace("Pipeline", "Img2ImgPipeline")
    if not hasattr(diffusers, pipeline):
        return "diffusers has no pipeline of the family that starts from a noisy picture"
    try:
        with fresco.accelerate(getattr(diffusers, pipeline)(**family.make().components), STAGED):
            return f"nothing here runs {pipeline}"
    except FrescoError as error:
        return f"expected {error.expected}, got {error.got}"


def run_cell(name, column):
    """`yes`, or why not."""
    if column == IMG2IMG:
        return run_img2img(name)
    family = FAMILIES[name]
    raw, stack = STACKS[column]
    pipe = family.make()
    torch._dynamo.reset()
    if column == "cache_dit":
        _deepen(pipe.transformer)
    if column == "LoRA":
        stack = [{"kind": "lora", "state_dict": lora_weights(pipe)}]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", FrescoWarning)  # nothing may be idle
        try:
            with fresco.accelerate(pipe, {**raw, "stack": stack}):
                picture = family.draw(pipe)
        except FrescoWarning as warning:
            return str(warning)
        except FrescoError as error:
            if isinstance(error, RecipeError):
                return error.problems[0].split(" @ ")[0]
            return f"expected {error.expected}, got {error.got}".splitlines()[0]
        except Exception as error:  # of others, in the middle of a run
            return f"the run ends with {type(error).__name__}: {error}".splitlines()[0]
    return "yes" if bool(picture.isfinite().all()) else "values that are not finite"


def _deepen(transformer):
    """Two blocks where a tiny transformer has one: cache-dit computes the first of a list."""
    for blocks in transformer.children():
        if isinstance(blocks, torch.nn.ModuleList) and len(blocks) == 1:
            blocks.append(copy.deepcopy(blocks[0]))


def make_page():
    """The page: a table of marks, and the reasons below it."""
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    columns = [*STACKS]
    columns.insert(2, IMG2IMG)
    lines = [INTRODUCTION, f"| model | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    reasons = {}
    for name, family in FAMILIES.items():
        marks = []
        for column in columns:
            said = run_cell(name, column)
            number = 0 if said == "yes" else reasons.setdefault(said, len(reasons) + 1)
            marks.append(f"no ({number})" if number else "yes")
        lines.append(f"| `{family.transformer}` | {' | '.join(marks)} |")
    lines += ["", *(f"{number}. {reason}" for reason, number in reasons.items())]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(make_page(), encoding="utf-8")
