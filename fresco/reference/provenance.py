"""Where weights come from: what was run, on which code and hardware, and when."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch


def provenance(command: str, **figures: Any) -> dict[str, Any]:
    """Say how weights came to be: command, figures, code, versions, hardware, date."""
    return {
        "command": command,
        **figures,
        "code": f"fresco {importlib.metadata.version('fresco')}, commit {_commit()}",
        "versions": versions(),
        "hardware": f"{processor()}, {torch.get_num_threads()} threads",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def versions() -> dict[str, str]:
    """Versions of what figures depend on."""
    names = ("fresco", "torch", "diffusers", "transformers")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), **found}


def _commit() -> str:
    """Commit of the code, `-dirty` with changes, or `unknown` outside a clone."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def processor() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
