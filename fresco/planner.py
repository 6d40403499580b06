"""`plan()`: what a recipe would do and cost, before any weights are loaded."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fresco.checks import check_layouts, check_model, check_scheduler, check_start
from fresco.cost import pass_bytes, pass_flops, step_flops, weight_bytes
from fresco.devices import Device, load_device
from fresco.errors import ScheduleError
from fresco.recipe import Recipe, load_recipe
from fresco.registry import adapter_of
from fresco.request import PlanRequest
from fresco.run_checks import makes_videos
from fresco.schedule import Plan, make_plan
from fresco.sketch import (
    Sketch,
    SketchError,
    known_models,
    load_model_config,
    model_like,
    sketch_model,
)

_WHERE = "plan(pipe_or_config, recipe)"


@dataclass(frozen=True)
class Forecast:
    """A plan with its cost: one picture, one pass per step, without what the stack saves.

    Args:
        plan: Every step: stage, sigma, tokens.
        n_text_tokens: Of every call.
        flops: Of each step's call.
        baseline_flops: Of the requested number of full steps.
        peak_bytes: Activations at the peak step, bfloat16, besides the weights; an estimate.
        weight_bytes: The transformer's weights in bfloat16.
        seconds: Of each step at least, on `device`; None without a device. An estimate.
        baseline_s: Of the plain run at least.
        n_given_tokens: Beside the plan's in every call: of reference pictures and still frames.
        unknown_tokens: Whether a threshold decides at run time, so that tokens are at most these.
    """

    plan: Plan
    n_text_tokens: int
    flops: tuple[int, ...]
    baseline_flops: int
    peak_bytes: int
    weight_bytes: int
    seconds: tuple[float, ...] | None = None
    baseline_s: float | None = None
    unknown_tokens: bool = False
    n_given_tokens: int = 0

    @property
    def total_flops(self) -> int:
        """FLOPs of all steps."""
        return sum(self.flops)

    @property
    def flops_speedup(self) -> float:
        """How many times fewer FLOPs the plan takes than the plain run."""
        return self.baseline_flops / self.total_flops

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        steps = [
            {
                "stage": step.stage,
                "sigma": step.sigma,
                "next_sigma": step.next_sigma,
                "side": step.side,
                "tokens": step.n_tokens,
                "flops": flops,
                "estimated_s": self.seconds[i] if self.seconds else None,
            }
            for i, (step, flops) in enumerate(zip(self.plan.steps, self.flops, strict=True))
        ]
        return {
            "rows": self.plan.rows,
            "columns": self.plan.columns,
            "frames": self.plan.frames,
            "text_tokens": self.n_text_tokens,
            "given_tokens": self.n_given_tokens,
            "steps": steps,
            "flops": self.total_flops,
            "baseline_steps": self.plan.n_requested,
            "baseline_flops": self.baseline_flops,
            "flops_speedup": self.flops_speedup,
            "tokens_are_upper_bounds": self.unknown_tokens,
            "peak_activation_bytes": self.peak_bytes,
            "weight_bytes": self.weight_bytes,
            "estimated_s": sum(self.seconds) if self.seconds else None,
            "baseline_estimated_s": self.baseline_s,
        }


def plan(
    pipe_or_config: Any,
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    height: int | None = None,
    width: int | None = None,
    steps: int | None = None,
    frames: int | None = None,
    text_tokens: int | None = None,
    reference_tokens: int | None = None,
    device: str | Device | None = None,
    on_count: Callable[[int, int], None] = lambda *_: None,
) -> Forecast:
    """Say what a recipe would do to a pipeline, and what it would cost; nothing is touched.

    Args:
        pipe_or_config: A pipeline, the name of a known model (`fresco.sketch.known_models()`), or
            a transformer's config, whose other settings are those of a known model of its class.
        recipe: Name of a shipped recipe, path of a YAML file, its content, or a `Recipe`.
        height: Image px; default: the recipe's baseline, then the model's own.
        width: The same.
        steps: Requested steps; default: the same.
        frames: Of a video; default: the same.
        text_tokens: Of every call; default: the model's own.
        reference_tokens: Of pictures beside the one that is made (Kontext, Edit); default: the
            known model's, for a pipeline none.
        device: Name or profile of a device, for an estimate of the time.
        on_count: Called with progress, (done, total).

    Returns:
        Plan and cost.

    Raises:
        RecipeError: If the recipe has problems, or is for another model.
        SketchError: If the model is unknown.
        DeviceError: If the device is unknown.
        AdapterError: If `accelerate` would refuse stages of this model, or their positions.
        ScheduleError: If a number is too small, none or makes no plan, or frames are asked of a
            model of pictures.

    Example:
        >>> forecast = plan("reference", "reference_5x")
        >>> len(forecast.plan.steps), round(forecast.flops_speedup, 1)
        (10, 5.4)
    """
    asked = {"height": height, "width": width, "steps": steps, "frames": frames}
    for name, n in (asked | {"text_tokens": text_tokens}).items():
        _check_count(name, n, 1)
    _check_count("reference_tokens", reference_tokens, 0)
    checked = load_recipe(recipe)
    profile = load_device(device) if isinstance(device, str) else device
    pipe = _resolve(pipe_or_config)
    adapter = adapter_of(pipe)
    check_model(pipe, checked)
    if checked.stages:
        check_layouts(adapter, checked)
        adapter.check(pipe)
        check_scheduler(pipe.scheduler, adapter)
        if not isinstance(pipe, Sketch):
            check_start(pipe, checked, adapter)
    base, run = checked.baseline, pipe.run if isinstance(pipe, Sketch) else None
    for own in (base, run):
        height = height or (own.height if own else None)
        width = width or (own.width if own else None)
        frames = frames or (own.frames if own else None)
    if (frames or 1) > 1 and not (run.frames > 1 if run else makes_videos(pipe)):
        got = f"{frames} of {type(pipe.transformer).__name__}"
        raise ScheduleError(_WHERE, "frames of a video model", got, "Leave frames out.")
    n_steps = steps if steps is not None else checked.baseline_steps or (run.steps if run else 0)
    n_text = text_tokens if text_tokens is not None else _text_tokens(pipe)
    rows, columns = adapter.grid(pipe, height, width)
    if min(rows, columns, n_text, n_steps) < 1:
        got = f"{rows} x {columns}, {n_text} and {n_steps}"
        fix = "Pass height, width, text_tokens and steps."
        raise ScheduleError(_WHERE, "at least 1 x 1 tokens, 1 text token and 1 step", got, fix)
    n_still = run.still_frames if run else adapter.still_frames(pipe)
    n_latent = adapter.latent_frames(pipe, frames or 1) - n_still
    if n_latent < 1:
        got = f"{frames or 1}, of which the first is given"
        raise ScheduleError(_WHERE, "frames to predict", got, "Ask for more frames.")
    own_references = run.reference_tokens if run else 0
    n_references = own_references if reference_tokens is None else reference_tokens
    n_given = n_references + n_still * rows * columns
    request = PlanRequest.of(adapter, pipe.scheduler, n_steps, rows, columns, frames=n_latent)
    made = make_plan(checked, request)
    if n_given and any(step.units == "phase" for step in made.steps):
        expected, got = "tokens of the picture alone with positions: phase", f"{n_given} others"
        raise ScheduleError(_WHERE, expected, got, "Use positions: fine.")
    return _forecast(pipe.transformer, made, n_text, n_given, profile, on_count)


def model_of(
    recipe_name: str, where: str = "fresco plan RECIPE", fix: str = "Name one with --model."
) -> str:
    """Read the model out of a recipe's name, `<model>_<intent>`.

    Args:
        recipe_name: Name or path; `<model>` is a known model, or what one stands for.
        where: The call that asks, for the message.
        fix: What its caller can do.

    Returns:
        The known model.

    Raises:
        SketchError: If it starts with no known model.

    Example:
        >>> model_of("flux1-dev_balanced"), model_of("sd35_fast")
        ('flux1-dev', 'sd35-large')
    """
    named = Path(recipe_name).stem.partition("_")[0]
    known = known_models()
    stand_ins = {load_model_config(name).stands_for or name: name for name in known}
    if named not in known and named not in stand_ins:
        expected = f"a model ({', '.join(known)})"
        raise SketchError(where, expected, f"none in {recipe_name!r}", fix)
    return named if named in known else stand_ins[named]


def _resolve(pipe_or_config: Any) -> Any:
    """A pipeline, or the sketch of one."""
    if isinstance(pipe_or_config, str) and not pipe_or_config.endswith(".json"):
        return sketch_model(pipe_or_config)
    if isinstance(pipe_or_config, str | Path):
        pipe_or_config = Path(pipe_or_config)
    if isinstance(pipe_or_config, Path | Mapping):
        return sketch_model(model_like(pipe_or_config), pipe_or_config)
    if getattr(pipe_or_config, "transformer", None) is None:
        expected, got = "a pipeline with a transformer, or a config", type(pipe_or_config).__name__
        raise SketchError(_WHERE, expected, got, "Pass a model's name, such as 'flux1-dev'.")
    return pipe_or_config


def _check_count(name: str, n: object, least: int) -> None:
    """Refuse what is no number, or too small a one; None is the default."""
    if n is not None and (not isinstance(n, int) or n < least):
        raise ScheduleError(_WHERE, f"{name} of at least {least}", n, "Pass a whole number.")


def _text_tokens(pipe: Any) -> int:
    """Text tokens of a call: the sketch's, or what the pipeline pads to by itself."""
    if isinstance(pipe, Sketch):
        return pipe.run.text_tokens
    asked = inspect.signature(type(pipe).__call__).parameters.get("max_sequence_length")
    return int(asked.default) if asked and isinstance(asked.default, int) else 0


def _forecast(
    transformer: Any, plan: Plan, n_text: int, n_given: int, device: Device | None, on_count: Any
) -> Forecast:
    """Count each number of tokens once."""
    full = plan.n_full_tokens
    counts = sorted({full, *(step.n_tokens for step in plan.steps)})
    flops = {}
    for i, n_tokens in enumerate(counts):
        on_count(i, len(counts) + 1)
        flops[n_tokens] = pass_flops(transformer, n_tokens + n_given, n_text)
    on_count(len(counts), len(counts) + 1)
    held = pass_bytes(transformer, max(step.n_tokens for step in plan.steps) + n_given, n_text)
    on_count(len(counts) + 1, len(counts) + 1)
    weights = weight_bytes(transformer)
    each = tuple(
        step_flops(plan, step, transformer, n_text)
        if step.units == "phase"  # sees some twice
        else flops[step.n_tokens]
        for step in plan.steps
    )
    return Forecast(
        plan,
        n_text,
        each,
        plan.n_requested * flops[full],
        held,
        weights,
        tuple(device.seconds(count, weights) for count in each) if device else None,
        plan.n_requested * device.seconds(flops[full], weights) if device else None,
        any(step.promotion and step.promotion.tau is not None for step in plan.steps),
        n_given,
    )
