"""What a run of an accelerated pipeline refuses before it begins."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
from torch import Tensor

from fresco.errors import LayoutError, RunError, ScheduleError, SizeError
from fresco.layout import TokenLayout
from fresco.recipe import Recipe
from fresco.schedule import keeps_schedule

_WHERE = "pipe(prompt, ...)"


def makes_videos(pipe: object) -> bool:
    """Whether a pipeline's calls can be told how many frames to make."""
    return "num_frames" in inspect.signature(type(pipe).__call__).parameters


def takes_strength(pipe: object) -> bool:
    """Whether a pipeline's first latents can be a noisy picture."""
    return "strength" in inspect.signature(type(pipe).__call__).parameters


def starts_from_picture(pipe: object) -> bool:
    """Whether its first latents are a noisy picture unless asked otherwise (strength 1)."""
    if not takes_strength(pipe):
        return False
    return bool(inspect.signature(type(pipe).__call__).parameters["strength"].default != 1)


def refuse_mixture(n_skipped: int, pipe: object, has_latents: bool) -> None:
    """Refuse stages in a run that starts from a noisy picture whose noise cannot be known.

    Args:
        n_skipped: First steps that it leaves out, >= 1.
        pipe: Whose run it is; its own adapter knows no way to its noise, unless it has latents.
        has_latents: Whether the latents are the caller's.

    Raises:
        RunError: Always.
    """
    if has_latents:
        raise RunError(
            "pipe(latents=..., strength=...)",
            "latents that the pipeline makes itself: the noise in them must be known",
            f"latents of the caller's in a run that leaves out its first {n_skipped} steps",
            "Leave latents out (a seeded generator repeats them), or use strength=1.",
        )
    raise RunError(
        "pipe(strength=...)",
        f"strength=1 with {type(pipe).__name__}: a run that starts from noise alone",
        f"one that leaves out its first {n_skipped} steps",
        "Use strength=1, or a recipe without stages.",
    )


def refuse_no_start(recipe: Recipe, n_steps: int) -> None:
    """Refuse stages in a run that goes on without `prepare_latents`.

    Args:
        recipe: Of the run.
        n_steps: That were asked for.

    Raises:
        RunError: If the recipe has a schedule of its own.
    """
    if not keeps_schedule(recipe, n_steps):
        raise RunError(
            "pipe(latents=...)",
            "latents that the pipeline makes itself: the noise in them must be known",
            "a run without prepare_latents",
            "Leave latents out (a seeded generator repeats them), or use a recipe without stages.",
        )


def refuse_no_plan(pipe: Any) -> NoReturn:
    """Refuse stages in a run whose scheduler has not been given timesteps.

    Raises:
        RunError: Always.
    """
    raise RunError(
        "pipe(prompt, ...)",
        "scheduler.set_timesteps after prepare_latents",
        f"a {type(pipe).__name__} that calls the transformer without",
        "Use a recipe without stages for this pipeline.",
    )


def refuse_thread(other: threading.Thread) -> None:
    """Refuse a run while another thread is in one.

    Raises:
        RunError: Always.
    """
    raise RunError(
        _WHERE,
        "one call at a time on an accelerated pipeline",
        f"a call while thread {other.name!r} is in one",
        "Wait for it, or use a pipeline per thread.",
    )


def check_component(name: str, now: object, attached: object) -> None:
    """Refuse a pipeline with a component that was exchanged after attaching.

    Args:
        name: Of the component.
        now: What the pipeline has.
        attached: What was accelerated.

    Raises:
        RunError: If they are not the same object.
    """
    if now is not attached:
        raise RunError(
            _WHERE,
            f"the {name} that was accelerated",
            f"another {type(now).__name__}",
            "Call restore(), then accelerate the pipeline again.",
        )


def check_size(rows: int, columns: int, height: int | None, width: int | None) -> None:
    """Refuse pictures without a token.

    Args:
        rows: Fine token rows.
        columns: Fine token columns.
        height: As asked, in image px.
        width: As asked, in image px.

    Raises:
        SizeError: If there is no row or no column.
    """
    if rows < 1 or columns < 1:
        raise SizeError(
            "pipe(height, width)",
            "a picture of at least 1 x 1 tokens",
            f"{rows} x {columns} tokens from height={height}, width={width}",
            "Ask for a larger picture.",
        )


def check_latents(latents: Tensor, b: int, expected: Sequence[int], fine: TokenLayout) -> None:
    """Refuse latents of the caller's that are not of the asked size.

    Args:
        latents: The caller's.
        b: Images of the batch.
        expected: Shape of one image's latents, as the pipeline takes them; -1 is any.
        fine: Layout of the full grid.

    Raises:
        LayoutError: If they have another shape.
    """
    wanted = (b, *expected)
    if len(latents.shape) != len(wanted) or any(
        n != want for n, want in zip(latents.shape, wanted, strict=True) if want != -1
    ):
        rows, columns = fine.sides.shape
        raise LayoutError(
            "pipe(latents=...)",
            f"latents {[b, *expected]} for {b} x {rows} x {columns} tokens",
            list(latents.shape),
            "Give them as the pipeline makes them, or give their height and width.",
        )


def check_spacing(asked: Mapping[str, Any], own: Callable[[int], Sequence[float]]) -> None:
    """Refuse sigmas or timesteps of the caller's: the stages' own would replace them.

    Args:
        asked: Arguments of `scheduler.set_timesteps` by name.
        own: The sigmas that the pipeline passes by itself, for a number of steps.

    Raises:
        ScheduleError: If others, or timesteps, are given.

    Example:
        >>> check_spacing({"num_inference_steps": None, "sigmas": [1.0, 0.5]}, lambda n: [1, 0.5])
    """
    sigmas, given = asked.get("sigmas"), None
    if sigmas is not None:
        is_own = np.allclose(np.asarray(sigmas, dtype=float), own(len(sigmas)), atol=1e-4)
        given = None if is_own else "sigmas"
    elif asked.get("timesteps") is not None:
        given = "timesteps"
    if given:
        raise ScheduleError(
            f"pipe({given}=...)",
            "the pipeline's own spacing, since the recipe's stages bring theirs",
            f"{len(asked[given])} {given} of the caller's",
            f"Leave {given} out, or put sigmas into the recipe's stages.",
        )
