"""Pictures that say how they were made, so that they can be made again."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors import SafetensorError
from torch import Tensor

from fresco.api import accelerate
from fresco.errors import FrescoError
from fresco.place import find_device
from fresco.recipe import Recipe
from fresco.reference.provenance import versions
from fresco.timing import LoopTimer
from fresco.weights import weights_digest

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_KEY = "fresco"  # of the PNG's text
_FRAME_MS = 62.5  # 16 frames a second


class PictureError(FrescoError, ValueError):
    """A model that cannot be loaded, or a picture that does not say how it was made."""


@dataclass(frozen=True)
class PictureRequest:
    """Everything that decides what a picture shows.

    Args:
        model: `reference`, or the directory of a diffusers pipeline.
        recipe: Content of the recipe, as loaded; None: the plain pipeline.
        prompt: What to show.
        seed: Of a generator on the CPU.
        steps: Requested steps; None: the pipeline's own default, as for all that follow.
        guidance: Guidance scale.
        height: Image px.
        width: Image px.
        dtype: Of all weights: float32 or bfloat16.
        device: Where it is made.
        frames: Of a video.
    """

    model: str
    recipe: Mapping[str, Any] | None
    prompt: str
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    height: int | None = None
    width: int | None = None
    dtype: str = "float32"
    device: str = "cpu"
    frames: int | None = None

    def with_baseline(self, recipe: Recipe) -> PictureRequest:
        """What a recipe's baseline says, where this leaves it open."""
        said: dict[str, Any] = {"steps": recipe.baseline_steps or None}
        for name in ("guidance", "height", "width", "frames"):
            said[name] = getattr(recipe.baseline, name, None)
        return replace(self, **{k: said[k] for k in said if getattr(self, k) is None})


def load_pipe(model: str, dtype: str = "float32", device: str = "cpu") -> Any:
    """Load a pipeline from a directory, offline.

    Args:
        model: `reference`, or a directory that `save_pretrained` wrote.
        dtype: Of all weights: float32 or bfloat16.
        device: Where it runs.

    Returns:
        The pipeline, without progress bar.

    Raises:
        PictureError: If there is no pipeline, no such dtype or no such device.
    """
    where = f"load_pipe({model!r})"
    if dtype not in DTYPES:
        raise PictureError(where, f"a dtype of {', '.join(DTYPES)}", dtype, "Name one of them.")
    if model != "reference" and not (Path(model) / "model_index.json").is_file():
        expected, fix = "`reference`, or a directory with a model_index.json", "Name one."
        raise PictureError(where, expected, f"nothing in {model!r}", fix)
    target = find_device(where, device, PictureError)
    if model == "reference":
        from fresco.reference import load

        return load(dtype=DTYPES[dtype]).to(target)
    from diffusers import DiffusionPipeline

    try:
        pipe = DiffusionPipeline.from_pretrained(model, dtype=DTYPES[dtype], local_files_only=True)
    except (OSError, ValueError, AttributeError, ImportError, SafetensorError) as error:
        got, fix = " ".join(str(error).split()), "Download all of its files, or name another one."
        raise PictureError(where, "a whole pipeline of diffusers", got, fix) from error
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(target)


def call_pipe(
    pipe: Any,
    request: PictureRequest,
    on_step: Callable[[int], None] = lambda _: None,
    output_type: str = "pil",
) -> tuple[Any, float]:
    """Call a pipeline, accelerated or not, for one picture.

    Args:
        pipe: The pipeline.
        request: What to make; its recipe is left to the caller.
        on_step: Called with the number of every solver step that has ended.
        output_type: As pipelines know it.

    Returns:
        The pictures of the call, and the seconds of its denoising loop.

    Raises:
        PictureError: If the pipeline does not take what is asked.
    """
    asked = {
        "num_inference_steps": request.steps,
        "guidance_scale": request.guidance,
        "height": request.height,
        "width": request.width,
        "num_frames": request.frames,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    where, expected = "pipe(prompt, ...)", f"a call that {type(pipe).__name__} takes"
    unknown = sorted(given.keys() - inspect.signature(type(pipe).__call__).parameters)
    if unknown:
        raise PictureError(where, expected, f"{', '.join(unknown)} in it", "Leave them out.")
    try:
        with LoopTimer(pipe, on_step) as timer:
            images = pipe(  # its first output: .images, or .frames of a video
                request.prompt,
                generator=torch.Generator().manual_seed(request.seed),
                output_type=output_type,
                **_defaults(request.model) | given,
            )[0]
    except FrescoError:
        raise
    except ValueError as error:  # how pipelines refuse sizes and the like
        got, fix = " ".join(str(error).split()), "Correct the options, or the recipe's baseline."
        raise PictureError(where, expected, got, fix) from error
    return images, timer.loop_s


def make_picture(
    pipe: Any, request: PictureRequest, path: Path, on_step: Callable[[int], None] = lambda _: None
) -> float:
    """Make one picture by its request's recipe and write it with all that is needed to repeat it.

    Args:
        pipe: Pipeline of `request.model`.
        request: What to make, and how.
        path: PNG file to write; of a video, all of its frames: an animated PNG.
        on_step: Called with the number of every solver step that has ended.

    Returns:
        Seconds of the denoising loop.
    """
    if request.recipe is None:
        images, seconds = call_pipe(pipe, request, on_step)
    else:
        with accelerate(pipe, request.recipe):
            images, seconds = call_pipe(pipe, request, on_step)
    text = PngInfo()
    text.add_text(_KEY, json.dumps({"request": asdict(request), **made_with(pipe, request)}))
    frames = images[0] if isinstance(images[0], list) else [images[0]]
    more = {"save_all": True, "append_images": frames[1:], "duration": _FRAME_MS}
    partial = path.with_name(f".{path.name}")
    frames[0].save(partial, format="PNG", pnginfo=text, **(more if len(frames) > 1 else {}))
    partial.replace(path)
    return seconds


def made_with(pipe: Any, request: PictureRequest) -> dict[str, Any]:
    """Say what a picture depends on besides its request: versions, and the reference's weights."""
    found: dict[str, Any] = {"versions": versions()}
    if request.model == "reference":
        found["weights"] = weights_digest(pipe)[:16]
    return found


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say where what made a picture is not what is here; what it does not say is left aside.

    Example:
        >>> differences({"versions": {"torch": "2.9"}}, {"versions": {"torch": "2.13"}})
        ['made with torch 2.9, here is 2.13']
    """
    flat = [
        {**made.get("versions", {}), **{key: made[key] for key in ("weights",) if key in made}}
        for made in (then, now)
    ]
    return [
        f"made with {name} {value}, here is {flat[1].get(name, 'none')}"
        for name, value in flat[0].items()
        if flat[1].get(name) != value
    ]


def read_request(path: Path) -> PictureRequest:
    """Read how a picture was made.

    Args:
        path: PNG file that `make_picture` wrote.

    Returns:
        What makes it again, with the same versions and hardware.

    Raises:
        PictureError: If it cannot be read, or does not say.
    """
    where, fix = f"read_request({path.name!r})", "Name a picture that `fresco run` wrote."
    try:
        text = _read_text(path)
        names = {field.name for field in fields(PictureRequest)} & text["request"].keys()
        return PictureRequest(**{name: text["request"][name] for name in names})
    except (OSError, KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        got = f"{type(error).__name__}: {error}"
        raise PictureError(where, "a picture with its request", got, fix) from error


def read_made_by(path: Path) -> dict[str, Any]:
    """Read what a picture that has a request was made with."""
    return {name: value for name, value in _read_text(path).items() if name != "request"}


def _read_text(path: Path) -> dict[str, Any]:
    with Image.open(path) as picture:
        text: dict[str, Any] = json.loads(picture.info[_KEY])
    return text


def as_pictures(images: Tensor) -> Tensor:
    """Take a call's output [b, 3, h, w] or [b, f, 3, h, w] as pictures, float32 on the CPU."""
    return (images.flatten(0, 1) if images.ndim == 5 else images).float().cpu()


def per_picture(prompts: Sequence[str], pictures: Tensor) -> list[str]:
    """Repeat each prompt for the frames of its video.

    Example:
        >>> per_picture(["a", "b"], torch.zeros(4, 3, 1, 1))
        ['a', 'a', 'b', 'b']
    """
    return [prompt for prompt in prompts for _ in range(len(pictures) // len(prompts))]


def _defaults(model: str) -> dict[str, Any]:
    """What the reference model was trained with; other pipelines know their own."""
    if model != "reference":
        return {}
    from fresco.reference import GUIDANCE_SCALE, MAX_TOKENS

    return {"guidance_scale": GUIDANCE_SCALE, "max_sequence_length": MAX_TOKENS}
