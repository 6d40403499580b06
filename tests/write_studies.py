"""`python -m tests.write_studies`: the tables of the studies' page, from the JSON beside it."""

from __future__ import annotations

import json
import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs/explanation/studies.md"
FIGURES = PAGE.parent / "studies"
COLUMNS = (  # heading, key, form, times
    ("speedup", "speedup", ".2f", "x"),
    ("FLOPs", "flops_speedup", ".2f", "x"),
    ("asked", "judge", ".1%", ""),
    ("difference", "judge_difference", "+.1%", ""),
    ("scenes", "scene", ".1%", ""),
    ("difference", "scene_difference", "+.1%", ""),
    ("Fréchet", "frechet", ".1f", ""),
    ("difference", "frechet_difference", "+.1f", ""),
    ("fine", "hf", ".2f", ""),
    ("PSNR dB", "psnr_db", ".1f", ""),
    ("SSIM", "ssim", ".3f", ""),
)
BETWEEN = re.compile(r"<!-- table of (\w+)\.json -->\n.*?<!-- end -->", re.DOTALL)


def make_page(text):
    """The page with every table as its JSON has it."""

    def written(found):
        report = json.loads((FIGURES / f"{found[1]}.json").read_text(encoding="utf-8"))
        return "\n".join([f"<!-- table of {found[1]}.json -->", *_tables(report), "<!-- end -->"])

    changed, n = BETWEEN.subn(written, text)
    assert n, "the page needs comments around its tables"
    return changed


def _tables(report):
    """One table per group; differences are to its first row, or to another group's there."""
    headings = ["", *(heading for heading, *_ in COLUMNS)]
    for name, group in report["groups"].items():
        yield f"\n**{name}**: {group['question']}; {report['n_prompts']} captions\n"
        yield f"| {' | '.join(headings)} |"
        yield "|---" * len(headings) + "|"
        for row in dict.fromkeys((report["baseline"], *group["rows"])):
            found = report["rows"][row] | report["differences"][name].get(row, {})
            yield f"| {row} | {' | '.join(cell(found, *column) for _, *column in COLUMNS)} |"
    yield ""


def cell(found, key, form, unit=""):
    """A figure, with its interval where it has one."""
    if found.get(key) is None:
        return ""
    low_high = found.get(f"{key}_interval")
    interval = f" ({low_high[0]:{form}} to {low_high[1]:{form}})" if low_high else ""
    return f"{found[key]:{form}}{unit}{interval}"


if __name__ == "__main__":
    PAGE.write_text(make_page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
