"""LoRA through diffusers and peft: kept as layers, or fused into the weights."""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator

from fresco.errors import AttachError
from fresco.techniques import (
    AbstractAttachment,
    Counts,
    Phase,
    TechniqueConfig,
    register_technique,
)

from .blocks import first_weight, moved, places

_PACKAGE = "package:"
_OWN = ("peft_config", "_hf_peft_config_loaded", "lora_scale", "_safe_fusing")


@register_technique
class LoraConfig(TechniqueConfig):
    """Load a LoRA into the transformer, at a scale; kept or fused."""

    kind: Literal["lora"] = "lora"
    phase: ClassVar[Phase] = "weights"
    touches: ClassVar[str] = "linear layers"
    only_one: ClassVar[str] = "each has a LoRA of its own, and an entry names one"
    source: str | None = Field(
        None, min_length=1, description="path, hub id, or package:NAME/file of an installed package"
    )
    weight_name: str | None = Field(None, description="file of the source")
    state_dict: Mapping[str, Any] | None = Field(None, repr=False, description="in its place")
    strength: float = Field(1.0, description="factor of the difference that it makes")
    fuse: bool = Field(False, description="into the weights; the originals are kept")
    scheduler: Mapping[str, Any] = Field(
        default_factory=dict, description="scheduler settings that it was distilled for"
    )

    @model_validator(mode="after")
    def _one_source(self) -> LoraConfig:
        if (self.source is None) == (self.state_dict is None):
            raise ValueError("give source or state_dict, one of the two")
        return self

    def attach(self, pipe: Any) -> AbstractAttachment:
        return _Loaded(pipe, self)


class _Loaded(AbstractAttachment):
    """A LoRA that is on; modules, weights and attributes of before are kept."""

    def __init__(self, pipe: Any, config: LoraConfig) -> None:
        self._pipe, self._transformer = pipe, pipe.transformer
        self._scheduler = pipe.scheduler
        self._put_scheduler: object = None
        self._check()
        self._own = {name: vars(self._transformer)[name] for name in _OWN if self._has(name)}
        self._before = places(self._transformer)
        self._was = first_weight(self._transformer)
        self._weights: list[tuple[torch.nn.Module, torch.nn.Parameter]] = []
        self._n_layers, self._norm, self._is_fused = 0, 0.0, config.fuse
        try:
            self._load(config)
        except BaseException:
            self.restore()
            raise

    def restore(self) -> None:
        for module, weight in self._weights:
            module.weight = moved(weight, self._was, self._transformer)
        for place in self._before:
            place.put(place.module)
        for name in _OWN:
            vars(self._transformer).pop(name, None)
        vars(self._transformer).update(self._own)
        if self._put_scheduler is not None and self._pipe.scheduler is self._put_scheduler:
            self._pipe.scheduler = self._scheduler

    def counts(self) -> Counts:
        how = "fused" if self._is_fused else "kept"
        return {"layers": self._n_layers, "norm of delta": round(self._norm, 6), "weights": how}

    def idle(self) -> str | None:
        return None if self._norm > 0 else "its difference to the weights is zero"

    def _has(self, name: str) -> bool:
        return name in vars(self._transformer)

    def _check(self) -> None:
        """Refuse what cannot take a LoRA: the pipeline's class, its weights, one that is on."""
        if not hasattr(self._pipe, "lora_state_dict"):
            raise AttachError(
                "lora.attach(pipe)",
                "a pipeline that loads LoRAs (diffusers' loader mixins)",
                type(self._pipe).__name__,
                "Leave the LoRA out.",
            )
        for weight in self._transformer.parameters():
            is_eight_bit = weight.is_floating_point() and weight.dtype.itemsize == 1
            if weight.is_meta or is_eight_bit:
                how = "on meta (sequential offload)" if weight.is_meta else f"in {weight.dtype}"
                raise AttachError(
                    "lora.attach(pipe)",
                    "weights that are at hand, in a type that can be computed with",
                    f"some {how}",
                    "Leave out the offload or the layerwise casting, or the LoRA.",
                )
        if getattr(self._transformer, "peft_config", None):
            raise AttachError(
                "lora.attach(pipe)",
                "a transformer without LoRA",
                f"one with {', '.join(self._transformer.peft_config)}",
                "Unload it, and name it in the recipe's stack.",
            )

    def _load(self, config: LoraConfig) -> None:
        """Load, measure, and fuse if asked."""
        from peft.tuners.lora import LoraLayer

        name = "fresco"
        given = _locate(config.source) if config.source else dict(config.state_dict or {})
        named = {"weight_name": config.weight_name} if config.weight_name else {}
        state = self._pipe.lora_state_dict(
            given, return_alphas=True, return_lora_metadata=True, **named
        )
        weights, *more = state if isinstance(state, tuple) else (state, None)
        _check_weights(weights)
        self._transformer.load_lora_adapter(
            weights,
            network_alphas=more[0] if len(more) > 1 else None,
            metadata=more[-1],  # ranks and alphas of its training
            adapter_name=name,
        )
        self._transformer.set_adapters([name], [config.strength])
        layers: list[Any] = [m for m in self._transformer.modules() if isinstance(m, LoraLayer)]
        with torch.no_grad():
            deltas = [layer.get_delta_weight(name).float() for layer in layers]
        self._n_layers = len(deltas)
        self._norm = sum(float(delta.pow(2).sum()) for delta in deltas) ** 0.5
        if config.fuse:
            self._fuse(layers, name)
        if config.scheduler:
            scheduler = self._scheduler
            made = type(scheduler).from_config(scheduler.config, **config.scheduler)
            self._pipe.scheduler = self._put_scheduler = made

    def _fuse(self, layers: list[Any], name: str) -> None:
        """Merge into copies of the weights, and take the LoRA layers off."""
        for layer in layers:
            base = layer.get_base_layer()
            self._weights.append((base, base.weight))
            base.weight = torch.nn.Parameter(
                base.weight.detach().clone(), base.weight.requires_grad
            )
        self._transformer.fuse_lora(adapter_names=[name])
        self._transformer.unload_lora()


def _check_weights(weights: Mapping[str, Any]) -> None:
    """Refuse what holds more than a LoRA of the transformer, or none of it."""
    text = [key for key in weights if key.startswith("text_encoder")]
    others = [key for key in weights if "lora" not in key]
    if text:
        got = f"{len(text)} tensors for text encoders ({text[0]}, ...)"
        fix = "Load those yourself, before accelerate()."
    elif others:
        got = f"{len(others)} tensors that are no LoRA ({others[0]}, ...)"
        fix = "Load them yourself, before accelerate(), and leave the LoRA out."
    elif not any(key.startswith("transformer.") for key in weights):
        named = f" ({next(iter(weights))}, ...)" if weights else ""
        got = f"{len(weights)} tensors, none of it{named}"
        fix = "Choose a LoRA of this model, with names that begin with `transformer.`."
    else:
        return
    raise AttachError("lora.attach(pipe)", "a LoRA for the transformer", got, fix)


def _locate(source: str) -> str:
    """Path of a package's file; what names no package stays as it is."""
    if not source.startswith(_PACKAGE):
        return source
    package, _, name = source.removeprefix(_PACKAGE).partition("/")
    try:
        path = Path(str(importlib.resources.files(package))) / name
    except ModuleNotFoundError:
        path = None
    if not name or path is None or not path.is_file():
        raise AttachError(
            "lora.attach(pipe)",
            "a file of an installed package, as package:NAME/file",
            f"{source!r}, which is none",
            "Correct the source, or make the file: of the reference model's LoRA, "
            "`fresco reference distill`, and copy its folder `lora` into the package's weights.",
        )
    return str(path)
