"""`fresco doctor` tells what attaches here, and why the rest does not."""

from __future__ import annotations

import importlib.metadata
import json
from types import SimpleNamespace

import torch

from fresco.doctor import devices, installed, try_techniques
from fresco.errors import AttachError
from fresco.registry import adapters
from fresco.techniques import techniques
from tests.command import run
from tests.conftest import traces


def test_doctor_prints_and_writes_what_it_found(tmp_path, monkeypatch, tiny_flux_pipe):
    monkeypatch.setattr("fresco.reference.load", lambda *_: tiny_flux_pipe)
    file = tmp_path / "doctor.json"
    result = run("doctor", "--json", str(file))
    assert result.exit_code == 0, result.output
    found = json.loads(file.read_text())
    assert list(found) == ["packages", "devices", "models", "techniques"]
    packages = {row["what"]: row["state"] for row in found["packages"]}
    assert packages["torch"] == torch.__version__
    assert {"what": "FluxTransformer2DModel", "state": "yes", "why": ""} in found["models"]
    assert [row["what"] for row in found["models"]] == sorted(adapters())
    kinds = {row["what"].split()[0] for row in found["techniques"]}
    assert kinds == set(techniques())
    for text in ("torch", "cpu", "FluxTransformer2DModel", "needs settings"):
        assert text in result.output


def test_every_choice_is_tried_and_taken_off_again(tiny_flux_pipe):
    before, calls = traces(tiny_flux_pipe), []
    found = {row.what: row for row in try_techniques(tiny_flux_pipe, lambda *at: calls.append(at))}
    assert traces(tiny_flux_pipe) == before
    assert calls[-1] == (len(found), len(found))
    assert {row.state for row in found.values()} <= {"yes", "no", "needs settings"}
    assert found["cache first_block"].state == "yes"
    assert found["lora"].why == "give source or state_dict, one of the two"


def test_a_technique_that_does_not_attach_says_why(tiny_flux_pipe, monkeypatch):
    def refuse(self, pipe):
        raise AttachError("compile.attach(pipe)", "a compiler", "none", "Install one.")

    monkeypatch.setattr(techniques()["compile"], "attach", refuse)
    found = {row.what: row for row in try_techniques(tiny_flux_pipe, lambda *_: None)}
    assert found["compile"].state == "no"
    assert (
        found["compile"].why == "compile.attach(pipe): expected a compiler, got none. Install one."
    )


def test_a_missing_package_and_device_say_so(monkeypatch):
    def version(name):
        if name == "peft":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = {row.what: row for row in installed()}
    assert (found["peft"].state, found["peft"].why) == ("none", "pip install peft")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert [row.what for row in devices()] == ["cpu", "cuda"]
    assert devices()[1].why


def test_a_gpu_is_named_with_its_memory(monkeypatch):
    has = SimpleNamespace(name="NVIDIA H200", total_memory=141 * 2**30, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: has)
    assert [(row.what, row.state) for row in devices()][1:] == [
        ("cuda:0", "NVIDIA H200, 141 GiB, compute 9.0")
    ]
