"""What `accelerate()` refuses before anything is attached."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch._dynamo import OptimizedModule  # torch names it nowhere else

from fresco.errors import AdapterError, AttachError, RecipeError, ScheduleError
from fresco.middleware import Middleware
from fresco.ports import AbstractModelAdapter
from fresco.recipe import Recipe
from fresco.run_checks import starts_from_picture, takes_strength
from fresco.techniques import TransformerTechnique
from fresco.wraps import has_wraps

_WHERE = "accelerate(pipe, recipe)"
_SPACINGS = (  # config keys of spacings that are no shift of an even one
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
)
_REASONS = {  # of schedulers that a recipe with stages cannot drive
    "FlowMatchHeunDiscreteScheduler": "calls the transformer twice between two of its sigmas",
    "UniPCMultistepScheduler": "corrects each step by the last, which takes back a part of a lift",
    "DPMSolverMultistepScheduler": "extrapolates from the last step, across a lift or promotion",
    "CogVideoXDPMScheduler": "draws fresh noise in every step",
}
_PRESERVING = {  # the schedulers of other families
    "DDIMScheduler": "preserves variance, and the model's latents are a flow's",
    "CogVideoXDDIMScheduler": "preserves variance, and the model's latents are a flow's",
}
_POSITIONS = ("fine", "coarse", "phase")  # that a stage may ask for
_LACKS = {  # why a family has not all of them
    "coarse": "the transformer counts positions by the size of the picture",
    "phase": "the transformer has no phase-aligned attention here",
}
_BENT = {  # config of DDIM that makes its steps no line between two noise levels
    "clip_sample": "cuts off clean latents",
    "thresholding": "cuts off clean latents",
}


def check_parts(pipe: Any) -> None:
    """Refuse pipelines of other models, such as a UNet."""
    for name in ("transformer", "scheduler"):
        if getattr(pipe, name, None) is None:
            got, fix = type(pipe).__name__, "Use a pipeline of a Diffusion Transformer."
            raise AdapterError(_WHERE, f"a pipeline with a {name}", got, fix)


def check_unwrapped(transformer: Any) -> None:
    """Refuse what `torch.compile(transformer)` returns: a module around the model."""
    if isinstance(transformer, OptimizedModule):
        raise AdapterError(
            _WHERE,
            "the transformer itself",
            f"one in a wrapper of torch.compile ({type(transformer._orig_mod).__name__})",
            "Set pipe.transformer = pipe.transformer._orig_mod and name compile in the recipe.",
        )


def check_model(pipe: Any, recipe: Recipe) -> None:
    """Refuse a recipe for another model."""
    names = [base.__name__ for base in type(pipe.transformer).__mro__]
    if recipe.model != "any" and recipe.model not in names:
        problem = f"the recipe is for {recipe.model}, the pipeline has a {names[0]} @ $.model"
        raise RecipeError(_WHERE, [problem])


def check_layouts(adapter: AbstractModelAdapter, recipe: Recipe) -> None:
    """Refuse mixed stages for a family of whole grids, and positions that it cannot be told."""
    for i, stage in enumerate(recipe.stages):
        if stage.cell == "mixed" and not adapter.mixes:
            family = f"whole-grid stages with {type(adapter).__name__}"
            raise RecipeError(_WHERE, [f"only {family}, got cell: mixed @ $.stages[{i}].cell"])
        if stage.units not in adapter.units:
            known = " or ".join(unit for unit in adapter.units if unit in _POSITIONS)
            expected = f"positions: {known} with {type(adapter).__name__}"
            fix = f"Use others: {_LACKS.get(stage.units, 'the transformer cannot be told these')}."
            raise AdapterError(_WHERE, expected, f"positions: {stage.units}", fix)


def check_stack(pipe: Any, recipe: Recipe, adapter: AbstractModelAdapter) -> None:
    """Refuse techniques that act on one transformer where steps are divided among several."""
    n = len(adapter.transformers(pipe))
    for technique in recipe.techniques:
        if n > 1 and not isinstance(technique, TransformerTechnique):
            raise AttachError(
                _WHERE,
                f"one transformer for {technique.kind}",
                f"{n} in {type(pipe).__name__}: {technique.only_one}",
                f"Leave {technique.kind} out.",
            )


def check_scheduler(scheduler: Any, adapter: AbstractModelAdapter) -> None:
    """Refuse schedulers that keep a history or draw noise, and spacings that are no shift.

    Args:
        scheduler: Of the pipeline.
        adapter: Of its transformer.

    Raises:
        ScheduleError: If it is not the family's deterministic one, as the model was trained.
    """
    name, wanted = type(scheduler).__name__, adapter.scheduler
    reasons = _REASONS | _PRESERVING if adapter.prediction == "flow" else _REASONS
    if name != wanted and (reason := reasons.get(name)):
        raise ScheduleError(
            _WHERE,
            wanted,
            f"{name}, which {reason}",
            f"Exchange it ({_exchange(adapter)}; stages may say order: 2), "
            "or use a recipe without stages.",
        )
    if name != wanted or scheduler.config.get("stochastic_sampling"):
        drawn = " with stochastic_sampling=True" if name == wanted else ""
        raise ScheduleError(
            _WHERE,
            f"the family's deterministic scheduler ({wanted})",
            f"{name}{drawn}",
            "Exchange it: later stages go on from its noise levels, without fresh noise.",
        )
    if adapter.prediction == "flow":
        _check_flow(scheduler, adapter.inverts_sigmas)
    else:
        _check_diffusion(scheduler, adapter)


def _exchange(adapter: AbstractModelAdapter) -> str:
    """How a pipeline gets the scheduler of a family."""
    if adapter.prediction == "flow":
        return f"{adapter.scheduler}.from_config"
    kept = "pipe.scheduler.config, clip_sample=False"
    return f"pipe.scheduler = {adapter.scheduler}.from_config({kept})"


def _check_diffusion(scheduler: Any, adapter: AbstractModelAdapter) -> None:
    """Refuse what a DDIM scheduler does beyond steps between noise levels."""
    config = scheduler.config
    if config.prediction_type != adapter.prediction:
        raise ScheduleError(
            _WHERE,
            f"prediction_type={adapter.prediction!r}, as the model was trained",
            f"prediction_type={config.prediction_type!r}",
            "Make the scheduler from the model's own config.",
        )
    if type(scheduler).__name__ == "DDIMScheduler":
        bent = [f"{key}=True, which {why}" for key, why in _BENT.items() if config.get(key)]
        if bent:
            fix = f"Exchange it ({_exchange(adapter)})."
            raise ScheduleError(_WHERE, "clean latents as they are predicted", bent[0], fix)
    if adapter.prediction == "epsilon" and config.get("rescale_betas_zero_snr"):
        got = "rescale_betas_zero_snr=True, with none at the first timestep"
        fix = "Make the scheduler from the model's own config."
        raise ScheduleError(_WHERE, "some signal beside the predicted noise", got, fix)


def _check_flow(scheduler: Any, inverts_sigmas: bool) -> None:
    """Refuse sigmas that run the other way, and spacings that are no shift."""
    if bool(scheduler.config.get("invert_sigmas")) != inverts_sigmas:
        raise ScheduleError(
            _WHERE,
            f"invert_sigmas={inverts_sigmas}, as the model was trained",
            f"invert_sigmas={not inverts_sigmas}",
            "Make the scheduler from the model's own config.",
        )
    set_ = [key for key in _SPACINGS if scheduler.config.get(key)]
    if set_:
        raise ScheduleError(
            _WHERE,
            "sigmas spaced by a shift alone",
            ", ".join(f"{key}={scheduler.config.get(key)!r}" for key in set_),
            "Make the scheduler from its config without, or use a recipe without stages.",
        )


def check_start(pipe: Any, recipe: Recipe, adapter: AbstractModelAdapter) -> None:
    """Refuse pipelines that start from a picture in a way that the adapter does not know.

    The others may hold the picture against the mask after every step, with the run's first
    noise; so lifts must keep that.
    """
    expected = got = None
    if starts_from_picture(pipe) and not adapter.takes_pictures(pipe):
        expected = "a pipeline that starts at sigma 1"
        got = f"{type(pipe).__name__}, which starts from a picture (strength)"
        fix = "Use its text-to-image pipeline, or a recipe without stages."
    elif takes_strength(pipe):
        forms = {stage.lift.form for stage in recipe.stages if stage.lift}
        drawn = forms & {"fresh", "spectral"}
        expected = "lifts that keep the run's noise (trajectory, clean, latent)"
        got = f"{min(drawn)} for {type(pipe).__name__}" if drawn else None
        fix = "Choose another form for these lifts."
    if expected and got:
        raise AttachError(_WHERE, expected, got, fix)


def check_unattached(pipe: Any, transformers: Sequence[Any]) -> None:
    """Refuse a pipeline that, or whose transformer or scheduler, is accelerated already.

    Args:
        pipe: A pipeline with transformer and scheduler.
        transformers: Those that its steps are divided among.

    Raises:
        AttachError: If middleware is found on any of the three.
    """
    hooks = [h for each in transformers for h in each._forward_pre_hooks.values()]  # no public view
    is_hooked = any(isinstance(getattr(h, "__self__", None), Middleware) for h in hooks)
    attached = {
        "pipeline": has_wraps(pipe),
        "scheduler": has_wraps(pipe.scheduler),
        "transformer": is_hooked,
    }
    found = [name for name, is_attached in attached.items() if is_attached]
    if found:
        raise AttachError(
            "accelerate(pipe, recipe)",
            "a pipeline that is not accelerated yet",
            f"one whose {' and '.join(found)} already has fresco's middleware",
            "Call restore() on the first Accelerated, then accelerate once.",
        )
