"""One whole distillation: the teacher's trajectories, then a LoRA with its provenance."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fresco.errors import FrescoError
from fresco.output import make_directory
from fresco.reference import load, parallel, trajectories
from fresco.reference.distill import FILE, RANK, Distillation, train_lora
from fresco.reference.log import Log, write_log
from fresco.reference.provenance import provenance
from fresco.reference.trajectories import shards_of, write_shards
from fresco.weights import weights_digest

TEACHER_SHARE = 0.2  # of the time budget
SEED = 31  # series of captions and noise
METHOD = "piecewise rectified flow (PeRFlow, arXiv 2405.07510) along the student's own steps"
MAX_BYTES = 4 * 2**20


class DistillError(FrescoError, ValueError):
    """A distillation that cannot be made as it is asked for."""


def distill(
    folder: Path,
    hours: float,
    log: Log,
    device: torch.device,
    teacher: Path | None = None,
    seed: int = SEED,
    start: Path | None = None,
    others: Sequence[Path] = (),
) -> Path:
    """Draw the teacher's trajectories, train a LoRA on them, and write it with its provenance.

    An interrupted distillation goes on where it stopped. `folder` gets `log.jsonl`, shards of
    trajectories, checkpoints and `lora`, which is written anew at every checkpoint.

    Args:
        folder: The run's folder; it is made if need be.
        hours: Time in all, earlier calls included; a share of it goes to the trajectories.
        log: Called with figures; they are written to `log.jsonl` too.
        device: Where to train.
        teacher: A FluxPipeline directory; default: the one that ships.
        seed: Series of captions and noise.
        start: Directory of the LoRA to go on from; default: a new LoRA.
        others: Folders of other runs, whose trajectories are learnt from too.

    Returns:
        The LoRA's directory.

    Raises:
        DistillError: If peft is not installed, there are no hours, the folder's run began
            otherwise, `start` is of another teacher, or one of `others` is of another teacher or
            of other paths, has no trajectories, or those of a seed that is there already.
        OutputError: If the folder cannot be written to.
        WeightsError: If there is no teacher.
    """
    if importlib.util.find_spec("peft") is None:
        fix = "Install it: pip install 'fresco[lora]'."
        raise DistillError("distill(folder)", "the package peft", "none", fix)
    if not (math.isfinite(hours) and hours > 0):
        fix = "Say with --hours how long it may take."
        raise DistillError("distill(hours)", "hours above 0", hours, fix)
    make_directory("distill(folder)", folder, "--folder")
    device = parallel.start(device)
    write = write_log(folder)

    def log_both(figures: dict[str, float]) -> None:
        if parallel.rank() == 0:
            write(figures)
            log(figures)

    pipe = load(teacher).to(device)
    weights = weights_digest(pipe)[:16]
    asked_of = {"weights": weights, "series": seed}
    series = _check_others(others, seed, weights)
    facts: dict[str, Any] = {"method": METHOD, "seed": seed, "teacher": asked_of, "others": series}
    if start is not None:
        facts["start"] = _check_start(start, weights)
    own = {"goes_on": start is not None, "paths": _borders(), "others": series}
    _check_folder(folder, asked_of | own)
    parallel.wait()
    numbers = itertools.count(parallel.rank(), parallel.world())
    budget_s = hours * 3600
    drawn_s = write_shards(pipe, seed, folder, numbers, TEACHER_SHARE * budget_s, log_both)
    parallel.wait()
    out = folder / "lora"

    def write_out(training: Distillation) -> None:
        training.write_lora(out)
        n_shards = sum(len(shards_of(each)) for each in (folder, *others))
        figures = _figures(folder, training, n_shards) | {"trajectories_s": round(drawn_s, 1)}
        command = _command(hours, seed, teacher, others, goes_on=start is not None)
        made = provenance(command, **facts, **figures)
        (out / "provenance.json").write_text(json.dumps(made, indent=2) + "\n")

    training_s = (1 - TEACHER_SHARE) * budget_s
    file = None if start is None else start / FILE
    train_lora(pipe, folder, training_s, seed, log_both, write_out, file, others)
    parallel.stop()
    return out


def _check_folder(folder: Path, now: dict[str, Any]) -> None:
    """Keep what a folder's run began with; refuse to go on with anything else."""
    path = folder / "teacher.json"
    if not path.exists() and parallel.rank() == 0:
        path.write_text(json.dumps(now) + "\n")
    parallel.wait()
    before = json.loads(path.read_text())
    if before != now:
        raise DistillError(
            "distill(folder)",
            f"the teacher, the seed, the beginning and the paths of the folder's run ({before})",
            str(now),
            "Name an empty folder with --folder.",
        )


def _check_others(folders: Sequence[Path], seed: int, weights: str) -> list[int]:
    """Series of other runs' trajectories; refuse those of other paths, or that are here already."""
    now = {"weights": weights, "paths": _borders()}
    series: list[int] = []
    for folder in folders:
        path = folder / "teacher.json"
        made: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        if {key: made.get(key) for key in now} != now or not shards_of(folder):
            raise DistillError(
                "distill(others)",
                f"a folder with trajectories of the teacher and the paths {now}",
                f"{folder}, of {made}" if made else f"{folder}, which is none",
                "Leave it out of --others.",
            )
        if made["series"] in (seed, *series):
            raise DistillError(
                "distill(others)",
                "trajectories of other seeds, each once",
                f"{folder}, of seed {made['series']}, beside {[seed, *series]}",
                "Leave it out of --others, or name another --seed.",
            )
        series.append(made["series"])
    return series


def _check_start(start: Path, weights: str) -> dict[str, Any]:
    """The provenance of a LoRA to go on from; refuse one of another teacher."""
    made: dict[str, Any] = json.loads((start / "provenance.json").read_text())
    if made["teacher"]["weights"] != weights:
        raise DistillError(
            "distill(folder)",
            f"a LoRA of the teacher {weights} to go on from",
            f"one of {made['teacher']['weights']}",
            "Begin a new one, without --from-shipped.",
        )
    return made


def _command(
    hours: float, seed: int, teacher: Path | None, others: Sequence[Path], goes_on: bool
) -> str:
    """What was run, for the provenance."""
    words = ["fresco reference distill", f"--hours {hours:g}", f"--seed {seed}"]
    if teacher is not None:
        words.append(f"--teacher {teacher.name}")
    if goes_on:
        words.append("--from-shipped")
    words += [f"--others {folder.name}" for folder in others]
    if parallel.world() > 1:
        words[0] = f"torchrun --nproc-per-node {parallel.world()} --no-python {words[0]}"
    return " ".join(words)


def _borders() -> dict[str, list[float]]:
    """Noise levels of the paths, by set."""
    return {
        trajectories.FINE: [*trajectories.BORDERS],
        trajectories.COARSE: [*trajectories.COARSE_BORDERS],
        trajectories.LIFTED: [*trajectories.LIFTED_BORDERS],
    }


def _figures(folder: Path, training: Distillation, n_shards: int) -> dict[str, Any]:
    """What the training has done by now, from its state and the run's log."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    losses: dict[str, float] = {}
    for line in lines:
        losses |= {name: round(loss, 5) for name, loss in line.items() if name.startswith("loss")}
    return {
        "rank": RANK,
        "borders": _borders(),
        "teacher_steps_between": trajectories.SUBSTEPS,
        "trajectories": trajectories.PER_SHARD * n_shards,
        "steps": training.step,
        "seconds": round(training.elapsed_s, 1),
        "losses": losses,
    }
