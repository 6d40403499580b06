"""`python -m tests.write_matrix`: run every row, write the packaged file and the page."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path

from fresco.combinations import FILE
from tests.matrix import AXES, HOOKED, make_rows
from tests.matrix_run import run_row

ROOT = Path(__file__).parents[1]
JSON, PAGE = ROOT / "fresco" / FILE, ROOT / "docs/reference/combinations.md"
INTRODUCTION = """\
# Combinations

Written by `python -m tests.write_matrix`; tests fail if it is stale. Every row ran on a tiny
`FluxPipeline` of random weights on a CPU: {validated} are validated, {refused} are refused.

- **validated**: the picture is the expected one. Offload changes no bit; layerwise casting gives
  what weights rounded by hand give, and compiled blocks (by the backend `eager`; one row by
  `inductor`) what uncompiled ones give, to 1e-5; a cache that never hits changes no bit, and what
  hits give is compared with every cache's algorithm written out (`tests/test_cache_references.py`);
  quantized pictures are less than 2% away; a LoRA gives what its difference added to the weights
  by hand gives. `restore()` is exact.
- **refused**: with that reason, whatever else is in the stack. What is refused on one device only
  is left to the technique itself elsewhere.

`accelerate()` looks up what kind of resolution, cache, quantization, LoRA, compile and offload a
stack has; thresholds and the like do not matter, and neither does the model. A stack is in the
matrix if every two and every three of its values, `none` among them, were in one row together.
Others are allowed with a `FrescoWarning`.

Offload here is from a CPU to itself, `sequential` through `meta`, by accelerate's `cpu_offload` of
the transformer: the pipeline's own method fails on a CPU. Not run, because every linear layer
becomes graphs of its own: compile with {hooked}. Not run either, because building its kernels
takes minutes: `quanto_qint4`.
"""


def to_json(rows):
    """The file that `accelerate()` reads."""
    head = json.dumps({"axes": AXES}, indent=1)[:-2]
    kept = [{k: v for k, v in asdict(row).items() if v or k == "values"} for row in rows]
    lines = ",\n  ".join(map(json.dumps, kept))
    return f'{head},\n "rows": [\n  {lines}\n ]\n}}\n'


def to_page(rows):
    """The page that people read."""
    n_by = {name: sum(r.status == name for r in rows) for name in ("validated", "refused")}
    lines = [INTRODUCTION.format(**n_by, hooked=", ".join(HOOKED))]
    lines += ["## Refused", "", "| stack | where | reason |", "|---|---|---|"]
    for row in rows:
        if row.status == "refused":
            stack = " + ".join(f"{axis} {value}" for axis, value in row.values.items())
            lines.append(f"| {stack} | {row.device or 'everywhere'} | {row.reason} |")
    lines += ["", "## Run", "", f"| {' | '.join((*AXES, 'status'))} |"]
    lines.append("|---" * (len(AXES) + 1) + "|")
    for row in rows:
        if row.status != "refused":
            values = [row.values.get(axis, "-") for axis in AXES]
            lines.append(f"| {' | '.join((*values, row.status))} |")
    return "\n".join(lines) + "\n"


def write():
    """Run every row and write both files, unless one ends otherwise than it is declared."""
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    refused, covering = make_rows()
    rows = [run_row(values) for values in (*refused, *covering)]
    wrong = [row for row in rows if (row.status == "refused") != (row.values in refused)]
    if wrong:
        raise SystemExit("\n".join(["correct REFUSED in tests/matrix.py:", *map(repr, wrong)]))
    JSON.write_text(to_json(rows), encoding="utf-8")
    PAGE.write_text(to_page(rows), encoding="utf-8")


if __name__ == "__main__":
    write()
