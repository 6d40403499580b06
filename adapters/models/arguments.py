"""The arguments that most transformers of diffusers have in common, by name."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from fresco.errors import AdapterError
from fresco.layout import TokenLayout
from fresco.ports import AbstractModelAdapter

from .rows import select_residuals, select_rows

CALL = "pipe(prompt, ...)"  # where errors of a call are raised


class ArgumentsAdapter(AbstractModelAdapter):
    """Latents are `hidden_states`, text is `encoder_hidden_states`, and there is a `timestep`."""

    # arguments with a batch axis
    batched: ClassVar[tuple[str, ...]] = ("hidden_states", "encoder_hidden_states", "timestep")
    residuals: ClassVar[tuple[str, ...]] = ()  # of a ControlNet, tied to the full grid
    pooled: ClassVar[tuple[str, ...]] = ()  # such ones that cells average
    text_width: ClassVar[str]  # what the config calls the width of the text

    def read(self, call: Mapping[str, Any], layout: TokenLayout) -> Tensor:
        given = [name for name in self.residuals if call.get(name) is not None]
        if given:
            expected = "a call without ControlNet residuals in coarse stages"
            fix = "Restore the pipeline, or use a recipe without stages."
            raise AdapterError(CALL, expected, " and ".join(given), fix)
        return self.unpack(call["hidden_states"], layout)

    def select(self, call: Mapping[str, Any], rows: Sequence[int]) -> dict[str, Any]:
        if not self.mixes:
            raise AdapterError(CALL, "one layout per batch", f"rows {list(rows)}", "Report this.")
        own = select_rows(call, self.batched, rows)
        return own | select_residuals(call, self.pooled, rows)

    def text_tokens(self, call: Mapping[str, Any]) -> int:
        return int(call["encoder_hidden_states"].shape[1])

    @abstractmethod
    def example_latents(self, transformer: Any, n_tokens: int) -> Tensor:
        """Zeros of so many tokens, batch 1, on the transformer's device."""

    def example_call(self, transformer: Any, n_tokens: int, n_text_tokens: int) -> dict[str, Any]:
        """Arguments of one pass: with a mask and a pooled text if `batched` names them.

        A family that takes more adds it to what this returns.
        """
        latents, config = self.example_latents(transformer, n_tokens), self.config
        call = {
            "hidden_states": latents,
            "encoder_hidden_states": latents.new_zeros(1, n_text_tokens, config[self.text_width]),
            "timestep": latents.new_zeros(1),
            "return_dict": False,
        }
        if "encoder_attention_mask" in self.batched:
            call["encoder_attention_mask"] = latents.new_ones(1, n_text_tokens, dtype=torch.bool)
        if "pooled_projections" in self.batched:
            call["pooled_projections"] = latents.new_zeros(1, config.pooled_projection_dim)
        if config.get("guidance_embeds"):
            call["guidance"] = latents.new_zeros(1)
        return call


def no_stages(expected: str, got: str) -> AdapterError:
    """The error of a pipeline that staged recipes cannot drive."""
    return AdapterError("accelerate(pipe, recipe)", expected, got, "Use a recipe without stages.")


def near_square(n_tokens: int) -> tuple[int, int]:
    """Rows and columns of so many tokens, as square as can be.

    Example:
        >>> near_square(12), near_square(7)
        ((3, 4), (1, 7))
    """
    rows = next(r for r in range(math.isqrt(n_tokens), 0, -1) if n_tokens % r == 0)
    return rows, n_tokens // rows


def zeros_for(transformer: Any, *shape: int) -> Tensor:
    """Zeros where a transformer is, of the type that it computes in.

    Not that of its first weight, which some keep in float32 (Wan).
    """
    return torch.zeros(shape, dtype=transformer.dtype, device=transformer.device)
