"""Where results are written, checked before anything slow; and whole files or none of them."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from fresco.errors import FrescoError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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


def make_place(where: str, file: Path, option: str) -> None:
    """Make the directory of a file, and see whether the file can be written there.

    Args:
        where: The call that wants it, for the message.
        file: What will be written.
        option: What the caller names another one with.

    Raises:
        OutputError: If it cannot be written, or is a directory.
    """
    if file.is_dir():
        got, fix = f"the directory {str(file)!r}", f"Name a file with {option}."
        raise OutputError(where, "a file to write to", got, fix)
    make_directory(where, file.parent, option)


def write_text(file: Path, text: str) -> None:
    """Write a text file as a whole, as `write_bytes` does."""
    write_bytes(file, text.encode())


def write_figure(file: Path, figure: Figure) -> None:
    """Write a figure of matplotlib as PNG, whatever the file's name, as `write_bytes` does."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    write_bytes(file, drawn.getvalue())


def write_bytes(file: Path, content: bytes) -> None:
    """Write a file as a whole: whoever breaks it off leaves the one that was there.

    Args:
        file: In a directory that is there.
        content: What it holds then.

    Raises:
        OutputError: If it cannot be written.
    """
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        partial.write_bytes(content)
        partial.replace(file)
    except OSError as error:
        got, fix = f"{str(file)!r} ({error.strerror})", "Name another one."
        raise OutputError("write_bytes(file, content)", "a file to write to", got, fix) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
