"""The reference model's training: from nothing to a pipeline, interrupted, and gone on with."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from fresco.output import OutputError
from fresco.reference import dataset, load, parallel, readout, train
from fresco.reference.assemble import assemble
from fresco.reference.autoencoder import encode, train_autoencoder
from fresco.reference.muon import Muon, orthogonalize
from fresco.reference.precision import compute_dtype
from fresco.reference.run import train_reference
from fresco.reference.scenes import COUNT_PROBABILITIES, Scene, SceneObject, sample_scene
from fresco.reference.text import WIDTH
from fresco.reference.transformer import Batch, flow_loss

CPU = torch.device("cpu")


def make_batch():
    draw = torch.Generator().manual_seed(0)
    return Batch(
        torch.randn(2, 4, 16, 16, generator=draw),
        torch.randn(2, 5, WIDTH, generator=draw),
        torch.randn(2, WIDTH, generator=draw),
        torch.randn(1, 5, WIDTH, generator=draw),
        torch.randn(1, WIDTH, generator=draw),
        torch.randint(3, (2, 9, 6), generator=draw),
    )


@pytest.fixture
def short_training(monkeypatch):
    """Every part as short as it can be; all code runs, nothing is learnt."""
    pictures = torch.from_numpy(dataset.make_example(0, 0)[1])[None]
    monkeypatch.setattr(train, "make_pictures", lambda *_: pictures)
    monkeypatch.setattr(dataset, "SHARD", 8)
    monkeypatch.setattr(train, "BATCH", {64: 2, 128: 1, 256: 1})
    monkeypatch.setattr("fresco.reference.run.N_SHEET", 1)
    monkeypatch.setattr("fresco.reference.run.SHEET_STEPS", 1)
    prepare, draw_latents = train.prepare, train.draw_latents
    steps = {"vae_steps": 1, "text_steps": 1}
    monkeypatch.setattr(train, "prepare", lambda *given: prepare(*given, **steps))
    monkeypatch.setattr(train, "draw_latents", lambda *given: draw_latents(*given, n_shards=1))


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="--folder"):
        train_reference(tmp_path / "file", 1e-4, lambda _: None, CPU)


def test_a_training_from_nothing_ends_with_a_pipeline_and_goes_on_from_it(short_training, tmp_path):
    out = train_reference(tmp_path / "first", 1e-4, lambda _: None, CPU)
    pipe = load(out)
    assert pipe("a ring", num_inference_steps=1, output_type="pt").images.shape == (1, 3, 256, 256)
    assert not any(str(tmp_path) in file.read_text() for file in out.rglob("*.json"))
    provenance = json.loads((out / "provenance.json").read_text())
    assert provenance["command"] == "fresco reference train --hours 0.0001 --seed 1"
    assert list((tmp_path / "first").glob("sheet_*.png"))

    train.start_from(out, tmp_path / "second")
    started = train.Training(tmp_path / "second", 1.0, CPU)
    for name, weight in started.master.state_dict().items():
        assert weight.equal(pipe.transformer.state_dict()[name]), name
    again = assemble(tmp_path / "second", started.averaged(), tmp_path / "third")
    assert json.loads((again / "provenance.json").read_text())["started_from"] == provenance


def test_an_interrupted_training_goes_on_as_if_it_had_not_been(tmp_path):
    whole = train.Training(tmp_path / "none", 1e9, CPU)
    draws = [torch.Generator().manual_seed(i) for i in range(3)]
    for draw in draws:
        whole.take_step(make_batch(), draw)
    first = train.Training(tmp_path, 1e9, CPU)
    first.take_step(make_batch(), torch.Generator().manual_seed(0))
    first.save()
    second = train.Training(tmp_path, 1e9, CPU)
    for i in (1, 2):
        second.take_step(make_batch(), torch.Generator().manual_seed(i))
    assert second.step == whole.step == 3
    for name, weight in second.averaged().state_dict().items():
        torch.testing.assert_close(weight, whole.averaged().state_dict()[name])


def test_an_interrupted_autoencoder_goes_on_from_its_checkpoint(tmp_path):
    pictures = torch.from_numpy(dataset.make_example(0, 0)[1])[None]
    logged = []
    train_autoencoder(pictures, 1, tmp_path, logged.append, CPU)
    vae = train_autoencoder(pictures, 2, tmp_path, logged.append, CPU)
    assert [figures["step"] for figures in logged] == [1, 2]
    z = (encode(vae, pictures / 255) - vae.config.shift_factor) * vae.config.scaling_factor
    torch.testing.assert_close(z.std(), torch.tensor(1.0), atol=0.1, rtol=0)


def test_an_untrained_model_is_as_wrong_as_predicting_nothing():
    transformer = train.build_transformer()
    batch = make_batch()
    loss = flow_loss(transformer, batch, torch.Generator().manual_seed(0))
    draw = torch.Generator().manual_seed(0)
    velocity = torch.randn(batch.latents.shape, generator=draw) - batch.latents
    torch.testing.assert_close(loss, velocity.square().mean())


def test_guidance_goes_on_from_the_data_in_the_direction_of_a_frozen_teacher(monkeypatch):
    """The teacher's answers are 2 with a caption and -1 without: guidance g adds 3 (g - 1)."""
    monkeypatch.setattr("fresco.reference.transformer.NO_CAPTION", 0.0)
    student, teacher, batch = object(), object(), make_batch()
    told = []

    def velocity(model, tokens, sigma, g, text, pooled):
        if model is teacher:
            assert g.eq(1).all()
            said = -1.0 if text.equal(batch.no_text.expand_as(text)) else 2.0
            return torch.full_like(tokens.values, said)
        told.append(g)
        return torch.zeros_like(tokens.values)

    monkeypatch.setattr("fresco.reference.transformer.velocity", velocity)
    loss = flow_loss(student, batch, torch.Generator().manual_seed(0), teacher)
    eps = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(0))
    wanted = eps - batch.latents + 3 * (told[0] - 1).view(-1, 1, 1, 1)
    torch.testing.assert_close(loss, wanted.square().mean())


def test_the_last_share_of_the_budget_has_a_teacher(tmp_path):
    training = train.Training(tmp_path, 1.0, CPU)
    training.take_step(make_batch(), torch.Generator().manual_seed(0))
    assert training.teacher is None
    training.elapsed_s = 0.99
    before = training.averaged().state_dict()
    training.take_step(make_batch(), torch.Generator().manual_seed(0))
    for name, weight in training.teacher.state_dict().items():
        assert weight.equal(before[name].to(compute_dtype(CPU))), name
    training.save()
    again = train.Training(tmp_path, 1.0, CPU)  # the teacher is not that of the interruption
    for name, weight in again.teacher.state_dict().items():
        assert weight.equal(training.teacher.state_dict()[name]), name
    assert any(
        not weight.equal(before[name]) for name, weight in again.averaged().state_dict().items()
    )


@pytest.mark.parametrize("shape", [(3, 16, 48), (2, 64, 24), (1, 8, 8)], ids=str)
def test_orthogonalized_matrices_have_singular_values_near_one(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(matrices))
    assert values.min() > 0.3
    assert values.max() < 1.3
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    near = (left @ right).flatten(1), orthogonalize(matrices).flatten(1)
    assert (torch.cosine_similarity(*near) > 0.97).all()


def test_our_muon_is_torch_s_up_to_its_rounding():
    draw = torch.Generator().manual_seed(0)
    start, gradients = torch.randn(24, 40, generator=draw), torch.randn(3, 24, 40, generator=draw)
    ends = []
    for make in (
        lambda m: Muon(m, lr=0.1, weight_decay=0.2),
        lambda m: torch.optim.Muon(m, lr=0.1, weight_decay=0.2, adjust_lr_fn="original"),
    ):
        matrix = torch.nn.Parameter(start.clone())
        optimizer = make([matrix])
        for gradient in gradients:
            matrix.grad = gradient.clone()
            optimizer.step()
        ends.append(matrix.detach())
    torch.testing.assert_close(*ends, rtol=0, atol=5e-3)
    assert (ends[0] - start).abs().max() > 0.05


def test_classes_of_a_pinned_scene():
    ring = SceneObject("ring", "red", "dotted", "large", "bottom")
    classes = readout.scene_classes(Scene((ring,), "grey", "graded"))
    assert classes[7].tolist() == [5, 1, 3, 2, 2, 2]
    assert classes[0].tolist() == [0, 0, 0, 0, 2, 2]
    assert readout.token_places(8).view(8, 8)[[0, 4, 7], [2, 3, 7]].tolist() == [0, 4, 8]


def test_the_readout_tells_the_scene_from_the_middle_of_the_transformer():
    transformer, batch = train.build_transformer(), make_batch()
    told = readout.Readout(transformer)
    flow_loss(transformer, batch, torch.Generator().manual_seed(0))
    assert told.hidden.shape == (2, 64, transformer.inner_dim)
    with torch.no_grad():
        told.tell.weight.zero_()
        told.tell.bias.zero_()
    chance = sum(torch.tensor(float(n)).log() for n in readout.N_CLASSES) / len(readout.N_CLASSES)
    torch.testing.assert_close(told.loss(batch.scenes, readout.token_places(8)), chance)


TWO_PROCESSES = """
import torch
from fresco.reference import parallel

assert parallel.start(torch.device("cpu")) == torch.device("cpu")
assert parallel.world() == 2
tensors = [torch.full((2,), float(parallel.rank())), torch.full((3,), 10.0 * parallel.rank())]
parallel.average_(tensors)
assert tensors[0].tolist() == [0.5] * 2, tensors
assert tensors[1].tolist() == [5.0] * 3, tensors
parallel.stop()
assert parallel.world() == 1
"""


def test_processes_under_torchrun_average_their_gradients(tmp_path):
    (tmp_path / "two.py").write_text(TWO_PROCESSES)
    command = (sys.executable, "-m", "torch.distributed.run", "--standalone")
    ran = subprocess.run(
        [*command, "--nproc-per-node", "2", str(tmp_path / "two.py")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


def test_a_lone_process_keeps_its_gradients():
    tensor = torch.ones(2)
    parallel.average_([tensor])
    assert tensor.tolist() == [1, 1]
    assert (parallel.rank(), parallel.world()) == (0, 1)


def test_a_partial_step_gives_the_transformer_the_tokens_of_its_places_only(tmp_path):
    training = train.Training(tmp_path, 1.0, CPU)
    batch, given = make_batch(), []
    training.compute.register_forward_pre_hook(
        lambda _, __, asked: given.append((asked["hidden_states"], asked["img_ids"])),
        with_kwargs=True,
    )
    for places in (range(9), [0, 5]):
        training.take_step(batch, torch.Generator().manual_seed(0), places)
    (whole, every_id), (part, ids) = given
    rows, columns = ids[:, 1].long(), ids[:, 2].long()
    at = readout.token_places(8).view(8, 8)[rows, columns]
    assert sorted(set(at.tolist())) == [0, 5]
    assert len(ids) == (readout.token_places(8) == 0).sum() + (readout.token_places(8) == 5).sum()
    assert every_id.equal(every_id.view(8, 8, 3).flatten(0, 1))
    assert part.equal(whole[:, rows * 8 + columns])


def test_the_loss_of_a_partial_step_is_that_of_its_tokens():
    transformer, batch = train.build_transformer(), make_batch()  # predicts nothing
    seen = torch.tensor([3, 17, 63])
    loss = flow_loss(transformer, batch, torch.Generator().manual_seed(0), seen=seen)
    noise = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(0))
    tokens = (
        (noise - batch.latents).view(2, 4, 8, 2, 8, 2).permute(0, 2, 4, 1, 3, 5).reshape(2, 64, 16)
    )
    torch.testing.assert_close(loss, tokens[:, seen].square().mean())


def fake_data(objects):
    data = object.__new__(dataset.LatentDataset)
    data.objects = np.array(objects)
    data.scenes = [sample_scene(np.random.default_rng(i)) for i in range(len(objects))]
    data.latents = {256: torch.arange(len(objects)).view(-1, 1, 1, 1)}
    return data


def test_partial_pictures_are_of_scenes_that_have_all_their_objects_there():
    data = fake_data(
        [[1, 0, 0, 0, 0, 0, 0, 0, 0]] * 8 + [[1, 1, 0, 0, 0, 0, 0, 0, 0], [0] * 8 + [1]]
    )
    rng = np.random.default_rng(0)
    drawn = data.draw(256, 4000, rng, [0, 1])[0].flatten()
    one, two, *_ = COUNT_PROBABILITIES
    assert 9 not in drawn
    assert (drawn == 8).float().mean() == pytest.approx(two / (one + two), abs=0.03)


def test_places_of_a_partial_step_fit_a_scene_and_end_before_the_budget_does(tmp_path):
    training, rng = train.Training(tmp_path, 1.0, CPU), np.random.default_rng(0)
    data = fake_data([[0, 1, 0, 1, 0, 0, 0, 0, 1]])
    drawn = [training.draw_places(256, data, rng) for _ in range(400)]
    assert {tuple(places) for places in drawn} == {(1, 3, 8), tuple(range(9))}
    assert sum(len(p) == 3 for p in drawn) / 400 == pytest.approx(
        train.PARTIAL_PROBABILITY, abs=0.06
    )
    assert training.draw_places(128, data, rng) == list(range(9))
    training.elapsed_s = 0.71
    assert all(training.draw_places(256, data, rng) == list(range(9)) for _ in range(50))
