"""How a run starts: the grid, the noise and the plan of what the pipeline asks for."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from fresco.ddim import install_timesteps
from fresco.errors import RunError, ScheduleError
from fresco.layout import TokenLayout
from fresco.noise import NoiseField
from fresco.ports import AbstractModelAdapter
from fresco.recipe import Recipe
from fresco.request import PlanRequest
from fresco.run import Run
from fresco.run_checks import check_latents, check_size, refuse_mixture, starts_from_picture
from fresco.schedule import Plan, keeps_schedule, make_plan, planned_steps
from fresco.sigmas import own_sigmas
from fresco.wraps import calling


@dataclass(frozen=True)
class Mixture:
    """A picture and noise, as a scheduler has mixed them; all [b, c, h, w].

    Args:
        picture: Clean latents; less exact if they were taken out of the mixture, in bfloat16.
        noise: As drawn.
        result: Noisy latents.
    """

    picture: Tensor
    noise: Tensor
    result: Tensor


class Start:
    """Makes runs of one pipeline by one recipe, up to their first step.

    A run starts from noise alone, or (strength below 1) from a picture that
    `scheduler.scale_noise` has mixed with noise: x = (1 - sigma) x0 + sigma eps. That noise is
    then the run's field, and the plan starts at that sigma.

    Args:
        pipe: The pipeline.
        recipe: Checked recipe.
        adapter: Of the pipeline's transformer.
    """

    def __init__(self, pipe: Any, recipe: Recipe, adapter: AbstractModelAdapter) -> None:
        self.pipe, self.recipe, self.adapter = pipe, recipe, adapter
        self.scheduler = pipe.scheduler
        self.takes_pictures = adapter.takes_pictures(pipe)
        self.is_foreign = starts_from_picture(pipe) and not self.takes_pictures
        self._heard: list[Mixture] | None = None

    def make_room(self, n_steps: int) -> None:
        """Give a pipeline that takes timesteps before its latents as many as there will be."""
        if not (self.takes_pictures or keeps_schedule(self.recipe, n_steps)):
            n_calls = planned_steps(self.recipe, n_steps)
            self.scheduler.timesteps = self.scheduler.timesteps[:1].repeat(n_calls)

    def shorten(self, left: tuple[Tensor, int], n_steps: int) -> tuple[Tensor, int]:
        """Make room for the steps of a run that leaves out its first ones.

        Args:
            left: What the pipeline's `get_timesteps` returned: timesteps, and their number.
            n_steps: Steps of a run from noise alone.

        Returns:
            The same, as many as the plan will have.

        Raises:
            ScheduleError: If there is no step left.
        """
        timesteps, n_left = left
        if keeps_schedule(self.recipe, n_steps):
            return left
        if n_left < 1:
            raise ScheduleError(
                "pipe(strength=...)",
                "a strength that leaves at least 1 step",
                f"{n_left} of {n_steps}",
                "Raise strength, or num_inference_steps.",
            )
        n_calls = planned_steps(self.recipe, n_steps, self._first_sigma(self._n_skipped))
        self.scheduler.timesteps = timesteps[:1].repeat(n_calls)
        return self.scheduler.timesteps, n_calls

    def hear_noise(
        self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Remember the noise that `scheduler.scale_noise` mixes into the first latents."""
        result = original(*args, **kwargs)
        if self._heard is not None:
            asked = inspect.signature(original).bind(*args, **kwargs).arguments
            self._heard.append(Mixture(asked["sample"], asked["noise"], result))
        return result

    def begin(
        self,
        n_steps: int | None,
        original: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[Any, Run]:
        """Have the pipeline prepare its latents, and begin a run with them.

        Args:
            n_steps: What the scheduler was asked for before; None if it is asked later.
            original: The pipeline's `prepare_latents`.
            args: Its arguments.
            kwargs: Its arguments by name.

        Returns:
            What it returned, and the run; with a plan, if the steps are known.

        Raises:
            SizeError: If the picture has no token.
            LayoutError: If the caller's latents have another size.
            RunError: If the noise in the latents cannot be known.
        """
        arguments = inspect.signature(original).bind(*args, **kwargs).arguments
        n_skipped = self._n_skipped if n_steps else 0
        is_mixture = n_skipped > 0 and not keeps_schedule(self.recipe, n_steps or 0)
        fine = self._check(arguments, n_skipped if is_mixture else 0)
        self._heard = []
        try:
            result = original(*args, **kwargs)
        finally:
            heard, self._heard = self._heard, None
        packed = self.adapter.prepared(result)
        first = self.adapter.unpack(packed, fine)
        mixture = self._mixture(first, heard) if is_mixture else None
        eps = mixture.noise if mixture else first
        frames = self.adapter.frames(packed, fine)
        run = Run(threading.current_thread(), fine, NoiseField(eps, fine.patch_px), frames)
        run.caller = calling(DiffusionPipeline)
        if n_steps:
            self.resolve(run, n_steps, n_skipped)
        if mixture:
            run.show_picture(mixture.picture.to(run.noise.eps).expand_as(run.noise.eps))
        return result, run

    def _check(self, arguments: Mapping[str, Any], n_skipped: int) -> TokenLayout:
        """Refuse what no run can start with; returns the layout of the full grid."""
        height, width = self._asked_size(arguments)
        rows, columns = self.adapter.grid(self.pipe, height, width)
        check_size(rows, columns, height, width)
        fine = TokenLayout.whole(rows, columns, 1, self.adapter.patch_px)
        latents = arguments.get("latents")
        if self.recipe.stages and isinstance(latents, Tensor):
            b = arguments.get("batch_size", len(latents))
            check_latents(latents, b, self.adapter.latents_shape(fine), fine)
        has_latents = latents is not None
        if n_skipped and (has_latents or not self.takes_pictures):
            refuse_mixture(n_skipped, self.pipe, has_latents)
        return fine

    def resolve(self, run: Run, n_steps: int, n_skipped: int = 0) -> None:
        """Make the plan of a run, and install its sigmas.

        Args:
            run: Without a plan.
            n_steps: Steps that the pipeline asked its scheduler for.
            n_skipped: The first of them, which a run that starts from a picture leaves out.
        """
        rows, columns = run.fine.sides.shape
        request = PlanRequest.of(
            self.adapter,
            self.scheduler,
            n_steps,
            rows,
            columns,
            sigmas=own_sigmas(self.scheduler)[n_skipped:],
            frames=run.frames,
            start=self._first_sigma(n_skipped),
            n_skipped=n_skipped,
        )
        run.plan = make_plan(self.recipe, request)
        if not run.plan.keeps_schedule:
            for scheduler in (self.scheduler, *run.copies):
                self._install(run.plan, scheduler)

    @property
    def _n_skipped(self) -> int:
        """Steps that the pipeline has told its scheduler to leave out."""
        return int(getattr(self.scheduler, "begin_index", None) or 0)

    def _first_sigma(self, n_skipped: int) -> float:
        """Sigma of a run's first latents; 1 if it leaves out nothing."""
        return own_sigmas(self.scheduler)[n_skipped] if n_skipped else 1.0

    def _asked_size(self, arguments: Mapping[str, Any]) -> tuple[int | None, int | None]:
        """Height and width of the picture in image px; None is the pipeline's default."""
        image = arguments.get("image")
        if "height" in arguments or not (self.takes_pictures and isinstance(image, Tensor)):
            return arguments.get("height"), arguments.get("width")
        is_latent = image.shape[1] == self.pipe.vae.config.latent_channels
        height, width = (
            n * (self.pipe.vae_scale_factor if is_latent else 1) for n in image.shape[-2:]
        )
        return height, width

    def _mixture(self, first: Tensor, heard: list[Mixture]) -> Mixture:
        """What a run's first latents were made of."""
        if len(heard) == 1:
            mixture, made = heard[0], heard[0].result
            if made.shape == first.shape and made.to(first).equal(first):
                return mixture
        raise RunError(
            "pipe(strength=...)",
            "latents that scheduler.scale_noise made of the picture and the run's noise",
            f"others from {type(self.pipe).__name__} ({len(heard)} such)",
            "Use strength=1, or a recipe without stages.",
        )

    def _install(self, plan: Plan, scheduler: Any) -> None:
        """Overwrite a scheduler's sigmas: passed ones would be shifted again."""
        if plan.levels:
            install_timesteps(scheduler, plan)
            return
        like = scheduler.sigmas
        sigmas = torch.tensor(plan.sigmas, dtype=torch.float32, device=like.device)
        scheduler.sigmas = 1 - sigmas if self.adapter.inverts_sigmas else sigmas
        timesteps = scheduler.sigmas[:-1] * scheduler.config.num_train_timesteps
        if len(scheduler.timesteps) == len(timesteps):
            scheduler.timesteps.copy_(timesteps)  # in place: the pipeline may have them already
        else:
            scheduler.timesteps = timesteps
        scheduler.num_inference_steps = len(plan.steps)
        scheduler.set_begin_index(0)
