"""`fresco bench --suite gpu`: how long published configurations take, with random weights.

Latency does not depend on the values of weights. What an adaptive cache skips does: it compares
features of this step with those of the last. So nothing here measures such a cache; a recipe
that has one is marked.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fresco.latency_bench import Bench, LatencyError
from fresco.output import make_place, write_text
from fresco.place import find_device
from fresco.recipe import Recipe, known_recipes, load_recipe
from fresco.reference.provenance import provenance
from fresco.sketch import ModelConfig, diffusers_class, load_model_config

FRAMES = {"hunyuan-video": 125}  # other numbers than in the published configs
MODELS = ("flux1-dev", "hunyuan-video")
MODES: Mapping[str, tuple[Mapping[str, Any], ...]] = {
    "eager": (),
    "compiled": ({"kind": "compile"},),
    "float8": ({"kind": "quantize", "form": "float8_dynamic"},),
    "float8 compiled": ({"kind": "quantize", "form": "float8_dynamic"}, {"kind": "compile"}),
}
BORROWED = "flux1-dev"  # whose stages are run on a model that has no recipes of its own
Advance = Callable[[str, int, int], None]  # name of the row, runs done, of how many


@dataclass(frozen=True)
class Latency:
    """What `run_latency` is asked for.

    Args:
        json: File to write.
        models: Known models, or paths of JSON files of the same form.
        modes: Names in `MODES`.
        device: Where to run.
        runs: Measured runs of every row.
        steps: Requested steps; None: what the model's authors run it with.
    """

    json: Path
    models: tuple[str, ...] = MODELS
    modes: tuple[str, ...] = tuple(MODES)
    device: str = "cuda"
    runs: int = 3
    steps: int | None = None


def run_latency(asked: Latency, advance: Advance = lambda *_: None) -> dict[str, Any]:
    """Measure every model in every mode; the JSON is written after each mode.

    Args:
        asked: Models, modes, device, runs.
        advance: Called with progress after every run.

    Returns:
        What the JSON holds: per model its size, the overhead of fresco, and per mode seconds
        of a bare step by tokens (`step_s`) and rows: seconds of the loop, `speedup` over
        the eager plain run and `speedup_in_mode`, each a median, the speedups that FLOPs
        and `step_s` predict, peak memory; or `refused`, the reason.

    Raises:
        LatencyError: If the device or a mode is not there, or there are no runs.
        SketchError: If a model is unknown.
        OutputError: If the JSON cannot be written.
    """
    configs = _check(asked)
    device = torch.device(asked.device)
    found: dict[str, Any] = {}
    report = provenance(
        "fresco bench --suite gpu", runs=asked.runs, device=_device(device), models=found
    )
    for name, config in configs.items():
        bench = Bench(config, recipes_for(name), device, asked.runs, asked.steps)
        modes: dict[str, Any] = {}
        found[name] = bench.facts() | {"modes": modes}
        for mode in asked.modes:
            on_runs = functools.partial(_report, advance, f"{name}, {mode}", asked.runs)
            modes[mode] = bench.measure(MODES[mode], on_runs)
            found[name]["overhead"] = bench.overhead
            write_text(asked.json, json.dumps(report, indent=2, allow_nan=False) + "\n")
        del bench  # its weights are freed before the next model's are made
    return report


def recipes_for(model: str) -> dict[str, Recipe]:
    """Recipes of a model by name; those of FLUX.1-dev where it has none, for their stages.

    Example:
        >>> list(recipes_for("hunyuan-video"))
        ['hunyuan-video_balanced', 'hunyuan-video_fast', 'hunyuan-video_quality']
    """
    own = [name for name in known_recipes() if name.startswith(f"{model}_")]
    names = own or [name for name in known_recipes() if name.startswith(f"{BORROWED}_")]
    return {name: load_recipe(name) for name in names}


def _report(advance: Advance, where: str, runs: int, row: str, done: int) -> None:
    advance(f"{where}: {row}", done, runs)


def _check(asked: Latency) -> dict[str, ModelConfig]:
    """Refuse what would fail later; returns the models' configs by name."""
    where = "run_latency(asked)"
    for mode in asked.modes:
        if mode not in MODES:
            raise LatencyError(where, f"modes of {', '.join(MODES)}", mode, "Correct --mode.")
    if asked.runs < 1 or (asked.steps is not None and asked.steps < 1):
        got = f"{asked.runs} and {asked.steps}"
        raise LatencyError(where, "at least 1 run and 1 step", got, "Raise --runs or --steps.")
    if asked.device.startswith("cuda") and not torch.cuda.is_available():
        fix = "Run it on a machine with one, or pass --device cpu and a tiny --config."
        raise LatencyError(where, "a GPU", "none", fix)
    find_device(where, asked.device, LatencyError)
    make_place(where, asked.json, "--json")
    configs = {}
    for model in asked.models:
        path = Path(model)
        config = load_model_config(path if path.suffix == ".json" else model)
        frames = FRAMES.get(model, config.run.frames)
        run = config.run.model_copy(update={"frames": frames})
        if config.pipeline.class_name is None:
            fix = "Add pipeline.class_name to its file."
            raise LatencyError(where, f"the class of {model}'s pipeline", "none", fix)
        parts = (config.transformer, config.scheduler)
        for name in (config.pipeline.class_name, *(part.get("_class_name") for part in parts)):
            diffusers_class(name)
        configs[path.stem if path.suffix == ".json" else model] = config.model_copy(
            update={"run": run}
        )
    return configs


def _device(device: torch.device) -> dict[str, Any]:
    """What the figures were measured on."""
    if device.type != "cuda":
        return {"name": device.type}
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
    }
