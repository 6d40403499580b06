"""The reference model that ships with fresco: real diffusers classes, small trained weights.

Scenes of one to three objects at 256 px, from captions of a small grammar
(`fresco.reference.captions`). It says nothing about the picture quality of larger models.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fresco.errors import FrescoError

if TYPE_CHECKING:
    import torch
    from diffusers import FluxPipeline

PIPELINE = Path(__file__).parent / "weights" / "pipeline"
LORA = Path(__file__).parent / "weights" / "lora"
MAX_TOKENS = 40  # `max_sequence_length` that the model was trained with
DEFAULT_SAMPLE_SIZE = 64  # latent pixels: 256 px
GUIDANCE_SCALE = 2.5  # of what the model was distilled for, 1 to 4


class WeightsError(FrescoError, FileNotFoundError):
    """Weights that should ship with the package are not there."""


def load(folder: Path | str | None = None, dtype: torch.dtype | None = None) -> FluxPipeline:
    """Load the reference model, offline.

    Call it with `max_sequence_length=MAX_TOKENS`: it knows longer padding only from hearsay.

    Args:
        folder: A pipeline's directory; default: the one in the package.
        dtype: Of all weights; default: float32.

    Returns:
        The pipeline, on the CPU, at 256 px unless asked otherwise, without progress bar.

    Raises:
        WeightsError: If there is no whole pipeline in the folder.
    """
    home = PIPELINE if folder is None else Path(folder)
    if not (home / "model_index.json").is_file():
        raise WeightsError(
            "load(folder)",
            "a FluxPipeline directory with a model_index.json",
            f"nothing in {home.name!r}",
            "Reinstall fresco from a wheel or a full clone, or run `fresco reference train`.",
        )
    import torch
    from diffusers import FluxPipeline
    from safetensors import SafetensorError

    dtype = torch.float32 if dtype is None else dtype
    try:
        with _no_loading_bars():
            pipe = FluxPipeline.from_pretrained(home, dtype=dtype, local_files_only=True)
    except (OSError, ValueError, AttributeError, ImportError, SafetensorError) as error:
        got, fix = " ".join(str(error).split()), "Name a whole one, or reinstall fresco."
        raise WeightsError("load(folder)", "a whole FluxPipeline directory", got, fix) from error
    pipe.default_sample_size = DEFAULT_SAMPLE_SIZE
    pipe.set_progress_bar_config(disable=True)
    return pipe


@contextmanager
def _no_loading_bars() -> Iterator[None]:
    """Leave out the loading bars of diffusers and transformers: it takes a second."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    shown = [each for each in (of_diffusers, of_transformers) if each.is_progress_bar_enabled()]
    for each in shown:
        each.disable_progress_bar()
    try:
        yield
    finally:
        for each in shown:
            each.enable_progress_bar()


def lora_path() -> Path:
    """Find the few-step LoRA that ships with the package.

    Its provenance lies beside it.

    Returns:
        The file, for `pipe.load_lora_weights` or a recipe's `{kind: lora, source: ...}`.

    Raises:
        WeightsError: If it is not there.
    """
    path = LORA / "pytorch_lora_weights.safetensors"
    if not path.is_file():
        raise WeightsError(
            "lora_path()",
            f"the few-step LoRA {path.name}",
            "none in the package",
            "Run `fresco reference distill` and copy its `lora` to fresco/reference/weights/.",
        )
    return path
