"""One whole training of the reference model, from an empty folder to a pipeline directory."""

from __future__ import annotations

from pathlib import Path

import torch

from fresco.comparison import save_sheet
from fresco.output import make_directory
from fresco.reference import assemble, parallel, train
from fresco.reference.bench import How, sample
from fresco.reference.dataset import held_out_captions
from fresco.reference.log import Log, write_log
from fresco.reference.train import Training

N_SHEET = 8  # pictures of a sample sheet
SHEET_STEPS = 25


def train_reference(
    folder: Path,
    hours: float,
    log: Log,
    device: torch.device,
    start: Path | None = None,
    seed: int = train.SEED,
) -> Path:
    """Train everything that the folder does not have yet, and assemble the pipeline.

    An interrupted training goes on from the last checkpoint. `folder` gets `log.jsonl`,
    a sample sheet per checkpoint (`sheet_<step>.png`) and, at the end, `pipeline`.

    Args:
        folder: The run's folder; it is made if need be.
        hours: Time of the transformer's training in all, earlier calls included.
        log: Called with figures; they are written to `log.jsonl` too.
        device: Where to train.
        start: A trained pipeline to go on from, unless the run has begun; default: nothing.
        seed: Series of the training scenes.

    Returns:
        The pipeline's directory.

    Raises:
        OutputError: If the folder cannot be written to.
    """
    make_directory("train_reference(folder)", folder, "--folder")
    device = parallel.start(device)
    write = write_log(folder)

    def log_both(figures: dict[str, float]) -> None:
        if parallel.rank() == 0:
            write(figures)
            log(figures)

    if parallel.rank() == 0:
        if start is not None:
            train.start_from(start, folder)
        train.prepare(folder, log_both, device)
    parallel.wait()
    train.draw_latents(folder, seed, log_both, device)
    parallel.wait()
    training = train.train_transformer(folder, hours * 3600, seed, log_both, device, save_samples)
    out = folder / "pipeline"
    if parallel.rank() == 0:
        command = _command(hours, seed, goes_on=start is not None)
        assemble.assemble(folder, training.averaged(), out, command=command)
    parallel.stop()
    return out


def _command(hours: float, seed: int, goes_on: bool) -> str:
    """What was run, for the provenance."""
    words = ["fresco reference train", f"--hours {hours:g}", f"--seed {seed}"]
    if goes_on:
        words.append("--from-shipped")
    if parallel.world() > 1:
        words[0] = f"torchrun --nproc-per-node {parallel.world()} --no-python {words[0]}"
    return " ".join(words)


def save_samples(training: Training) -> None:
    """Write a sheet of held-out captions as the averaged weights draw them now."""
    captions = [caption.text for caption in held_out_captions(N_SHEET)]
    pipe = assemble.build_pipeline(training.folder, training.averaged())
    images = sample(pipe, captions, SHEET_STEPS, How())
    save_sheet(images, captions, training.folder / f"sheet_{training.step:06}.png")
