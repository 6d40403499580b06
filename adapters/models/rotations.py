"""Positions of every picture's own in one call of a transformer whose ids have no batch axis.

The call's ids are zeros, by which its own rotary embedding turns nothing; queries and keys are
turned before, as they leave their norms. Calls of other threads are left alone.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor, nn

from fresco.errors import AdapterError


class Rotations:
    """Hooks on the norms of queries and keys, while a call with such positions is on.

    Args:
        transformer: One with `pos_embed`, and blocks as FLUX.1 has them: images in the first
            ones, behind the text in the others.
    """

    def __init__(self, transformer: Any) -> None:
        self._embed_positions = transformer.pos_embed
        blocks = (*transformer.transformer_blocks, *transformer.single_transformer_blocks)
        self._norms = [norm for block in blocks for norm in (block.attn.norm_q, block.attn.norm_k)]
        self._handles: list[Any] = []
        self._rotary: tuple[Tensor, Tensor] | None = None
        self._n_turned = 0

    def start(self, ids: Tensor) -> None:
        """Turn the image tokens of the next call by their ids, [b, n, axes]."""
        self.stop()
        self._rotary = self._embed_positions(ids.flatten(0, 1))
        self._shape, self._n_turned = ids.shape[:2], 0
        self._thread = threading.current_thread()
        self._handles = [norm.register_forward_hook(self._turn) for norm in self._norms]

    def stop(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def check(self) -> None:
        """Raise `AdapterError` if the call that has ended did not use what is hooked."""
        if self._handles and self._n_turned < len(self._handles):
            raise AdapterError(
                "pipe(prompt, ...)",
                "attention whose queries and keys leave norm_q and norm_k in every block",
                f"{self._n_turned} of {len(self._handles)} norms that were called",
                "Ask for one picture per call, or take off what skips them.",
            )

    def _turn(self, _norm: nn.Module, _args: object, values: Tensor) -> Tensor | None:
        """Turn the image tokens of queries or keys, [b, s, heads, d]."""
        if self._thread is not threading.current_thread():
            return None
        assert self._rotary
        self._n_turned += 1
        b, n = self._shape
        text, image = values.split((values.shape[1] - n, n), dim=1)
        line = image.reshape(1, b * n, *image.shape[2:])  # what is turned alike in every batch
        turned = apply_rotary_emb(line, self._rotary, sequence_dim=1).view_as(image)
        return torch.cat((text, turned), dim=1)
