"""The training of a few-step LoRA: its target, what it learns from, interruptions."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fresco.reference import GUIDANCE_SCALE, MAX_TOKENS, distill, load
from fresco.reference import trajectories as drawn
from fresco.reference.trajectories import Paths
from tests.distilled import shorten


@pytest.fixture
def short(monkeypatch):
    shorten(monkeypatch)


def make_paths(n=4, tokens=64, seed=0):
    draw = torch.Generator().manual_seed(seed)
    states = torch.randn(n, 3, tokens, 16, generator=draw).half()
    return Paths(states, (1.0, 0.7, 0.0), [f"a red ring {i}" for i in range(n)])


@pytest.fixture
def predict(monkeypatch):
    """A transformer that predicts one number for every latent; it notes what it is given."""
    seen = []

    def set_up(*numbers):
        left = iter(numbers)

        def velocity(_transformer, tokens, sigma, guidance, _text, _pooled):
            seen.append((tokens.values, sigma, guidance))
            return torch.zeros_like(tokens.values) + next(left)

        monkeypatch.setattr(distill, "velocity", velocity)
        return seen

    return set_up


def huber(error, flat=0.03):
    return np.sqrt(error**2 + flat**2) - flat


ONES = torch.ones(1, 4, 16)


def test_the_student_steps_from_where_it_is_and_aims_at_where_the_teacher_gets(predict):
    paths = Paths(torch.stack([3 * ONES, 2 * ONES, ONES], 1), (1.0, 0.75, 0.0), ["a"])
    seen = predict(2.0, 1.0)
    loss = distill.path_loss(None, paths, paths.sigmas, ONES, ONES)
    (first, high, guidance), (second, low, _) = seen
    assert (first == 3).all()
    assert (second == 2.5).all()  # its own 3 - 0.25 * 2, where the teacher is at 2
    assert [high.tolist(), low.tolist()] == [[1.0], [0.75]]
    assert guidance.tolist() == [GUIDANCE_SCALE]
    errors = (2.5 - 2) / 0.25, (2.5 - 0.75 - 1) / 0.75
    weights = 0.25**0.5, 4 * 0.75**0.5
    expected = sum(w * huber(e) for w, e in zip(weights, errors, strict=True)) / sum(weights)
    assert loss.item() == pytest.approx(expected)


def test_a_step_within_a_window_aims_at_the_windows_end(predict):
    paths = Paths(torch.stack([3 * ONES, ONES], 1), (1.0, 0.0), ["a"])
    seen = predict(2.0, 1.0)
    loss = distill.path_loss(None, paths, (1.0, 0.5, 0.0), ONES, ONES)
    assert (seen[1][0] == 2).all()
    assert loss.item() == pytest.approx((huber(0) + huber(2 - 0.5 - 1)) / 2)


def test_every_step_weighs_by_its_window_and_the_last_window_four_times_as_much(predict):
    paths = Paths(torch.stack([3 * ONES, 2 * ONES, ONES], 1), (1.0, 0.75, 0.0), ["a"])
    predict(4.0, 1.4, 1.5)
    loss = distill.path_loss(None, paths, (1.0, 0.75, 0.5, 0.0), ONES, ONES)
    errors, weights = (0, 2 - 1.05 - 1, 1.65 - 0.75 - 1), (0.5, 4 * 0.75**0.5, 4 * 0.75**0.5)
    expected = sum(w * huber(e / 0.75) for w, e in zip(weights, errors, strict=True))
    assert loss.item() == pytest.approx(expected / sum(weights))


def test_early_steps_learn_what_they_cost_later_ones(predict):
    paths = Paths(torch.stack([3 * ONES, 2 * ONES, ONES], 1), (1.0, 0.75, 0.0), ["a"])
    early = torch.tensor(4.0, requires_grad=True)  # as the first window has it
    predict(early, 0.5)
    distill.path_loss(None, paths, paths.sigmas, ONES, ONES).backward()
    assert early.grad < 0  # the second step leaves the latents above their aim


def test_a_token_counts_whatever_others_of_its_picture_miss(monkeypatch):
    """One that misses a lot must not drown one that misses little, as it does in the square."""
    predicted = torch.zeros(1, 3, 16, requires_grad=True)
    monkeypatch.setattr(distill, "velocity", lambda *_: predicted)
    start = torch.tensor([2.0, 0.1, 0.0]).view(1, 3, 1).expand(1, 3, 16)
    paths = Paths(torch.stack([start, torch.zeros(1, 3, 16)], 1), (1.0, 0.0), ["a"])
    distill.path_loss(None, paths, paths.sigmas, ONES, ONES).backward()
    much, little, nothing = predicted.grad.norm(dim=2)[0].tolist()
    assert little > 0.9 * much
    assert nothing == 0


def test_steps_are_the_windows_or_one_more_within_one():
    borders, rng = (1.0, 0.95, 0.85, 0.5, 0.0), np.random.default_rng(0)
    drawn_levels = [distill._draw_levels(borders, rng) for _ in range(2000)]
    halted = [levels for levels in drawn_levels if levels != borders]
    assert len(halted) / 2000 == pytest.approx(distill.EXTRA_LEVEL, abs=0.03)
    more = [{*levels} - {*borders} for levels in halted]
    assert {len(levels) for levels in more} == {1}
    assert all({*borders} < {*levels} for levels in halted)
    assert all([*levels] == sorted(levels, reverse=True) for levels in halted)
    inside = np.array([levels.pop() for levels in more])
    counts, _ = np.histogram(inside, borders[::-1])
    assert counts / len(halted) == pytest.approx([0.25] * 4, abs=0.06)


def test_paths_are_drawn_whole():
    data = make_paths(8)
    picked = distill._draw_paths(data, 5, np.random.default_rng(0))
    for states, caption in zip(picked.states, picked.captions, strict=True):
        assert torch.equal(states, data.states[int(caption.split()[-1])])
    assert picked.sigmas == data.sigmas


def test_training_learns_its_paths_and_leaves_the_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(distill, "RATE", 5e-3)
    monkeypatch.setattr(distill, "WARM_UP", 1)
    pipe, paths = load(), make_paths()
    before = {n: p.clone() for n, p in pipe.transformer.named_parameters()}
    training = distill.Distillation(tmp_path, 1e9, pipe.transformer)
    with torch.no_grad():
        text, pooled, _ = pipe.encode_prompt(
            paths.captions, paths.captions, max_sequence_length=MAX_TOKENS
        )
    losses = [training.take_step(paths, paths.sigmas, text, pooled) for _ in range(15)]
    assert losses[-1] < 0.9 * losses[0]
    assert training.optimizer.param_groups[0]["lr"] == pytest.approx(training.rate)
    of_base = dict(pipe.transformer.named_parameters())
    for name, weight in before.items():
        parts = name.rsplit(".", 1)
        now = of_base.get(name, of_base.get(f"{parts[0]}.base_layer.{parts[1]}"))
        assert torch.equal(now.float(), weight.to(now.dtype).float()), name


def test_the_lora_is_on_every_matrix(tmp_path):
    pipe = load()
    linear = {n for n, m in pipe.transformer.named_modules() if isinstance(m, torch.nn.Linear)}
    training = distill.Distillation(tmp_path, 1e9, pipe.transformer)
    assert {name.partition(".lora_")[0] for name in training.names} == linear


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
    assert second.rate == distill.RATE_ON < first.rate


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
