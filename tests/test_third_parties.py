"""An installed package adds a model family, a technique and recipes through one entry point."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
from typing import ClassVar, Literal
from fresco.adapters.models.flux import FluxAdapter
from fresco.registry import register_adapter
from fresco.techniques import AbstractAttachment, TechniqueConfig, register_technique


@register_adapter
class TinyAdapter(FluxAdapter):
    model: ClassVar[str] = "TinyTransformer"


@register_technique
class HalfConfig(TechniqueConfig):
    kind: Literal["half"] = "half"
    phase: ClassVar[str] = "weights"
    touches: ClassVar[str] = "the last projection"
    share: float = 0.5

    def attach(self, pipe):
        return Half(pipe.transformer.proj_out.weight, self.share)


class Half(AbstractAttachment):
    def __init__(self, weight, share):
        self.weight, self.before = weight, weight.detach().clone()
        weight.data.mul_(share)

    def restore(self):
        self.weight.data.copy_(self.before)

    def counts(self):
        return {"weights": self.weight.numel()}

    def idle(self):
        return None
"""
RECIPE = """# Tiny, fast.
schema: 1
model: TinyTransformer
baseline: {steps: 4}
stages:
  - {cell: 2, steps: 1, until_sigma: 0.5}
  - {cell: 1, steps: 1}
stack:
  - {kind: half}
"""
USE = """
import torch
import fresco
from fresco.registry import find_adapter
from diffusers import FluxTransformer2DModel
from tests.conftest import draw_latents, make_flux_pipe

class TinyTransformer(FluxTransformer2DModel):
    pass

pipe = make_flux_pipe()
pipe.transformer.__class__ = TinyTransformer
print(type(find_adapter(pipe.transformer)).__module__)
before = draw_latents(pipe, num_inference_steps=4)
with fresco.accelerate(pipe, "tiny_fast") as fast:
    draw_latents(pipe, num_inference_steps=4)
    print([step.side for step in fast.report.steps])
    print("half" in str(fast.summary()))
print(torch.equal(before, draw_latents(pipe, num_inference_steps=4)))
"""


def install(folder: Path, name: str) -> None:
    """Put a package with its metadata where `pip install --target` would."""
    package = folder / name
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(CODE)
    (package / "tiny_fast.yaml").write_text(RECIPE)
    metadata = folder / f"{name}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[fresco.adapters]\n{name} = {name}\n")


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with that folder's packages installed."""
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
        env=os.environ | {"PYTHONPATH": str(folder), "COLUMNS": "200"},
    )


FRESCO = ("-c", "import sys; from fresco.cli import main; sys.argv[0] = 'fresco'; main()")


def test_an_installed_package_adds_a_model_a_technique_and_a_recipe(tmp_path):
    install(tmp_path, "tiny_family")
    done = python(tmp_path, "-c", USE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:4] == ["tiny_family", "[2, 1]", "True", "True"]


def test_the_command_line_knows_recipes_of_others(tmp_path):
    install(tmp_path, "tiny_family")
    done = python(tmp_path, *FRESCO, "recipes")
    assert "tiny_fast" in done.stdout, done.stderr
    assert "identity" in done.stdout
    assert "tiny_fast" not in python(tmp_path / "nothing", *FRESCO, "recipes").stdout


@pytest.mark.parametrize("command", [("recipes",), ("recipes", "check", "identity")])
def test_two_packages_with_one_name_of_a_recipe_are_an_error(tmp_path, command):
    install(tmp_path, "tiny_family")
    install(tmp_path, "tiny_cousins")
    done = python(tmp_path, *FRESCO, *command)
    assert done.returncode == 2
    assert "uninstall one of the two" in done.stdout + done.stderr
