"""What stands for text encoders and their tokenizers, where pipelines ask them for something."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from tests.family import noise


class Letters:
    """A tokenizer: a token per letter, five of them in every prompt."""

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) % 64 for letter in text]}

    def pad(self, found: dict[str, list[list[int]]], **_: object) -> Any:
        tokens = torch.tensor([(ids + 5 * [0])[:5] for ids in found["input_ids"]])
        return SimpleNamespace(input_ids=tokens, attention_mask=torch.ones_like(tokens))


class Reader(torch.nn.Module):
    """A text encoder that has a random vector for every token."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, d: int) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(noise(64, d, seed=7), requires_grad=False)

    def forward(self, input_ids: torch.Tensor, **_: object) -> Any:
        return SimpleNamespace(hidden_states=[self.table[input_ids]])


def longcat_image_parts() -> dict[str, Any]:
    return {"text_encoder": Reader(32), "tokenizer": Letters()}


class Processor:
    """Of a text encoder: Qwen-Image 2.1 asks it for the lengths of its templates."""

    tokenizer = SimpleNamespace(encode=lambda _: [0])

    def apply_chat_template(self, *_: object, **__: object) -> list[list[int]]:
        return [[0]]


def qwen_image_21_parts() -> dict[str, Any]:
    return {"processor": Processor()}
