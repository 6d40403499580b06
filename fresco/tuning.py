"""A search for a recipe: candidates are measured one by one, and every result is kept."""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fresco.api import accelerate
from fresco.errors import FrescoError, FrescoWarning
from fresco.output import write_text
from fresco.pictures import PictureRequest, as_pictures, call_pipe, per_picture
from fresco.quality import psnr_db
from fresco.recipe import load_recipe
from fresco.validation import Judge

Advance = Callable[[str, int, int], None]


class TuningError(FrescoError, ValueError):
    """A search that would say nothing, or a folder of another search."""


@dataclass(frozen=True)
class Goal:
    """What is searched for; exactly one of the three is set.

    Args:
        speedup: Of the denoising loop at least; the best quality wins.
        min_judge: The judge's mean at least; the fastest wins.
        seconds: Of the denoising loop at most; the best quality wins.
    """

    speedup: float | None = None
    min_judge: float | None = None
    seconds: float | None = None

    def speed(self, plain_s: float) -> float | None:
        """Speedup over a plain run of so many seconds that is asked for; None: none is."""
        return self.speedup or (plain_s / self.seconds if self.seconds else None)

    def meets(self, found: Found) -> bool:
        """Whether a candidate is good enough."""
        if self.speedup is not None:
            return found.speedup >= self.speedup
        if self.seconds is not None:
            return found.seconds <= self.seconds
        return found.quality >= (self.min_judge or 0)

    def rank(self, found: Found) -> tuple[float, float]:
        """What the best of those that meet it has most of; of equal ones, the better otherwise."""
        by = (found.quality, found.speedup)
        return by if self.min_judge is None else by[::-1]


@dataclass(frozen=True)
class Found:
    """What was measured of a candidate.

    Args:
        recipe: Its content.
        speedup: Plain seconds over its own; not paired, so `fresco validate` it afterwards.
        seconds: Of its denoising loop, mean over prompts.
        quality: Judge's mean, or PSNR to the plain pictures in dB where nobody judges.
    """

    recipe: Mapping[str, Any]
    speedup: float
    seconds: float
    quality: float


@dataclass(frozen=True)
class Plain:
    """The plain run's pictures [b, 3, h, w], its mean seconds, and the text tokens of its calls."""

    images: Tensor
    seconds: float
    n_text_tokens: int


def check_goal(goal: Goal, has_judge: bool) -> None:
    """Refuse none or several goals, and a judge's goal where nobody judges."""
    given = [name for name, value in asdict(goal).items() if value is not None]
    where, fix = "fresco tune", "Give one of --speedup, --min-judge and --seconds."
    if len(given) != 1:
        raise TuningError(where, "one goal", " and ".join(given) or "none", fix)
    if goal.min_judge is not None and not has_judge:
        fix = "Use the reference model, or name a --metric."
        raise TuningError(where, "a judge for --min-judge", "none", fix)


def open_study(
    folder: Path, picture: PictureRequest, prompts: Sequence[str], judged_by: str
) -> None:
    """Begin a search in a folder, or go on with the same one.

    Args:
        folder: Of the search.
        picture: What every picture has in common.
        prompts: One picture each.
        judged_by: Who says how good a picture is.

    Raises:
        TuningError: If the folder holds a search of other pictures, of another model or judge.
    """
    study = {
        "picture": asdict(picture),
        "prompts": list(prompts),
        "judged_by": judged_by,
        "weights": _weights(picture.model),
    }
    file = folder / "study.json"
    if file.exists() and _read_json(file) != study:
        fix = "Name another --folder, or delete this one."
        raise TuningError("fresco tune --folder", "this search's folder", "another's", fix)
    write_text(file, json.dumps(study, indent=2) + "\n")


def sample_plain(
    pipe: Any, picture: PictureRequest, prompts: Sequence[str], folder: Path, advance: Advance
) -> Plain:
    """Sample the plain pictures, or take them from the folder.

    Raises:
        TuningError: If the folder's cannot be read.
    """
    file = folder / "plain.pt"
    if file.exists():
        try:
            return Plain(**torch.load(file, weights_only=True))
        except (OSError, EOFError, RuntimeError, TypeError, pickle.UnpicklingError) as error:
            raise _unreadable(file, "the plain pictures", error) from error
    call_pipe(pipe, replace(picture, prompt=prompts[0], steps=2), output_type="latent")
    images, seconds = _sample(pipe, picture, prompts, lambda at: advance("plain", *at))
    with accelerate(pipe, "identity") as fast:
        asked = replace(picture, prompt=prompts[0], steps=1)
        call_pipe(pipe, asked, output_type="latent")
        n_text = fast.report.n_text_tokens
    found = Plain(images, seconds, n_text)
    partial = file.with_suffix(".partial")
    torch.save(vars(found), partial)
    partial.replace(file)
    return found


def baseline_of(picture: PictureRequest, plain: Plain, n_prompts: int) -> dict[str, Any]:
    """What recipes of this search say of the plain run."""
    height, width = plain.images.shape[-2:]
    n_frames = picture.frames or len(plain.images) // n_prompts
    found: dict[str, Any] = {"steps": picture.steps, "height": height, "width": width}
    if n_frames > 1:
        found["frames"] = n_frames
    return found if picture.guidance is None else found | {"guidance": picture.guidance}


def measure(
    pipe: Any,
    picture: PictureRequest,
    prompts: Sequence[str],
    content: Mapping[str, Any],
    plain: Plain,
    judge: Judge | None,
    folder: Path,
) -> Found | None:
    """Measure a candidate, or take what is known of it from the folder.

    Returns:
        What was found; None for one that does not fit this pipeline, which is kept too.
    """
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
    file = folder / f"{key}.json"
    if file.exists():
        known = _read_json(file)
        return None if "refused" in known else Found(**known)
    try:
        # a cache that does nothing here: the search has the same candidate without it
        with warnings.catch_warnings(), accelerate(pipe, load_recipe(content)):
            warnings.simplefilter("ignore", FrescoWarning)
            images, seconds = _sample(pipe, picture, prompts)
    except FrescoError as error:
        write_text(file, json.dumps({"recipe": content, "refused": str(error)}) + "\n")
        return None
    if judge is None:
        quality = min(psnr_db(images, plain.images).mean().item(), 1000.0)  # equal: infinite
    else:
        quality = judge.mean(images, per_picture(prompts, images))
    found = Found(content, plain.seconds / seconds, seconds, quality)
    write_text(file, json.dumps(asdict(found), indent=2) + "\n")
    return found


def pareto(found: Iterable[Found]) -> list[Found]:
    """Keep those that no other beats in both speed and quality, the slowest first.

    Example:
        >>> points = [Found({}, 1, 9, 30), Found({}, 3, 3, 20), Found({}, 2, 4, 10)]
        >>> [point.speedup for point in pareto(points)]
        [1, 3]
    """
    best, kept = -math.inf, []
    for point in sorted(found, key=lambda each: (-each.speedup, -each.quality)):
        if point.quality > best:
            kept.append(point)
            best = point.quality
    return kept[::-1]


def best_of(found: Iterable[Found], goal: Goal) -> Found | None:
    """Choose the best of those that meet the goal; None if none does."""
    return max(filter(goal.meets, found), key=goal.rank, default=None)


def _read_json(file: Path) -> dict[str, Any]:
    """What a search kept, or an error that names the file."""
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unreadable(file, "results as JSON", error) from error
    return found


def _unreadable(file: Path, expected: str, error: Exception) -> TuningError:
    reason, *_ = " ".join(str(error).split()).split(". ")  # torch goes on with advice
    return TuningError("fresco tune --folder", expected, f"{str(file)!r} ({reason})", "Delete it.")


def _weights(model: str) -> str | None:
    """Name the reference model's weights, which are trained further from time to time."""
    if model != "reference":
        return None
    import fresco.reference

    files = sorted(fresco.reference.PIPELINE.rglob("*.safetensors"))
    digest = hashlib.sha256(b"".join(hashlib.sha256(each.read_bytes()).digest() for each in files))
    return digest.hexdigest()[:16]


def _sample(
    pipe: Any,
    picture: PictureRequest,
    prompts: Sequence[str],
    advance: Callable[[tuple[int, int]], None] = lambda _: None,
) -> tuple[Tensor, float]:
    """Pictures of all prompts, and mean seconds of the loop."""
    images, seconds = [], 0.0
    for i, prompt in enumerate(prompts):
        asked = replace(picture, prompt=prompt, seed=picture.seed + i)
        made, loop_s = call_pipe(pipe, asked, output_type="pt")
        images.append(as_pictures(made))
        seconds += loop_s / len(prompts)
        advance((i + 1, len(prompts)))
    return torch.cat(images), seconds
