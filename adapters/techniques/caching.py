"""What every feature cache needs from fresco: state by pass and group, flushed with the layout."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from diffusers import DiffusionPipeline

from fresco.calls import AbstractListener, Call
from fresco.errors import RunError
from fresco.techniques import AbstractAttachment, Counts
from fresco.wraps import calling, goes_on_elsewhere, wrap_method


class AbstractCaching(AbstractAttachment, AbstractListener):
    """A cache that is on; counts its calls, and says when its features are stale.

    State is kept by a key: the pipeline's own name of a pass (or its number, where the
    pipeline opens no `cache_context`), and the group of images.
    """

    hint: str  # what to change where it never hits

    def __init__(self) -> None:
        self._pass_name: str | None = None
        self._at_work: tuple[threading.Thread, object | None] | None = None  # and its pipeline
        self._is_stale = self._is_outside = True
        self._has_run = False
        self._n_calls = self._n_hits = self._n_reused = self._n_flushes = 0

    @abstractmethod
    def flush(self) -> None:
        """Forget all features."""

    @abstractmethod
    def enter(self, key: str, call: Call | None) -> None:
        """A call begins, whose state has this key; None: outside of runs, computed whole."""

    @abstractmethod
    def leave(self) -> int:
        """The call has ended; how many modules it did not compute."""

    @abstractmethod
    def abandon(self) -> None:
        """Close the call at hand, if there is one: it has ended, or it raised."""

    def begin(self, call: Call) -> None:
        """A run or layout begins with this call."""

    @property
    def listener(self) -> AbstractListener:
        return self

    def counts(self) -> Counts:
        return {
            "calls": self._n_calls,
            "hits": self._n_hits,
            "reused modules": self._n_reused,
            "flushes": self._n_flushes,
        }

    def idle(self) -> str | None:
        if self._n_hits or not self._has_run:
            return None
        if not self._n_calls:
            return "no call of the run was planned, so that all were computed whole"
        return f"no hit in {self._n_calls} calls; {self.hint}"

    def on_layout(self, call: Call) -> None:
        if call.step == 0:
            self._n_calls = self._n_hits = self._n_reused = self._n_flushes = 0
        self._is_stale = True
        self.begin(call)

    def before_call(self, call: Call | None) -> None:
        self._check_alone()
        self.abandon()
        if self._is_stale or call is None:
            self.flush()
            self._n_flushes += call is not None
        self._is_stale = call is None
        self._is_outside = call is None
        name = "outside" if call is None else f"{self._pass_name or call.n_pass}|{call.group}"
        self.enter(name, call)

    def after_call(self) -> int:
        n_reused = self.leave()
        self.abandon()
        if self._pass_name is None:
            self._at_work = None
        if self._is_outside:
            return 0
        self._n_calls, self._n_reused = self._n_calls + 1, self._n_reused + n_reused
        self._n_hits += n_reused > 0
        return n_reused

    def end_run(self) -> None:
        self._is_stale = self._has_run = True
        self.flush()

    def name_passes(self, transformer: Any) -> Callable[[], None]:
        """Listen to the pipeline's own names of passes; returns what stops it."""
        return wrap_method(transformer, "cache_context", self._name_pass)

    def _check_alone(self) -> None:
        """Refuse a call while another thread is in one: pipelines may share the blocks."""
        if self._at_work and goes_on_elsewhere(*self._at_work, DiffusionPipeline):
            raise RunError(
                "transformer(...)",
                "one call at a time on a transformer with a cache",
                f"a call while thread {self._at_work[0].name!r} is in one",
                "Wait for it, or give every pipeline a transformer of its own.",
            )
        self._at_work = threading.current_thread(), calling(DiffusionPipeline)

    def _name_pass(
        self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Remember the name of the pass at hand."""

        @contextmanager
        def named() -> Iterator[None]:
            self._check_alone()  # the context is the transformer's, whoever opens it
            self._pass_name = str(args[0] if args else kwargs["name"])
            try:
                with original(*args, **kwargs):
                    yield
            finally:
                self._pass_name = self._at_work = None

        return named()
