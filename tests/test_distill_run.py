"""A distillation from beginning to end: its file, its provenance, the command."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import fresco.reference
from fresco.api import accelerate
from fresco.cli import app
from fresco.errors import AttachError
from fresco.reference import (
    MAX_TOKENS,
    PIPELINE,
    WeightsError,
    distill,
    load,
    lora_path,
    trajectories,
)
from fresco.reference.distill_run import MAX_BYTES, DistillError
from fresco.reference.distill_run import distill as run
from tests.distilled import shorten
from tests.reference_parts import assemble_untrained

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A distillation from beginning to end; returns its LoRA's folder and what was logged."""
    folder, logged = tmp_path_factory.mktemp("distilled"), []
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        out = run(folder, 0.001, logged.append, CPU, PIPELINE)
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


def test_the_file_loads_by_diffusers_and_by_a_recipe(made, tmp_path):
    pipe, file = load(), strengthened(made, tmp_path)
    plain = latents(pipe)
    stack = [{"kind": "lora", "source": str(file), "fuse": True}]
    with accelerate(pipe, {"schema": 1, "model": "any", "stack": stack}) as fast:
        fused = latents(pipe)
        (row,) = [row for row in fast.summary().rows if row.kind == "lora"]
        assert row.counts["layers"] == 2 * 14 + 9 * 6 + 1 + 9
    assert torch.equal(latents(pipe), plain)
    pipe.load_lora_weights(file)
    loaded = latents(pipe)
    assert not torch.allclose(loaded, plain, atol=1e-2)
    assert torch.allclose(loaded, fused, atol=1e-4)


def test_a_folder_of_another_teacher_seed_or_beginning_is_refused(made, tmp_path, monkeypatch):
    shorten(monkeypatch)
    out, other = made[0], assemble_untrained(tmp_path)
    for teacher, seed, start in ((None, 32, None), (other, 31, None), (None, 31, out)):
        with pytest.raises(DistillError, match=r"expected the teacher, the seed, .* --folder"):
            run(out.parent, 0.001, lambda _: None, CPU, teacher, seed, start)


def test_a_folder_of_other_paths_is_refused(made, monkeypatch):
    shorten(monkeypatch)
    monkeypatch.setattr(trajectories, "COARSE_BORDERS", (1.0, 0.8))
    with pytest.raises(DistillError, match=r"the paths of the folder's run .*0\.8.* --folder"):
        run(made[0].parent, 0.001, lambda _: None, CPU, PIPELINE)


def test_a_run_goes_on_from_a_lora_of_its_teacher_and_from_no_other(made, tmp_path, monkeypatch):
    shorten(monkeypatch)
    start = strengthened(made, tmp_path).parent
    shutil.copy(made[0] / "provenance.json", start)
    out = run(tmp_path / "on", 0.0005, lambda _: None, CPU, seed=32, start=start)
    facts = json.loads((out / "provenance.json").read_text())
    assert facts["command"] == "fresco reference distill --hours 0.0005 --seed 32 --from-shipped"
    assert facts["start"] == json.loads((start / "provenance.json").read_text())
    before, after = (load_file(folder / distill.FILE) for folder in (start, out))
    for name in (name for name in before if "lora_A" in name):  # a few small steps away
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=0.1)
        assert before[name].abs().max() > 0.5
    other = assemble_untrained(tmp_path)
    with pytest.raises(DistillError, match=r"LoRA of the teacher .* --from-shipped"):
        run(tmp_path / "other", 0.0005, lambda _: None, CPU, other, start=start)
    assert not [*(tmp_path / "other").iterdir()]


def test_a_run_learns_from_the_trajectories_of_others(made, tmp_path, monkeypatch):
    shorten(monkeypatch)
    monkeypatch.setattr(distill, "ODDS", {"fine": 1.0, "coarse": 0.0, "lifted": 0.0})
    other, drawn_from, draw = made[0].parent, set(), distill._draw_paths

    def note(data, *rest):
        drawn_from.update(data.captions)
        return draw(data, *rest)

    monkeypatch.setattr(distill, "_draw_paths", note)
    out = run(tmp_path / "on", 0.002, lambda _: None, CPU, seed=32, others=[other])
    drawn = {
        folder: set(trajectories.read_shards([folder])["fine"].captions)
        for folder in (out.parent, other)
    }
    assert drawn_from == drawn[out.parent] | drawn[other]
    assert drawn[other] - drawn[out.parent]
    facts = json.loads((out / "provenance.json").read_text())
    assert facts["others"] == [31]
    assert f"--seed 32 --others {other.name}" in facts["command"]
    n_shards = [len(trajectories.shards_of(folder)) for folder in drawn]
    assert facts["trajectories"] == sum(n_shards)  # of one each
    with pytest.raises(DistillError, match=r"the teacher, the seed, .* --folder"):
        run(out.parent, 0.002, lambda _: None, CPU, seed=32)


def test_other_trajectories_are_of_the_same_teacher_and_paths(made, tmp_path, monkeypatch):
    shorten(monkeypatch)
    other = made[0].parent
    with pytest.raises(DistillError, match=r"empty, which is none.* --others"):
        run(tmp_path / "new", 0.001, lambda _: None, CPU, others=[tmp_path / "empty"])
    with pytest.raises(DistillError, match=r"of the teacher and the paths .* --others"):
        run(
            tmp_path / "new", 0.001, lambda _: None, CPU,
            assemble_untrained(tmp_path), others=[other],
        )  # fmt: skip
    monkeypatch.setattr(trajectories, "COARSE_BORDERS", (1.0, 0.8))
    with pytest.raises(DistillError, match=r"0\.8.* --others"):
        run(tmp_path / "new", 0.001, lambda _: None, CPU, others=[other])
    assert not [*(tmp_path / "new").iterdir()]


def test_trajectories_are_learnt_from_once(made, tmp_path, monkeypatch):
    shorten(monkeypatch)
    other = made[0].parent
    for seed, others in ((31, [other]), (32, [other, other])):
        with pytest.raises(DistillError, match=r"other seeds, each once.* --seed"):
            run(tmp_path / "new", 0.001, lambda _: None, CPU, seed=seed, others=others)


def test_without_peft_nothing_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(DistillError, match=r"fresco\[lora\]"):
        run(tmp_path / "new", 0.1, lambda _: None, CPU)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("hours", [0, -1, float("nan"), float("inf")])
def test_time_that_is_none_is_refused(tmp_path, hours):
    with pytest.raises(DistillError, match="expected hours above 0"):
        run(tmp_path / "run", hours, print, CPU)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("hours", ["nan", "inf", "0"])
@pytest.mark.parametrize("command", ["train", "distill"])
def test_hours_that_never_end_are_refused_on_the_command_line(command, hours, tmp_path):
    asked = ["reference", command, "--hours", hours, "--folder", str(tmp_path / "run")]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 2
    assert "Invalid value for '--hours'" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["train", "distill"])
def test_a_device_that_is_not_here_is_refused(command, tmp_path):
    asked = ["reference", command, "--device", "chip", "--folder", str(tmp_path / "run")]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 2
    assert "expected a device that is here" in " ".join(result.stderr.split())
    assert not (tmp_path / "run").exists()


def test_a_lora_that_does_not_ship_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(fresco.reference, "LORA", tmp_path)
    with pytest.raises(
        WeightsError, match=r"expected the few-step LoRA .* `fresco reference distill`"
    ):
        lora_path()
    (tmp_path / "pytorch_lora_weights.safetensors").touch()
    assert lora_path().parent == tmp_path


def test_a_recipe_finds_a_lora_in_a_package(made, tmp_path, monkeypatch):
    package = tmp_path / "some_package"
    package.mkdir()
    (package / "__init__.py").touch()
    strengthened(made, package)
    monkeypatch.syspath_prepend(tmp_path)
    pipe = load()
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
    for option in ("--folder", "--hours", "--seed", "--device", "--teacher", "--from-shipped"):
        assert option in result.output


TWO_PROCESSES = """
import sys
from pathlib import Path

import torch

from fresco.reference import distill, distill_run, trajectories

trajectories.PER_SHARD, trajectories.SUBSTEPS = 1, 1
trajectories.BORDERS = (1.0, 0.5, 0.0)
trajectories.LIFTED_BORDERS = (0.99, 0.5, 0.0)
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
