"""`fresco ablate` and `fresco pareto`: sample the rows, measure them, write one JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fresco.errors import FrescoError
from fresco.output import make_directory, make_place, write_text
from fresco.pictures import DTYPES
from fresco.recipe import load_recipe
from fresco.reference import load
from fresco.reference.bench import How, Way, measure
from fresco.reference.dataset import held_out_captions
from fresco.reference.figures import (
    N_REAL,
    REAL_SEED,
    Assessed,
    assess,
    differences,
    figures,
    real_features,
)
from fresco.reference.provenance import provenance
from fresco.reference.rows import BASELINE, Group

if TYPE_CHECKING:
    from diffusers import FluxPipeline

CAPTION_SEED = 7

Advance = Callable[[str, int, int], None]  # name of the row, pictures done, of how many


class StudyError(FrescoError, ValueError):
    """A study that cannot be made as it is asked for."""


@dataclass(frozen=True)
class Study:
    """What `run_study` is asked for.

    Args:
        command: Written into the JSON.
        groups: Rows by question; the baseline is always among the rows.
        json: File to write.
        folder: Where sampled rows are kept.
        n_prompts: Held-out captions, at least 2.
        how: Seed, batch, guidance.
        dtype: Of all weights, a name in `DTYPES`.
        n_real: Rendered scenes that the Fréchet distance refers to.
        against: Group whose rows the others' are compared with, place by place; None: each
            group's first row.
        json_option: What the command names the file to write with, for messages.
    """

    command: str
    groups: tuple[Group, ...]
    json: Path
    folder: Path
    n_prompts: int = 128
    how: How = field(default_factory=How)
    dtype: str = "float32"
    n_real: int = N_REAL
    against: str | None = None
    json_option: str = "--json"


def pick_groups(groups: Mapping[str, Group], only: str | None) -> tuple[Group, ...]:
    """Pick groups by their names.

    Args:
        groups: All there are.
        only: Names with commas between; None: all.

    Returns:
        The groups, in the order of `only`.

    Raises:
        StudyError: If a name is unknown, or there is none.
    """
    if only is None:
        return tuple(groups.values())
    names = [name.strip() for name in only.split(",") if name.strip()]
    unknown = [name for name in names if name not in groups]
    if unknown or not names:
        got = ", ".join(map(repr, unknown)) or "none"
        raise StudyError("pick_groups(groups, only)", f"groups of {', '.join(groups)}", got,
                         "Correct --only.")  # fmt: skip
    return tuple(groups[name] for name in names)


def run_study(
    study: Study, advance: Advance = lambda *_: None, pipe: FluxPipeline | None = None
) -> dict[str, Any]:
    """Sample and measure all rows; everything that is asked for is checked before.

    What was sampled in an earlier call is taken from `folder`. The JSON is written after every
    row, so that an interrupted study has its first rows.

    Args:
        study: Rows, captions, files.
        advance: Called with progress after every batch.
        pipe: A reference pipeline; default: the one that ships, in the study's data type.

    Returns:
        What the JSON holds: `rows` (figures by name), `groups` (names of rows), `differences`
        (by group and row, to the row that it is compared with), seeds, versions, threads.

    Raises:
        StudyError: If there are too few captions, or the data type is unknown.
        RecipeError: If a row's recipe has problems.
        OutputError: If results cannot be written.
        WeightsError: If the package has no weights.
    """
    ways = _check(study)
    pipe = load(dtype=DTYPES[study.dtype]) if pipe is None else pipe
    captions = held_out_captions(study.n_prompts, CAPTION_SEED)
    prompts = [caption.text for caption in captions]
    real = real_features(
        study.folder, study.n_real, on_pictures=lambda n: advance("real scenes", n, study.n_real)
    )
    report = _head(study) | {"rows": {}, "differences": {g.name: {} for g in study.groups}}
    rows: dict[str, Assessed] = {}
    full = measure(
        pipe, BASELINE, prompts, study.how, study.folder, _progress(advance, BASELINE, study)
    )
    for way in ways:
        sampled = (
            full
            if way == BASELINE
            else measure(
                pipe, way, prompts, study.how, study.folder, _progress(advance, way, study)
            )
        )
        rows[way.name] = assess(sampled, full, captions)
        report["rows"][way.name] = {"recipe": way.recipe, "requested_steps": way.steps} | figures(
            rows[way.name], rows[BASELINE.name], real
        )
        _add_differences(report["differences"], study, rows, real)
        write_text(study.json, json.dumps(report, indent=2, allow_nan=False) + "\n")
    return report


def _check(study: Study) -> list[Way]:
    """Refuse what would fail later; returns all rows, the baseline first, none twice.

    Then comes the last of every group, and so on: of a Pareto study that is interrupted, all
    methods have their rows at the highest speedups.
    """
    where = "run_study(study)"
    if study.n_prompts < 2:
        fix = "Raise --prompts; a distance between sets takes two pictures."
        raise StudyError(where, "at least 2 captions", study.n_prompts, fix)
    if study.how.batch < 1:
        raise StudyError(where, "at least 1 picture per call", study.how.batch, "Raise --batch.")
    if study.dtype not in DTYPES:
        raise StudyError(where, f"dtype of {', '.join(DTYPES)}", study.dtype, "Correct --dtype.")
    from_last = zip_longest(*(reversed(group.ways) for group in study.groups))
    ways = _unique((BASELINE, *(way for ways in from_last for way in ways if way)))
    for way in ways:
        if way.recipe is not None:
            load_recipe(way.recipe)
    make_directory(where, study.folder, "--folder")
    make_place(where, study.json, study.json_option)
    return ways


def _unique(ways: Iterable[Way]) -> list[Way]:
    return list({way.name: way for way in ways}.values())


def _head(study: Study) -> dict[str, Any]:
    """What the figures depend on."""
    return provenance(
        study.command,
        n_prompts=study.n_prompts,
        seeds={"captions": CAPTION_SEED, "noise": study.how.seed, "real": REAL_SEED},
        n_real=study.n_real,
        how=asdict(study.how),
        dtype=study.dtype,
        threads=torch.get_num_threads(),
        baseline=BASELINE.name,
        against=study.against,
        groups={
            group.name: {"question": group.question, "rows": [way.name for way in group.ways]}
            for group in study.groups
        },
    )


def _add_differences(
    found: dict[str, dict[str, Any]], study: Study, rows: Mapping[str, Assessed], real: Tensor
) -> None:
    """By group, every row against the one it is compared with, as soon as both are there."""
    for group in study.groups:
        for way, other in _compared(study, group):
            is_new = way.name not in found[group.name]
            if is_new and way != other and {way.name, other.name} <= rows.keys():
                found[group.name][way.name] = differences(rows[way.name], rows[other.name], real)


def _compared(study: Study, group: Group) -> Iterator[tuple[Way, Way]]:
    """A group's rows and what each is compared with."""
    for other in study.groups:
        if other.name == study.against:
            return zip(group.ways, other.ways, strict=True)
    return ((way, group.ways[0]) for way in group.ways)


def _progress(advance: Advance, way: Way, study: Study) -> Callable[[int], None]:
    return lambda done: advance(way.name, done, study.n_prompts)
