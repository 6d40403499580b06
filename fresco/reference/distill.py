"""Distil the reference model's many steps into few: a LoRA that straightens its paths.

Piecewise rectified flow (PeRFlow: Yan et al., arXiv 2405.07510): the path from noise to picture
is cut into windows, and one Euler step is to cross a window, to where the teacher gets in many.
Deviates: a path starts from noise, not from noised data, so that no pictures are needed and the
student's pictures are those of the same noise; the student steps along the whole path, each
window's target is seen from where its own steps have brought it (after backward distillation:
Kohler et al., arXiv 2405.05224), and gradients flow through all steps, so that errors of a step
are made good by those after it; long windows and the last one weigh more; the loss; coarse steps
learn the trajectories of the full grid, as they would see them, and what follows them in staged
runs has paths too; the guidance scale is always the default one.
"""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from safetensors.torch import load_file
from torch import Tensor

from fresco.reference import GUIDANCE_SCALE, MAX_TOKENS, parallel
from fresco.reference.precision import compute_dtype
from fresco.reference.trajectories import COARSE, FINE, LIFTED, Paths, read_shards
from fresco.reference.transformer import Tokens, velocity

if TYPE_CHECKING:
    from fresco.reference.log import Log

RANK = 32
BATCH = {FINE: 2, COARSE: 32, LIFTED: 4}  # paths per step, all processes together: equal time
ODDS = {FINE: 0.75, COARSE: 0.05, LIFTED: 0.2}
EXTRA_LEVEL = 0.3  # share of the batches that have one more noise level, within a window
RATE, WARM_UP = 2e-4, 20  # of AdamW; steps
RATE_ON = 6e-5  # where a LoRA is gone on from: a higher one hovers above what that has reached
END = 4  # times as much the last window of a path weighs: the picture is what counts
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
            LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear", init_lora_weights=True)
        )
        named = {n: p for n, p in self.student.named_parameters() if p.requires_grad}
        self.names, self.computed = list(named), list(named.values())
        self.master = [torch.nn.Parameter(p.detach().float()) for p in self.computed]
        self.rate = RATE if start is None else RATE_ON
        if start is not None:
            self._go_on_from(start)
        self.average = [p.detach().clone() for p in self.master]
        self.optimizer = torch.optim.AdamW(self.master, betas=(0.9, 0.99), weight_decay=0)
        self.step, self.elapsed_s = 0, 0.0
        if (folder / CHECKPOINT).exists():
            self._load(torch.load(folder / CHECKPOINT, weights_only=True, map_location=device))
        self._copy_weights()

    @property
    def progress(self) -> float:
        """Share of the time budget that is spent."""
        return self.elapsed_s / self.budget_s

    def take_step(
        self, paths: Paths, levels: Sequence[float], text: Tensor, pooled: Tensor
    ) -> float:
        """One optimizer step; returns the loss.

        Args:
            paths: Of one set.
            levels: Noise levels that are stepped through, the paths' own among them.
            text: T5's tokens, float32 [b, t, d].
            pooled: CLIP's pooled output, float32 [b, d].
        """
        factor = min((self.step + 1) / WARM_UP, 1 - self.progress)
        self.optimizer.param_groups[0]["lr"] = self.rate * max(factor, 0.0)
        loss = path_loss(self.student, paths, levels, text, pooled)
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


def path_loss(
    transformer: FluxTransformer2DModel,
    paths: Paths,
    levels: Sequence[float],
    text: Tensor,
    pooled: Tensor,
) -> Tensor:
    """Where Euler's steps along paths head for, against where the teacher gets.

    A step's error is that of the latents where it would leave its window, per length of the
    window: of the slope, if the step starts at a window's border. A pseudo-Huber loss of every
    token's error is averaged, steps weighted by the roots of their windows' lengths: squared
    errors of windows where the model errs most, and of tokens where two things meet, would
    outweigh the others, and fine texture would be lost (after improved consistency training: Song
    and Dhariwal, arXiv 2310.14189, eq. 5, which takes the error of whole pictures). The last
    window weighs `END` times as much again.

    Args:
        transformer: What is trained.
        paths: Of one set, [b].
        levels: Noise levels that are stepped through, the paths' own among them.
        text: T5's tokens, float32 [b, t, d].
        pooled: CLIP's pooled output, float32 [b, d].

    Returns:
        The loss, a scalar.
    """
    states = paths.states.float()
    b, _, n, _ = states.shape
    side = round(n**0.5)
    ids = FluxPipeline._prepare_latent_image_ids(b, side, side, states.device, states.dtype)
    x, window = states[:, 0], 0
    total, weights = x.new_zeros(()), 0.0
    for level, following in itertools.pairwise(levels):
        high, low = paths.sigmas[window : window + 2]
        sigma = torch.full((b,), level, device=x.device)
        guidance = torch.full_like(sigma, GUIDANCE_SCALE)
        predicted = velocity(transformer, Tokens(x, ids), sigma, guidance, text, pooled)
        left = x - (level - low) * predicted
        error = (left - states[:, window + 1]) / (high - low)
        huber = (error.square().mean(2) + FLAT**2).sqrt().mean() - FLAT
        weight = (high - low) ** 0.5 * (END if low == paths.sigmas[-1] else 1)
        total, weights = total + weight * huber, weights + weight
        x, window = x - (level - following) * predicted, window + (following == low)
    return total / weights


def train_lora(
    pipe: FluxPipeline,
    folder: Path,
    budget_s: float,
    seed: int,
    log: Log,
    on_checkpoint: Callable[[Distillation], None] = lambda _: None,
    start: Path | None = None,
    others: Sequence[Path] = (),
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
        others: More folders with shards.

    Returns:
        The finished training.
    """
    training = Distillation(folder, budget_s, pipe.transformer, start)
    data, device = read_shards([folder, *others]), pipe.device
    losses: dict[str, list[float]] = defaultdict(list)
    saved_s = training.elapsed_s
    while training.progress < 1:
        start_s = time.perf_counter()
        name = _draw_set(np.random.default_rng((seed, training.step)))
        own = np.random.default_rng((seed, training.step, 1 + parallel.rank()))
        paths = _draw_paths(data[name], max(BATCH[name] // parallel.world(), 1), own)
        with torch.no_grad():
            text, pooled, _ = pipe.encode_prompt(
                paths.captions, paths.captions, max_sequence_length=MAX_TOKENS
            )
        paths = replace(paths, states=paths.states.to(device))
        levels = _draw_levels(paths.sigmas, own)
        loss = training.take_step(paths, levels, text.float(), pooled.float())
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
    """Which set of paths the next step learns from, the same in every process."""
    return str(rng.choice(list(ODDS), p=list(ODDS.values())))


def _draw_paths(data: Paths, n: int, rng: np.random.Generator) -> Paths:
    return data.pick(torch.from_numpy(rng.integers(len(data.captions), size=n)))


def _draw_levels(borders: tuple[float, ...], rng: np.random.Generator) -> tuple[float, ...]:
    """The noise levels of a path's steps: its borders, sometimes one more within a window."""
    if rng.random() >= EXTRA_LEVEL:
        return borders
    window = rng.integers(len(borders) - 1)
    high, low = borders[window : window + 2]
    inside = float(rng.uniform(low, high))
    return (*borders[: window + 1], inside, *borders[window + 1 :])
