"""`python -m tests.write_recipes`: the page of recipes, and the README's table, from records."""

from __future__ import annotations

import re
from pathlib import Path

from fresco.recipe import known_recipes, load_recipe

ROOT = Path(__file__).parents[1]
PAGE, README = ROOT / "docs/reference/recipes.md", ROOT / "README.md"
INTENTS = ("quality", "balanced", "fast")
BEGIN, END = "<!-- written by python -m tests.write_recipes -->", "<!-- end of the table -->"
INTRODUCTION = """\
# Recipes

Written by `python -m tests.write_recipes` from the recipes' own files; a test fails if it is
stale. Every figure is of a `validated` record, which only the command beside it writes.
`mechanics, FLOPs`: the recipe ran as planned on a small pipeline of the model's class and came off
without a trace, and its FLOPs were counted on the model's published configuration
(`adapters/configs`, each with its source); nothing was measured of its pictures or its time.
`pictures` compares with plain runs of the same noise: PSNR in dB and SSIM to them, the judge's
share of asked attributes (the plain run's in brackets), and the noise floor, how far the plain run
is from itself in another precision, or compiled. `fresco recipes show NAME` prints a recipe with
its comments.

All records anew: `python -m tests.write_records mechanics` for the models whose weights are not
here, `python -m tests.write_records reference` for the reference model.
"""


def make_page():
    """The page: a section per model, a row per recipe, and its records below."""
    lines = [INTRODUCTION]
    for model, recipes in _by_model().items():
        lines += [f"## {model}", "", "| recipe | plain run | stages (cell x steps) | expects |"]
        lines += ["|---" * 4 + "|"]
        lines += [_recipe_row(name, recipe) for name, recipe in recipes.items()]
        records = [(name, each) for name, recipe in recipes.items() for each in recipe.validated]
        if records:
            columns = (
                "recipe | covers | FLOPs | speedup | PSNR | SSIM | judge | floor | on | command"
            )
            lines += ["", f"| {columns} |", "|---" * 10 + "|"]
            lines += [_record_row(name, record) for name, record in records]
        else:
            lines += ["", "Not validated yet."]
        lines.append("")
    return "\n".join(lines)


def make_readme(text):
    """The README with the table of models by intent in it."""
    rows = []
    for model, recipes in _by_model().items():
        by_intent = {name.removeprefix(f"{model}_"): each for name, each in recipes.items()}
        if not set(INTENTS) <= by_intent.keys():
            continue
        cells = [_gain(by_intent[intent]) for intent in INTENTS]
        covered = _covers([each for recipe in by_intent.values() for each in recipe.validated])
        rows.append(f"| `{model}_*` | {' | '.join(cells)} | {covered} |")
    table = [BEGIN, "", f"| recipe | {' | '.join(INTENTS)} | validated |", "|---" * 5 + "|"]
    written = "\n".join([*table, *rows, "", END])
    between = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    changed, n = between.subn(lambda _: written, text)
    assert n == 1, "the README needs the two comments around its table of recipes"
    return changed


def _by_model():
    """Recipes by name, by the first part of their name."""
    rank = {intent: i for i, intent in enumerate(INTENTS)}
    files = known_recipes()
    names = sorted(files, key=lambda name: (rank.get(name.partition("_")[2], 9), name))
    models = sorted({name.partition("_")[0] for name in names})
    return {model: {name: load_recipe(files[name]) for name in names
                    if name.partition("_")[0] == model} for model in models}  # fmt: skip


def _recipe_row(name, recipe):
    base = recipe.baseline
    size = f", {base.width} x {base.height}" if base and base.height else ""
    frames = f", {base.frames} frames" if base and base.frames else ""
    plain = f"{base.steps} steps{size}{frames}" if base else "as asked"
    stages = ", ".join(f"{stage.cell} x {stage.steps}" for stage in recipe.stages)
    bounds = recipe.expects.model_dump(exclude_none=True)
    expects = ", ".join(f"{key} >= {value:g}" for key, value in bounds.items())
    return f"| `{name}` | {plain} | {stages or 'of the pipeline'} | {expects or '-'} |"


def _record_row(name, record):
    floor = record.noise_floor
    cells = [
        f"`{name}`",
        ", ".join(record.covers),
        f"{record.flops_speedup:g}x",
        _with_interval(record),
        _number(record.psnr_db) if "pictures" in record.covers else "-",
        _number(record.ssim),
        f"{record.judge:.1%} ({record.judge_baseline:.1%})" if record.judge is not None else "-",
        f"{_number(floor.psnr_db)} dB by {floor.how}" if floor else "-",
        f"{record.model}; {record.hardware}; {record.date}",
        f"`{_command(name, record)}`",
    ]
    return f"| {' | '.join(cells)} |"


def _command(name, record):
    if "pictures" not in record.covers:
        return f"fresco validate {name}"
    if record.model == "reference":
        is_compiled = record.noise_floor and record.noise_floor.how == "torch.compile"
        floor = " --floor compile" if is_compiled else ""
        asked = f"--prompts {record.prompts} --only {name}{floor}"
        return f"python -m tests.write_records reference {asked}"
    return f"fresco validate {name} --model {record.model} --prompts FILE --seed {record.seed}"


def _with_interval(record):
    if record.speedup is None:
        return "-"
    low, high = record.speedup_interval
    return f"{record.speedup:g}x [{low:g}, {high:g}]"


def _gain(recipe):
    """Measured where it was measured, else in FLOPs; what is expected is no figure."""
    measured = [record for record in recipe.validated if record.speedup]
    if measured:
        return f"{measured[-1].speedup:.2f}x time"
    counted = [record.flops_speedup for record in recipe.validated]
    return f"{counted[-1]:.2f}x FLOPs" if counted else "-"


def _covers(records):
    return ", ".join(dict.fromkeys(what for each in records for what in each.covers)) or "not yet"


def _number(value):
    return "-" if value is None else f"{value:g}"


if __name__ == "__main__":
    PAGE.write_text(make_page(), encoding="utf-8")
    README.write_text(make_readme(README.read_text(encoding="utf-8")), encoding="utf-8")
