"""Where results are written, checked before anything slow; and whole files or none of them."""

from __future__ import annotations

import contextlib
import os
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


def write_text(file: Path, text: str) -> None:
    """Write a file as a whole: whoever breaks it off leaves the one that was there.

    Args:
        file: In a directory that is there.
        text: Its content.

    Raises:
        OutputError: If it cannot be written.
    """
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(file)
    except OSError as error:
        got, fix = f"{str(file)!r} ({error.strerror})", "Name another one."
        raise OutputError("write_text(file, text)", "a file to write to", got, fix) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
