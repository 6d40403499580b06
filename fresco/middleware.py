"""What fresco attaches to one pipeline: hooks on its transformer, wraps on its instances."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import itertools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline

from fresco.calls import Call, Listeners
from fresco.ddim import following
from fresco.errors import AttachError, FrescoWarning
from fresco.ports import AbstractModelAdapter
from fresco.recipe import Recipe
from fresco.report import Report
from fresco.run import Run
from fresco.run_checks import (
    check_component,
    check_spacing,
    refuse_no_plan,
    refuse_no_start,
    refuse_thread,
)
from fresco.schedule import Step, keeps_schedule
from fresco.solver import read_flow, solver_velocity, write_velocity
from fresco.start import Start
from fresco.swap import can_merge, enter_tokens, leave_tokens, lift_carrier, share_calls
from fresco.timing import now_s
from fresco.wraps import Around, call_by_name, calling, wrap_method


class Middleware:
    """Drives the runs of one pipeline by one recipe; knows no model family.

    Args:
        pipe: The pipeline; only its own instances are touched.
        recipe: Checked recipe.
        adapter: Of the pipeline's transformer.
    """

    def __init__(self, pipe: Any, recipe: Recipe, adapter: AbstractModelAdapter) -> None:
        self.pipe, self.recipe, self.adapter = pipe, recipe, adapter
        self.transformer, self.scheduler = pipe.transformer, pipe.scheduler
        self.transformers = adapter.transformers(pipe)
        self.start = Start(pipe, recipe, adapter)
        self.last: Run | None = None
        self.listeners = Listeners()
        self._live: Run | None = None
        self._early_steps: int | None = None  # asked for before the run's latents were made
        self._call: Call | None = None  # what listeners are told of the call at hand
        self._undo = contextlib.ExitStack()
        self._wraps: list[tuple[Any, str, object]] = []  # owner, name, what was put there

    @property
    def report(self) -> Report:
        """Record of the last run."""
        return self.last.report if self.last else Report()

    def attach(self) -> None:
        """Attach everything, or nothing if that fails."""
        with contextlib.ExitStack() as undo:
            for owner, name, around in (
                (self.pipe, "prepare_latents", self._prepare_latents),
                (self.scheduler, "set_timesteps", self._set_timesteps),
                (self.scheduler, "step", self._step),
                (self.pipe, "maybe_free_model_hooks", self._end),
                *self._wraps_of_pictures(),
            ):
                on_copy = self._note_copy if name == "set_timesteps" else None
                undo.callback(wrap_method(owner, name, around, on_copy))
                self._wraps.append((owner, name, vars(owner)[name]))
            units = {stage.units for stage in self.recipe.stages}
            for each in self.transformers:
                pre = each.register_forward_pre_hook(self._before_forward, with_kwargs=True)
                undo.callback(pre.remove)
                post = each.register_forward_hook(self._after_forward, with_kwargs=True)
                undo.callback(post.remove)
                if units:
                    undo.callback(self.adapter.attach(each, units))
            self._undo = undo.pop_all()

    def _wraps_of_pictures(self) -> Sequence[tuple[Any, str, Around]]:
        """What else is wrapped where a run may start from a noisy picture."""
        if not (self.recipe.stages and self.start.takes_pictures):
            return ()
        return (
            (self.pipe, "get_timesteps", self._get_timesteps),
            (self.scheduler, "scale_noise", self.start.hear_noise),
        )

    def check_restorable(self) -> None:
        """Raise `AttachError` if another library has wrapped a method since."""
        for owner, name, put in self._wraps:
            if vars(owner).get(name) is not put:
                raise AttachError(
                    "Accelerated.restore()",
                    f"fresco's wrap of {name} outermost on {type(owner).__name__}",
                    f"{vars(owner).get(name)!r} in its place",
                    "Take that off first: last on, first off.",
                )

    def restore(self) -> None:
        """Take everything off again, last in first out; a second time does nothing.

        Raises:
            AttachError: If another library has wrapped a method since; nothing is taken off.
        """
        self.check_restorable()
        self._live = None
        self._wraps.clear()
        self._undo.close()

    def _prepare_latents(
        self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Begin a run: grid and noise field."""
        live = self._live
        if live and live.goes_on_elsewhere:
            refuse_thread(live.thread)
        self._live = None  # a run that died is taken over
        self.adapter.aim({}, None)
        now = self.adapter.transformers(self.pipe)
        for each, attached in itertools.zip_longest(now, self.transformers):
            check_component("transformer", each, attached)
        check_component("scheduler", self.pipe.scheduler, self.scheduler)
        is_own = calling(DiffusionPipeline) is self.pipe
        early, self._early_steps = self._early_steps if is_own else None, None
        result, run = self.start.begin(early, original, args, kwargs)
        self._live = self.last = run
        return result

    def _get_timesteps(
        self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Leave out what a run that starts from a noisy picture leaves out."""
        result = original(*args, **kwargs)
        if self._early_steps is None or calling(DiffusionPipeline) is not self.pipe:
            return result
        return self.start.shorten(result, self._early_steps)

    def _set_timesteps(
        self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Resolve the plan of the run that has begun, and install its sigmas."""
        run, caller = self._live, calling(DiffusionPipeline)
        is_begun = run and run.awaits_plan
        if not is_begun and (caller is not self.pipe or self.start.is_foreign):
            if run and run.is_here:
                self._live = None  # that run died; this is another pipeline's
            return original(*args, **kwargs)
        if run and run.goes_on_elsewhere:
            refuse_thread(run.thread)
        self._live = None  # stays so if anything below raises
        asked = inspect.signature(original).bind(*args, **kwargs).arguments
        result = original(*args, **kwargs)
        n_steps = len(self.scheduler.timesteps)
        if not keeps_schedule(self.recipe, n_steps):
            check_spacing(asked, self.adapter.spacing)
        if run and is_begun:
            self.start.resolve(run, n_steps)
            self._live = run
        else:  # before prepare_latents: the grid is not known yet, but the number of steps is
            self._early_steps = n_steps
            self.start.make_room(n_steps)
        return result

    def _note_copy(self, scheduler: Any) -> None:
        """Have a copy that is given timesteps while a run has no plan yet follow that plan."""
        if self._live and self._live.awaits_plan:
            self._live.copies.append(scheduler)

    def _current(self) -> tuple[Run, Step] | None:
        """The run of this thread and its step at hand, if there is one."""
        run = self._live
        if run is None and self._early_steps and calling(DiffusionPipeline) is self.pipe:
            refuse_no_start(self.recipe, self._early_steps)
        if run is None or not run.is_here or run.is_nested:
            return None
        if run.caller is not calling(DiffusionPipeline):
            return None  # of another pipeline on the same parts, or the run died
        if run.plan is None and self.recipe.stages:
            refuse_no_plan(self.pipe)
        return (run, run.step) if run.step else None

    def _before_forward(
        self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Give the transformer the tokens of this step's layout."""
        current = self._current()
        if current is None:
            nested = self._live and self._live.is_here and self._live.is_nested
            if not nested and not (self._live and self._live.goes_on_elsewhere):
                self.adapter.aim({}, None)  # a call that failed may have left it aimed
            self.listeners.before_call(self._call if nested else None, module)
            return None
        run, step = current
        call = call_by_name(module, args, kwargs)
        run.begin_call(self.adapter, call)
        self._begin_call(run, step, call)
        if step.side == 1:
            self.listeners.before_call(self._call, module)
            return None  # untouched: bit-identical
        groups, is_alone = run.groups(step), not self.listeners.on_layout
        merges = len(groups) > 1 and is_alone and can_merge(self.adapter, step, module)
        run.calls = share_calls(groups, merges)
        enter = functools.partial(enter_tokens, self.adapter, call, run, step)
        first, *others = run.calls
        with run.nested():
            run.parts = [self._call_part(module, enter(c), i) for i, c in enumerate(others, 1)]
        entered = enter(first)
        self.listeners.before_call(self._call, module)
        return (), entered

    def _begin_call(self, run: Run, step: Step, call: dict[str, Any]) -> None:
        """Say what call comes next, and whether features of earlier ones are stale."""
        if not self.listeners.on_layout:
            return
        n_steps = len(run.plan.steps) if run.plan else 0
        carrier = functools.partial(self.adapter.read, call, run.fine)
        self._call = Call(run.n_done, n_steps, step.sigma, run.n_passes, 0, carrier)
        if run.n_passes == 0:
            self.listeners.begin_step(run, step, self._call)

    def _call_part(self, module: torch.nn.Module, entered: dict[str, Any], part: int) -> Any:
        """Call the transformer for one part of a step's images."""
        first = self._call
        self._call = dataclasses.replace(first, group=part) if first else None
        try:
            return module(**entered)
        finally:
            self._call = first

    def _after_forward(
        self, module: torch.nn.Module, _args: tuple[Any, ...], _kwargs: dict[str, Any], output: Any
    ) -> Any:
        """Bring the prediction back to the full grid."""
        current, is_cached = self._current(), self.listeners.after_call(module)
        if self._live and self._live.is_here:
            self._live.n_cached += is_cached
        if current is None:
            return None
        run, step = current
        run.n_passes += 1
        if step.side == 1:
            return None
        return leave_tokens(self.adapter, (output, *run.parts), run.calls, run, step)

    def _step(
        self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """End a step: the scheduler's own, by its stage's order, then the lift if that ends."""
        current = self._current()
        if current is None:
            return original(*args, **kwargs)
        run, step = current
        bound = inspect.signature(original).bind(*args, **kwargs)
        asked = bound.arguments
        looks_back = run.plan is not None and run.plan.looks_back
        if step.lift or looks_back:
            x, predicted = read_flow(self.adapter, run, step, asked)
            v = solver_velocity(run, step, x, predicted)
            run.clean.append(x - step.sigma * predicted)
            if v is not predicted:
                own = asked["model_output"]
                asked["model_output"] = write_velocity(self.adapter, step, x, v, own)
        with following(self.scheduler, run.plan, step, asked.get("eta", 0.0)):
            result = original(*bound.args, **bound.kwargs)
        if step.lift:
            lifted = lift_carrier(run, step, x, v if step.lift.ends_stage else predicted)
            lifted = self.adapter.target(step.next_sigma).from_flow(lifted)
            lifted = self.adapter.pack(lifted).to(asked["model_output"].dtype)
            is_tuple = isinstance(result, tuple)
            result = (lifted, *result[1:]) if is_tuple else type(result)(lifted)
        run.end_step(step, now_s(run.noise.eps))
        return result

    def _end(
        self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """End the run."""
        result = original(*args, **kwargs)
        if self._live and self._live.is_here:
            run, self._live, self._call = self._live, None, None
            self.listeners.end_run()
            if reason := run.idle_threshold():
                warnings.warn(
                    f"promotion by tau did nothing: {reason}", FrescoWarning, stacklevel=3
                )
        return result
