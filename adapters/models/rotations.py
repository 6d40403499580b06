"""Positions of every picture's own in one call of a transformer whose ids have no batch axis.

Queries and keys are turned as they leave their norms, and the model's attention is not told to
turn them again. Calls of other threads are left alone.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping
from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor, nn


class Rotations:
    """Hooks on the attention of a transformer, while a call with such positions is on.

    Args:
        transformer: One with `pos_embed`, and blocks as FLUX.1 has them: images and text side by
            side in the first ones, text before images in the others.
    """

    def __init__(self, transformer: Any) -> None:
        self._transformer = transformer
        self._handles: list[Any] = []
        self._thread: threading.Thread | None = None  # whose call is on
        self._turned = (torch.empty(0), torch.empty(0))  # image and text ids of the last call
        self._turns: list[Any] = []  # made for them

    def start(self, ids: Tensor, text_ids: Tensor) -> None:
        """Turn the tokens of the next call by their ids.

        Args:
            ids: Of every picture's image tokens, [b, n, axes].
            text_ids: [t, axes], or [any, t, axes] of equal rows; the models take the first.
        """
        self.stop()
        self._thread = threading.current_thread()
        text_ids = text_ids.reshape(-1, *text_ids.shape[-2:])[:1].to(ids)
        if not all(map(_are_equal, (ids, text_ids), self._turned)):
            self._turned = ids, text_ids
            texts = text_ids.expand(len(ids), -1, -1)
            every = ids, texts, torch.cat((texts, ids), dim=1)
            self._turns = [self._transformer.pos_embed(each.flatten(0, 1)) for each in every]
        image, text, both = self._turns
        for block in self._transformer.transformer_blocks:
            attn = block.attn
            of_text = {attn.norm_added_q: text, attn.norm_added_k: text}
            self._hook(attn, {attn.norm_q: image, attn.norm_k: image, **of_text})
        for block in self._transformer.single_transformer_blocks:
            self._hook(block.attn, {block.attn.norm_q: both, block.attn.norm_k: both})

    def stop(self) -> None:
        """Take the hooks off."""
        self._thread = None
        while self._handles:
            self._handles.pop().remove()

    def _hook(self, attention: nn.Module, turned: Mapping[nn.Module, Any]) -> None:
        self._handles.append(
            attention.register_forward_pre_hook(self._turn_no_more, with_kwargs=True)
        )
        for norm, rotary in turned.items():
            hook = functools.partial(self._turn, rotary)
            self._handles.append(norm.register_forward_hook(hook))

    def _turn(
        self, rotary: tuple[Tensor, Tensor], _norm: nn.Module, _args: object, values: Tensor
    ) -> Tensor | None:
        """Turn queries or keys, [b, s, heads, d], by the angles of all pictures in a line."""
        if self._thread is not threading.current_thread():
            return None
        line = values.reshape(1, -1, *values.shape[2:])
        turned: Tensor = apply_rotary_emb(line, rotary, sequence_dim=1)
        return turned.view_as(values)

    def _turn_no_more(
        self, _attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self._thread is not threading.current_thread():
            return None
        return args, {**kwargs, "image_rotary_emb": None}


def _are_equal(one: Tensor, other: Tensor) -> bool:
    return one.device == other.device and torch.equal(one, other)


def uses_norms(transformer: Any) -> bool:
    """Whether all attention is diffusers' own, with the norms and arguments that are hooked."""
    blocks = (*transformer.transformer_blocks, *transformer.single_transformer_blocks)
    attentions = [getattr(block, "attn", None) for block in blocks]
    return all(
        type(getattr(each, "processor", None)) in getattr(each, "_available_processors", ())
        for each in attentions
    )
