"""Distillation: the teacher's trajectories, the LoRA that is trained on them, and its file."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import fresco.reference
from fresco.api import accelerate
from fresco.cli import app
from fresco.errors import AttachError
from fresco.reference import (
    GUIDANCE_SCALE,
    MAX_TOKENS,
    PIPELINE,
    WeightsError,
    distill,
    load,
    lora_path,
)
from fresco.reference import trajectories as drawn
from fresco.reference.distill_run import MAX_BYTES, DistillError
from fresco.reference.distill_run import distill as run
from fresco.reference.trajectories import Segments
from fresco.reference.transformer import Tokens, velocity
from tests.reference_parts import assemble_untrained

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def teacher():
    """The one that ships: the blocks of an untrained one are the identity, with no gradient."""
    return PIPELINE


@pytest.fixture
def short(monkeypatch):
    """A shard has one trajectory of few steps, but all code runs."""
    shorten(monkeypatch)


def shorten(patch):
    patch.setattr(drawn, "PER_SHARD", 1)
    patch.setattr(drawn, "SUBSTEPS", 2)
    patch.setattr(drawn, "BORDERS", (1.0, 0.9, 0.5, 0.0))
    patch.setattr(drawn, "COARSE_BORDER", 1)
    patch.setattr(drawn, "LIFTED_BORDER", 2)
    patch.setattr(distill, "BATCH", {"fine": 1, "coarse": 1, "lifted": 1})


def solve(pipe, start, sigmas, caption):
    """Euler's steps through `sigmas`, written out."""
    text, pooled, _ = pipe.encode_prompt(caption, caption, max_sequence_length=MAX_TOKENS)
    side = round(start.shape[1] ** 0.5)
    ids = pipe._prepare_latent_image_ids(1, side, side, CPU, torch.float32)
    x, guidance = start.float(), torch.tensor([GUIDANCE_SCALE])
    for sigma, following in itertools.pairwise(sigmas):
        now = torch.tensor([sigma])
        with torch.no_grad():
            v = velocity(pipe.transformer, Tokens(x, ids), now, guidance, text, pooled)
        x = x + (following - sigma) * v
    return x


def halved(high, low):
    """Two steps, evenly spaced before the scheduler's shift of 2.5."""
    middle = sum(sigma / (2.5 - 1.5 * sigma) for sigma in (high, low)) / 2
    return high, 2.5 * middle / (1 + 1.5 * middle), low


def unpacked(tokens):
    """[n, 16] as [4, rows, columns]: a token is (channel, row, column) of 2 x 2 pixels."""
    side = round(len(tokens) ** 0.5)
    cut = tokens.view(side, side, 4, 2, 2)
    return torch.einsum("yxcij->cyixj", cut).reshape(4, 2 * side, 2 * side)


def test_segments_are_where_the_teacher_goes(teacher, short):
    pipe = load(teacher)
    shard = drawn.draw_shard(pipe, 31, 0)
    assert list(shard) == ["fine", "coarse", "lifted"]
    fine = shard["fine"]
    assert fine.start_sigma.tolist() == pytest.approx([1, 0.9, 0.5])
    assert fine.end_sigma.tolist() == pytest.approx([0.9, 0.5, 0])
    assert torch.equal(fine.start[1:], fine.end[:-1])
    for i, levels in enumerate((halved(1, 0.9), halved(0.9, 0.5), halved(0.5, 0))):
        end = solve(pipe, fine.start[i : i + 1], levels, fine.captions[i])
        torch.testing.assert_close(end[0], fine.end[i].float(), rtol=0, atol=5e-3)
        assert not torch.allclose(fine.start[i].float(), fine.end[i].float(), atol=5e-2)


def test_a_coarse_segment_is_cells_averages_at_the_fine_noise_level(teacher, short):
    shard = drawn.draw_shard(load(teacher), 31, 0)
    fine, coarse = shard["fine"], shard["coarse"]
    assert coarse.start_sigma.tolist() == [1]
    assert coarse.end_sigma.tolist() == pytest.approx([0.9])
    eps, at_border = (unpacked(fine.start[i].float()) for i in (0, 1))
    pool = torch.nn.AvgPool2d(2)
    for latents, sigma, tokens in ((eps, 1.0, coarse.start), (at_border, 0.9, coarse.end)):
        view = pool(latents - sigma * eps) + sigma * 2 * pool(eps)
        assert torch.allclose(unpacked(tokens[0].float()), view, atol=1e-2)


def test_a_lifted_segment_begins_at_a_coarse_view_with_the_fields_noise(teacher, short):
    pipe = load(teacher)
    shard = drawn.draw_shard(pipe, 31, 0)
    lifted = shard["lifted"]
    t = lifted.start_sigma.item()
    low, high = drawn.LIFTED_SIGMA
    assert low <= t <= high
    eps = unpacked(shard["fine"].start[0].float())
    view = unpacked(shard["coarse"].end[0].float())
    clean = view - 0.9 * 2 * torch.nn.functional.avg_pool2d(eps, 2)  # a tenth of it
    spread = clean.repeat_interleave(2, 1).repeat_interleave(2, 2)
    start = (1 - t) / (1 - 0.9) * spread + t * eps
    assert torch.allclose(unpacked(lifted.start[0].float()), start, atol=2e-2)
    end = solve(pipe, lifted.start, halved(t, 0.5), lifted.captions[0])
    assert torch.allclose(end, lifted.end.float(), atol=5e-3)
    assert lifted.end_sigma.tolist() == [0.5]


def test_every_shard_has_captions_and_noise_of_its_own_and_always_the_same(
    teacher, short, monkeypatch
):
    monkeypatch.setattr(drawn, "PER_SHARD", 2)
    pipe = load(teacher)
    first, again, other = (drawn.draw_shard(pipe, 31, i)["fine"] for i in (0, 0, 1))
    assert torch.equal(first.start, again.start)
    assert first.captions == again.captions
    assert first.captions != other.captions
    noise = torch.cat([first.start[:2], other.start[:2]])
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(noise, 2))
    assert first.captions == 3 * first.captions[:2]  # a caption for all windows


def make_segments(n=4, tokens=64, seed=0):
    draw = torch.Generator().manual_seed(seed)
    ends = (torch.randn(n, tokens, 16, generator=draw).half() for _ in range(2))
    high, low = torch.tensor([1.0, 0.7] * (n // 2)), torch.tensor([0.7, 0.0] * (n // 2))
    return Segments(*ends, high, low, ["a red ring"] * n)


def test_the_target_is_the_slope_of_the_segment(monkeypatch):
    seen = {}

    def predict(_transformer, tokens, sigma, guidance, _text, _pooled):
        seen.update(x=tokens.values, sigma=sigma, guidance=guidance)
        return torch.zeros_like(tokens.values)

    monkeypatch.setattr(distill, "velocity", predict)
    ones = torch.ones(2, 4, 16)
    ends = torch.stack((ones[0], 2 * ones[1]))
    segments = Segments(
        3 * ones, ends, torch.tensor([1.0, 0.7]), torch.tensor([0.5, 0.2]), ["a", "b"]
    )
    share = torch.tensor([1.0, 0.25])
    loss = distill.slope_loss(None, segments, share, ones, ones)
    assert seen["x"][:, 0, 0].tolist() == pytest.approx([3, 2.25])
    assert seen["sigma"].tolist() == pytest.approx([1, 0.325])
    assert seen["guidance"].tolist() == [GUIDANCE_SCALE] * 2
    assert loss.item() == pytest.approx((4 + 2) / 2)  # (3 - 1) / 0.5 and (3 - 2) / 0.5


def test_inputs_lie_on_segments_a_share_of_them_where_windows_start():
    data = make_segments(8)
    _, share = distill._draw(data, 4000, np.random.default_rng(0))
    at_border = (share == 1).float().mean().item()
    assert at_border == pytest.approx(distill.BORDER_SHARE, abs=0.03)
    inside = share[share < 1]
    assert inside.min() >= 0
    assert inside.mean().item() == pytest.approx(0.5, abs=0.03)
    picked, _ = distill._draw(data, 3, np.random.default_rng(0))
    for i in range(3):
        (number,) = [j for j in range(8) if torch.equal(data.start[j], picked.start[i])]
        assert torch.equal(data.end[number], picked.end[i])
        assert data.start_sigma[number] == picked.start_sigma[i]
        assert data.end_sigma[number] == picked.end_sigma[i]


def test_training_learns_its_segments_and_leaves_the_weights(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(distill, "RATE", 5e-3)
    monkeypatch.setattr(distill, "WARM_UP", 1)
    pipe, segments = load(teacher), make_segments()
    before = {n: p.clone() for n, p in pipe.transformer.named_parameters()}
    training = distill.Distillation(tmp_path, 1e9, pipe.transformer)
    with torch.no_grad():
        text, pooled, _ = pipe.encode_prompt(
            segments.captions, segments.captions, max_sequence_length=MAX_TOKENS
        )
    losses = [training.take_step(segments, torch.ones(4), text, pooled) for _ in range(15)]
    assert losses[-1] < 0.9 * losses[0]
    of_base = dict(pipe.transformer.named_parameters())
    for name, weight in before.items():
        parts = name.rsplit(".", 1)
        now = of_base.get(name, of_base.get(f"{parts[0]}.base_layer.{parts[1]}"))
        assert torch.equal(now.float(), weight.to(now.dtype).float()), name


def test_the_lora_is_on_all_attention_and_feed_forward_projections_and_nothing_else(
    teacher, tmp_path
):
    pipe = load(teacher)
    linear = {n for n, m in pipe.transformer.named_modules() if isinstance(m, torch.nn.Linear)}
    training = distill.Distillation(tmp_path, 1e9, pipe.transformer)
    trained = {name.partition(".lora_")[0] for name in training.names}
    left = {name for name in linear if "norm" not in name} - trained
    assert left == {
        "proj_out", "x_embedder", "context_embedder",
        *(f"time_text_embed.{part}_embedder.linear_{i}"
          for part in ("timestep", "guidance", "text") for i in (1, 2)),
    }  # fmt: skip
    assert not any("norm" in name for name in trained)


class Clock:
    """Every look at it takes a second."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1.0
        return self.now


def test_an_interrupted_training_goes_on_as_if_it_had_not_been(
    teacher, short, tmp_path, monkeypatch
):
    monkeypatch.setattr(distill, "ODDS", {"coarse": 0.5, "lifted": 0.5})
    monkeypatch.setattr(distill, "CHECKPOINT_S", 2.0)
    monkeypatch.setattr(time, "perf_counter", Clock())
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
        drawn.write_shards(load(teacher), 31, tmp_path / name, range(9), 1.5)
    shards = [sorted(p.name for p in (tmp_path / n).iterdir()) for n in ("whole", "broken")]
    assert shards[0] == shards[1] == ["trajectories_00000.pt", "trajectories_00001.pt"]
    none = lambda *_: None  # noqa: E731
    whole = distill.train_lora(load(teacher), tmp_path / "whole", 7.0, 31, none)

    def die(training):
        if training.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill.train_lora(load(teacher), tmp_path / "broken", 7.0, 31, none, die)
    resumed = distill.train_lora(load(teacher), tmp_path / "broken", 7.0, 31, none)
    assert whole.step == resumed.step == 7
    for one, other in zip(whole.master + whole.average, resumed.master + resumed.average):  # noqa: B905
        assert torch.equal(one, other)
    assert any(p.abs().max() > 0 for n, p in zip(whole.names, whole.master) if "lora_B" in n)  # noqa: B905


@pytest.fixture(scope="module")
def made(teacher, tmp_path_factory):
    """A distillation from beginning to end; returns its LoRA's folder and what was logged."""
    folder, logged = tmp_path_factory.mktemp("distilled"), []
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        out = run(folder, 0.001, logged.append, CPU, teacher)
    return out, logged


def test_a_distillation_ends_with_a_small_file_and_its_provenance(made):
    out, logged = made
    (file,) = out.glob("*.safetensors")
    assert file.stat().st_size <= MAX_BYTES
    assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float16}
    facts = json.loads((out / "provenance.json").read_text())
    assert facts["command"] == "fresco reference distill --hours 0.001 --seed 31 --teacher pipeline"
    keys = {"method", "teacher", "steps", "seconds", "trajectories", "losses", "code", "hardware"}
    assert keys | {"versions", "date", "rank"} <= set(facts)
    assert facts["steps"] == logged[-1]["step"] > 0
    assert facts["rank"] <= 32
    assert facts["trajectories"] >= 1  # as many as this machine draws in the time
    assert facts["losses"]
    assert str(out.parent) not in (out / "provenance.json").read_text()
    lines = (out.parent / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == logged


def latents(pipe):
    return pipe(
        "a red ring", num_inference_steps=2, height=64, width=64, output_type="latent",
        max_sequence_length=MAX_TOKENS, generator=torch.Generator().manual_seed(0),
    ).images  # fmt: skip


def strengthened(made, tmp_path):
    """The LoRA with larger weights: few steps from zero change no picture that can be seen."""
    from safetensors.torch import save_file

    tensors = load_file(made[0] / distill.FILE)
    save_file({name: 30 * weight for name, weight in tensors.items()}, tmp_path / distill.FILE)
    return tmp_path / distill.FILE


def test_the_file_loads_by_diffusers_and_by_a_recipe(made, teacher, tmp_path):
    pipe, file = load(teacher), strengthened(made, tmp_path)
    plain = latents(pipe)
    stack = [{"kind": "lora", "source": str(file), "fuse": True}]
    with accelerate(pipe, {"schema": 1, "model": "any", "stack": stack}) as fast:
        fused = latents(pipe)
        (row,) = [row for row in fast.summary().rows if row.kind == "lora"]
        assert row.counts["layers"] == 2 * 12 + 9 * 5
    assert torch.equal(latents(pipe), plain)
    pipe.load_lora_weights(file)
    loaded = latents(pipe)
    assert not torch.allclose(loaded, plain, atol=1e-2)
    assert torch.allclose(loaded, fused, atol=1e-4)


def test_a_folder_of_another_teacher_or_seed_is_refused(made, teacher, tmp_path):
    with pytest.raises(DistillError, match=r"expected the teacher and the seed .* --folder"):
        run(made[0].parent, 0.001, lambda _: None, CPU, teacher, seed=32)
    other = assemble_untrained(tmp_path)
    with pytest.raises(DistillError, match="the teacher and the seed"):
        run(made[0].parent, 0.001, lambda _: None, CPU, other)


def test_without_peft_nothing_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(DistillError, match=r"fresco\[lora\]"):
        run(tmp_path / "new", 0.1, lambda _: None, CPU)
    assert not (tmp_path / "new").exists()


def test_a_lora_that_does_not_ship_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(fresco.reference, "LORA", tmp_path)
    with pytest.raises(
        WeightsError, match=r"expected the few-step LoRA .* `fresco reference distill`"
    ):
        lora_path()
    (tmp_path / "pytorch_lora_weights.safetensors").touch()
    assert lora_path().parent == tmp_path


def test_a_recipe_finds_a_lora_in_a_package(made, teacher, tmp_path, monkeypatch):
    package = tmp_path / "some_package"
    package.mkdir()
    (package / "__init__.py").touch()
    strengthened(made, package)
    monkeypatch.syspath_prepend(tmp_path)
    pipe = load(teacher)
    plain = latents(pipe)

    def recipe(source):
        return {"schema": 1, "model": "any", "stack": [{"kind": "lora", "source": source}]}

    with accelerate(pipe, recipe(f"package:some_package/{distill.FILE}")):
        assert not torch.allclose(latents(pipe), plain, atol=1e-2)
    for source in ("package:some_package/none", "package:no_package_x/a", "package:some_package"):
        with pytest.raises(AttachError, match=r"expected a file of an installed package"):
            accelerate(pipe, recipe(source))
    assert torch.equal(latents(pipe), plain)


def test_the_command_says_what_it_takes():
    result = CliRunner().invoke(app, ["reference", "distill", "--help"])
    assert result.exit_code == 0
    for option in ("--folder", "--hours", "--seed", "--device", "--teacher"):
        assert option in result.output


TWO_PROCESSES = """
import sys
from pathlib import Path

import torch

from fresco.reference import distill, distill_run, trajectories

trajectories.PER_SHARD, trajectories.SUBSTEPS = 1, 1
trajectories.BORDERS = (1.0, 0.5, 0.0)
trajectories.COARSE_BORDER = trajectories.LIFTED_BORDER = 1
distill.ODDS, distill.BATCH = {"coarse": 1.0}, {"coarse": 2}
folder = Path(sys.argv[1])
distill_run.distill(folder, 0.001, lambda _: None, torch.device("cpu"))
"""


def test_processes_under_torchrun_draw_shards_of_their_own_and_train_one_lora(tmp_path):
    (tmp_path / "two.py").write_text(TWO_PROCESSES)
    command = (sys.executable, "-m", "torch.distributed.run", "--standalone")
    ran = subprocess.run(
        [*command, "--nproc-per-node", "2", str(tmp_path / "two.py"), str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    names = {path.name for path in (tmp_path / "run").glob("*.pt")}
    assert {"trajectories_00000.pt", "trajectories_00001.pt"} <= names
    facts = json.loads((tmp_path / "run" / "lora" / "provenance.json").read_text())
    assert facts["command"].startswith("torchrun --nproc-per-node 2 --no-python fresco reference")
    assert facts["steps"] > 0
