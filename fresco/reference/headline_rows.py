"""The rows of `fresco bench --suite headline`: recipes, caches alone, distillation alone."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from fresco.recipe import load_recipe
from fresco.reference import WeightsError, lora_path
from fresco.reference.bench import Way
from fresco.reference.rows import BASELINE, content_of
from fresco.reference.trajectories import BORDERS, LIFTED_BORDERS, SIZE_PX
from fresco.reference.transformer import build_transformer

RECIPES = ("reference_10x", "reference_22x")
DISTILLED_STEPS = (8, 4, 2, 1)
STRETCHED = (1.2, 1.6, 2.1, 2.8)  # intervals of caches by speedup: a reused step is not free
THRESHOLDS = (0.5, 2.0)  # of the first-block cache
OF_LAYER = re.compile(r"transformer\.(.+)\.lora_([AB])\.weight")  # a tensor's name in a LoRA
SHIPPED = "package:fresco.reference/weights/lora/pytorch_lora_weights.safetensors"


@dataclass(frozen=True)
class Lora:
    """The distilled LoRA of a run of the suite.

    Args:
        source: As a recipe names it.
        file: Where it is.
    """

    source: str
    file: Path

    @property
    def digest(self) -> str:
        """Names its content, 16 hexadecimal digits."""
        return hashlib.sha256(self.file.read_bytes()).hexdigest()[:16]

    def provenance(self) -> dict[str, Any]:
        """How it was made, if that lies beside it."""
        path = self.file.parent / "provenance.json"
        return {"provenance": json.loads(path.read_text())} if path.is_file() else {}


def find_lora(asked: Path | None) -> tuple[Lora | None, str]:
    """Find the LoRA that is asked for, or the one that ships.

    Args:
        asked: Its file; None: the one that ships, if there is one.

    Returns:
        The LoRA, or None and why there is none.

    Raises:
        WeightsError: If the file that is asked for is not there, or holds no LoRA of the model.
    """
    if asked is None:
        try:
            return Lora(SHIPPED, lora_path()), ""
        except WeightsError as error:
            return None, str(error)
    if not asked.is_file():
        raise _no_lora(f"nothing at {str(asked)!r}")
    try:
        with safe_open(asked, "pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise _no_lora(f"{str(asked)!r}, which cannot be read: {error}") from error
    if not any("lora_" in name for name in shapes):
        raise _no_lora(f"{str(asked)!r}, which holds none")
    pairs: dict[str, dict[str, list[int]]] = {}
    for name, shape in shapes.items():
        if (found := OF_LAYER.fullmatch(name)) is None:
            raise _no_lora(f"{str(asked)!r} with {name!r}, which is no lora_A or lora_B of a layer")
        pairs.setdefault(found[1], {})[found[2]] = shape
    with torch.device("meta"):
        layers = dict(build_transformer().named_modules())
    for name, pair in pairs.items():
        if not isinstance(layer := layers.get(name), torch.nn.Linear):
            raise _no_lora(f"{str(asked)!r} with {name!r}, no linear layer of the reference model")
        n_out, n_in = layer.weight.shape
        rank = (pair.get("A") or [0])[0]
        if not rank or pair != {"A": [rank, n_in], "B": [n_out, rank]}:
            raise _no_lora(f"{str(asked)!r} with {pair} on {name!r} of [{n_out}, {n_in}]")
    return Lora(str(asked), asked), ""


def _no_lora(got: str) -> WeightsError:
    fix = "Name the file that `fresco reference distill` wrote."
    return WeightsError("find_lora(asked)", "a LoRA's file", got, fix)


def recipe_way(name: str, lora: Lora | None) -> Way | None:
    """A shipped recipe with the LoRA at hand; None if it needs one and there is none."""
    content = content_of(load_recipe(name))
    stack = [dict(entry) for entry in content.pop("stack", ())]
    for entry in stack:
        if entry["kind"] == "lora":
            if lora is None:
                return None
            entry["source"] = lora.source
    return Way(name, content | {"stack": stack}, BASELINE.steps)


def distilled_way(steps: int, lora: Lora) -> Way:
    """The distilled LoRA alone, at full resolution and the noise levels it was distilled for."""
    entry = {"kind": "lora", "source": lora.source, "fuse": True}
    return Way(f"distilled, {steps} steps", _recipe(entry, stages=[_few_steps(steps)]), steps)


def undistilled_way() -> Way:
    """As many steps at the same noise levels without the LoRA: what is due to these alone.

    Example:
        >>> undistilled_way().name
        '4 steps at its noise levels, no LoRA'
    """
    n = len(BORDERS) - 1
    return Way(f"{n} steps at its noise levels, no LoRA", _recipe(stages=[_few_steps(n)]), n)


def _few_steps(n: int) -> dict[str, Any]:
    """The stage of a recipe that steps where the windows of the distillation begin."""
    borders = BORDERS if n > 2 else (BORDERS[0], *LIFTED_BORDERS[1:])
    return {"cell": 1, "steps": len(borders) - 1, "sigmas": list(borders[:-1])}


def cache_ways(speedup: float) -> dict[str, list[Way]]:
    """Caches alone, by method, from about one step in `speedup` computed to ever fewer.

    Example:
        >>> [way.name for way in cache_ways(10)["seacache"]]
        ['cache seacache 12', 'cache seacache 16', 'cache seacache 21', 'cache seacache 28']
    """
    every = sorted({min(BASELINE.steps, round(more * speedup)) for more in STRETCHED})
    seer = {"method": "taylorseer", "warmup": 1, "lite": True}
    entries: dict[str, dict[str, dict[str, Any]]] = {
        "first_block": {f"{t:g}": {"method": "first_block", "threshold": t} for t in THRESHOLDS},
        "seacache": {
            str(n): {"method": "seacache", "threshold": 1e3, "max_skips": n - 1} for n in every
        },
        **{
            f"taylorseer {order}": {
                str(n): seer | {"interval": n, "max_order": order} for n in every
            }
            for order in (0, 1)
        },
    }
    return {
        method: [
            Way(f"cache {method} {setting}", _recipe({"kind": "cache", **entry}), BASELINE.steps)
            for setting, entry in settings.items()
        ]
        for method, settings in entries.items()
    }


def _recipe(
    *entries: Mapping[str, Any], stages: Sequence[Mapping[str, Any]] = ()
) -> Mapping[str, Any]:
    content = {"schema": 1, "model": "FluxTransformer2DModel", "stack": [*map(dict, entries)]}
    if not stages:
        return content
    baseline = {"steps": stages[0]["steps"], "height": SIZE_PX, "width": SIZE_PX}
    return content | {"baseline": baseline, "stages": [*map(dict, stages)]}
