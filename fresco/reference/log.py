"""What trainings report while they run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

Log = Callable[[dict[str, float]], None]


def write_log(folder: Path) -> Log:
    """A log that appends JSON lines to the run's `log.jsonl`."""

    def log(figures: dict[str, float]) -> None:
        with (folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(figures) + "\n")

    return log
