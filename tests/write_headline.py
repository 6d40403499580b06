"""`python -m tests.write_headline`: README's headline table, from the JSON of the bench."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.write_studies import cell

README = Path(__file__).parents[1] / "README.md"
FIGURES = README.parent / "docs/reference/headline.json"
BETWEEN = re.compile(
    r"(<!-- written by python -m tests\.write_headline -->\n).*?(<!-- end of the headline -->)",
    re.DOTALL,
)
COLUMNS = (  # heading, key, form, unit
    ("loop", "speedup", ".1f", "x"),
    ("call", "call_speedup", ".1f", "x"),
    ("FLOPs", "flops_speedup", ".1f", "x"),
    ("asked", "judge", ".1%", ""),
    ("scenes", "scene", ".1%", ""),
    ("scenes, difference", "scene_difference", "+.1%", ""),
    ("PSNR dB", "psnr_db", ".1f", ""),
    ("SSIM", "ssim", ".3f", ""),
)


def make_readme(text):
    """README with the table as the JSON has it."""
    report = json.loads(FIGURES.read_text(encoding="utf-8"))
    headings = ["", "steps", *(heading for heading, *_ in COLUMNS)]
    lines = ["", f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    for row in report["rows"]:
        if "missing" in row:
            lines.append(f"| {row['name']} | missing |" + " |" * len(COLUMNS))
            continue
        cells = [cell(row, *column) for _, *column in COLUMNS]
        lines.append(f"| {row['name']} | {row['steps']} | {' | '.join(cells)} |")
    measured = f"{report['n_prompts']} held-out captions, {report['how']['batch']} per call"
    measured += f", {report['dtype']}"
    lines += ["", f"{measured}, {report['hardware']}, {report['date']}.", ""]
    changed, n = BETWEEN.subn(lambda found: found[1] + "\n".join(lines) + "\n" + found[2], text)
    assert n == 1, "README needs comments around the table"
    return changed


if __name__ == "__main__":
    README.write_text(make_readme(README.read_text(encoding="utf-8")), encoding="utf-8")
