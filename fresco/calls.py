"""What the middleware tells techniques about the transformer's calls."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:  # recipes know techniques, runs know recipes
    from fresco.run import Group, Run
    from fresco.schedule import Step


@dataclass(frozen=True)
class Call:
    """One transformer call of a run.

    Args:
        step: Number of the step, from 0.
        n_steps: Steps of the whole run.
        sigma: Noise level of the call.
        n_pass: Which call of the step it is, from 0; parts of a batch count as one.
        group: Which images of the batch: their number in the step's groups, from 0.
        carrier: Gives the latents of the whole batch on the full grid, [b, c, h, w].
    """

    step: int
    n_steps: int
    sigma: float
    n_pass: int
    group: int
    carrier: Callable[[], Tensor]


class AbstractListener(ABC):
    """One who is told of every call of a transformer, inside runs and outside of them."""

    @abstractmethod
    def on_layout(self, call: Call) -> None:
        """Features of the calls before are stale: a run begins, or its layout changes.

        Said once before the first call of a run, of a layout (also one of equally many
        tokens) and after a lift.
        """

    @abstractmethod
    def before_call(self, call: Call | None) -> None:
        """Prepare the call that comes next; None if no run of this pipeline is on."""

    @abstractmethod
    def after_call(self) -> int:
        """End that call; returns how many modules it did not compute."""

    def end_run(self) -> None:  # noqa: B027
        """The run has ended as it should."""


class Listeners:
    """Those who are told, and what they were told last.

    Example:
        >>> listeners = Listeners()
        >>> listeners.before_call(None, "a transformer"), listeners.after_call("a transformer")
        (None, False)
    """

    def __init__(self) -> None:
        self.on_layout: list[AbstractListener] = []
        self.of: dict[AbstractListener, object] = {}  # told of this transformer's calls only
        self.on_end: list[Callable[[], None]] = []  # called after the listeners
        self._run: Run | None = None
        self._seen: tuple[Step, Sequence[Group]] | None = None

    def begin_step(self, run: Run, step: Step, call: Call) -> None:
        """Say so if what the calls before have computed is stale."""
        groups = run.groups(step)
        if run is not self._run or self._seen is None or _differ(self._seen, (step, groups)):
            for listener in self.on_layout:
                listener.on_layout(call)
        self._run, self._seen = run, (step, groups)

    def before_call(self, call: Call | None, transformer: object) -> None:
        """Announce a call."""
        for listener in self._told_of(transformer):
            listener.before_call(call)

    def after_call(self, transformer: object) -> bool:
        """End a call; returns whether a part of it was not computed."""
        n_reused = sum(each.after_call() for each in self._told_of(transformer))  # all are told
        if self._run:
            self._run.n_reused += n_reused
        return n_reused > 0

    def end_run(self) -> None:
        """End the run."""
        self._run = self._seen = None
        for listener in self.on_layout:
            listener.end_run()
        for tell in self.on_end:
            tell()

    def _told_of(self, transformer: object) -> list[AbstractListener]:
        """Who listens to this transformer's calls."""
        return [each for each in self.on_layout if self.of.get(each, transformer) is transformer]


def _differ(before: tuple[Step, Sequence[Group]], now: tuple[Step, Sequence[Group]]) -> bool:
    """Whether features of one step are stale in the next."""
    (old, old_groups), (new, new_groups) = before, now
    if old.lift or (old.units, old.is_injected) != (new.units, new.is_injected):
        return True
    return len(old_groups) != len(new_groups) or any(
        a.images != b.images or not a.layout.sides.equal(b.layout.sides)
        for a, b in zip(old_groups, new_groups, strict=True)
    )
