"""What each of diffusers' caches needs: its config, where its state is, when it reuses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from fresco.calls import Call
from fresco.errors import AttachError

MIXED_OUTPUTS = ("Flux2Transformer2DModel",)  # FirstBlockCache of diffusers 0.42.1: TypeError
OUT_OF_RANGE = -1e9  # a timestep in nobody's range: compute


class Clock:
    """The call at hand; `timestep` is what diffusers' callbacks ask for."""

    def __init__(self) -> None:
        self.call: Call | None = None

    def set(self, call: Call | None) -> None:
        """Go to another call; None: outside of runs."""
        self.call = call

    def timestep(self) -> float:
        """Diffusers' timestep of the call, in [0, 1000]."""
        return OUT_OF_RANGE if self.call is None else 1000 * self.call.sigma


class Method(ABC):
    """One of diffusers' caches on one transformer.

    Args:
        transformer: The transformer.
        settings: Of the recipe, with defaults.
        clock: The call at hand.
    """

    defaults: ClassVar[Mapping[str, Any]]
    hook_names: ClassVar[tuple[str, ...]]
    hint: ClassVar[str]
    native: Any  # diffusers' config

    def __init__(self, transformer: Any, settings: Mapping[str, Any], clock: Clock) -> None:
        self.transformer, self.settings, self.clock = transformer, settings, clock
        self.hooks: list[Any] = []
        self.make()

    @abstractmethod
    def make(self) -> None:
        """Make `native`."""

    @abstractmethod
    def n_reused(self) -> int:
        """Modules that the call that has just ended did not compute."""

    def begin(self, call: Call) -> None:  # noqa: B027
        """A run or layout begins with this call."""

    def enter(self, key: str, call: Call | None) -> None:  # noqa: B027
        """A call with state of its own begins."""

    def flush(self) -> None:
        """Forget all features."""
        self.transformer._reset_stateful_cache()

    def find_hooks(self) -> None:
        """Find the hooks that have been registered."""
        found = [
            registry.hooks.get(name) for registry in self._registries() for name in self.hook_names
        ]
        self.hooks = [hook for hook in found if hook is not None]
        if not self.hooks:
            raise AttachError(
                "cache.attach(pipe)",
                "modules that this cache knows",
                f"none in {type(self.transformer).__name__}",
                "Choose another method.",
            )

    def hooks_above(self) -> list[str]:
        """Names of hooks that were registered above these."""
        above: set[str] = set()
        for registry in self._registries():
            order = registry._hook_order
            mine = [i for i, name in enumerate(order) if name in self.hook_names]
            above |= set(order[mine[-1] + 1 :]) if mine else set()
        return sorted(above)

    def _registries(self) -> list[Any]:
        """Diffusers' registries of hooks, of all modules that have one."""
        found = (vars(m).get("_diffusers_hook") for m in self.transformer.modules())
        return [registry for registry in found if registry is not None]

    def state(self, hook: Any) -> Any:
        """State of a hook for the call at hand."""
        return hook.state_manager.get_state()


class FirstBlock(Method):
    """Skips the other blocks while the first one's residual barely moves."""

    defaults: ClassVar[Mapping[str, Any]] = {"threshold": 0.05}
    hook_names: ClassVar[tuple[str, ...]] = ("fbc_leader_block_hook", "fbc_block_hook")
    hint: ClassVar[str] = "raise threshold"

    def make(self) -> None:
        from diffusers import FirstBlockCacheConfig

        model = type(self.transformer).__name__
        if model in MIXED_OUTPUTS:
            expected = "blocks that all return text and image, or all one sequence"
            raise AttachError("cache.attach(pipe)", expected, model, "Choose another method.")
        self.native = FirstBlockCacheConfig(**self.settings)

    def n_reused(self) -> int:
        return 0 if self.state(self.hooks[0]).should_compute else len(self.hooks) - 1


class MagCache(Method):
    """Skips all blocks by calibrated magnitudes; its step counter is the plan's."""

    defaults: ClassVar[Mapping[str, Any]] = {
        "threshold": 0.06,
        "max_skips": 3,
        "retention": 0.2,
        "ratios": None,
    }
    hook_names: ClassVar[tuple[str, ...]] = (
        "mag_cache_leader_block_hook",
        "mag_cache_block_hook",
    )
    hint: ClassVar[str] = "raise threshold, or lower retention"

    def make(self) -> None:
        from diffusers import MagCacheConfig
        from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS

        ratios = self.settings["ratios"]
        if ratios is None and type(self.transformer).__name__ != "FluxTransformer2DModel":
            raise AttachError(
                "cache.attach(pipe)",
                "ratios of magnitudes, which belong to a checkpoint",
                f"none for {type(self.transformer).__name__}",
                "Run MagCacheConfig(calibrate=True) once and write them into the recipe.",
            )
        self._ratios = FLUX_MAG_RATIOS if ratios is None else torch.tensor(ratios)
        self.native = MagCacheConfig(
            threshold=self.settings["threshold"],
            max_skip_steps=self.settings["max_skips"],
            retention_ratio=self.settings["retention"],
            num_inference_steps=len(self._ratios),
            mag_ratios=self._ratios,
        )

    def begin(self, call: Call) -> None:
        from diffusers.hooks.mag_cache import nearest_interp

        self.native.num_inference_steps = call.n_steps
        self.native.mag_ratios = nearest_interp(self._ratios, call.n_steps)

    def enter(self, key: str, call: Call | None) -> None:  # noqa: ARG002
        state = self.state(self.hooks[0])
        state.step_index = call.step if call else 0

    def n_reused(self) -> int:
        return 0 if self.state(self.hooks[0]).should_compute else len(self.hooks)


class TaylorSeer(Method):
    """Extrapolates features in time; its warm-up begins anew after every flush."""

    defaults: ClassVar[Mapping[str, Any]] = {
        "interval": 5,
        "warmup": 3,
        "max_order": 1,
        "lite": False,
    }
    hook_names: ClassVar[tuple[str, ...]] = ("taylorseer_cache",)
    hint: ClassVar[str] = "raise interval, lower warmup, or give its stages more steps"

    def make(self) -> None:
        from diffusers import TaylorSeerCacheConfig

        dtype = self.transformer.dtype  # what it computes in, under layerwise casting too
        self.native = TaylorSeerCacheConfig(
            cache_interval=self.settings["interval"],
            disable_cache_before_step=self.settings["warmup"],
            max_order=self.settings["max_order"],
            taylor_factors_dtype=dtype,
            use_lite_mode=self.settings["lite"],
        )

    def n_reused(self) -> int:
        states = [self.state(hook) for hook in self.hooks]
        return sum(state.current_step != state.last_update_step for state in states)


class SeaCache(Method):
    """Reuses the blocks' residual while the spectrum of the latents barely moves."""

    defaults: ClassVar[Mapping[str, Any]] = {"threshold": 0.25, "max_order": 1, "max_skips": 2}
    hook_names: ClassVar[tuple[str, ...]] = ("sea_cache_leader_block", "sea_cache_block")
    hint: ClassVar[str] = "raise threshold"

    def make(self) -> None:
        from diffusers import SeaCacheConfig

        self.native = SeaCacheConfig(
            threshold=self.settings["threshold"],
            residual_order=min(1, self.settings["max_order"]),
            max_consecutive_cached=self.settings["max_skips"],
            raw_vision_callback=self._latents,
        )

    def n_reused(self) -> int:
        return len(self.hooks) if self.state(self.hooks[0]).consecutive_cached else 0

    def _latents(self, *_: object) -> list[torch.Tensor] | None:
        """Latents of the full grid, one frame each, [c, 1, h, w]."""
        if self.clock.call is None:
            return None
        return [latents.unsqueeze(1) for latents in self.clock.call.carrier()]
