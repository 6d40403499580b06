"""Checks of the project; `nox -l` lists them. Dependencies come from pyproject.toml alone."""

from __future__ import annotations

from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["lint", "typecheck", "tests"]
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_existing_virtualenvs = True

CONSTRAINTS = ("-c", "constraints.txt")
PYPROJECT = nox.project.load_toml("pyproject.toml")


def group(name: str) -> list[str]:
    """Requirements of a dependency group."""
    return list(nox.project.dependency_groups(PYPROJECT, name))


@nox.session
def lint(session: nox.Session) -> None:
    """Format check, lint, spelling."""
    session.install(*CONSTRAINTS, *group("lint"))
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    session.run("codespell", "fresco", "adapters", "recipes", "tests", "docs", "README.md")


@nox.session
def typecheck(session: nox.Session) -> None:
    """Strict mypy over fresco/, adapters/ and recipes/."""
    session.install(*CONSTRAINTS, "-e", ".", *group("typecheck"))
    session.run("mypy", "fresco", "adapters", "recipes")


@nox.session
def tests(session: nox.Session) -> None:
    """Unit and property tests on CPU; arguments after -- go to pytest."""
    session.install(*CONSTRAINTS, "-e", ".[test]")
    session.run("pytest", *session.posargs)


@nox.session
def properties(session: nox.Session) -> None:
    """The property tests again, with the long Hypothesis profile."""
    session.install(*CONSTRAINTS, "-e", ".[test]")
    session.run("pytest", "-k", "properties", "--hypothesis-profile=ci", *session.posargs)


@nox.session
def wheel(session: nox.Session) -> None:
    """Build the wheel, install it alone, load what it ships."""
    session.install("build")
    out = session.create_tmp()
    session.run("python", "-m", "build", "--wheel", "--outdir", out, ".")
    (built,) = Path(out).glob("fresco-*.whl")
    session.install(*CONSTRAINTS, str(built))
    session.cd(out)
    session.run("fresco", "recipes")
    session.run("python", "-c", "import fresco.reference; fresco.reference.load()")
