"""Distil the reference model's many steps into few: a LoRA that straightens its paths.

Piecewise rectified flow (PeRFlow: Yan et al., arXiv 2405.07510): the path from noise to picture
is cut into windows; in each, latents on the straight line between the teacher's latents at both
borders are the student's inputs, and the line's slope is its target, so that one Euler step
crosses a window. Deviates: windows start from the teacher's own trajectories, not from noised
data, so that no pictures are needed and the student's pictures are those of the same noise;
a share of the inputs lies at the border that few steps start from; coarse steps learn the
trajectories of the full grid, as they would see them, and what follows them in staged runs has
windows too; long windows are drawn more often; the guidance scale is always the default one.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from safetensors.torch import load_file
from torch import Tensor

from fresco.reference import GUIDANCE_SCALE, MAX_TOKENS, parallel
from fresco.reference.precision import compute_dtype
from fresco.reference.trajectories import COARSE, FINE, LIFTED, Segments, read_shards
from fresco.reference.transformer import Tokens, velocity

if TYPE_CHECKING:
    from fresco.reference.log import Log

RANK = 32
TARGETS = (  # the projections of the blocks and all modulation, as a pattern of names
    r"(single_)?transformer_blocks\.\d+\.(attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"
    r"|ff(_context)?\.net\.(0\.proj|2)|proj_mlp|proj_out|norm1?(_context)?\.linear)"
    r"|norm_out\.linear"
)
BATCH = {FINE: 4, COARSE: 16, LIFTED: 4}  # segments per step, all processes together: equal time
ODDS = {FINE: 0.75, COARSE: 0.05, LIFTED: 0.2}
BORDER_SHARE = 0.85  # of the inputs that lie where a window starts
RATE, WARM_UP = 7e-4, 20  # of AdamW; steps
FLAT = 0.03  # error below which a token counts with its square, by and large
EMA_DECAY = 0.99
CHECKPOINT_S = 120.0
CHECKPOINT = "distillation.pt"
FILE = "pytorch_lora_weights.safetensors"


class Distillation:
    """A LoRA's training: state, checkpoints, one step at a time.

    The LoRA is kept in float32 and computed with in bfloat16, where the hardware can.

    Args:
        folder: A run's folder; a checkpoint in it is gone on from.
        budget_s: Seconds of training in all.
        transformer: The teacher's, which becomes the student's.
        start: A LoRA's file to begin with, unless there is a checkpoint; default: a new LoRA.
    """

    def __init__(
        self,
        folder: Path,
        budget_s: float,
        transformer: FluxTransformer2DModel,
        start: Path | None = None,
    ) -> None:
        from peft import LoraConfig

        torch.manual_seed(0)
        self.folder, self.budget_s = folder, budget_s
        device = transformer.device
        self.student = transformer.to(compute_dtype(device)).requires_grad_(False)
        self.student.add_adapter(
            LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS, init_lora_weights=True)
        )
        named = {n: p for n, p in self.student.named_parameters() if p.requires_grad}
        self.names, self.computed = list(named), list(named.values())
        self.master = [torch.nn.Parameter(p.detach().float()) for p in self.computed]
        if start is not None:
            self._go_on_from(start)
        self.average = [p.detach().clone() for p in self.master]
        self.optimizer = torch.optim.AdamW(self.master, lr=RATE, betas=(0.9, 0.99), weight_decay=0)
        self.step, self.elapsed_s = 0, 0.0
        if (folder / CHECKPOINT).exists():
            self._load(torch.load(folder / CHECKPOINT, weights_only=True, map_location=device))
        self._copy_weights()

    @property
    def progress(self) -> float:
        """Share of the time budget that is spent."""
        return self.elapsed_s / self.budget_s

    def take_step(self, segments: Segments, share: Tensor, text: Tensor, pooled: Tensor) -> float:
        """One optimizer step; returns the loss.

        Args:
            segments: Of one size.
            share: How far each input lies toward its segment's start, in [0, 1], [b].
            text: T5's tokens, float32 [b, t, d].
            pooled: CLIP's pooled output, float32 [b, d].
        """
        factor = min((self.step + 1) / WARM_UP, 1 - self.progress)
        self.optimizer.param_groups[0]["lr"] = RATE * max(factor, 0.0)
        loss = slope_loss(self.student, segments, share, text, pooled)
        loss.backward()
        for weight, computed in zip(self.master, self.computed, strict=True):
            grad = torch.zeros_like(computed) if computed.grad is None else computed.grad
            weight.grad, computed.grad = grad.float(), None
        parallel.average_([p.grad for p in self.master if p.grad is not None])
        torch.nn.utils.clip_grad_norm_(self.master, 1.0)
        self.optimizer.step()
        self._copy_weights()
        decay = min(EMA_DECAY, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.master], 1 - decay)
        self.step += 1
        return loss.item()

    @torch.no_grad()
    def _copy_weights(self) -> None:
        torch._foreach_copy_([*self.computed], [*self.master])

    def write_lora(self, out: Path) -> Path:
        """Write the averaged LoRA as diffusers and peft read it, in float16; returns the file."""
        weights = [weight.half().cpu() for weight in self.average]
        layers = dict(zip(self._names_in_file(), weights, strict=True))
        FluxPipeline.save_lora_weights(out, transformer_lora_layers=layers, weight_name=FILE)
        (out / FILE).chmod(0o644)  # it is written for its owner alone
        return out / FILE

    def save(self) -> None:
        """Write a checkpoint, whole or not at all."""
        state = {
            "master": [p.detach() for p in self.master],
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "elapsed_s": self.elapsed_s,
        }
        path = self.folder / CHECKPOINT
        torch.save(state, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").rename(path)

    @torch.no_grad()
    def _go_on_from(self, start: Path) -> None:
        """Take over what `write_lora` wrote; layers that the file does not have stay new."""
        own = dict(zip(self._names_in_file(), self.master, strict=True))
        for name, tensor in load_file(start).items():
            own[name.removeprefix("transformer.")].copy_(tensor)

    def _names_in_file(self) -> list[str]:
        return [name.replace(".default.", ".") for name in self.names]

    @torch.no_grad()
    def _load(self, state: dict[str, Any]) -> None:
        torch._foreach_copy_([*self.master], state["master"])
        self.average = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.elapsed_s = state["step"], state["elapsed_s"]


def slope_loss(
    transformer: FluxTransformer2DModel,
    segments: Segments,
    share: Tensor,
    text: Tensor,
    pooled: Tensor,
) -> Tensor:
    """Error to the slopes of straight segments, at points on them.

    A pseudo-Huber loss of every token's error, averaged: squared errors of windows where the model
    errs most, and of tokens where two things meet, would outweigh the others, and fine texture
    would be lost (after improved consistency training: Song and Dhariwal, arXiv 2310.14189,
    eq. 5, which takes the error of whole pictures).

    Args:
        transformer: What is trained.
        segments: Of one size, [b].
        share: How far each point lies toward its segment's start, in [0, 1], [b].
        text: T5's tokens, float32 [b, t, d].
        pooled: CLIP's pooled output, float32 [b, d].

    Returns:
        The loss, a scalar.
    """
    start, end = segments.start.float(), segments.end.float()
    b, n, _ = start.shape
    side = round(n**0.5)
    ids = FluxPipeline._prepare_latent_image_ids(b, side, side, start.device, start.dtype)
    sigma = torch.lerp(segments.end_sigma, segments.start_sigma, share)
    tokens = Tokens(torch.lerp(end, start, share.view(b, 1, 1)), ids)
    length = (segments.start_sigma - segments.end_sigma).view(b, 1, 1)
    guidance = torch.full_like(sigma, GUIDANCE_SCALE)
    predicted = velocity(transformer, tokens, sigma, guidance, text, pooled)
    error = predicted - (start - end) / length
    loss: Tensor = (error.square().mean(2) + FLAT**2).sqrt().mean() - FLAT
    return loss


def train_lora(
    pipe: FluxPipeline,
    folder: Path,
    budget_s: float,
    seed: int,
    log: Log,
    on_checkpoint: Callable[[Distillation], None] = lambda _: None,
    start: Path | None = None,
) -> Distillation:
    """Train until the time budget is spent, going on from the folder's checkpoint.

    Args:
        pipe: The teacher, on the device to train on; its transformer becomes the student's.
        folder: A run's folder with shards of trajectories.
        budget_s: Seconds of training in all, those before an interruption included.
        seed: Of what is drawn; a step's draws depend on its number alone.
        log: Called with figures every 20 steps, and at the end.
        on_checkpoint: Called after every checkpoint.
        start: A LoRA's file to begin with, unless there is a checkpoint; default: a new LoRA.

    Returns:
        The finished training.
    """
    training = Distillation(folder, budget_s, pipe.transformer, start)
    data, device = read_shards(folder), pipe.device
    losses: dict[str, list[float]] = defaultdict(list)
    saved_s = training.elapsed_s
    while training.progress < 1:
        start_s = time.perf_counter()
        name = _draw_set(np.random.default_rng((seed, training.step)))
        own = np.random.default_rng((seed, training.step, 1 + parallel.rank()))
        segments, share = _draw(data[name], max(BATCH[name] // parallel.world(), 1), own)
        with torch.no_grad():
            text, pooled, _ = pipe.encode_prompt(
                segments.captions, segments.captions, max_sequence_length=MAX_TOKENS
            )
        on_device = Segments(
            segments.start.to(device), segments.end.to(device),
            segments.start_sigma.to(device), segments.end_sigma.to(device), segments.captions,
        )  # fmt: skip
        loss = training.take_step(on_device, share.to(device), text.float(), pooled.float())
        losses[f"loss_{name}"].append(loss)
        spent = torch.tensor([time.perf_counter() - start_s], device=device)
        parallel.average_([spent])  # all processes stop at the same step
        training.elapsed_s += spent.item()
        if training.step % 20 == 0 or training.progress >= 1:
            means = {name: float(np.mean(values)) for name, values in losses.items()}
            log({"step": training.step, "elapsed_s": training.elapsed_s, **means})
            losses.clear()
        if training.elapsed_s - saved_s > CHECKPOINT_S or training.progress >= 1:
            if parallel.rank() == 0:
                training.save()
                on_checkpoint(training)
            saved_s = training.elapsed_s
    return training


def _draw_set(rng: np.random.Generator) -> str:
    """Which set of segments the next step learns from, the same in every process."""
    return str(rng.choice(list(ODDS), p=list(ODDS.values())))


def _draw(data: Segments, n: int, rng: np.random.Generator) -> tuple[Segments, Tensor]:
    """Segments, and how far toward their start the inputs lie.

    Long windows are drawn more often, by the root of their lengths: an error of the slope moves
    the picture by its product with the length.
    """
    odds = (data.start_sigma - data.end_sigma).double().sqrt().numpy()
    index = torch.from_numpy(rng.choice(len(data.captions), size=n, p=odds / odds.sum()))
    share = np.where(rng.random(n) < BORDER_SHARE, 1.0, rng.random(n))
    return data.pick(index), torch.from_numpy(share).float()
