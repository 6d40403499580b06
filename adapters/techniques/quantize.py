"""Quantized linear layers: torchao or optimum-quanto, the originals kept for restoring or not."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator

from fresco.errors import AttachError, FrescoWarning
from fresco.techniques import (
    AbstractAttachment,
    Conflict,
    Counts,
    Phase,
    TransformerTechnique,
    register_technique,
)

from .blocks import Place, block_linears, first_weight, moved, places

Make = Callable[[torch.nn.Linear], torch.nn.Module]
Form = Literal[
    "int8_weight_only",
    "int8_dynamic",
    "int4_weight_only",
    "float8_weight_only",
    "float8_dynamic",
    "quanto_qint8",
    "quanto_qint4",
    "quanto_qfloat8",
]
_TORCHAO = {
    "int8_weight_only": "Int8WeightOnlyConfig",
    "int8_dynamic": "Int8DynamicActivationInt8WeightConfig",
    "int4_weight_only": "Int4WeightOnlyConfig",
    "float8_weight_only": "Float8WeightOnlyConfig",
    "float8_dynamic": "Float8DynamicActivationFloat8WeightConfig",
}


@register_technique
class QuantizeConfig(TransformerTechnique):
    """Quantize the linear layers of the blocks, never LoRA, norms, embeddings, modulation."""

    kind: Literal["quantize"] = "quantize"
    phase: ClassVar[Phase] = "weights"
    touches: ClassVar[str] = "linear layers of the blocks"
    after: ClassVar[dict[str, str]] = {
        "lora": "after lora, which fuses into full-precision weights only"
    }
    conflicts: ClassVar[tuple[Conflict, ...]] = (
        Conflict("quantize", "a layer is quantized once"),
        Conflict(
            "lora",
            "a LoRA keeps the layers as they were, so that nothing would be freed; fuse it into "
            "the weights before, or set keep_original: true",
            own={"keep_original": frozenset({False})},
        ),
    )
    form: Form = "int8_weight_only"
    exclude: tuple[str, ...] = Field((), description="more regular expressions of layer names")
    keep_original: bool = Field(
        True, description="false frees the original weights; restore() leaves the quantized ones"
    )

    @field_validator("exclude")
    @classmethod
    def _are_patterns(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                message = f"{pattern!r} is no regular expression: {error}"
                raise ValueError(message) from None
        return patterns

    def attach_to(self, transformer: Any) -> AbstractAttachment:
        return _Quantized(transformer, self)


class _Quantized(AbstractAttachment):
    """Quantized layers in the places of the original modules, which are kept."""

    def __init__(self, transformer: torch.nn.Module, config: QuantizeConfig) -> None:
        self._n_bytes = self._n_bytes_before = 0
        self._put: list[tuple[Place, torch.nn.Module]] = []
        self._transformer, self._was = transformer, first_weight(transformer)
        self._keeps = config.keep_original
        make = _maker(config.form)
        found = list(block_linears(transformer, config.exclude))
        _check_precision(found)
        hooked = [place.name for place in found if "forward" in vars(place.module)]
        if hooked:
            raise AttachError(
                "quantize.attach(pipe)",
                "linear layers without hooks on their forward",
                f"{len(hooked)} with, as leaf-level offload puts them ({hooked[0]}, ...)",
                "Accelerate first, then enable the offload; or offload whole models.",
            )
        made = [(place, _quantize(place, make, config.form)) for place in found]
        for place, module in made:
            self._n_bytes_before += _n_bytes(place.module)
            self._n_bytes += _n_bytes(module)
            place.put(module)
            self._put.append((place, module))
        self._n_layers = len(made)

    def settle(self) -> None:
        if not self._keeps:
            self._put.clear()

    def check_restorable(self) -> None:
        if self._n_layers and not self._put:
            message = (
                f"Accelerated.restore() leaves {self._n_layers} quantized layers: the recipe set "
                "keep_original: false. Load the pipeline anew for the original weights."
            )
            warnings.warn(message, FrescoWarning, stacklevel=4)

    def restore(self) -> None:
        originals = {module: place.module for place, module in self._put}
        for place in places(self._transformer):  # a LoRA that is gone may have moved them
            original = originals.get(place.module)
            if original is not None:
                for name, weight in original.named_parameters(recurse=False):
                    setattr(original, name, moved(weight, self._was, self._transformer))
                place.put(original)

    def counts(self) -> Counts:
        numbers = {"layers": self._n_layers, "bytes": self._n_bytes}
        kept = {
            "bytes before": self._n_bytes_before,
            "originals": "kept" if self._keeps else "freed",
        }
        return {**numbers, **kept}

    def idle(self) -> str | None:
        return None if self._n_layers else "no linear layer of a block was left to quantize"


def _check_precision(places: list[Place]) -> None:
    """Refuse layers that are quantized already, as `keep_original: false` leaves them."""
    found = [p.name for p in places if type(p.module.weight.data) is not torch.Tensor]
    if found:
        raise AttachError(
            "quantize.attach(pipe)",
            "linear layers in full precision",
            f"{len(found)} that are quantized already ({found[0]}, ...)",
            "Load the pipeline anew, or leave quantize out.",
        )


def _quantize(place: Place, make: Make, form: str) -> torch.nn.Module:
    """Quantize one layer, and see that it runs."""
    linear = place.module
    assert isinstance(linear, torch.nn.Linear)
    try:
        with torch.no_grad():
            module = make(linear).train(linear.training)
            probe = linear.weight.new_ones(2, linear.in_features)
            is_finite = bool(module(probe).isfinite().all())
    except Exception as error:
        got = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        raise _refusal(place, linear, form, got) from error
    if not is_finite:
        raise _refusal(place, linear, form, "values that are not finite")
    return module


def _refusal(place: Place, linear: torch.nn.Linear, form: str, got: str) -> AttachError:
    """Say which layer does not take the form, and why."""
    return AttachError(
        "quantize.attach(pipe)",
        f"{form} to run on {linear.weight.device} for {place.name} "
        f"({linear.in_features} x {linear.out_features}, {linear.weight.dtype})",
        got,
        "Choose another form, or exclude the layer.",
    )


def _maker(form: str) -> Make:
    """What quantizes one layer into a new module."""
    extra = "quanto" if form.startswith("quanto") else "torchao"
    try:
        return _quanto(form) if extra == "quanto" else _torchao(form)
    except ImportError as error:
        raise AttachError(
            "quantize.attach(pipe)",
            f"the package that {form} is from",
            str(error),
            f"Install it: pip install 'fresco[{extra}]'.",
        ) from error


def _torchao(form: str) -> Make:
    """By torchao's configs."""
    from torchao import quantization

    config = getattr(quantization, _TORCHAO[form])()

    def make(linear: torch.nn.Linear) -> torch.nn.Module:
        has_bias = linear.bias is not None
        with torch.device("meta"):
            copy = torch.nn.Linear(linear.in_features, linear.out_features, has_bias)
        copy.weight, copy.bias = linear.weight, linear.bias
        quantization.quantize_(torch.nn.Sequential(copy), config)
        if type(copy.weight.data) is torch.Tensor:
            raise ValueError(f"torchao left the layer as it was with {type(config).__name__}")
        return copy

    return make


def _quanto(form: str) -> Make:
    """By optimum-quanto's modules."""
    from optimum import quanto

    weights = getattr(quanto, form.removeprefix("quanto_"))

    def make(linear: torch.nn.Linear) -> torch.nn.Module:
        module = quanto.QLinear.from_module(linear, weights=weights)
        module.freeze()
        quantized: torch.nn.Module = module
        return quantized

    return make


def _n_bytes(module: torch.nn.Module) -> int:
    """Bytes of a module's parameters and buffers, packed ones by their parts."""
    return sum(_tensor_bytes(tensor) for tensor in module.state_dict().values())


def _tensor_bytes(tensor: object) -> int:
    """Bytes of a tensor, of a subclass's inner tensors if it has any."""
    if not isinstance(tensor, torch.Tensor):
        return 0
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        return tensor.numel() * tensor.element_size()
    return sum(_tensor_bytes(getattr(tensor, name)) for name in flatten()[0])
