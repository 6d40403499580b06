import dataclasses

import pytest
import torch

from fresco.cost import pass_flops
from fresco.reference import bench, measured
from fresco.reference.ablation import ablation_groups
from fresco.reference.bench import How, StaleError, Way, batch_key, measure
from fresco.weights import weights_digest
from tests.conftest import FRESCO_5

PROMPTS = ["a red circle", "a blue square", "a small circle", "a large square", "a circle"]
HOW = How(seed=3, batch=2)
PLAIN = Way("plain", None, 2)


@pytest.fixture
def calls(monkeypatch):
    """Every call of the pipeline: number of the first picture, pictures, steps."""
    seen, sample = [], bench._sample

    def recorded(pipe, prompts, how, steps):
        seen.append((how.seed - HOW.seed, len(prompts), steps))
        return sample(pipe, prompts, how, steps)

    monkeypatch.setattr(bench, "_sample", recorded)
    return seen


def test_an_interrupted_row_goes_on_where_it_stopped(tiny_flux_pipe, tmp_path, calls):
    (tmp_path / "whole").mkdir()
    whole = measure(tiny_flux_pipe, PLAIN, PROMPTS, HOW, tmp_path / "whole")
    calls.clear()

    def interrupt(done):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(tiny_flux_pipe, PLAIN, PROMPTS, HOW, tmp_path, interrupt)
    assert calls == [(0, 2, 2), (0, 2, 2), (2, 2, 2)]  # the first warms up
    calls.clear()
    progress = []
    row = measure(tiny_flux_pipe, PLAIN, PROMPTS, HOW, tmp_path, progress.append)
    assert calls == [(0, 2, 2), (4, 1, 2)]
    assert progress == [4, 5]
    assert torch.equal(row.images, whole.images)
    assert len(row.loop_s) == len(row.full_steps) == len(PROMPTS)


def test_a_row_that_is_done_is_not_sampled_again(tiny_flux_pipe, tmp_path, calls):
    first = measure(tiny_flux_pipe, PLAIN, PROMPTS[:2], HOW, tmp_path)
    calls.clear()
    again = measure(tiny_flux_pipe, Way("renamed", None, 2), PROMPTS[:2], HOW, tmp_path)
    assert calls == []
    assert torch.equal(again.images, first.images)
    assert dataclasses.replace(again, images=first.images) == first


def test_a_row_of_another_process_is_timed_anew(tiny_flux_pipe, tmp_path, calls, monkeypatch):
    first = measure(tiny_flux_pipe, PLAIN, PROMPTS, HOW, tmp_path)
    monkeypatch.setattr(measured, "PROCESS", "another")
    monkeypatch.setattr(bench, "TIMED_BATCHES", 2)
    calls.clear()
    untimed = measure(tiny_flux_pipe, PLAIN, PROMPTS, HOW, tmp_path, timed=False)
    assert calls == []
    assert torch.equal(untimed.images, first.images)
    assert untimed.loop_s == untimed.call_s == untimed.step_s == ()
    for _ in range(2):  # once for the process
        timed = measure(tiny_flux_pipe, PLAIN, PROMPTS, HOW, tmp_path)
        assert calls == [(0, 2, 2), (0, 2, 2), (2, 2, 2)]  # the first warms up
        assert torch.equal(timed.images, first.images)
        assert len(timed.loop_s) == len(timed.call_s) == len(timed.step_s) == 4
        assert set(timed.loop_s).isdisjoint(first.loop_s)


def test_new_batches_are_timed_before_a_second_kept_one(
    tiny_flux_pipe, tmp_path, calls, monkeypatch
):
    measure(tiny_flux_pipe, PLAIN, PROMPTS[:4], HOW, tmp_path)
    monkeypatch.setattr(measured, "PROCESS", "another")
    monkeypatch.setattr(bench, "TIMED_BATCHES", 2)
    calls.clear()
    row = measure(tiny_flux_pipe, PLAIN, PROMPTS, HOW, tmp_path)
    assert calls == [(0, 2, 2), (0, 2, 2), (4, 1, 2)]  # the first warms up
    assert len(row.images) == len(PROMPTS)
    assert len(row.loop_s) == 3
    calls.clear()
    row = measure(tiny_flux_pipe, PLAIN, [*PROMPTS[:4], "a ring", "a ring"], HOW, tmp_path)
    assert calls == [(0, 2, 2), (4, 2, 2)]  # one kept batch is timed already
    assert len(row.loop_s) == 4


def test_kept_pictures_of_other_code_are_noticed(tiny_flux_pipe, tmp_path, monkeypatch):
    measure(tiny_flux_pipe, PLAIN, PROMPTS[:2], HOW, tmp_path)
    monkeypatch.setattr(measured, "PROCESS", "another")
    sample = bench._sample

    def changed(*given):
        images, *seconds = sample(*given)
        return 255 - images, *seconds

    monkeypatch.setattr(bench, "_sample", changed)
    with pytest.raises(StaleError, match=r"kept pictures as .* an empty folder"):
        measure(tiny_flux_pipe, PLAIN, PROMPTS[:2], HOW, tmp_path)


def test_more_captions_or_fewer_share_their_batches(tiny_flux_pipe, tmp_path, calls):
    few = measure(tiny_flux_pipe, PLAIN, PROMPTS[:4], HOW, tmp_path)
    calls.clear()
    all_of_them = measure(tiny_flux_pipe, PLAIN, PROMPTS, HOW, tmp_path)
    assert calls == [(0, 2, 2), (4, 1, 2)]  # the first warms up
    assert torch.equal(all_of_them.images[:4], few.images)
    assert all_of_them.loop_s[:4] == few.loop_s


def test_a_batch_that_is_missing_between_others_is_sampled(tiny_flux_pipe, tmp_path, calls):
    whole = measure(tiny_flux_pipe, PLAIN, PROMPTS, HOW, tmp_path)
    middle = sorted(tmp_path.glob("*.pt"), key=lambda path: path.stat().st_mtime_ns)[1]
    middle.unlink()
    calls.clear()
    again = measure(tiny_flux_pipe, PLAIN, PROMPTS, HOW, tmp_path)
    assert calls == [(0, 2, 2), (2, 2, 2)]
    assert torch.equal(again.images, whole.images)


def test_seconds_are_those_of_a_batch_by_its_pictures(tiny_flux_pipe, tmp_path, monkeypatch):
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    monkeypatch.setattr(bench, "_sample", lambda *_: (images, 6.0, 8.0))
    tiny_flux_pipe._num_timesteps = 2  # of a call that was not made
    row = measure(tiny_flux_pipe, PLAIN, PROMPTS[:2], HOW, tmp_path)
    assert (row.loop_s, row.call_s) == ((3.0, 3.0), (4.0, 4.0))


def test_rows_are_compared_in_full_steps_beside_them(tiny_flux_pipe, tmp_path, monkeypatch):
    slowdown, n = iter((1.0, 3.0, 1.0)), []
    images = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)

    def slowed(_pipe, prompts, *_):  # once to warm up, then batch by batch
        pictures, times = images.repeat(len(prompts), 1, 1, 1), n[-1] if n else 1.0
        return pictures, 10.0 * len(prompts) * times, 12.0 * len(prompts) * times

    def before(done):
        n.append(next(slowdown))

    monkeypatch.setattr(bench, "_sample", slowed)

    def clock(n_pictures):
        timed.append(n_pictures)
        return n_pictures * next(readings)

    timed, readings = [], iter((1.0, 3.0, 9.0))  # slower after a batch than before it
    monkeypatch.setattr(bench, "step_clock", lambda _: clock)
    tiny_flux_pipe._num_timesteps = 2
    row = measure(tiny_flux_pipe, PLAIN, PROMPTS[:4], HOW, tmp_path, before)
    assert row.loop_s == (10.0, 10.0, 30.0, 30.0)
    assert row.step_s == (2.0, 2.0, 6.0, 6.0)
    assert (row.loop_in_steps, row.call_in_steps) == (5.0, 6.0)
    assert timed == [2, 2, 2]  # what is read between two batches is of both


def test_a_batch_of_another_size_has_a_reading_of_its_own(tiny_flux_pipe, tmp_path, monkeypatch):
    timed = []
    monkeypatch.setattr(bench, "step_clock", lambda _: lambda n: timed.append(n) or float(n))
    row = measure(tiny_flux_pipe, PLAIN, PROMPTS[2:], HOW, tmp_path)
    assert timed == [2, 2, 1, 1]
    assert row.step_s == (1.0, 1.0, 1.0)


def test_the_first_batches_of_a_row_are_timed(tiny_flux_pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "TIMED_BATCHES", 2)
    timed = []
    monkeypatch.setattr(bench, "step_clock", lambda _: lambda n: timed.append(n) or 1.0)
    few = measure(tiny_flux_pipe, PLAIN, PROMPTS[:2], HOW, tmp_path)
    assert timed == [2, 2]  # before and after
    row = measure(tiny_flux_pipe, PLAIN, PROMPTS, HOW, tmp_path)
    assert timed == [2, 2, 2, 2]
    assert len(row.images) == len(row.full_steps) == len(PROMPTS)
    assert len(row.loop_s) == len(row.call_s) == len(row.step_s) == 4
    assert row.loop_s[:2] == few.loop_s


def test_a_row_whose_seconds_nobody_asks_for_is_not_timed(tiny_flux_pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "step_clock", lambda _: lambda _: 1 / 0)
    row = measure(tiny_flux_pipe, PLAIN, PROMPTS[:2], HOW, tmp_path, timed=False)
    assert row.loop_s == row.call_s == row.step_s == ()


def test_the_asked_guidance_is_that_of_the_call(tiny_flux_pipe, monkeypatch):
    told = []
    monkeypatch.setattr(
        type(tiny_flux_pipe), "__call__", lambda _, *__, **given: told.append(given) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        bench._sample(tiny_flux_pipe, PROMPTS[:1], dataclasses.replace(HOW, guidance=1.5), 2)
    assert told[0]["guidance_scale"] == 1.5


def test_a_score_of_two_estimates_has_them_while_warming_up(tiny_flux_pipe, tmp_path):
    (way,) = (way for way in ablation_groups()["score"].ways if "temporal_variance low" in way.name)
    assert len(measure(tiny_flux_pipe, way, PROMPTS[:1], HOW, tmp_path).images) == 1


def test_a_row_that_was_cut_while_it_was_written_is_not_there(
    tiny_flux_pipe, tmp_path, monkeypatch
):
    def cut(_, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bench.torch, "save", cut)
        with pytest.raises(KeyboardInterrupt):
            measure(tiny_flux_pipe, PLAIN, PROMPTS[:2], HOW, tmp_path)
    assert len(measure(tiny_flux_pipe, PLAIN, PROMPTS[:2], HOW, tmp_path).images) == 2


def test_every_picture_has_its_own_seed_whatever_the_batch(tiny_flux_pipe, tmp_path):
    batched = measure(tiny_flux_pipe, PLAIN, PROMPTS[:3], HOW, tmp_path)
    alone = measure(tiny_flux_pipe, PLAIN, PROMPTS[2:3], How(seed=5, batch=1), tmp_path)
    assert (batched.images[2].int() - alone.images[0].int()).abs().max() <= 1  # rounding
    assert not torch.equal(batched.images[0], batched.images[1])


def test_an_accelerated_row_costs_what_its_plan_says(tiny_flux_pipe, tmp_path):
    way = Way("fresco", FRESCO_5, 12)
    row = measure(tiny_flux_pipe, way, PROMPTS[:2], HOW, tmp_path)
    assert row.n_steps == 12
    flops = [pass_flops(tiny_flux_pipe.transformer, n, 40) for n in (4, 16, 64)]
    assert row.full_steps == pytest.approx([4 * sum(flops) / flops[-1]] * 2)
    assert row.images.dtype == torch.uint8
    assert not tiny_flux_pipe.transformer._forward_pre_hooks


def test_the_key_changes_with_everything_but_the_name(tiny_flux_pipe):
    weights = weights_digest(tiny_flux_pipe)
    key = batch_key(PLAIN, PROMPTS, HOW, weights)
    assert batch_key(Way("other", None, 2), PROMPTS, HOW, weights) == key
    with torch.no_grad():
        tiny_flux_pipe.transformer.proj_out.bias[0] += 1
    other_recipe = {**FRESCO_5, "stages": [{"cell": 1, "steps": 12}]}
    others = {
        batch_key(Way("plain", None, 3), PROMPTS, HOW, weights),
        batch_key(Way("plain", FRESCO_5, 2), PROMPTS, HOW, weights),
        batch_key(Way("plain", other_recipe, 2), PROMPTS, HOW, weights),
        batch_key(PLAIN, PROMPTS[:4], HOW, weights),
        batch_key(PLAIN, PROMPTS, dataclasses.replace(HOW, seed=4), weights),
        batch_key(PLAIN, PROMPTS, dataclasses.replace(HOW, batch=1), weights),
        batch_key(PLAIN, PROMPTS, dataclasses.replace(HOW, guidance=1.0), weights),
        batch_key(PLAIN, PROMPTS, HOW, weights_digest(tiny_flux_pipe)),
    }
    assert len(others | {key}) == 9
