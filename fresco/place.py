"""Where tensors go: a device that is here."""

from __future__ import annotations

import torch

from fresco.errors import FrescoError


def find_device(where: str, name: str, kind: type[FrescoError]) -> torch.device:
    """Find a device by its name, before any work starts.

    Args:
        where: The call or command that asks.
        name: Such as `cpu`, `cuda` or `cuda:1`.
        kind: Of the error.

    Returns:
        The device.

    Raises:
        FrescoError: Of that kind, if there is no such device here.

    Example:
        >>> find_device("load(device)", "cpu", FrescoError).type
        'cpu'
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        got = str(error).splitlines()[0]
        raise kind(where, "a device that is here", got, "Use --device cpu.") from error
    return device
