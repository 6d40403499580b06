"""Records of what a recipe does: its mechanics and FLOPs, or pictures of paired runs."""

from __future__ import annotations

import datetime
import hashlib
import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fresco.api import accelerate
from fresco.pairs import Pairs, ValidationError, check_report, failure
from fresco.pictures import PictureRequest, per_picture
from fresco.planner import Forecast
from fresco.planner import plan as forecast_of
from fresco.quality import psnr_db, ssim
from fresco.recipe import ExpectsConfig, Recipe
from fresco.record import NoiseFloorConfig, RecordConfig
from fresco.reference.provenance import processor, versions
from fresco.specimen import Specimen
from fresco.statistics import bootstrap_interval

_JUDGED_PX = 256  # the reference judge reads squares of a multiple of this


@dataclass(frozen=True)
class Judge:
    """Who scores pictures.

    Args:
        name: For the record.
        score: Mean over pictures [b, 3, h, w] in [0, 1] and their prompts.
    """

    name: str
    score: Callable[[Tensor, Sequence[str]], Any]

    def mean(self, images: Tensor, prompts: Sequence[str]) -> float:
        """What it says of these pictures, as a number.

        Raises:
            ValidationError: If it says something else.
        """
        found = self.score(images, prompts)
        try:
            return float(found)
        except (TypeError, ValueError, RuntimeError) as error:
            got, fix = f"{type(found).__name__} ({error})", "Let it return the mean."
            raise ValidationError(f"{self.name}(images, prompts)", "a number", got, fix) from error


def check_mechanics(specimen: Specimen, recipe: Recipe) -> None:
    """Run a recipe once at a small size and see that it does what its plan says, and comes off.

    Args:
        specimen: Pipeline of the recipe's class.
        recipe: Any recipe for it.

    Raises:
        ValidationError: If tokens or calls differ from the plan, a value is not finite, or the
            pipeline is another one afterwards.
    """
    before = specimen.draw(2)  # one step is none under diffusers' shift_terminal: 0 / 0
    with accelerate(specimen.pipe, recipe) as fast:
        latents = specimen.draw(recipe.baseline_steps or 2)
        check_report(fast)
    if not latents.isfinite().all():
        raise failure("finite latents", "others")
    if not torch.equal(before, specimen.draw(2)):
        raise failure("a pipeline that is bit-identical once restored", "another picture")


def mechanics_record(specimen: Specimen, recipe: Recipe, forecast: Forecast) -> RecordConfig:
    """Validate a recipe for a model whose weights are not here.

    Args:
        specimen: Pipeline of the same class.
        recipe: The recipe.
        forecast: On the recipe's own model.

    Returns:
        A record of mechanics and FLOPs; nothing about quality or time.

    Raises:
        ValidationError: If the recipe does not do what its plan says.
    """
    check_mechanics(specimen, recipe)
    return RecordConfig(
        date=_today(),
        covers=("mechanics", "FLOPs"),
        model=specimen.name,
        recipe=recipe.digest,
        versions=versions(),
        hardware=_hardware(specimen.pipe),
        steps=forecast.plan.n_requested,
        flops_speedup=_rounded(forecast.flops_speedup),
    )


def pictures_record(
    pipe: Any,
    recipe: Recipe,
    picture: PictureRequest,
    prompts: Sequence[str],
    pairs: Pairs,
    judge: Judge | None = None,
) -> RecordConfig:
    """Sum up paired runs.

    Args:
        pipe: Pipeline that they were made with.
        recipe: Recipe that they were made by.
        picture: What every picture had in common; its seed is the first one's.
        prompts: One pair each.
        pairs: What was measured.
        judge: Scores the pictures, if there is one.

    Returns:
        A record of mechanics, FLOPs and pictures.
    """
    plain, fast = torch.cat(pairs.plain), torch.cat(pairs.fast)
    found = forecast_of(
        pipe,
        recipe,
        height=picture.height or fast.shape[-2],
        width=picture.width or fast.shape[-1],
        steps=picture.steps,
        frames=picture.frames,
        text_tokens=pairs.n_text_tokens,
    )
    floor = None
    closeness, floor_closeness = _mean(psnr_db(fast, plain)), 0.0
    if pairs.floor:
        again = torch.cat(pairs.floor)
        floor_closeness = _mean(psnr_db(again, plain))
        similarity = _rounded(_mean(ssim(again, plain)))
        floor = NoiseFloorConfig(
            how=pairs.floor_how, psnr_db=_finite(floor_closeness), ssim=similarity
        )
    ends = bootstrap_interval(len(pairs.fast_s), pairs.speedup)
    record = RecordConfig(
        date=_today(),
        covers=("mechanics", "FLOPs", "pictures"),
        model=picture.model if picture.model == "reference" else type(pipe).__name__,
        recipe=recipe.digest,
        versions=versions(),
        hardware=_hardware(pipe),
        steps=found.plan.n_requested,
        flops_speedup=_rounded(found.flops_speedup),
        weights=_weights(pipe, picture),
        prompts=len(prompts),
        prompts_sha256=hashlib.sha256("\n".join(prompts).encode()).hexdigest(),
        seed=picture.seed,
        speedup=_rounded(pairs.speedup()),
        speedup_interval=(_rounded(ends[0]), _rounded(ends[1])),
        psnr_db=_finite(closeness),
        ssim=_rounded(_mean(ssim(fast, plain))),
        noise_floor=floor,
        is_within_noise=closeness >= floor_closeness if pairs.floor else None,
    )
    if judge is None:
        return record
    shown = per_picture(prompts, plain)
    ours, base = (_rounded(judge.mean(images, shown)) for images in (fast, plain))
    judged = {"judge": ours, "judge_baseline": base, "judge_by": judge.name}
    return record.model_copy(update=judged)


def find_judge(
    metric: str | None,
    picture: PictureRequest | None,
    prompts: Sequence[str],
    where: str = "fresco validate --metric",
) -> Judge | None:
    """Find who judges: the caller's own metric, or the reference judge for the reference model.

    Args:
        metric: `module:function`, or None.
        picture: What is sampled, if anything is.
        prompts: Captions; for the reference judge, of its grammar.
        where: The option that names it, for the message.

    Returns:
        Who judges; None where nobody can: other models, and sizes that the judge does not read.

    Raises:
        ValidationError: If there is no such function.
        CaptionError: If the reference judge cannot read a prompt.
    """
    if metric is not None:
        module, _, name = metric.partition(":")
        expected, fix = "module:function that can be imported", "Correct --metric."
        try:
            score = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError, TypeError, SyntaxError) as error:
            raise ValidationError(where, expected, f"{metric!r} ({error})", fix) from error
        if not callable(score):
            got = f"{metric!r}, a {type(score).__name__}"
            raise ValidationError(where, expected, got, fix)
        return Judge(metric, score)
    if picture is None or picture.model != "reference":
        return None
    from fresco.reference.captions import parse
    from fresco.reference.evaluate import judge_pictures

    asked = [parse(prompt) for prompt in prompts]
    sides = {picture.height or _JUDGED_PX, picture.width or _JUDGED_PX}
    if len(sides) > 1 or sides.pop() % _JUDGED_PX:
        return None
    return Judge("reference judge", lambda images, _: judge_pictures(images, asked)["attributes"])


def shortfalls(expects: ExpectsConfig, record: RecordConfig) -> list[str]:
    """Say which bounds a record does not meet; a bound that it does not cover is left aside.

    Equal pictures (no PSNR) meet every bound of PSNR.

    Example:
        >>> expects = ExpectsConfig(flops_speedup=5)
        >>> record = RecordConfig(date="2026-01-31", covers=("FLOPs",), model="tiny",
        ...     versions={}, hardware="CPU", steps=50, flops_speedup=4.5)
        >>> shortfalls(expects, record)
        ['flops_speedup: expected at least 5, got 4.5']
    """
    bounds = expects.model_dump(exclude_none=True)
    found = {name: getattr(record, name) for name in bounds}
    return [
        f"{name}: expected at least {bound:g}, got {found[name]:g}"
        for name, bound in bounds.items()
        if found[name] is not None and found[name] < bound
    ]


def _weights(pipe: Any, picture: PictureRequest) -> str | None:
    """Name the weights of the reference model, which is trained further from time to time."""
    from fresco.weights import weights_digest

    return weights_digest(pipe)[:16] if picture.model == "reference" else None


def _mean(values: Tensor) -> float:
    return values.mean().item()


def _finite(value: float) -> float | None:
    return _rounded(value) if math.isfinite(value) else None


def _rounded(value: float) -> float:
    """Four digits: what a record can be read by."""
    return float(f"{value:.4g}")


def _today() -> datetime.date:
    return datetime.datetime.now(datetime.UTC).date()


def _hardware(pipe: Any) -> str:
    device = pipe.transformer.device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, {torch.get_num_threads()} threads"
