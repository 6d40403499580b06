"""Pictures of a row with what they took, in memory and in files."""

from __future__ import annotations

import statistics
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

PROCESS = uuid.uuid4().hex  # whose seconds are comparable


@dataclass(frozen=True)
class Measured:
    """Pictures of one row and what they took, each per picture.

    Args:
        images: Uint8 [b, 3, h, w].
        loop_s: Seconds of the denoising loop, those of a batch divided by its pictures; of the
            pictures that this process timed.
        full_steps: FLOPs, in steps on the full grid.
        n_steps: Solver steps that were taken.
        call_s: Seconds of the whole call, text encoders and decoder included; of the same.
        step_s: Seconds of a forward pass of the plain transformer, the mean of a reading of the
            clock before the call and one after it; of the same.
    """

    images: Tensor
    loop_s: tuple[float, ...]
    full_steps: tuple[float, ...]
    n_steps: int
    call_s: tuple[float, ...]
    step_s: tuple[float, ...]

    @property
    def loop_in_steps(self) -> float:
        """The loop's seconds in full steps taken beside it, median over pictures."""
        return _median_ratio(self.loop_s, self.step_s)

    @property
    def call_in_steps(self) -> float:
        """The same of the whole call."""
        return _median_ratio(self.call_s, self.step_s)


def join_rows(rows: Sequence[Measured]) -> Measured:
    """Put the batches of a row together."""
    return Measured(
        torch.cat([row.images for row in rows]),
        tuple(second for row in rows for second in row.loop_s),
        tuple(each for row in rows for each in row.full_steps),
        rows[0].n_steps,
        tuple(second for row in rows for second in row.call_s),
        tuple(second for row in rows for second in row.step_s),
    )


def save_row(row: Measured, path: Path) -> None:
    """Keep a batch, or nothing of it if it is cut short."""
    torch.save(asdict(row) | {"process": PROCESS}, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").rename(path)  # whole or not at all


def load_row(path: Path) -> Measured | None:
    """A kept batch, if there is one; its seconds if they are this process's."""
    if not path.exists():
        return None
    content = torch.load(path, weights_only=True)
    if content.pop("process", None) != PROCESS:
        content |= {"loop_s": (), "call_s": (), "step_s": ()}
    return Measured(**content)


def _median_ratio(seconds: Sequence[float], of: Sequence[float]) -> float:
    return statistics.median(s / one for s, one in zip(seconds, of, strict=True))
