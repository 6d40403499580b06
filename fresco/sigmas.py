"""Noise levels that a scheduler has set by itself."""

from __future__ import annotations

from typing import Any


def own_sigmas(scheduler: Any) -> tuple[float, ...]:
    """Noise levels of a scheduler's steps, and where the last one ends.

    Args:
        scheduler: After its `set_timesteps`.

    Returns:
        Its `sigmas`; of one that has none (DDIM), the noise's coefficient at its timesteps.

    Example:
        >>> from diffusers import DDIMScheduler
        >>> scheduler = DDIMScheduler()
        >>> scheduler.set_timesteps(2)
        >>> [round(sigma, 2) for sigma in own_sigmas(scheduler)]
        [0.96, 0.01, 0.0]
    """
    if hasattr(scheduler, "sigmas"):
        is_inverted = scheduler.config.get("invert_sigmas", False)  # they rise from 0, pure noise
        return tuple(1 - float(s) if is_inverted else float(s) for s in scheduler.sigmas)
    signal = scheduler.alphas_cumprod[scheduler.timesteps.cpu()]
    return (*((1 - signal) ** 0.5).tolist(), 0.0)
