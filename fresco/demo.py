"""The demo: full sampling, accelerated sampling, and the full steps that cost as much.

Those are as many as take the accelerated row's FLOPs or, since steps are whole, up to one more.

All three rows start from the same noise. Every picture is sampled by a call of its own; its
seconds are those of the denoising loop, from the first transformer call to the end of the
last solver step, and of the whole call.
"""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fresco.api import accelerate
from fresco.comparison import Row, save_comparison
from fresco.output import make_directory, write_text
from fresco.quality import psnr_db, ssim
from fresco.recipe import Recipe, load_recipe
from fresco.reference import GUIDANCE_SCALE, MAX_TOKENS, load
from fresco.reference.captions import AskedScene, CaptionError, parse
from fresco.reference.evaluate import judge_pictures
from fresco.reference.provenance import versions
from fresco.timing import LoopTimer

if TYPE_CHECKING:
    from diffusers import FluxPipeline

PROMPTS = (
    "a large red circle with stripes at the top left, a big black dotted disc on the right side "
    "against a yellow background",
    "a small red square with dots at the top and a large blue disc with checks at the bottom right "
    "on a graded green background",
    "a large dotted blue triangle on the bottom side and a small yellow solid plus on the left "
    "side against a white background",
    "a big purple circle with checks at the top right and a little dotted red donut at the left "
    "on a blue background",
)  # of the held-out sixteenth of all captions
WARM_UP_STEPS = 2
ROUNDING = 1e-6  # of a step: what is whole but for it is no step more

Advance = Callable[[str, int, int], None]  # name of the row, model steps done, of how many


@dataclass(frozen=True)
class DemoRequest:
    """What `run_demo` is asked for.

    Args:
        prompts: Captions of the reference grammar, at least one.
        recipe: Name of a shipped recipe, or path of a YAML file.
        seed: Picture number i starts from the generator seed `seed + i`.
        out: Directory of `comparison.png` and `report.json`.
        steps: Solver steps of the full row.
        guidance: Guidance scale of all rows.
    """

    prompts: tuple[str, ...] = PROMPTS
    recipe: str = "reference_fast"
    seed: int = 0
    out: Path = Path("fresco-demo")
    steps: int = 50
    guidance: float = GUIDANCE_SCALE


def run_demo(
    request: DemoRequest, advance: Advance = lambda *_: None, pipe: FluxPipeline | None = None
) -> dict[str, Any]:
    """Sample the three rows, compare them, and write `comparison.png` and `report.json`.

    Everything that is asked for is checked before anything is loaded.

    Args:
        request: Prompts, recipe, seed, output directory, steps.
        advance: Called with progress after every solver step.
        pipe: A reference pipeline; default: the one that ships.

    Returns:
        What `report.json` holds: seconds per picture, speedups, PSNR and SSIM to the full
        row (None where the pictures are equal), what the judge says of each row.

    Raises:
        CaptionError: If a prompt is not in the reference grammar.
        RecipeError: If the recipe is unknown or has problems.
        OutputError: If `out` cannot be a directory.
        WeightsError: If the package has no weights.
    """
    if not request.prompts:
        raise CaptionError(
            "run_demo(request)", "at least one prompt", 0, "Leave them out for four."
        )
    asked = [parse(prompt) for prompt in request.prompts]
    recipe = load_recipe(request.recipe)
    make_directory("run_demo(request)", request.out, "--out")
    pipe = load() if pipe is None else pipe
    sample = functools.partial(_sample, pipe, request, advance)
    full = sample("full", request.steps)
    accelerated, flops_speedup = _sample_accelerated(pipe, recipe, request, sample)
    fewer = sample("fewer steps", _as_costly(request.steps, flops_speedup))
    rows = (full, accelerated, fewer)
    report = _compare(rows, asked) | {
        "flops_speedup": flops_speedup,
        "recipe": request.recipe,
        "seed": request.seed,
        "guidance": request.guidance,
        "n_prompts": len(request.prompts),
        "prompts": list(request.prompts),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    save_comparison(rows, request.prompts, request.out / "comparison.png")
    write_text(request.out / "report.json", json.dumps(report, indent=2, allow_nan=False) + "\n")
    return report


def _as_costly(steps: int, flops_speedup: float) -> int:
    """The fewest full steps that take no fewer FLOPs than the accelerated row."""
    return math.ceil(steps / flops_speedup - ROUNDING)


def _sample_accelerated(
    pipe: FluxPipeline, recipe: Recipe, request: DemoRequest, sample: Callable[[str, int], Row]
) -> tuple[Row, float]:
    """The accelerated row, and how many times fewer FLOPs it takes than the full one."""
    with accelerate(pipe, recipe) as accelerated:
        row = sample("accelerated", request.steps)
        return row, accelerated.cost().flops_speedup if accelerated.plan else 1.0


def _sample(
    pipe: FluxPipeline, request: DemoRequest, advance: Advance, name: str, steps: int
) -> Row:
    """One row, after a short call that warms up what is allocated or compiled on first use."""
    _call(pipe, request, 0, min(steps, WARM_UP_STEPS), lambda _: None)
    pictures, loops_s, calls_s, n_steps = [], [], [], steps
    for index in range(len(request.prompts)):

        def on_step(step: int, before: int = index) -> None:
            advance(name, before * pipe.num_timesteps + step + 1,
                    len(request.prompts) * pipe.num_timesteps)  # fmt: skip

        picture, loop_s, call_s = _call(pipe, request, index, steps, on_step)
        pictures.append(picture)
        loops_s.append(loop_s)
        calls_s.append(call_s)
        n_steps = pipe.num_timesteps
    mean = 1 / len(pictures)
    return Row(name, n_steps, torch.cat(pictures), sum(loops_s) * mean, sum(calls_s) * mean)


def _call(
    pipe: FluxPipeline, request: DemoRequest, index: int, steps: int, on_step: Callable[[int], None]
) -> tuple[Tensor, float, float]:
    """One picture [1, 3, 256, 256], seconds of its loop, and of the whole call."""
    start_s = time.perf_counter()
    with LoopTimer(pipe, on_step) as timer:
        images = pipe(
            request.prompts[index],
            num_inference_steps=steps,
            guidance_scale=request.guidance,
            generator=torch.Generator().manual_seed(request.seed + index),
            max_sequence_length=MAX_TOKENS,
            output_type="pt",
        ).images
    call_s = time.perf_counter() - start_s
    return images.float().cpu(), timer.loop_s, call_s


def _compare(rows: tuple[Row, Row, Row], asked: Sequence[AskedScene]) -> dict[str, Any]:
    """Figures of the rows; the first is what the others are compared with."""
    full, accelerated, fewer = rows
    report: dict[str, Any] = {
        "speedup": full.loop_s / accelerated.loop_s,
        "call_speedup": full.call_s / accelerated.call_s,
        "fewer_steps_speedup": full.loop_s / fewer.loop_s,
        "psnr_db": _finite(psnr_db(accelerated.images, full.images)),
        "ssim": _finite(ssim(accelerated.images, full.images)),
        "fewer_steps_psnr_db": _finite(psnr_db(fewer.images, full.images)),
        "fewer_steps_ssim": _finite(ssim(fewer.images, full.images)),
    }
    for key, row in zip(("baseline", "accelerated", "fewer_steps"), rows, strict=True):
        verdict = judge_pictures(row.images, asked)
        report |= {
            f"{key}_s": row.loop_s,
            f"{key}_call_s": row.call_s,
            f"{key}_n_steps": row.n_steps,
            f"judge_{key}": verdict["attributes"],
            f"judge_{key}_scene": verdict["scene"],
        }
    return report


def _finite(values: Tensor) -> float | None:
    """Mean over pictures; None where a picture is equal to what it is compared with."""
    mean = values.mean().item()
    return mean if math.isfinite(mean) else None
