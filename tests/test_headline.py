"""`fresco bench --suite headline`: which rows there are, what they are chosen by, what they say."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import fresco.reference
from fresco.output import OutputError
from fresco.reference import WeightsError, bench, figures, headline, headline_rows
from fresco.reference.bench import How, Way, measure
from fresco.reference.headline import Headline, run_headline
from fresco.reference.measured import Measured
from fresco.reference.studies import StudyError
from tests.command import run
from tests.matrix import lora_weights
from tests.reference_parts import scene_and_caption

FULL_S = 10.0  # of the loop of the full row, per picture
CALL_S = 1.0  # of a call beyond its loop
SECONDS = {  # of the loops of the others; caches by method and, behind it, what they are set for
    "reference_10x": 0.98,
    "reference_22x": 0.4,
    "cache first_block": 2.0,
    "cache seacache": 0.9,
    "cache taylorseer 0": 1.05,
    "cache taylorseer 1": 1.2,
}
BLANK = ("cache taylorseer 0", "reference_22x", "distilled, 1 steps")  # that show nothing


@pytest.fixture
def asked(tmp_path):
    return Headline(3, tmp_path / "out" / "headline.json", None, tmp_path / "rows")


@pytest.fixture
def sampled(monkeypatch):
    """Rendered pictures in place of sampled ones; the folders that rows are kept in, by name."""
    captions, pictures = zip(*(scene_and_caption(i) for i in range(3)), strict=True)
    folders = {}

    def measured(pipe, way, prompts, how, folder, on_pictures):
        n = len(prompts)
        on_pictures(n)
        folders[way.name] = folder
        loop_s = next((s for k, s in SECONDS.items() if way.name.startswith(k)), way.steps / 5)
        images = torch.stack(pictures[:n])
        images = torch.full_like(images, 255) if way.name.startswith(BLANK) else images
        call_s, step_s = loop_s + CALL_S, 0.2
        return Measured(
            images, (loop_s,) * n, (way.steps,) * n, way.steps, (call_s,) * n, (step_s,) * n
        )

    interval = figures.bootstrap_interval

    def few_draws(n, statistic, draws, centred):
        return interval(n, statistic, draws=20, centred=centred)

    monkeypatch.setattr(figures, "bootstrap_interval", few_draws)
    monkeypatch.setattr(headline, "measure", measured)
    monkeypatch.setattr(headline, "held_out_captions", lambda n, _seed: list(captions[:n]))
    monkeypatch.setattr(headline, "load", lambda **_: object())
    return folders


def with_(asked, **changes):
    return Headline(**(vars(asked) | changes))


def test_all_rows_are_measured_against_full_steps(asked, sampled, lora_file, tmp_path):
    progress = []
    report = run_headline(
        with_(asked, lora=lora_file, png=tmp_path / "rows.png"), lambda *p: progress.append(p)
    )
    rows = {row["name"]: row for row in report["rows"]}
    assert list(rows) == [
        "50 steps",
        "reference_10x",
        "4 steps (for reference_10x)",
        "4 steps, shifted (for reference_10x)",
        "5 steps (for reference_10x)",
        "5 steps, shifted (for reference_10x)",
        "cache seacache 12 (for reference_10x)",
        "reference_22x",
        "2 steps (for reference_22x)",
        "2 steps, shifted (for reference_22x)",
        "3 steps (for reference_22x)",
        "3 steps, shifted (for reference_22x)",
        "cache seacache 30 (for reference_22x, the fastest: none tried is as fast)",
        "distilled, 8 steps",
        "distilled, 4 steps",
        "distilled, 2 steps",
        "distilled, 1 steps",
        "4 steps at its noise levels, no LoRA",
    ]
    shifted = [row["recipe"]["stages"][0] for name, row in rows.items() if "shifted" in name]
    assert [(*s.values(),) for s in shifted] == [(1, 4, 5, 2), (1, 5, 5, 2), (1, 2, 5), (1, 3, 5)]
    fast = rows["reference_10x"]
    assert fast["speedup"] == pytest.approx(FULL_S / 0.98)
    assert fast["call_speedup"] == pytest.approx((FULL_S + CALL_S) / (0.98 + CALL_S))
    assert fast["scene_difference"] == 0
    assert rows["distilled, 1 steps"]["scene"] == 0
    lost = rows["distilled, 1 steps"]["scene_difference"]
    assert lost == -rows["50 steps"]["scene"] < 0
    low, high = rows["distilled, 1 steps"]["scene_difference_interval"]
    assert low <= lost <= high <= 0
    leads = [row.get("scene_lead") for row in report["rows"]]
    assert leads == [None, None, *[0] * 5, None, *[lost] * 8, 0, lost]  # of a recipe that is blank
    for row in report["rows"]:
        is_cache = row["name"].startswith("cache")
        assert (row["flops_speedup"] is None) == is_cache
        assert {"judge_interval", "scene_interval", "psnr_db", "ssim", "call_s"} <= set(row)
    assert json.loads(asked.json.read_text()) == report
    assert report["lora"]["provenance"] == {"steps": 7}
    assert ("reference_22x", 3, 3) in progress
    with Image.open(tmp_path / "rows.png") as picture:
        assert picture.height > 16 * 200


def test_a_cache_is_chosen_by_its_pictures_among_those_that_are_as_fast(
    asked, sampled, monkeypatch
):
    """Not the fastest: that one shows nothing."""
    monkeypatch.setitem(SECONDS, "cache taylorseer 0", 0.5)
    names = [row["name"] for row in run_headline(asked)["rows"]]
    assert "cache seacache 12 (for reference_10x)" in names
    monkeypatch.setitem(SECONDS, "cache seacache", 1.2)  # now slower than nine tenths
    names = [row["name"] for row in run_headline(asked)["rows"]]
    assert "cache taylorseer 0 12 (for reference_10x)" in names


def test_one_step_is_no_other_step_shifted(asked, sampled, monkeypatch):
    monkeypatch.setitem(SECONDS, "reference_22x", 0.39)
    names = {row["name"].split(" (")[0] for row in run_headline(asked)["rows"]}
    assert names & {"1 steps", "1 steps, shifted"} == {"1 steps"}


def test_a_cache_computes_ever_fewer_steps_until_it_is_as_fast(asked, sampled, monkeypatch):
    by_setting = {"12": 1.5, "16": 1.05, "21": 1.0, "28": 0.8}  # seconds of the loop
    seconds = {f"cache seacache {setting}": s for setting, s in by_setting.items()}
    slow = {name: 2.0 for name in SECONDS if name.startswith("cache")}
    monkeypatch.setitem(globals(), "SECONDS", {**seconds, **SECONDS, **slow})
    names = [row["name"] for row in run_headline(asked)["rows"]]
    assert "cache seacache 16 (for reference_10x)" in names


def test_without_the_lora_its_rows_say_that_it_is_missing(asked, sampled, monkeypatch, tmp_path):
    monkeypatch.setattr(fresco.reference, "LORA", tmp_path)
    rows = {row["name"]: row for row in run_headline(asked)["rows"]}
    missing = {name for name, row in rows.items() if "missing" in row}
    assert missing == {"reference_22x", *(f"distilled, {n} steps" for n in (8, 4, 2, 1))}
    for name in missing:
        assert "fresco reference distill" in rows[name]["missing"]
    assert "speedup" in rows["reference_10x"]
    assert "scene_lead" not in rows["4 steps at its noise levels, no LoRA"]  # of no recipe above


def test_pictures_have_the_speedups_of_the_table(asked, sampled, monkeypatch, tmp_path):
    shown = []
    monkeypatch.setattr(headline, "save_comparison", lambda rows, *_: shown.extend(rows))
    report = run_headline(with_(asked, png=tmp_path / "rows.png"))
    expected = [(row["name"], row["speedup"]) for row in report["rows"] if "speedup" in row]
    assert [(row.name, row.speedup) for row in shown] == expected


def test_rows_with_a_lora_are_kept_by_its_content(asked, sampled, lora_file):
    run_headline(with_(asked, lora=lora_file))
    first = dict(sampled)
    save_file(
        {name: torch.ones_like(each) for name, each in load_file(lora_file).items()}, lora_file
    )
    run_headline(with_(asked, lora=lora_file))
    own = {"reference_22x", *(f"distilled, {n} steps" for n in (8, 4, 2, 1))}
    assert {name for name in first if first[name] != sampled[name]} == own
    assert sampled["50 steps"] == asked.folder


def test_bad_requests_are_refused_before_anything_is_loaded(asked, monkeypatch, tmp_path):
    monkeypatch.setattr(headline, "load", lambda **_: pytest.fail("loaded"))
    taken = tmp_path / "file"
    taken.touch()
    for changes, error, message in (
        ({"n_prompts": 1}, StudyError, "at least 2 captions, got 1"),
        ({"how": How(batch=0)}, StudyError, "got 0"),
        ({"dtype": "float8"}, StudyError, "got float8"),
        ({"folder": taken}, OutputError, "--folder"),
        ({"json": taken / "x.json"}, OutputError, "--json"),
        ({"png": tmp_path}, OutputError, "--png"),
        ({"png": asked.json}, OutputError, "expected two files to write to, got '.*' for both"),
        ({"lora": tmp_path / "none"}, WeightsError, "expected a LoRA's file, got nothing"),
    ):
        with pytest.raises(error, match=message):
            run_headline(with_(asked, **changes))


def test_the_whole_suite_on_a_tiny_pipeline(tiny_flux_pipe, monkeypatch, tmp_path):
    tiny_flux_pipe.default_sample_size = 64  # 256 px, which the judge reads
    file = tmp_path / "lora.safetensors"
    save_file({k: v.contiguous() for k, v in lora_weights(tiny_flux_pipe).items()}, file)
    few = Way("8 steps", None, 8)
    monkeypatch.setattr(headline, "BASELINE", few)
    monkeypatch.setattr(headline_rows, "BASELINE", few)
    monkeypatch.setattr(headline, "N_SCREENED", 1)
    monkeypatch.setattr(headline_rows, "DISTILLED_STEPS", (1,))
    monkeypatch.setattr(headline, "DISTILLED_STEPS", (1,))
    monkeypatch.setattr(headline, "load", lambda **_: tiny_flux_pipe)
    monkeypatch.setattr(headline_rows, "build_transformer", lambda: tiny_flux_pipe.transformer)
    out = tmp_path / "headline.json"
    files = {"json": out, "lora": file, "folder": tmp_path / "rows", "png": tmp_path / "a.png"}
    options = [text for name, path in files.items() for text in (f"--{name}", str(path))]
    arguments = ("bench", "--suite", "headline", "--prompts", "2", *options)
    done = run(*arguments)
    assert done.exit_code == 0, done.stderr
    printed = done.output
    rows = json.loads(out.read_text())["rows"]
    assert [row["name"] for row in rows if "missing" in row] == []
    assert {"8 steps", "reference_10x", "reference_22x", "distilled, 1 steps"} < {
        row["name"] for row in rows
    }
    by_name = {row["name"]: row for row in rows}
    assert by_name["reference_22x"]["flops_speedup"] > 1
    assert by_name["distilled, 1 steps"]["flops_speedup"] == 8
    for name in by_name:
        assert name.split(" (")[0] in printed
    monkeypatch.setattr(bench, "_sample", lambda *_: pytest.fail("sampled again"))
    again = run(*arguments)
    assert again.exit_code == 0
    assert json.loads(out.read_text())["rows"] == rows


def test_a_call_takes_longer_than_its_loop(tiny_flux_pipe, tmp_path):
    way, how = Way("plain", None, 2), How(batch=1)
    row = measure(tiny_flux_pipe, way, ["a circle", "a square"], how, tmp_path)
    assert len(row.call_s) == 2
    assert all(call > loop for call, loop in zip(row.call_s, row.loop_s, strict=True))
