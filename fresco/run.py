"""State of one pipeline call, from its first latents to its last step."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from fresco.layout import TokenLayout
from fresco.noise import NoiseField
from fresco.report import StepRecord
from fresco.schedule import Plan, Step


@dataclass
class Run:
    """One call of a pipeline; the middleware makes a new one for every call.

    Args:
        thread: Whose call it is.
        fine: Layout of the full grid.
        noise: The field; a `fresh` lift exchanges it.
        plan: Set once the scheduler has its timesteps.
        n_done: Steps taken.
        n_passes: Transformer calls of the step at hand.
        started_s: Clock at the first of them.
        n_text_tokens: Of the last call.
        records: Of the steps taken.
    """

    thread: threading.Thread
    fine: TokenLayout
    noise: NoiseField
    plan: Plan | None = None
    n_done: int = 0
    n_passes: int = 0
    started_s: float = 0.0
    n_text_tokens: int = 0
    records: list[StepRecord] = field(default_factory=list)
    _layouts: dict[int, TokenLayout] = field(default_factory=dict)

    @property
    def is_here(self) -> bool:
        """Whether the calling thread is the run's own."""
        return self.thread is threading.current_thread()

    @property
    def step(self) -> Step | None:
        """The step at hand; None before there is a plan and after its last step."""
        steps = self.plan.steps if self.plan else ()
        return steps[self.n_done] if self.n_done < len(steps) else None

    def layout(self, side: int) -> TokenLayout:
        """Whole-grid layout of one cell side, made once."""
        if side not in self._layouts:
            rows, columns = self.fine.sides.shape
            self._layouts[side] = TokenLayout.whole(rows, columns, side, self.fine.patch_px)
        return self._layouts[side]

    def end_step(self, step: Step, now_s: float) -> None:
        """Record the step at hand and go on to the next."""
        self.records.append(StepRecord.of(step, self.n_passes, now_s - self.started_s))
        self.n_done, self.n_passes = self.n_done + 1, 0
