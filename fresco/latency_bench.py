"""Seconds of a model with random weights: bare steps by tokens, and whole loops by recipe."""

from __future__ import annotations

import inspect
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from fresco.api import Accelerated, accelerate
from fresco.errors import FrescoError
from fresco.recipe import Recipe
from fresco.registry import adapter_of
from fresco.sketch import ModelConfig, diffusers_class
from fresco.timing import LoopTimer, now_s

PLAIN, ATTACHED = "plain", "attached, one full stage"


class LatencyError(FrescoError, ValueError):
    """A measurement that cannot be made as it is asked for."""


class Bench:
    """One model of random weights on one device.

    Args:
        config: The model's; its `run` says sizes.
        recipes: To measure, by name.
        device: Where to run.
        runs: Measured runs of every row.
        steps: Requested steps; None: those of the config.
    """

    def __init__(
        self,
        config: ModelConfig,
        recipes: Mapping[str, Recipe],
        device: torch.device,
        runs: int,
        steps: int | None,
    ) -> None:
        self.config, self.recipes, self.device, self.runs = config, recipes, device, runs
        self.steps = steps or config.run.steps
        self.pipe = build_pipe(config, device, torch.bfloat16)
        self.adapter = adapter_of(self.pipe)
        self.eager_s: list[float] = []  # of the plain loop
        self.overhead: dict[str, Any] | None = None

    def facts(self) -> dict[str, Any]:
        """What is run."""
        run = self.config.run
        n_weights = sum(weight.numel() for weight in self.pipe.transformer.parameters())
        return {
            "source": self.config.source,
            "height": run.height,
            "width": run.width,
            "frames": run.frames,
            "steps": self.steps,
            "text_tokens": run.text_tokens,
            "parameters": n_weights,
            "dtype": "bfloat16",
        }

    def measure(
        self, mode: Sequence[Mapping[str, Any]], on_runs: Callable[[str, int], None]
    ) -> dict[str, Any]:
        """Measure bare steps and whole loops.

        Args:
            mode: Stack entries that every row has; the first mode measured should have none.
            on_runs: Called with a row's name and how many of its runs are done.
        """
        stack = [dict(entry) for entry in mode]
        plain = {"schema": 1, "model": "any", "stack": stack} if stack else None
        ways: dict[str, Mapping[str, Any] | None] = {PLAIN: plain}
        if not stack:
            stages = [{"cell": 1, "steps": self.steps}]
            baseline = {"steps": self.steps}
            ways[ATTACHED] = {"schema": 1, "model": "any", "baseline": baseline, "stages": stages}
        for name, recipe in self.recipes.items():
            ways[name] = _content(recipe) | {"model": "any", "stack": [*recipe.stack, *stack]}
        rows: dict[str, _Row] = {name: _Row() for name in ways}
        alternating = not stack  # attaching weights or graphs anew for every run takes too long
        for _ in range(self.runs if alternating else 1):
            for name, content in ways.items():
                try:
                    self._run(rows[name], content, 1 if alternating else self.runs)
                except (FrescoError, RuntimeError) as error:
                    rows[name].refused = f"{type(error).__name__}: {error}".splitlines()[0]
                on_runs(name, len(rows[name].loop_s))
        if not stack:
            self.eager_s = rows[PLAIN].loop_s
            self.overhead = self._overhead(rows.pop(ATTACHED))
        step_s = {} if rows[PLAIN].refused else self._step_s(plain, rows)
        return {
            "step_s": {str(n): seconds for n, seconds in step_s.items()},
            "rows": [self._figures(n, row, rows[PLAIN], step_s) for n, row in rows.items()],
        }

    def _run(self, row: _Row, content: Mapping[str, Any] | None, n: int) -> None:
        """Some runs of a row, after one of as few steps as there are stages."""
        with _attached(self.pipe, content) as handle:
            self._loop_s(1)
            with _peak(self.device, row.peak_bytes):
                row.loop_s += [self._loop_s(self.steps) for _ in range(n)]
            if handle and handle.plan:
                row.tokens = [step.n_tokens for step in handle.plan.steps]
                row.flops_speedup = handle.cost(self.config.run.text_tokens).flops_speedup

    def _loop_s(self, steps: int) -> float:
        """Seconds of one denoising loop."""
        run = self.config.run
        sizes = {"height": run.height, "width": run.width, "num_frames": run.frames}
        takes = inspect.signature(type(self.pipe).__call__).parameters
        given = self._embeddings() | {k: v for k, v in sizes.items() if k in takes}
        with LoopTimer(self.pipe) as timer:
            self.pipe(
                **given,
                num_inference_steps=steps,
                generator=torch.Generator().manual_seed(0),
                output_type="latent",
            )
        return timer.loop_s

    def _embeddings(self) -> dict[str, torch.Tensor]:
        """What the text encoders would give, random."""
        draw = torch.Generator(self.device).manual_seed(0)
        shapes = self.adapter.example_call(self.pipe.transformer, 1, self.config.run.text_tokens)
        names = {"encoder_hidden_states": "prompt_embeds",
                 "pooled_projections": "pooled_prompt_embeds"}  # fmt: skip
        given = {
            name: torch.randn(shapes[key].shape, generator=draw, device=self.device).bfloat16()
            for key, name in names.items()
            if key in shapes
        }
        if "encoder_attention_mask" in shapes:
            given["prompt_attention_mask"] = shapes["encoder_attention_mask"]
        return given

    def _step_s(
        self, content: Mapping[str, Any] | None, rows: Mapping[str, _Row]
    ) -> dict[int, float]:
        """Median seconds of the bare transformer, by the numbers of tokens that rows have."""
        counts = {self._full_tokens(), *(n for row in rows.values() for n in row.tokens)}
        found = {}
        with _attached(self.pipe, content), torch.no_grad():
            for n_tokens in sorted(counts):
                text = self.config.run.text_tokens
                call = self.adapter.example_call(self.pipe.transformer, n_tokens, text)
                seconds = []
                for _ in range(self.runs + 1):
                    start_s = now_s(call["hidden_states"])
                    self.pipe.transformer(**call)
                    seconds.append(now_s(call["hidden_states"]) - start_s)
                found[n_tokens] = statistics.median(seconds[1:])  # the first warms up
        return found

    def _full_tokens(self) -> int:
        run = self.config.run
        rows, columns = self.adapter.grid(self.pipe, run.height, run.width)
        factor = self.config.pipeline.vae_scale_factor_temporal
        return rows * columns * ((run.frames - 1) // factor + 1)

    def _overhead(self, attached: _Row) -> dict[str, Any]:
        """What the middleware adds to a full step: paired runs with and without."""
        if attached.refused:
            return {"refused": attached.refused}
        pairs = zip(attached.loop_s, self.eager_s, strict=True)
        added = statistics.median([(one - bare) / self.steps for one, bare in pairs])
        step_s = statistics.median(self.eager_s) / self.steps
        return {"seconds_per_step": added, "of_a_step": added / step_s}

    def _figures(
        self, name: str, row: _Row, plain: _Row, step_s: Mapping[int, float]
    ) -> dict[str, Any]:
        """A row as the JSON holds it."""
        if row.refused:
            return {"name": name, "refused": row.refused}
        full_s = self.steps * step_s.get(self._full_tokens(), 0.0)
        by_steps = full_s / sum(step_s[n] for n in row.tokens) if row.tokens else 1.0
        recipe = self.recipes.get(name)
        adaptive = recipe is not None and any(t.keeps_state for t in recipe.techniques)
        return {
            "name": name,
            "loop_s": statistics.median(row.loop_s),
            "runs_s": row.loop_s,
            "speedup": _ratio(self.eager_s, row.loop_s),
            "speedup_in_mode": _ratio(plain.loop_s, row.loop_s),
            "predicted_by_flops": row.flops_speedup,
            "predicted_by_steps": by_steps,
            "peak_bytes": max(row.peak_bytes, default=None),
            "has_cache": adaptive,
        }


class _Row:
    """What is known of a row by now."""

    def __init__(self) -> None:
        self.loop_s: list[float] = []
        self.tokens: list[int] = []  # by step; none without stages
        self.flops_speedup = 1.0
        self.peak_bytes: list[int] = []
        self.refused = ""


def build_pipe(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Any:
    """Build a pipeline around a transformer of random weights; it takes embeddings.

    Args:
        config: Of the model; it names the pipeline's class.
        device: Where the weights are made.
        dtype: Of the weights.

    Returns:
        The pipeline, without text encoders and decoder.
    """

    def of_diffusers(content: Mapping[str, Any]) -> Any:
        return diffusers_class(content.get("_class_name"))

    kept = {key: value for key, value in config.transformer.items() if key != "_class_name"}
    with _default_dtype(dtype), device:
        transformer = of_diffusers(config.transformer).from_config(kept).eval()
    scheduler = of_diffusers(config.scheduler).from_config(dict(config.scheduler))
    made = diffusers_class(config.pipeline.class_name)
    parts = dict.fromkeys(list(inspect.signature(made.__init__).parameters)[1:])
    pipe = made(**parts | {"transformer": transformer, "scheduler": scheduler})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _attached(
    pipe: Any, content: Mapping[str, Any] | None
) -> AbstractContextManager[Accelerated | None]:
    return nullcontext() if content is None else accelerate(pipe, content)


def _content(recipe: Recipe) -> dict[str, Any]:
    return recipe.model_dump(mode="json", by_alias=True, exclude_unset=True)


def _ratio(slow: Sequence[float], fast: Sequence[float]) -> float | None:
    """Median of paired runs' ratios; None without such runs."""
    if len(slow) != len(fast):
        return None
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


@contextmanager
def _peak(device: torch.device, found: list[int]) -> Iterator[None]:
    """Append the most memory that was allocated meanwhile, on a GPU."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.reset_peak_memory_stats(device)
    yield
    found.append(torch.cuda.max_memory_allocated(device))


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make new weights in a dtype, so that they never take more memory."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
