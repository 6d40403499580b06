"""Rates of devices, and the least time that a step can take on one: an estimate."""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from fresco.errors import FrescoError
from fresco.problems import unknown
from fresco.stages import Config


class DeviceError(FrescoError, ValueError):
    """A device profile that is unknown or cannot be read."""


class Device(Config):
    """What a device does at most: of its data sheet, or as measured.

    Example:
        >>> Device(flops_per_s=1e12, bytes_per_s=1e11, source="measured").seconds(2e12, 1e10)
        2.0
    """

    flops_per_s: float = Field(gt=0, description="of dense matrix products, in bf16")
    bytes_per_s: float = Field(gt=0, description="from its memory")
    source: str = Field(min_length=1, description="data sheet, or how it was measured")

    def seconds(self, flops: float, n_bytes: float) -> float:
        """Bound the time of a call from below: no data sheet's rate is reached in practice.

        Args:
            flops: Of the call.
            n_bytes: That it must read at least, its weights.

        Source:
            Roofline: Williams, Waterman and Patterson, *Communications of the ACM* 52 (2009).
        """
        return max(flops / self.flops_per_s, n_bytes / self.bytes_per_s)


def load_device(name: str) -> Device:
    """Find a profile.

    Args:
        name: Of a known device, or path of a JSON file with the fields of `Device`.

    Returns:
        The profile.

    Raises:
        DeviceError: If it is unknown, or the file has problems.

    Example:
        >>> load_device("h200").bytes_per_s
        4800000000000.0
    """
    where = f"load_device({name!r})"
    try:
        if name.endswith(".json"):
            return Device.model_validate_json(Path(name).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        expected, fix = "a JSON file with flops_per_s, bytes_per_s and source", "Correct it."
        raise DeviceError(where, expected, " ".join(str(error).split()), fix) from error
    known = _known()
    if name not in known:
        fix = "Name one of them, or a JSON file with its rates."
        raise DeviceError(where, "a known device", unknown("device", name, known), fix)
    return Device.model_validate(known[name])


def _known() -> Mapping[str, Any]:
    file = importlib.resources.files("fresco") / "devices.json"
    found: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found
