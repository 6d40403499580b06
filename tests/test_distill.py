"""The training of a few-step LoRA: its target, what it learns from, interruptions."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fresco.reference import GUIDANCE_SCALE, MAX_TOKENS, distill, load
from fresco.reference import trajectories as drawn
from fresco.reference.trajectories import Segments
from tests.distilled import shorten


@pytest.fixture
def short(monkeypatch):
    shorten(monkeypatch)


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
    errors = np.array([4, 2])  # (3 - 1) / 0.5 and (3 - 2) / 0.5
    flat = 0.03
    assert loss.item() == pytest.approx((np.sqrt(errors**2 + flat**2) - flat).mean())


def test_a_token_counts_whatever_others_of_its_picture_miss(monkeypatch):
    """One that misses a lot must not drown one that misses little, as it does in the square."""
    predicted = torch.zeros(1, 3, 16, requires_grad=True)
    monkeypatch.setattr(distill, "velocity", lambda *_: predicted)
    start = torch.tensor([2.0, 0.1, 0.0]).view(1, 3, 1).expand(1, 3, 16)
    segments = Segments(start, torch.zeros(1, 3, 16), torch.ones(1), torch.zeros(1), ["a"])
    distill.slope_loss(None, segments, torch.ones(1), torch.ones(1), torch.ones(1)).backward()
    much, little, nothing = predicted.grad.norm(dim=2)[0].tolist()
    assert little > 0.9 * much
    assert nothing == 0


def test_long_windows_are_drawn_more_often():
    data = make_segments(8)  # half of them 0.3 long, half 0.7
    picked, _ = distill._draw(data, 4000, np.random.default_rng(0))
    share = (picked.start_sigma == 1).float().mean().item()
    assert share == pytest.approx(0.3**0.5 / (0.3**0.5 + 0.7**0.5), abs=0.03)


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


def test_training_learns_its_segments_and_leaves_the_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(distill, "RATE", 5e-3)
    monkeypatch.setattr(distill, "WARM_UP", 1)
    pipe, segments = load(), make_segments()
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


def test_the_lora_is_on_all_projections_of_the_blocks_and_on_modulation(tmp_path):
    pipe = load()
    linear = {n for n, m in pipe.transformer.named_modules() if isinstance(m, torch.nn.Linear)}
    training = distill.Distillation(tmp_path, 1e9, pipe.transformer)
    trained = {name.partition(".lora_")[0] for name in training.names}
    assert linear - trained == {
        "proj_out", "x_embedder", "context_embedder",
        *(f"time_text_embed.{part}_embedder.linear_{i}"
          for part in ("timestep", "guidance", "text") for i in (1, 2)),
    }  # fmt: skip


def test_a_training_goes_on_from_a_lora(tmp_path):
    """Also from one with fewer layers: what it does not have begins anew."""
    first = distill.Distillation(tmp_path, 1e9, load().transformer)
    for number, weight in enumerate(first.average):
        weight.fill_(1 + number)
    file = first.write_lora(tmp_path / "lora")
    tensors = {n: w for n, w in load_file(file).items() if "norm" not in n}
    save_file(tensors, file)
    second = distill.Distillation(tmp_path, 1e9, load().transformer, file)
    for number, (name, weight) in enumerate(zip(second.names, second.master, strict=True)):
        if "norm" not in name:
            assert (weight == 1 + number).all(), name
        elif "lora_B" in name:
            assert (weight == 0).all(), name
    computed = dict(second.student.named_parameters())
    assert (computed[second.names[0]] == second.master[0]).all()


class Clock:
    """Every look at it takes a second."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1.0
        return self.now


def test_an_interrupted_training_goes_on_as_if_it_had_not_been(short, tmp_path, monkeypatch):
    monkeypatch.setattr(distill, "ODDS", {"coarse": 0.5, "lifted": 0.5})
    monkeypatch.setattr(distill, "CHECKPOINT_S", 2.0)
    monkeypatch.setattr(time, "perf_counter", Clock())
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
        drawn.write_shards(load(), 31, tmp_path / name, range(9), 1.5)
    shards = [sorted(p.name for p in (tmp_path / n).iterdir()) for n in ("whole", "broken")]
    assert shards[0] == shards[1] == ["trajectories_00000.pt", "trajectories_00001.pt"]
    none = lambda *_: None  # noqa: E731
    whole = distill.train_lora(load(), tmp_path / "whole", 7.0, 31, none)

    def die(training):
        if training.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill.train_lora(load(), tmp_path / "broken", 7.0, 31, none, die)
    resumed = distill.train_lora(load(), tmp_path / "broken", 7.0, 31, none)
    assert whole.step == resumed.step == 7
    for one, other in zip(whole.master + whole.average, resumed.master + resumed.average):  # noqa: B905
        assert torch.equal(one, other)
    assert any(p.abs().max() > 0 for n, p in zip(whole.names, whole.master) if "lora_B" in n)  # noqa: B905
