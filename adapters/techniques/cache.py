"""Feature caches of diffusers, told about layouts, steps and passes by fresco.

The caches are diffusers' own hooks; nothing of them is written anew. What diffusers leaves
to the pipeline is done here: state per pass and group of images, flushed when a layout
changes, with step counts of the plan. It is also done for pipelines that open no
`cache_context`, and calls outside of a run are computed whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator

from fresco.calls import Call
from fresco.errors import AttachError
from fresco.techniques import (
    AbstractAttachment,
    Conflict,
    Phase,
    TransformerTechnique,
    register_technique,
)

from .cache_attention import FasterCache, PyramidAttention
from .cache_methods import Clock, FirstBlock, MagCache, Method, SeaCache, TaylorSeer
from .caching import AbstractCaching

Name = Literal["first_block", "taylorseer", "magcache", "pab", "fastercache", "seacache"]
METHODS: Mapping[str, type[Method]] = {
    "first_block": FirstBlock,
    "taylorseer": TaylorSeer,
    "magcache": MagCache,
    "pab": PyramidAttention,
    "fastercache": FasterCache,
    "seacache": SeaCache,
}


@register_technique
class CacheConfig(TransformerTechnique):
    """Reuse features of earlier steps where they barely change; by one of diffusers' caches."""

    kind: Literal["cache"] = "cache"
    phase: ClassVar[Phase] = "hooks"
    touches: ClassVar[str] = "the forward of the blocks, or of their attention"
    keeps_state: ClassVar[bool] = True
    conflicts: ClassVar[tuple[Conflict, ...]] = (
        Conflict("cache", "diffusers takes one cache at a time"),
    )
    method: Name = "first_block"
    threshold: float | None = Field(None, ge=0, description="of change; more reuses more")
    interval: int | None = Field(None, ge=1, description="steps from one computed to the next")
    warmup: int | None = Field(None, ge=1, description="computed steps after every flush")
    max_order: int | None = Field(None, ge=0, le=4, description="of the Taylor expansion")
    lite: bool | None = Field(None, description="predict the last projection only")
    max_skips: int | None = Field(None, ge=1, description="reused steps in a row")
    retention: float | None = Field(None, ge=0, le=1, description="share of steps computed first")
    ratios: tuple[float, ...] | None = Field(None, min_length=2, description="of magnitudes")
    sigmas: tuple[float, float] | None = Field(None, description="(low, high) where it reuses")

    @model_validator(mode="after")
    def _fits_method(self) -> CacheConfig:
        known = METHODS[self.method].defaults
        given = {name for name in self.model_fields_set if getattr(self, name) is not None}
        extra = sorted(given - {"kind", "method", *known})
        if extra:
            takes = ", ".join(known)
            raise ValueError(f"{', '.join(extra)} has no meaning for {self.method}, use {takes}")
        if self.sigmas and not 0 <= self.sigmas[0] <= self.sigmas[1] <= 1:
            raise ValueError(f"sigmas must be (low, high) in [0, 1], got {self.sigmas}")
        return self

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings of the method, its defaults filled in."""
        given = {name: getattr(self, name) for name in METHODS[self.method].defaults}
        defaults = METHODS[self.method].defaults
        return {name: defaults[name] if v is None else v for name, v in given.items()}

    def attach_to(self, transformer: Any) -> AbstractAttachment:
        return _Cached(transformer, METHODS[self.method], self.settings)


class _Cached(AbstractCaching):
    """A cache of diffusers that is on."""

    def __init__(self, transformer: Any, method: type[Method], settings: Mapping[str, Any]) -> None:
        super().__init__()
        self._transformer = transformer
        self._check()
        self._before = _forwards(transformer)
        self._clock = Clock()
        self._method = method(transformer, settings, self._clock)
        self.hint = method.hint
        self._open: AbstractContextManager[None] | None = None
        self._make_context: Callable[..., AbstractContextManager[None]] = transformer.cache_context
        with ExitStack() as undo:
            undo.callback(_put_forwards, transformer, self._before)
            undo.callback(self._disable)
            transformer.enable_cache(self._method.native)
            self._method.find_hooks()
            undo.callback(self.name_passes(transformer))
            self._undo = undo.pop_all()

    def restore(self) -> None:
        self.abandon()
        self._undo.close()

    def check_restorable(self) -> None:
        others = self._method.hooks_above()
        if others:
            raise AttachError(
                "Accelerated.restore()",
                "the cache's hooks outermost on its blocks",
                f"{', '.join(others)} above them",
                "Take that off first: last on, first off.",
            )

    def begin(self, call: Call) -> None:
        self._method.begin(call)

    def flush(self) -> None:
        self._method.flush()

    def enter(self, key: str, call: Call | None) -> None:
        where = (
            {}
            if call is None
            else {"step_index": call.step, "num_inference_steps": call.n_steps, "sigma": call.sigma}
        )
        self._open = self._make_context(key, **where)
        self._open.__enter__()
        self._clock.set(call)
        self._method.enter(key, call)

    def leave(self) -> int:
        return self._method.n_reused()

    def abandon(self) -> None:
        if self._open:
            self._open.__exit__(None, None, None)
        self._open = None

    def _check(self) -> None:
        """Refuse transformers that diffusers cannot cache, or that are cached already."""
        if not hasattr(self._transformer, "enable_cache") or self._transformer.is_cache_enabled:
            enabled = hasattr(self._transformer, "enable_cache")
            raise AttachError(
                "cache.attach(pipe)",
                "a transformer with diffusers' CacheMixin and no cache",
                "one with a cache" if enabled else type(self._transformer).__name__,
                "Call disable_cache()." if enabled else "Leave the cache out.",
            )

    def _disable(self) -> None:
        """Take diffusers' hooks off."""
        self._transformer._cache_config = self._method.native  # also if enabling failed midway
        self._transformer.disable_cache()


def _forwards(transformer: torch.nn.Module) -> list[tuple[torch.nn.Module, dict[str, object]]]:
    """What diffusers' hooks put on modules, as it is now."""
    names = ("forward", "_diffusers_hook")
    return [
        (module, {name: vars(module)[name] for name in names if name in vars(module)})
        for module in transformer.modules()
    ]


def _put_forwards(
    transformer: torch.nn.Module, before: list[tuple[torch.nn.Module, dict[str, object]]]
) -> None:
    """Leave nothing where nothing was: diffusers keeps empty registries and bound forwards."""
    vars(transformer).pop("_cache_config", None)
    for module, had in before:
        registry = vars(module).get("_diffusers_hook")
        if registry is not None and not registry.hooks:
            for name in {"forward", "_diffusers_hook"} - set(had):
                vars(module).pop(name, None)
