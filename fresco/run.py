"""State of one pipeline call, from its first latents to its last step."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from fresco.layout import TokenLayout
from fresco.noise import NoiseField
from fresco.promotion import Promotion, is_met, promote
from fresco.report import Report, StepRecord
from fresco.schedule import Plan, Step
from fresco.score import N_ESTIMATES, SCORES, Evidence
from fresco.timing import now_s
from fresco.wraps import calling, goes_on_elsewhere

if TYPE_CHECKING:
    from fresco.ports import AbstractModelAdapter


@dataclass(frozen=True)
class Group:
    """Images of one batch that have the same layout.

    Args:
        images: Their numbers in the batch.
        layout: Their layout.
        field: Their noise.
    """

    images: tuple[int, ...]
    layout: TokenLayout
    field: NoiseField


@dataclass
class Run:
    """One call of a pipeline; the middleware makes a new one for every call.

    Args:
        thread: Whose call it is.
        fine: Layout of the full grid.
        noise: The field; `fresh` and `spectral` lifts exchange it.
        frames: Latent frames; they share one layout.
        plan: Set once the scheduler has its timesteps.
        n_done: Steps taken.
        n_passes: Transformer calls of the step at hand.
        n_cached: Calls of it, parts of a batch by themselves, that a cache answered in part.
        n_reused: Modules, blocks or their attention, that it did not compute in these.
        started_s: Clock at the first of them.
        n_text_tokens: Of the last call.
        n_given_tokens: Of it, those of pictures that are given, at full resolution.
        records: Of the steps taken.
        clean: Clean estimates of the last steps, [b, c, h, w]; kept if the plan looks back.
        mixed: Layouts of the images in a mixed step.
        is_nested: Whether a call of a part of the batch is going on.
        calls: Groups of its step, by the calls they go in.
        parts: Outputs of all of these but the first.
        caller: The pipeline in whose call it began; None outside of any.
        copies: Of the scheduler, which the pipeline steps beside it for other latents (sound).
    """

    thread: threading.Thread
    fine: TokenLayout
    noise: NoiseField
    frames: int = 1
    plan: Plan | None = None
    n_done: int = 0
    n_passes: int = 0
    n_cached: int = 0
    n_reused: int = 0
    started_s: float = 0.0
    n_text_tokens: int = 0
    n_given_tokens: int = 0
    records: list[StepRecord] = field(default_factory=list)
    clean: deque[Tensor] = field(default_factory=lambda: deque(maxlen=N_ESTIMATES))
    mixed: tuple[TokenLayout, ...] = ()
    is_nested: bool = False
    calls: list[list[Group]] = field(default_factory=list)
    parts: list[Any] = field(default_factory=list)
    caller: object | None = None
    copies: list[Any] = field(default_factory=list)
    _layouts: dict[int, TokenLayout] = field(default_factory=dict)
    _fields: dict[tuple[int, ...], NoiseField] = field(default_factory=dict)

    @property
    def report(self) -> Report:
        """Its record so far."""
        return Report(tuple(self.records), self.n_text_tokens, self.n_given_tokens)

    def begin_call(self, adapter: AbstractModelAdapter, call: Mapping[str, Any]) -> None:
        """Start the step's clock, and count what a call has beside the picture's own tokens."""
        if self.n_passes == 0:
            self.started_s = now_s(self.noise.eps)
        self.n_text_tokens = adapter.text_tokens(call)
        self.n_given_tokens = adapter.given_tokens(call, self.fine)

    @property
    def is_here(self) -> bool:
        """Whether the calling thread is the run's own."""
        return self.thread is threading.current_thread()

    @property
    def goes_on(self) -> bool:
        """Whether its thread is in the run's call yet; False if it began outside of any."""
        is_called = self.caller is not None and self.thread.is_alive()
        return is_called and calling(DiffusionPipeline, self.thread) is self.caller

    @property
    def goes_on_elsewhere(self) -> bool:
        """Whether another thread is in the run's call; a run that died is in none."""
        return goes_on_elsewhere(self.thread, self.caller, DiffusionPipeline)

    @property
    def awaits_plan(self) -> bool:
        """Whether this is the run's own call, and it has no plan yet."""
        return self.is_here and self.plan is None and self.caller is calling(DiffusionPipeline)

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

    @contextmanager
    def nested(self) -> Iterator[None]:
        """While calls of parts of the batch go on."""
        self.is_nested = True
        try:
            yield
        finally:
            self.is_nested = False

    def groups(self, step: Step) -> list[Group]:
        """Images of the batch by equal layouts of a step; each image is in one group."""
        everyone = tuple(range(len(self.noise.eps)))
        if step.promotion is None:
            return [Group(everyone, self.layout(step.side), self.noise)]
        by_layout: list[tuple[TokenLayout, list[int]]] = []
        for image, layout in enumerate(self.mixed):
            same = [images for other, images in by_layout if other.sides.equal(layout.sides)]
            if same:
                same[0].append(image)
            else:
                by_layout.append((layout, [image]))
        return [Group(tuple(i), layout, self.field_of(tuple(i))) for layout, i in by_layout]

    def exchange(self, noise: NoiseField) -> Tensor:
        """Go on with another field; returns by how much it differs, [b, c, h, w]."""
        change = noise.eps - self.noise.eps
        self.noise = noise
        self._fields.clear()
        return change

    def show_picture(self, clean: Tensor) -> None:
        """Promote the first step's cells by the picture that the run starts from, [b, c, h, w]."""
        if self.step and self.step.promotion:
            self.clean.append(clean)
            self._promote(self.step.promotion, self.step.side, goes_on=False)

    def end_step(self, step: Step, now_s: float) -> None:
        """Record the step at hand, go on to the next and promote its cells."""
        assert self.plan is not None
        if step.promotion:
            self.plan = self.plan.with_layouts(self.n_done, self.mixed)
            step = self.plan.steps[self.n_done]
        seconds = now_s - self.started_s
        self.records.append(
            StepRecord.of(step, self.n_passes, seconds, self.n_cached, self.n_reused)
        )
        self.n_done, self.n_passes = self.n_done + 1, 0
        self.n_cached = self.n_reused = 0
        if self.step and self.step.promotion:
            self._promote(self.step.promotion, self.step.side, goes_on=step.promotion is not None)

    def idle_threshold(self) -> str | None:
        """Why a threshold of promotion made no difference; None if it did, or there is none."""
        steps = self.plan.steps if self.plan else ()
        tokens = [s.n_tokens for s in steps if s.promotion and s.promotion.tau is not None]
        if self.plan and tokens and tokens[0] == self.plan.n_full_tokens:
            return "the first of its steps promoted every cell"
        if tokens and not any(1 in layout.sides_used for layout in self.mixed):
            return "no cell has reached it"
        return None

    def _promote(self, promotion: Promotion, side: int, goes_on: bool) -> None:
        """Make the layouts of the next step from those of this one."""
        if goes_on and all(is_met(layout, promotion) for layout in self.mixed):
            return
        score, _ = SCORES[promotion.score]
        values = score(Evidence(tuple(self.clean), self.noise)).float().cpu()
        before = self.mixed if goes_on else (self.layout(side),) * len(values)
        self.mixed = tuple(
            promote(layout, value, promotion) for layout, value in zip(before, values, strict=True)
        )

    def field_of(self, images: tuple[int, ...]) -> NoiseField:
        """Field of some images, by their numbers, made once; guidance repeats them."""
        if images not in self._fields:
            self._fields[images] = self.noise.images(torch.tensor(images))
        return self._fields[images]
