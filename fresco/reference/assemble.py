"""Put the trained parts together to a `FluxPipeline` directory with its provenance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel
from transformers import CLIPTextModel, T5EncoderModel

from fresco.reference import DEFAULT_SAMPLE_SIZE
from fresco.reference.provenance import provenance
from fresco.reference.text import build_tokenizers
from fresco.reference.train import STARTED_FROM
from fresco.reference.transformer import build_scheduler

FROZEN_DTYPE = torch.float16  # their weights are small numbers: less rounding than bfloat16
COMMAND = "fresco reference train"


def assemble(
    folder: Path,
    transformer: FluxTransformer2DModel,
    out: Path,
    dtype: torch.dtype = torch.bfloat16,
    command: str = COMMAND,
) -> Path:
    """Write a pipeline that `FluxPipeline.from_pretrained(out)` loads offline.

    All weights are in 16 bits: the transformer's in `dtype`, those of the autoencoder and the
    text encoders, which its training does not change, in float16.

    Args:
        folder: A run's folder with `vae`, `text_encoder` and `text_encoder_2`.
        transformer: Trained transformer; it is converted in place to `dtype`.
        out: Directory to write; files of the same names are replaced.
        dtype: Of the transformer's weights.
        command: What was run to train it, for the provenance.

    Returns:
        `out`.
    """
    pipe = build_pipeline(folder, transformer.to(dtype))
    for part in (pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
        part.to(FROZEN_DTYPE)
    pipe.save_pretrained(out)
    for file in out.rglob("config.json"):
        config = json.loads(file.read_text())
        config.pop("_name_or_path", None)  # where it was trained
        file.write_text(json.dumps(config, indent=2) + "\n")
    for weights in out.rglob("*.safetensors"):
        weights.chmod(0o644)  # they are written for their owner alone
    started = folder / STARTED_FROM
    before = {"started_from": json.loads(started.read_text())} if started.exists() else {}
    text = json.dumps(provenance(command, **_last_figures(folder), **before), indent=2)
    (out / "provenance.json").write_text(text + "\n")
    return out


def build_pipeline(folder: Path, transformer: FluxTransformer2DModel) -> FluxPipeline:
    """A pipeline of a run's trained parts, those that are frozen in float32, at 256 px.

    Args:
        folder: A run's folder with `vae`, `text_encoder` and `text_encoder_2`.
        transformer: Trained as far as it is.

    Returns:
        The pipeline, without progress bar.
    """
    clip_tokenizer, t5_tokenizer = build_tokenizers()
    pipe = FluxPipeline(
        scheduler=build_scheduler(),
        vae=AutoencoderKL.from_pretrained(folder / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32),
        tokenizer=clip_tokenizer,
        text_encoder_2=T5EncoderModel.from_pretrained(
            folder / "text_encoder_2", dtype=torch.float32
        ),
        tokenizer_2=t5_tokenizer,
        transformer=transformer.eval(),
    )
    pipe.default_sample_size = DEFAULT_SAMPLE_SIZE
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _last_figures(folder: Path) -> dict[str, Any]:
    """Steps, seconds and losses of the transformer, from the run's log."""
    log = folder / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    trained = [line for line in lines if "elapsed_s" in line]
    if not trained:
        return {"steps": 0, "seconds": 0.0, "losses": {}}
    last = trained[-1]
    return {
        "steps": last["step"],
        "seconds": round(last["elapsed_s"], 1),
        "losses": {
            name: round(next(line[name] for line in reversed(trained) if name in line), 5)
            for name in ("loss_64", "loss_128", "loss_256")
            if any(name in line for line in trained)
        },
    }
