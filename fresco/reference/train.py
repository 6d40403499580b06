"""Train the reference model from nothing: autoencoder, text encoders, transformer.

Every part leaves its result in the run's folder and is not done again, so an interrupted
training goes on where it stopped. The transformer's schedule is a share of a time budget:
the first 30 % see 64 and 128 px only, unless it goes on from trained weights; then all three,
up to 70 % mostly parts of the pictures at 256 px.
The rate is constant to one half and falls to zero; the last 45 % learn guidance.
"""

from __future__ import annotations

import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from torch import Tensor
from transformers import CLIPTextModel, PreTrainedTokenizerFast, T5EncoderModel

from fresco.reference import parallel, text
from fresco.reference.autoencoder import train_autoencoder
from fresco.reference.dataset import LatentDataset, make_pictures, write_shard
from fresco.reference.log import Log
from fresco.reference.precision import compute_dtype
from fresco.reference.readout import Readout, token_places
from fresco.reference.scenes import PLACES
from fresco.reference.transformer import (
    Batch,
    build_optimizers,
    build_transformer,
    flow_loss,
    transformer_of,
)

SEED = 1  # series of the training scenes, and of the autoencoder's
VAE_STEPS, TEXT_STEPS, N_SHARDS = 2600, 1300, 12
BATCH = {64: 80, 128: 36, 256: 8}  # pictures per step, all processes together: equal time
PARTIAL_BATCH, PARTIAL_PLACES = 24, 3  # the same of partial pictures, and how many of 9 places
PARTIAL_SHARE, PARTIAL_PROBABILITY = 0.7, 0.75  # of the time budget; then, of the steps at 256 px
READOUT_WEIGHT = 0.2  # of the auxiliary loss, falling to zero
EMA_DECAY, GUIDED_EMA_DECAY = 0.997, 0.98  # the guided share is short
WARM_UP = 100  # steps
COARSE_SHARE, CONSTANT_SHARE, GUIDED_SHARE = 0.3, 0.5, 0.55  # of the time budget
CHECKPOINT_S = 1200.0
STARTED_FROM = "started_from.json"


def start_from(pipeline: Path, folder: Path) -> None:
    """Let a new run go on from a trained pipeline: its frozen parts, and its transformer to start.

    Args:
        pipeline: A FluxPipeline directory, such as the one that ships.
        folder: The run's folder; parts that it has already stay. The pipeline's provenance
            is kept there, and becomes part of the new one's.
    """
    for part in ("vae", "text_encoder", "text_encoder_2", "transformer"):
        if not (folder / part).exists():
            shutil.copytree(pipeline / part, folder / part)
    if not (folder / STARTED_FROM).exists():
        shutil.copy(pipeline / "provenance.json", folder / STARTED_FROM)


def prepare(
    folder: Path, log: Log, device: torch.device, vae_steps: int = VAE_STEPS,
    text_steps: int = TEXT_STEPS,
) -> None:  # fmt: skip
    """Autoencoder and text encoders, each unless the folder has it."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "vae").exists():
        vae = train_autoencoder(make_pictures(SEED, 1500), vae_steps, folder, log, device)
        vae.save_pretrained(folder / "vae")
    if not (folder / "text_encoder").exists():
        clip, t5 = text.train_encoders(text_steps, log, device)
        t5.save_pretrained(folder / "text_encoder_2")
        clip.save_pretrained(folder / "text_encoder")


def draw_latents(
    folder: Path, seed: int, log: Log, device: torch.device, n_shards: int = N_SHARDS
) -> None:
    """Draw the latents of a series of scenes that the folder lacks, this process its share."""
    vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32).to(device)
    for index in range(parallel.rank(), n_shards, parallel.world()):
        write_shard(vae, seed, index, folder)
        log({"shards": index + 1})


class TextFeatures:
    """Frozen encoders of a run's folder; captions -> what the transformer is given."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.device = device
        exact = {"dtype": torch.float32}  # their files have 16 bits
        self.clip = CLIPTextModel.from_pretrained(folder / "text_encoder", **exact).to(device)
        self.t5 = T5EncoderModel.from_pretrained(folder / "text_encoder_2", **exact).to(device)
        self.clip_tokenizer, self.t5_tokenizer = text.build_tokenizers()

    @torch.no_grad()
    def __call__(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """T5's tokens [b, 40, d] and CLIP's pooled output [b, d]."""

        def ids(tokenizer: PreTrainedTokenizerFast, length: int) -> Tensor:
            return text.tokenize(tokenizer, captions, length).to(self.device)

        tokens: Tensor = self.t5(ids(self.t5_tokenizer, text.MAX_TOKENS)).last_hidden_state
        pooled: Tensor = self.clip(ids(self.clip_tokenizer, text.CLIP_MAX_TOKENS)).pooler_output
        return tokens, pooled


class Training:
    """The transformer's training: state, checkpoints, one step at a time.

    Weights are kept in float32 and computed with in bfloat16, where the hardware can.
    """

    def __init__(self, folder: Path, budget_s: float, device: torch.device) -> None:
        torch.manual_seed(0)
        self.folder, self.budget_s = folder, budget_s
        self.master = build_transformer().to(device)
        self.continues = (folder / "transformer").exists()  # of `start_from`
        if self.continues:
            start = FluxTransformer2DModel.from_pretrained(folder / "transformer")
            self.master.load_state_dict(start.state_dict())
        self.compute = build_transformer().to(device, compute_dtype(device))
        self.readout = Readout(self.compute).to(device)
        self.optimizers = build_optimizers(self.master, self.readout)
        self.rates = [o.param_groups[0]["lr"] for o in self.optimizers]
        self.average = {n: p.detach().clone() for n, p in self.master.named_parameters()}
        self.teacher: FluxTransformer2DModel | None = None  # of the guided share
        self.step, self.elapsed_s = 0, 0.0
        if (folder / "transformer.pt").exists():
            self._load(
                torch.load(folder / "transformer.pt", weights_only=True, map_location=device)
            )
        self._copy_weights()

    @property
    def progress(self) -> float:
        """Share of the time budget that is spent."""
        return self.elapsed_s / self.budget_s

    def draw_size_px(self, rng: np.random.Generator) -> int:
        """Picture size of the next step."""
        coarse = self.progress < COARSE_SHARE and not self.continues
        odds = (0.5, 0.5, 0.0) if coarse else (0.15, 0.3, 0.55)
        return int(rng.choice((64, 128, 256), p=odds))

    def draw_places(self, size_px: int, data: LatentDataset, rng: np.random.Generator) -> list[int]:
        """Which of the nine places the next step sees; some scene of the data fits them.

        Most of a picture is background. At 256 px most steps see three of the nine places only,
        of scenes that have their objects there: a third of the tokens and thrice the pictures.
        After MaskDiT (Zheng et al., arXiv 2306.09305), which drops tokens at random.
        """
        partial = size_px == 256 and self.progress < PARTIAL_SHARE
        if not partial or rng.random() >= PARTIAL_PROBABILITY:
            return list(range(len(PLACES)))
        taken = data.objects[rng.integers(len(data.objects))]
        order = np.argsort(rng.random(len(PLACES)) - taken)  # those of one scene first
        return sorted(order[:PARTIAL_PLACES].tolist())

    def take_step(
        self, batch: Batch, generator: torch.Generator, places: Sequence[int] = range(len(PLACES))
    ) -> tuple[float, float]:
        """One optimizer step that sees the tokens of `places`; the loss and the auxiliary one."""
        of_tokens = token_places(batch.latents.shape[-1] // 2)
        seen = torch.isin(of_tokens, torch.tensor(places)).nonzero().flatten()
        factor = min((self.step + 1) / WARM_UP, (1 - self.progress) / (1 - CONSTANT_SHARE), 1)
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * max(factor, 0.0)
        if self.progress > GUIDED_SHARE and self.teacher is None:
            self._set_teacher(self.average)
        loss = flow_loss(self.compute, batch, generator, self.teacher, seen.to(self.compute.device))
        told = self.readout.loss(batch.scenes, of_tokens[seen])
        (loss + READOUT_WEIGHT * max(1 - self.progress, 0) * told).backward()
        for weight, computed in zip(
            self.master.parameters(), self.compute.parameters(), strict=True
        ):
            weight.grad = computed.grad.float()
            computed.grad = None
        trained = [*self.master.parameters(), *self.readout.parameters()]
        parallel.average_([p.grad for p in trained])
        torch.nn.utils.clip_grad_norm_(self.master.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.readout.zero_grad()
        self._copy_weights()
        longest = EMA_DECAY if self.teacher is None else GUIDED_EMA_DECAY
        decay = min(longest, (1 + self.step) / (10 + self.step))
        weights = [p.detach() for p in self.master.parameters()]
        torch._foreach_lerp_(list(self.average.values()), weights, 1 - decay)
        self.step += 1
        return loss.item(), told.item()

    @torch.no_grad()
    def _copy_weights(self) -> None:
        torch._foreach_copy_(list(self.compute.parameters()), list(self.master.parameters()))

    def _set_teacher(self, weights: dict[str, Tensor]) -> None:
        self.teacher = transformer_of(weights).to(self.compute.device, self.compute.dtype)

    def averaged(self) -> FluxTransformer2DModel:
        """The transformer with the weights' moving average; what is shipped and sampled."""
        return transformer_of(self.average)

    def save(self) -> None:
        """Write a checkpoint, whole or not at all."""
        state = {
            "model": self.master.state_dict(),
            "average": self.average,
            "readout": self.readout.state_dict(),
            "teacher": self.teacher.state_dict() if self.teacher else None,
            "optimizers": [o.state_dict() for o in self.optimizers],
            "step": self.step,
            "elapsed_s": self.elapsed_s,
        }
        torch.save(state, self.folder / "transformer.tmp")
        (self.folder / "transformer.tmp").rename(self.folder / "transformer.pt")

    def _load(self, state: dict[str, Any]) -> None:
        self.master.load_state_dict(state["model"])
        self.readout.load_state_dict(state["readout"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        if state["teacher"]:
            self._set_teacher(state["teacher"])
        self.average, self.step = state["average"], state["step"]
        self.elapsed_s = state["elapsed_s"]


def train_transformer(
    folder: Path,
    budget_s: float,
    seed: int,
    log: Log,
    device: torch.device,
    on_checkpoint: Callable[[Training], None] | None = None,
) -> Training:
    """Train until the time budget is spent, going on from the folder's checkpoint.

    Args:
        folder: A run's folder that `prepare` has filled.
        budget_s: Seconds of training in all, those before an interruption included.
        seed: Series of scenes that `draw_latents` has drawn there.
        log: Called with figures every 20 steps.
        device: Where to train.
        on_checkpoint: Called after every checkpoint; its seconds do not count.

    Returns:
        The finished training.
    """
    training = Training(folder, budget_s, device)
    data, features = LatentDataset(seed, folder), TextFeatures(folder, device)
    no_text, no_pooled = features([""])
    shared_rng = np.random.default_rng((seed, training.step))  # the same in every process
    rng = np.random.default_rng((seed, training.step, parallel.rank()))
    generator = torch.Generator(device).manual_seed(int(rng.integers(2**31)))
    losses: dict[str, list[float]] = defaultdict(list)
    saved_s = training.elapsed_s
    while training.progress < 1:
        start = time.perf_counter()
        size_px = training.draw_size_px(shared_rng)
        places = training.draw_places(size_px, data, shared_rng)
        whole = len(places) == len(PLACES)
        n = max((BATCH[size_px] if whole else PARTIAL_BATCH) // parallel.world(), 1)
        latents, captions, scenes = data.draw(size_px, n, rng, places)
        seen = features(captions)
        batch = Batch(latents.to(device), *seen, no_text, no_pooled, scenes.to(device))
        loss, told = training.take_step(batch, generator, places)
        name = f"{size_px}" if whole else f"{size_px}_partial"
        losses[f"loss_{name}"].append(loss)
        losses[f"told_{name}"].append(told)
        spent = torch.tensor([time.perf_counter() - start], device=device)
        parallel.average_([spent])  # all processes stop at the same step
        training.elapsed_s += spent.item()
        if training.step % 20 == 0:
            means = {name: float(np.mean(values)) for name, values in losses.items()}
            log({"step": training.step, "elapsed_s": training.elapsed_s, **means})
            losses.clear()
        if training.elapsed_s - saved_s > CHECKPOINT_S or training.progress >= 1:
            if parallel.rank() == 0:
                training.save()
                if on_checkpoint:
                    on_checkpoint(training)
            saved_s = training.elapsed_s
            data = LatentDataset(seed, folder)  # more shards may have been written meanwhile
    return training
