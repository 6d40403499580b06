"""Pipelines without weights: what a plan needs to know of one, from its published config."""

from __future__ import annotations

import importlib.resources
import json
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from fresco.cost import skeleton
from fresco.errors import FrescoError
from fresco.problems import place, unknown
from fresco.registry import adapters
from fresco.stages import Config


class SketchError(FrescoError, ValueError):
    """A model's config that is unknown or cannot be read."""


class PipelineConfig(Config):
    """What a pipeline knows of sizes."""

    class_name: str | None = Field(None, description="class of diffusers")
    default_sample_size: int = Field(ge=1, description="latent px")
    vae_scale_factor: int = Field(ge=1, description="image px per latent px")
    vae_scale_factor_temporal: int = Field(1, ge=1, description="frames per latent frame")


class RunConfig(Config):
    """What the model's authors run it with."""

    steps: int = Field(ge=1)
    height: int = Field(ge=1, description="image px")
    width: int = Field(ge=1, description="image px")
    text_tokens: int = Field(ge=1)
    frames: int = Field(1, ge=1, description="of a video")
    reference_tokens: int = Field(0, ge=0, description="of pictures beside the one that is made")
    still_frames: int = Field(0, ge=0, description="first latent frames that are given")


class TinyConfig(Config):
    """A pipeline of the model's class that is small enough to run anywhere."""

    pipeline: str = Field("", description="class of diffusers; that of the model itself")
    transformer_class: str = Field("", description="the same of its transformer")
    transformer: Mapping[str, Any] = Field(description="config of a small one")
    call: Mapping[str, Any] = Field(
        description="arguments; a list is the shape of noise, {ones: shape} and {each: shape} too"
    )


class ModelConfig(Config):
    """A published configuration, as its JSON file says it."""

    source: str = Field(min_length=1)
    stands_for: str | None = Field(None, description="recipes <stands_for>_<intent> are its own")
    transformer: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    pipeline: PipelineConfig
    run: RunConfig
    tiny: TinyConfig | None = None


@dataclass(frozen=True)
class Sketch:
    """Stands for a pipeline where only shapes and schedules count; it cannot be called.

    Args:
        transformer: On the meta device, without weights.
        scheduler: The pipeline's own.
        default_sample_size: Latent px, as the pipeline has it.
        vae_scale_factor: Image px per latent px.
        vae_scale_factor_temporal: Frames of a video per latent frame.
        run: What the model's authors run it with.
    """

    transformer: Any
    scheduler: Any
    default_sample_size: int
    vae_scale_factor: int
    vae_scale_factor_temporal: int
    run: RunConfig

    @property
    def vae_scale_factor_spatial(self) -> int:
        """The name that most video pipelines have for it."""
        return self.vae_scale_factor

    @property
    def vae_spatial_compression_ratio(self) -> int:
        """LTX's name."""
        return self.vae_scale_factor

    @property
    def vae_spatial_scale_factor(self) -> int:
        """Mochi's name."""
        return self.vae_scale_factor


def known_models() -> Mapping[str, Path | None]:
    """List the models that can be planned without weights: file by name, None for `reference`.

    Example:
        >>> "flux1-dev" in known_models(), known_models()["reference"]
        (True, None)
    """
    folder = Path(str(importlib.resources.files("fresco.adapters"))) / "configs"
    files = sorted(folder.glob("*.json"), key=operator.attrgetter("stem"))
    return {path.stem: path for path in files} | {"reference": None}


def load_model_config(source: str | Path) -> ModelConfig:
    """Read a published configuration.

    Args:
        source: One of `known_models()`, or the path of a JSON file of the same form.

    Returns:
        The configuration.

    Raises:
        SketchError: If the model is unknown, or the file has problems.

    Example:
        >>> load_model_config("wan21-14b").stands_for
        'wan21'
    """
    known = known_models()
    if isinstance(source, Path):
        return _parse(source.name, _read(source))
    if source not in known:
        got, fix = unknown("model", source, known), "Name one of them, or pass a config.json."
        raise SketchError(f"load_model_config({source!r})", "a known model", got, fix)
    path = known[source]
    return _reference_config() if path is None else _parse(path.name, _read(path))


def sketch_model(name: str, transformer: Path | Mapping[str, Any] | None = None) -> Sketch:
    """Make the sketch of a known model.

    Args:
        name: One of `known_models()`.
        transformer: Config, or path of a `transformer/config.json`, in place of the model's own.

    Returns:
        The sketch; its scheduler, sizes and text tokens are the model's.

    Raises:
        SketchError: If the model is unknown, or a config has problems.

    Example:
        >>> sketch_model("flux1-schnell").run.steps
        4
    """
    config = load_model_config(name)
    own: Mapping[str, Any] = config.transformer
    if transformer is not None:
        own = _read(transformer) if isinstance(transformer, Path) else transformer
    return Sketch(
        transformer=_build_transformer(own),
        scheduler=diffusers_class(config.scheduler.get("_class_name")).from_config(
            dict(config.scheduler)
        ),
        default_sample_size=config.pipeline.default_sample_size,
        vae_scale_factor=config.pipeline.vae_scale_factor,
        vae_scale_factor_temporal=config.pipeline.vae_scale_factor_temporal,
        run=config.run,
    )


def model_like(transformer: Path | Mapping[str, Any]) -> str:
    """Find a known model of a transformer's class, for its scheduler, sizes and text tokens.

    Args:
        transformer: Config, or path of a `transformer/config.json`.

    Returns:
        The one of `known_models()` with that class that shares most of its settings.

    Raises:
        SketchError: If the config cannot be read, or no known model has its class.

    Example:
        >>> model_like({"_class_name": "WanTransformer3DModel"})
        'wan21-14b'
    """
    own = _read(transformer) if isinstance(transformer, Path) else transformer
    known = {model: load_model_config(model).transformer for model in known_models()}
    name = str(own.get("_class_name"))
    alike = {model: config for model, config in known.items() if config["_class_name"] == name}
    if not alike:
        classes = dict.fromkeys(config["_class_name"] for config in known.values())
        got, fix = unknown("model class", name, classes), "Pass the config.json of its transformer."
        raise SketchError("sketch_model(transformer)", "a class with an adapter", got, fix)

    def n_shared(model: str) -> int:
        return sum(own.get(key) == value for key, value in alike[model].items())

    return max(alike, key=n_shared)


def tiny_model(name: str) -> tuple[TinyConfig | None, Any]:
    """Read what stands in for a known model where its weights are not, and its scheduler.

    Args:
        name: One of `known_models()`.

    Returns:
        The small pipeline's config, or None, and the model's scheduler.

    Raises:
        SketchError: If the model is unknown.
    """
    config = load_model_config(name)
    scheduler = diffusers_class(config.scheduler.get("_class_name")).from_config(
        dict(config.scheduler)
    )
    named = {
        "pipeline": config.pipeline.class_name,
        "transformer_class": config.transformer["_class_name"],
    }
    return config.tiny and config.tiny.model_copy(update=named), scheduler


def _build_transformer(config: Mapping[str, Any]) -> Any:
    """A transformer on the meta device, of a class that has an adapter."""
    name, known = config.get("_class_name"), adapters()
    if name not in known:
        got, fix = unknown("model class", name, known), "Pass the config.json of its transformer."
        raise SketchError("sketch_model(transformer)", "a class with an adapter", got, fix)
    kept = {key: value for key, value in config.items() if not key.startswith("_")}
    made = diffusers_class(name)
    try:
        return skeleton(made, json.dumps(kept))
    except (TypeError, ValueError, RuntimeError) as error:
        fix = "Correct its config.json."
        raise SketchError("sketch_model(transformer)", f"a {name}", str(error), fix) from error


def diffusers_class(name: object) -> Any:
    """A class of diffusers by the name that configs have under `_class_name`.

    Raises:
        SketchError: If diffusers has none of that name.
    """
    import diffusers

    found = getattr(diffusers, str(name), None)
    if not isinstance(found, type):
        fix = "Correct `_class_name`, or `pipeline.class_name`."
        raise SketchError("a model's config", "the name of a class of diffusers", repr(name), fix)
    return found


def _reference_config() -> ModelConfig:
    """Config of the model that ships, from its own files."""
    from fresco.reference import DEFAULT_SAMPLE_SIZE, MAX_TOKENS, PIPELINE

    vae = _read(PIPELINE / "vae" / "config.json")
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    side = DEFAULT_SAMPLE_SIZE * factor
    content = {
        "source": "fresco.reference",
        "transformer": _read(PIPELINE / "transformer" / "config.json"),
        "scheduler": _read(PIPELINE / "scheduler" / "scheduler_config.json"),
        "pipeline": {"default_sample_size": DEFAULT_SAMPLE_SIZE, "vae_scale_factor": factor},
        "run": {"steps": 50, "height": side, "width": side, "text_tokens": MAX_TOKENS},
    }
    return _parse("reference", content)


def _parse(where: str, content: object) -> ModelConfig:
    try:
        return ModelConfig.model_validate(content)
    except ValidationError as error:
        problems = [f"{each['msg']} @ {place(each['loc'])}" for each in error.errors()]
        fix = "Correct the file."
        raise SketchError(where, "a model's config", "; ".join(problems), fix) from None


def _read(path: Path) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        where, fix = f"sketch_model({path.name!r})", "Name a readable config.json."
        raise SketchError(where, "a JSON file", str(error), fix) from error
    if not isinstance(content, dict):
        where, fix = f"sketch_model({path.name!r})", "Name a config.json of a model."
        raise SketchError(where, "a JSON object", type(content).__name__, fix)
    return content
