"""The command line, run in this process."""

from __future__ import annotations

from typer.testing import CliRunner

import fresco.cli


def run(*arguments, **environment):
    environment = {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"} | environment
    result = CliRunner().invoke(fresco.cli.app, arguments, env=environment)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result
