"""Noise levels: those of schedulers, and how they are spaced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor


def own_sigmas(scheduler: Any) -> tuple[float, ...]:
    """Noise levels of a scheduler's steps, and where the last one ends.

    Args:
        scheduler: After its `set_timesteps`.

    Returns:
        Levels in [0, 1], as a flow has them: noise / (signal + noise).

    Example:
        >>> from diffusers import DDIMScheduler
        >>> scheduler = DDIMScheduler()
        >>> scheduler.set_timesteps(2)
        >>> [round(sigma, 2) for sigma in own_sigmas(scheduler)]
        [0.77, 0.01, 0.0]
    """
    config = scheduler.config
    if not hasattr(scheduler, "sigmas"):
        return (*flow_sigmas(scheduler.alphas_cumprod[scheduler.timesteps.cpu()]), 0.0)
    sigmas = [float(sigma) for sigma in scheduler.sigmas]
    if config.get("invert_sigmas", False):  # they rise from 0, pure noise
        return tuple(1 - sigma for sigma in sigmas)
    if "prediction_type" in config and not config.get("use_flow_sigmas", False):
        return tuple(sigma / (1 + sigma) for sigma in sigmas)  # noise over signal, from Karras
    return tuple(sigmas)


def flow_sigmas(alphas_cumprod: Tensor) -> tuple[float, ...]:
    """Levels noise / (signal + noise) of latents that preserve variance.

    Args:
        alphas_cumprod: Squared coefficients of the signal, in [0, 1], float [n].

    Example:
        >>> import torch
        >>> flow_sigmas(torch.tensor([1.0, 0.5, 0.0]))
        (0.0, 0.5, 1.0)
    """
    kept = alphas_cumprod.double()
    signal, noise = kept.sqrt(), (1 - kept).clamp(min=0).sqrt()
    return tuple((noise / (signal + noise)).tolist())


def shifted_sigmas(start: float, end: float, n: int, shift: float) -> tuple[float, ...]:
    """Space sigmas as a flow scheduler with this shift does.

    Args:
        start: First sigma, in (0, 1].
        end: Where the last step leads to, in [0, start).
        n: Number of steps, >= 1.
        shift: Shift of an even spacing, > 0; 1 leaves it even.

    Returns:
        The `n` sigmas from `start` on, without `end`.

    Example:
        >>> [round(sigma, 4) for sigma in shifted_sigmas(1.0, 0.0, 4, 3.0)]
        [1.0, 0.9, 0.75, 0.5]

    Source:
        `shift * u / (1 + (shift - 1) * u)`: Esser et al., arXiv 2403.03206, eq. 23.
    """
    even_start, even_end = (y / (shift - (shift - 1) * y) for y in (start, end))
    even = np.linspace(even_start, even_end, n + 1)[:-1]
    sigmas = shift * even / (1 + (shift - 1) * even)
    return (start, *(float(sigma) for sigma in sigmas[1:]))


def stretched_sigmas(sigmas: Sequence[float], terminal: float) -> tuple[float, ...]:
    """Stretch sigmas of a run's last steps so that the very last is `terminal`.

    Args:
        sigmas: Of the model calls, falling, >= 1 of them.
        terminal: Above 0.

    Returns:
        Sigmas whose first is as before; all are, if there is but one or it is not above `terminal`.

    Example:
        >>> [round(sigma, 4) for sigma in stretched_sigmas([1.0, 0.75, 0.5, 0.25], 0.1)]
        [1.0, 0.7, 0.4, 0.1]
        >>> stretched_sigmas([0.05, 0.025], 0.1)
        (0.05, 0.025)

    Source:
        `stretch_shift_to_terminal` of huggingface/diffusers@v0.42.1:
        src/diffusers/schedulers/scheduling_flow_match_euler_discrete.py (Apache-2.0).
    """
    first, last = sigmas[0], sigmas[-1]
    if last == first or first <= terminal:
        return tuple(sigmas)
    factor = (first - terminal) / (first - last)
    return tuple(first - factor * (first - sigma) for sigma in sigmas)
