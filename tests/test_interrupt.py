"""Ctrl-C, as a terminal sends it, leaves what is done readable."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

RECIPE = """schema: 1
model: FluxTransformer2DModel
baseline: {steps: 4, height: 64, width: 64}
stages:
  - {cell: 2, steps: 2, until_sigma: 0.6}
  - {cell: 1, steps: 2, lift: {form: latent}}
"""
MANY, LIMIT_S = 5000, 240


def heed_interrupts():
    """What a shell's background jobs, and so their children, ignore."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_validation_that_is_stopped_leaves_its_pairs(tmp_path):
    (tmp_path / "mine.yaml").write_text(RECIPE)
    (tmp_path / "prompts.txt").write_text("a red ring\n" * MANY)
    command = (sys.executable, "-c", "from fresco.cli import app; app()", "validate", "mine.yaml")
    asked = ("--model", "reference", "--prompts", "prompts.txt", "--json", "record.json")
    record, since = tmp_path / "record.json", time.monotonic()
    with subprocess.Popen(
        [*command, *asked],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=heed_interrupts,  # noqa: PLW1509  # no thread of this process holds a lock of it
    ) as running:
        while not record.exists() and running.poll() is None and time.monotonic() < since + LIMIT_S:
            time.sleep(0.2)
        running.send_signal(signal.SIGINT)
        try:
            printed, _ = running.communicate(timeout=LIMIT_S)
        finally:
            running.kill()  # a child that goes on would be waited for
    assert running.returncode == 130, printed.decode()
    found = json.loads(record.read_text())
    assert found["complete"] is False
    assert 1 <= len(found["pairs"]) < MANY
    assert (tmp_path / "mine.yaml").read_text() == RECIPE
