"""The reference model's text side: two small tokenizers, `CLIPTextModel` and `T5EncoderModel`.

FLUX conditions on text encoders that were trained elsewhere and are frozen. Here too: both
learn to understand captions before the transformer sees a picture. Each token of T5 tells
all that the caption asks of the object it speaks of ("red" knows "striped" and "top left"),
the pooled output of CLIP tells what the caption asks at each place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from fresco.reference.captions import (
    BACKGROUND_TABLES,
    OBJECT_TABLES,
    AskedScene,
    Caption,
    describe,
    vocabulary,
)
from fresco.reference.precision import autocast
from fresco.reference.scenes import PLACES, sample_scene

WIDTH = 128
MAX_TOKENS = 40  # the longest caption has 37 words, and the end mark
CLIP_MAX_TOKENS = 77
SPECIAL = ("<pad>", "<unk>", "<bos>", "<eos>")
PAD, UNKNOWN, BOS, EOS = range(4)
TABLES = {**OBJECT_TABLES, **BACKGROUND_TABLES}
CLASSES = {name: [None, *(word for word in table if word)] for name, table in TABLES.items()}


def build_tokenizers() -> tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast]:
    """Word-level tokenizers of the grammar: CLIP's (<bos> text <eos>) and T5's (text <eos>)."""
    ids = {word: index for index, word in enumerate((*SPECIAL, *vocabulary()))}

    def build(template: str, max_tokens: int) -> PreTrainedTokenizerFast:
        tokenizer = Tokenizer(WordLevel(ids, unk_token="<unk>"))
        tokenizer.normalizer = Lowercase()
        tokenizer.pre_tokenizer = Whitespace()
        tokenizer.post_processor = TemplateProcessing(
            single=template, special_tokens=[("<bos>", BOS), ("<eos>", EOS)]
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            model_max_length=max_tokens,
            pad_token="<pad>",
            unk_token="<unk>",
            bos_token="<bos>",
            eos_token="<eos>",
        )

    return build("<bos> $A <eos>", CLIP_MAX_TOKENS), build("$A <eos>", 512)


def build_encoders() -> tuple[CLIPTextModel, T5EncoderModel]:
    """Untrained encoders of width 128."""
    n_words = len(SPECIAL) + len(vocabulary())
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=n_words,
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=CLIP_MAX_TOKENS,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=EOS,
        )
    )
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=n_words,
            d_model=WIDTH,
            d_kv=WIDTH // 4,
            d_ff=2 * WIDTH,
            num_layers=3,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            pad_token_id=PAD,
            eos_token_id=EOS,
        )
    )
    return clip, t5


class _Readout(nn.Module):
    """What the encoders' outputs are asked to tell; thrown away after training."""

    def __init__(self) -> None:
        super().__init__()
        self.per_token = nn.ModuleDict({n: nn.Linear(WIDTH, len(c)) for n, c in CLASSES.items()})
        self.per_place = nn.ModuleDict(
            {n: nn.Linear(WIDTH, len(PLACES) * (len(CLASSES[n]) + 1)) for n in OBJECT_TABLES}
        )
        self.pooled = nn.ModuleDict(
            {n: nn.Linear(WIDTH, len(CLASSES[n])) for n in BACKGROUND_TABLES}
        )


def train_encoders(
    steps: int, log: Callable[[dict[str, float]], None], device: torch.device, batch: int = 64
) -> tuple[CLIPTextModel, T5EncoderModel]:
    """Teach both encoders to understand captions; takes a few minutes, so it keeps no checkpoint.

    Args:
        steps: Optimizer steps.
        log: Called with figures every 100 steps.
        device: Where to train.
        batch: Captions per step.

    Returns:
        The trained encoders, float32.
    """
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    clip_tokens, t5_tokens = build_tokenizers()
    clip, t5, readout = (module.to(device) for module in (*build_encoders(), _Readout()))
    parameters = [*clip.parameters(), *t5.parameters(), *readout.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 100, 1.3 * (1 - step / steps), 1)
    )
    for step in range(steps):
        captions = [describe(sample_scene(rng), rng) for _ in range(batch)]
        # captions are padded without a mask, as FluxPipeline does: meet other lengths too
        length = int(rng.choice((MAX_TOKENS, 64, 128, 512), p=(0.85, 0.08, 0.05, 0.02)))
        n = batch if length < 512 else batch // 8
        with autocast(device):
            loss_t5, right_t5 = _token_loss(t5, t5_tokens, readout, captions[:n], length)
            loss_clip, right_clip = _pooled_loss(clip, clip_tokens, readout, captions)
        (loss_t5 + loss_clip).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 100 == 99 or step + 1 == steps:
            log({"step": step + 1, "t5_right": right_t5, "clip_right": right_clip})
    return clip.eval().cpu(), t5.eval().cpu()


def tokenize(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], length: int) -> Tensor:
    """Token ids padded to `length`, int64 [b, length], as FluxPipeline makes them."""
    encoded = tokenizer(
        list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )
    ids: Tensor = encoded.input_ids
    return ids


def _token_loss(
    t5: T5EncoderModel, tokenizer: PreTrainedTokenizerFast, readout: _Readout,
    captions: list[Caption], length: int,
) -> tuple[Tensor, float]:  # fmt: skip
    ids = tokenize(tokenizer, [c.text for c in captions], length).to(t5.device)
    hidden = t5(ids).last_hidden_state
    losses, right = [], []
    for name, classes in CLASSES.items():
        target = torch.full(hidden.shape[:2], -100)
        for row, caption in enumerate(captions):
            said = [classes.index(_asked(caption.asked, owner, name)) for owner in caption.owners]
            target[row, : len(said)] = torch.tensor(said)
        target = target.to(hidden.device)
        scores = readout.per_token[name](hidden)
        losses.append(F.cross_entropy(scores.float().flatten(0, 1), target.flatten()))
        right.append((scores.argmax(-1) == target)[target >= 0].float().mean())
    return torch.stack(losses).mean(), float(torch.stack(right).min())


def _asked(asked: AskedScene, owner: int, name: str) -> str | None:
    if owner == -2:
        return getattr(asked, name, None)
    return getattr(asked.objects[owner], name, None) if owner >= 0 else None


def _pooled_loss(
    clip: CLIPTextModel,
    tokenizer: PreTrainedTokenizerFast,
    readout: _Readout,
    captions: list[Caption],
) -> tuple[Tensor, float]:
    tokens = tokenize(tokenizer, [c.text for c in captions], MAX_TOKENS).to(clip.device)
    pooled = clip(tokens).pooler_output
    losses, right = [], []
    for name in OBJECT_TABLES:  # class 0: nothing is asked at this place
        target = torch.zeros(len(captions), len(PLACES), dtype=torch.int64)
        for row, caption in enumerate(captions):
            for thing in caption.asked.objects:
                if thing.place:
                    column = PLACES.index(thing.place)
                    target[row, column] = 1 + CLASSES[name].index(getattr(thing, name))
        target = target.to(pooled.device)
        scores = readout.per_place[name](pooled).view(*target.shape, -1)
        losses.append(F.cross_entropy(scores.float().flatten(0, 1), target.flatten()))
        right.append((scores.argmax(-1) == target).float().mean())
    for name in BACKGROUND_TABLES:
        ids = [CLASSES[name].index(getattr(caption.asked, name)) for caption in captions]
        losses.append(
            F.cross_entropy(
                readout.pooled[name](pooled).float(), torch.tensor(ids, device=pooled.device)
            )
        )
    return torch.stack(losses).mean(), float(torch.stack(right).min())
