"""`fresco stack-table`: one technique more in every row, each row measured in the same run.

Gains do not multiply, and a technique may make the stack slower (int8 weights on a CPU are
unpacked for every product), so every row is sampled and nothing is derived.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fresco.errors import FrescoError, FrescoWarning
from fresco.output import make_place, write_text
from fresco.pictures import DTYPES
from fresco.recipe import Recipe, load_recipe
from fresco.reference import load
from fresco.reference.bench import How, Way, measure
from fresco.reference.dataset import held_out_captions
from fresco.reference.figures import assess, figures
from fresco.reference.measured import Measured
from fresco.reference.provenance import provenance
from fresco.reference.rows import content_of
from fresco.reference.studies import CAPTION_SEED, Advance, StudyError

if TYPE_CHECKING:
    from diffusers import FluxPipeline

BASELINE = "baseline"
RESOLUTION = "+ dynamic resolution"
ADDED: tuple[Mapping[str, Any], ...] = (  # where the recipe's own stack has none of the kind
    {"kind": "cache", "method": "first_block"},
    {"kind": "quantize", "form": "int8_weight_only"},
    {"kind": "compile"},
)
STANDS_FOR = {"cache_dit": "cache"}  # kinds that take another one's row
DETAILS = ("method", "form", "backend")  # fields that a row is named by


@dataclass(frozen=True)
class StackTable:
    """What `run_stack_table` is asked for.

    Args:
        recipe: Name of a recipe, or path of a YAML file.
        n_prompts: Held-out captions, one picture each, one picture per call.
        steps: Solver steps that every row is asked for.
        json: File to write; None: none.
        dtype: Of all weights and so of the baseline, a name in `DTYPES`.
        seed: Of the first picture's noise.
    """

    recipe: str | Path = "reference_5x"
    n_prompts: int = 4
    steps: int = 50
    json: Path | None = None
    dtype: str = "float32"
    seed: int = 0


def additions(recipe: Recipe) -> list[tuple[str, Mapping[str, Any]]]:
    """Techniques in the order of their rows, by the names of the rows.

    The recipe's own entries come in place of the usual ones of their kind; of other kinds
    (LoRA), first.

    Args:
        recipe: The recipe.

    Returns:
        Name of the row that a technique is added in, and its stack entry.

    Example:
        >>> [name for name, _ in additions(load_recipe("reference_5x"))]
        ['+ cache first_block', '+ quantize int8_weight_only', '+ compile']
    """
    usual = {entry["kind"]: entry for entry in ADDED}
    own = {STANDS_FOR.get(entry["kind"], entry["kind"]): entry for entry in recipe.stack}
    others = [entry for kind, entry in own.items() if kind not in usual]
    entries = [*others, *(own.get(kind, entry) for kind, entry in usual.items())]
    return [(_name(entry), entry) for entry in entries]


def run_stack_table(
    table: StackTable, advance: Advance = lambda *_: None, pipe: FluxPipeline | None = None
) -> dict[str, Any]:
    """Sample and measure all rows; everything that is asked for is checked before.

    A technique that is refused is left out of the rows after it.

    Args:
        table: Recipe, captions, steps, file.
        advance: Called with progress after every picture.
        pipe: A reference pipeline; default: the one that ships, in the table's data type.

    Returns:
        What the JSON holds: `rows`, each with `name`, `recipe`, and either `refused` (the
        reason) or figures; of these `speedup` is to the baseline, `gain` to the measured row
        above, `flops_speedup` None under a cache, `notes` what to know.

    Raises:
        StudyError: If there are too few captions or steps, or the data type is unknown.
        RecipeError: If the recipe has problems.
        OutputError: If the JSON cannot be written.
        WeightsError: If the package has no weights.
    """
    recipe = _check(table)
    pipe = load(dtype=DTYPES[table.dtype]) if pipe is None else pipe
    captions = held_out_captions(table.n_prompts, CAPTION_SEED)
    prompts = [caption.text for caption in captions]
    how = How(seed=table.seed, batch=1)
    report = _head(table, how) | {"rows": []}
    with tempfile.TemporaryDirectory() as folder:

        def sampled(name: str, content: Mapping[str, Any] | None) -> tuple[Measured, list[str]]:
            way = Way(name, content, table.steps)
            done: Callable[[int], None] = lambda n: advance(name, n, table.n_prompts)  # noqa: E731
            return _with_notes(lambda: measure(pipe, way, prompts, how, Path(folder), done))

        full, notes = sampled(BASELINE, None)
        baseline = above = assess(full, full, captions)
        rows: list[dict[str, Any]] = report["rows"]
        rows.append({"name": BASELINE, "recipe": None, "gain": 1.0, "notes": notes}
                    | figures(baseline, baseline))  # fmt: skip
        stack: list[Mapping[str, Any]] = []
        for name, entry in _rows(recipe):
            tried = stack if entry is None else [*stack, entry]
            content = content_of(recipe) | {"stack": tried}
            try:
                row, notes = sampled(name, content)
            except FrescoError as error:
                rows.append({"name": name, "recipe": content, "refused": str(error)})
            else:
                stack = list(tried)
                assessed = assess(row, full, captions)
                found = figures(assessed, baseline)
                if _has_cache(content):
                    found["flops_speedup"] = None  # a plan does not know what a cache saves
                gain = above.loop_in_steps / assessed.loop_in_steps
                if gain < 1:
                    notes = [f"slower than the row above: {1 / gain:.2f} times its seconds", *notes]
                rows.append({"name": name, "recipe": content, "gain": gain, "notes": notes} | found)
                above = assessed
            _write(table, report)
    return report


def _check(table: StackTable) -> Recipe:
    """Refuse what would fail later."""
    where = "run_stack_table(table)"
    if table.n_prompts < 1:
        raise StudyError(where, "at least 1 caption", table.n_prompts, "Raise --prompts.")
    if table.steps < 1:
        raise StudyError(where, "at least 1 step", table.steps, "Raise --steps.")
    if table.dtype not in DTYPES:
        raise StudyError(where, f"dtype of {', '.join(DTYPES)}", table.dtype, "Correct --dtype.")
    recipe = load_recipe(table.recipe)
    if table.json is not None:
        make_place(where, table.json, "--json")
    return recipe


def _rows(recipe: Recipe) -> list[tuple[str, Mapping[str, Any] | None]]:
    """Rows after the baseline; the first adds no technique but the stages, if there are any."""
    resolution = [(RESOLUTION, None)] if recipe.stages else []
    return [*resolution, *additions(recipe)]


def _has_cache(content: Mapping[str, Any]) -> bool:
    return any(technique.keeps_state for technique in load_recipe(content).techniques)


def _name(entry: Mapping[str, Any]) -> str:
    """What a row is called: the technique and its variant."""
    return " ".join(["+", entry["kind"], *(str(entry[key]) for key in DETAILS if key in entry)])


def _with_notes(sample: Callable[[], Measured]) -> tuple[Measured, list[str]]:
    """A row, and what fresco warned of while it was sampled."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FrescoWarning)
        row = sample()
    said = dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, FrescoWarning))
    for other in caught:
        if not issubclass(other.category, FrescoWarning):
            warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
    return row, list(said)


def _head(table: StackTable, how: How) -> dict[str, Any]:
    """What the figures depend on."""
    return provenance(
        "fresco stack-table",
        recipe=str(table.recipe),
        n_prompts=table.n_prompts,
        requested_steps=table.steps,
        seeds={"captions": CAPTION_SEED, "noise": table.seed},
        how=asdict(how),
        dtype=table.dtype,
        threads=torch.get_num_threads(),
    )


def _write(table: StackTable, report: Mapping[str, Any]) -> None:
    """Write the rows that there are."""
    if table.json is not None:
        write_text(table.json, json.dumps(report, indent=2, allow_nan=False) + "\n")
