"""What the engine asks of a model family."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from fresco.ddim import Levels
from fresco.errors import AdapterError
from fresco.layout import PositionUnits, TokenLayout
from fresco.target import Prediction, Target

_TEMPORAL = (  # what pipelines call the frames per latent frame
    "vae_scale_factor_temporal",
    "vae_temporal_compression_ratio",
    "vae_temporal_scale_factor",
)


class AbstractModelAdapter(ABC):
    """Everything that fresco must know about one model family.

    The carrier is the pipeline's latents as [b, c, h, w]; the frames of a video are channels
    of it. A call is the transformer's arguments by name; guidance may have the batch repeated
    in it. Tokens are [b, n, c, p, p] in the order of their layout.

    Args:
        transformer: `pipe.transformer`; only its config is kept.
    """

    model: ClassVar[str]  # class name of pipe.transformer
    patch_px: int  # latent pixels along one side of a fine token
    prediction: ClassVar[Prediction] = "flow"  # what the scheduler is given
    scheduler: ClassVar[str] = "FlowMatchEulerDiscreteScheduler"  # class that stages can drive
    noise_coefficient: ClassVar[float] = 1.0  # of that in what the transformer returns
    inverts_sigmas: ClassVar[bool] = False  # whether its scheduler's rise from 0, pure noise
    mixes: ClassVar[bool] = True  # whether cells of several sides can be in one sequence
    # positions that it can be told: without "coarse" if it counts them by the picture's size,
    # with "phase" if it has phase-aligned attention
    units: ClassVar[Collection[PositionUnits]] = ("native", "fine", "coarse", "anchor")
    passes_sigmas: ClassVar[bool] = (
        True  # whether `spacing` is its pipelines' own; else schedulers'
    )
    from_pictures: ClassVar[Collection[str]] = ()  # pipelines that `takes_pictures` names

    def __init__(self, transformer: Any) -> None:
        self.config = transformer.config

    def meet(self, pipe: Any) -> None:  # noqa: B027
        """Note what only the config of the pipeline, or of a sketch of one, says of its plans."""

    def check(self, pipe: Any) -> None:  # noqa: ARG002
        """Raise `AdapterError` for pipelines of this model that staged recipes cannot drive.

        By default, those whose transformer sees more channels than it predicts.
        """
        seen, predicted = self.config.in_channels, self.config.get("out_channels")
        if predicted not in {None, seen}:
            raise AdapterError(
                "accelerate(pipe, recipe)",
                f"a transformer that sees latents only ({predicted} channels)",
                f"{seen} input channels",
                "Use the text-to-image or -video pipeline, or a recipe without stages.",
            )

    def transformers(self, pipe: Any) -> tuple[Any, ...]:
        """Transformers that the pipeline's steps are divided among, one size for all."""
        other = getattr(pipe, "transformer_2", None)
        return (pipe.transformer,) if other is None else (pipe.transformer, other)

    def takes_pictures(self, pipe: object) -> bool:
        """Whether staged recipes can drive this pipeline from a noisy picture (strength below 1).

        Such a pipeline leaves out first steps in `get_timesteps`, and mixes the picture with the
        run's noise by `scheduler.scale_noise` in `prepare_latents`.
        """
        return any(base.__name__ in self.from_pictures for base in type(pipe).__mro__)

    @abstractmethod
    def grid(self, pipe: Any, height: int | None, width: int | None) -> tuple[int, int]:
        """Fine token rows and columns of a picture in image px; None is the pipeline's default."""

    def latent_frames(self, pipe: Any, frames: int) -> int:
        """Latent frames, of one grid of tokens each, that a video of so many frames has."""
        factors = (getattr(pipe, name, None) for name in _TEMPORAL)
        factor = next((int(each) for each in factors if each), 1)
        return (frames - 1) // factor + 1

    def still_frames(self, pipe: Any) -> int:  # noqa: ARG002
        """First latent frames that a pipeline's videos are given."""
        return 0

    def spacing(self, n_steps: int) -> Sequence[float]:
        """Sigmas that the pipeline passes by itself, before any shift."""
        return [1 - step / n_steps for step in range(n_steps)]

    def shift(self, scheduler: Any, n_tokens: int, n_steps: int) -> float:
        """Shift that the pipeline would give the scheduler for a picture of `n_tokens`.

        Args:
            scheduler: Of the pipeline.
            n_tokens: Image tokens.
            n_steps: As requested; most families do not need them.
        """
        config = scheduler.config
        if not config.use_dynamic_shifting:
            return float(scheduler.shift)
        mu = self.mu(config, n_tokens, n_steps)
        return math.exp(mu) if config.time_shift_type == "exponential" else mu

    def mu(self, config: Any, n_tokens: int, n_steps: int) -> float:  # noqa: ARG002
        """What the pipeline tells a scheduler that shifts dynamically, by the scheduler's config.

        Source:
            `calculate_shift` of huggingface/diffusers@v0.42.1:
            src/diffusers/pipelines/flux/pipeline_flux.py (Apache-2.0).
        """
        least, most = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
        return float(low + (high - low) / (most - least) * (n_tokens - least))

    def levels(self, scheduler: Any) -> Levels | None:
        """Noise levels that the scheduler has; None: any."""
        has_any = self.prediction == "flow" or not hasattr(scheduler, "alphas_cumprod")
        return None if has_any else Levels.of(scheduler)

    def target(self, sigma: float) -> Target:
        """What latents are made of at a noise level, and what the scheduler is given."""
        return Target(self.prediction, sigma)

    @abstractmethod
    def latents_shape(self, layout: TokenLayout) -> tuple[int, ...]:
        """Shape of one image's latents as the pipeline takes them; -1 is any number (of frames)."""

    def prepared(self, result: Any) -> Tensor:
        """Take the first latents, as `unpack` reads them, out of what `prepare_latents` returned.

        By default, the first or only of its results.
        """
        latents: Tensor = result[0] if isinstance(result, tuple) else result
        return latents

    def frames(self, packed: Tensor, layout: TokenLayout) -> int:  # noqa: ARG002
        """Latent frames of pipeline latents on a layout's grid."""
        return 1

    @abstractmethod
    def unpack(self, packed: Tensor, layout: TokenLayout) -> Tensor:
        """View pipeline latents, condition tokens left aside, as the carrier of a layout's grid."""

    @abstractmethod
    def pack(self, carrier: Tensor) -> Tensor:
        """Undo `unpack`."""

    @abstractmethod
    def read(self, call: Mapping[str, Any], layout: TokenLayout) -> Tensor:
        """Take the carrier out of a call."""

    @abstractmethod
    def select(self, call: Mapping[str, Any], rows: Sequence[int]) -> dict[str, Any]:
        """Return the call of some rows of its batch, by their numbers; for mixed layouts."""

    @abstractmethod
    def embed(
        self, call: Mapping[str, Any], tokens: Tensor, layout: TokenLayout, positions: Tensor
    ) -> dict[str, Any]:
        """Return the call with `tokens` in place of the full grid's, at `positions` [n, 2]."""

    def can_merge(self, transformer: Any) -> bool:  # noqa: ARG002
        """Whether pictures of one call can have positions of their own."""
        return False

    def merge(self, calls: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Make one call of what `embed` returned; of several, with as many tokens, if it can."""
        (only,) = calls
        return dict(only)

    @abstractmethod
    def unembed(self, output: Any, layout: TokenLayout) -> Tensor:
        """Take the predicted tokens out of the transformer's output."""

    @abstractmethod
    def replace(self, output: Any, carrier: Tensor, layout: TokenLayout) -> Any:
        """Return the output with the full grid's prediction in place of the tokens'."""

    def attach(self, transformer: Any, units: Collection[str]) -> Callable[[], None]:  # noqa: ARG002
        """Hook what the family needs inside of the transformer, for these units of positions.

        Returns:
            A function that takes the hooks off.
        """
        return lambda: None

    def aim(self, call: Mapping[str, Any], layout: TokenLayout | None) -> None:  # noqa: B027
        """Say whose strides the next call's attention follows; None: those of the call.

        With no call at all, the next one is not fresco's.
        """

    def with_sample(self, output: Any, sample: Tensor) -> Any:
        """Return the output with another prediction in it; both of diffusers' forms."""
        if isinstance(output, tuple):
            return (sample, *output[1:])
        return type(output)(**{**output, "sample": sample})

    def join(self, outputs: Sequence[Any], back: Tensor) -> Any:
        """Join the outputs of parts of a batch; row `back[i]` of all of them is its row i."""
        return self.with_sample(outputs[0], torch.cat([output[0] for output in outputs])[back])

    @abstractmethod
    def text_tokens(self, call: Mapping[str, Any]) -> int:
        """Number of text tokens in a call."""

    def given_tokens(self, call: Mapping[str, Any], layout: TokenLayout) -> int:  # noqa: ARG002
        """Image tokens in a full grid's call that are given: a reference picture, a first frame."""
        return 0

    @abstractmethod
    def example_call(self, transformer: Any, n_tokens: int, n_text_tokens: int) -> dict[str, Any]:
        """Arguments of one pass on the transformer's device, batch 1, to count FLOPs with."""

    def make_countable(self, skeleton: Any) -> None:  # noqa: B027
        """Change a copy without weights that cannot take an `example_call` as it is."""
