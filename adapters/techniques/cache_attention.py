"""Diffusers' caches of attention that keep their state on their hooks, for whatever call comes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from fresco.calls import Call

from .cache_methods import OUT_OF_RANGE, Method


class _OnHook(Method):
    """A cache whose state is on its hooks, not by context: exchanged for every call."""

    def find_hooks(self) -> None:
        super().find_hooks()
        self._states: dict[str, list[Any]] = {}

    def flush(self) -> None:
        self._states.clear()

    def enter(self, key: str, call: Call | None) -> None:  # noqa: ARG002
        if key not in self._states:
            self._states[key] = [type(hook.state)() for hook in self.hooks]
        for hook, state in zip(self.hooks, self._states[key], strict=True):
            hook.state = state
        self._caches = [hook.state.cache for hook in self.hooks]


class PyramidAttention(_OnHook):
    """Broadcasts attention to the next steps, between two noise levels."""

    defaults: ClassVar[Mapping[str, Any]] = {"interval": 2, "sigmas": (0.1, 0.8)}
    hook_names: ClassVar[tuple[str, ...]] = ("pyramid_attention_broadcast",)
    hint: ClassVar[str] = "raise interval, or widen sigmas"

    def make(self) -> None:
        from diffusers import PyramidAttentionBroadcastConfig

        low, high = self.settings["sigmas"]
        self.native = PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=self.settings["interval"],
            spatial_attention_timestep_skip_range=(1000 * low, 1000 * high),
            current_timestep_callback=self.clock.timestep,
        )

    def n_reused(self) -> int:
        pairs = zip(self.hooks, self._caches, strict=True)
        return sum(cache is not None and hook.state.cache is cache for hook, cache in pairs)


class FasterCache(_OnHook):
    """Extrapolates attention from two steps, below a noise level."""

    defaults: ClassVar[Mapping[str, Any]] = {"interval": 2, "sigmas": (0.0, 0.681)}
    hook_names: ClassVar[tuple[str, ...]] = ("faster_cache_block",)
    hint: ClassVar[str] = "raise interval, or widen sigmas"

    def make(self) -> None:
        from diffusers import FasterCacheConfig

        low, high = self.settings["sigmas"]
        self.native = FasterCacheConfig(
            spatial_attention_block_skip_range=self.settings["interval"],
            spatial_attention_timestep_skip_range=(1000 * low, 1000 * high),
            spatial_attention_block_identifiers=("blocks.*attn",),
            attention_weight_callback=lambda _module: 0.5,
            current_timestep_callback=self._timestep,
            is_guidance_distilled=True,  # passes are separate calls, never one batch
        )

    def _timestep(self) -> float:
        """The timestep; nobody's before there are features to go on from."""
        is_cold = any(cache is None for cache in self._caches)
        return OUT_OF_RANGE if is_cold else self.clock.timestep()

    def n_reused(self) -> int:
        low, high = self.native.spatial_attention_timestep_skip_range
        if not low < self._timestep() < high:
            return 0
        every = self.native.spatial_attention_block_skip_range
        return sum((hook.state.iteration - 1) % every != 0 for hook in self.hooks)
