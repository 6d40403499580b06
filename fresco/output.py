"""Where results are written; checked before anything slow."""

from __future__ import annotations

import tempfile
from pathlib import Path

from fresco.errors import FrescoError


class OutputError(FrescoError, OSError):
    """Results cannot be written where they should go."""


def make_directory(where: str, folder: Path, option: str) -> None:
    """Make a directory and see whether files can be written to it.

    Args:
        where: The call that wants it, for the message.
        folder: The directory; those above it are made too.
        option: What the caller names another one with.

    Raises:
        OutputError: If it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        got = f"{str(folder)!r} ({error.strerror})"
        fix = f"Name another one with {option}."
        raise OutputError(where, "a directory to write to", got, fix) from error
