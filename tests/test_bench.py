import dataclasses
import json
import math

import pytest
import torch
from PIL import Image

from fresco.cost import pass_flops
from fresco.errors import RecipeError
from fresco.output import OutputError
from fresco.recipe import load_recipe
from fresco.reference import bench, figures, rows, studies
from fresco.reference.bench import How, Measured, Way, batch_key, measure, weights_digest
from fresco.reference.captions import Caption, parse
from fresco.reference.dataset import make_example
from fresco.reference.plot import save_pareto
from fresco.reference.transformer import build_transformer
from fresco.schedule import PlanRequest, make_plan
from tests.conftest import FRESCO_5

PROMPTS = ["a red circle", "a blue square", "a small circle", "a large square", "a circle"]
HOW = How(seed=3, batch=2)
PLAIN = Way("plain", None, 2)


@pytest.fixture
def calls(monkeypatch):
    """Every call of the pipeline: number of the first picture, pictures, steps."""
    seen, sample = [], bench._sample

    def recorded(pipe, prompts, how, steps):
        seen.append((how.seed - HOW.seed, len(prompts), steps))
        return sample(pipe, prompts, how, steps)

    monkeypatch.setattr(bench, "_sample", recorded)
    return seen


def test_an_interrupted_row_goes_on_where_it_stopped(tiny_flux_pipe, tmp_path, calls):
    (tmp_path / "whole").mkdir()
    whole = measure(tiny_flux_pipe, PLAIN, PROMPTS, HOW, tmp_path / "whole")
    calls.clear()

    def interrupt(done):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(tiny_flux_pipe, PLAIN, PROMPTS, HOW, tmp_path, interrupt)
    assert calls == [(0, 2, 2), (0, 2, 2), (2, 2, 2)]  # the first warms up
    calls.clear()
    progress = []
    row = measure(tiny_flux_pipe, PLAIN, PROMPTS, HOW, tmp_path, progress.append)
    assert calls == [(0, 2, 2), (4, 1, 2)]
    assert progress == [4, 5]
    assert torch.equal(row.images, whole.images)
    assert len(row.loop_s) == len(row.full_steps) == len(PROMPTS)


def test_a_row_that_is_done_is_not_sampled_again(tiny_flux_pipe, tmp_path, calls):
    first = measure(tiny_flux_pipe, PLAIN, PROMPTS[:2], HOW, tmp_path)
    calls.clear()
    again = measure(tiny_flux_pipe, Way("renamed", None, 2), PROMPTS[:2], HOW, tmp_path)
    assert calls == []
    assert torch.equal(again.images, first.images)
    assert dataclasses.replace(again, images=first.images) == first


def test_more_captions_or_fewer_share_their_batches(tiny_flux_pipe, tmp_path, calls):
    few = measure(tiny_flux_pipe, PLAIN, PROMPTS[:4], HOW, tmp_path)
    calls.clear()
    all_of_them = measure(tiny_flux_pipe, PLAIN, PROMPTS, HOW, tmp_path)
    assert calls == [(0, 2, 2), (4, 1, 2)]  # the first warms up
    assert torch.equal(all_of_them.images[:4], few.images)
    assert all_of_them.loop_s[:4] == few.loop_s


def test_a_batch_that_is_missing_between_others_is_sampled(tiny_flux_pipe, tmp_path, calls):
    whole = measure(tiny_flux_pipe, PLAIN, PROMPTS, HOW, tmp_path)
    middle = sorted(tmp_path.glob("*.pt"), key=lambda path: path.stat().st_mtime_ns)[1]
    middle.unlink()
    calls.clear()
    again = measure(tiny_flux_pipe, PLAIN, PROMPTS, HOW, tmp_path)
    assert calls == [(0, 2, 2), (2, 2, 2)]
    assert torch.equal(again.images, whole.images)


def test_seconds_are_those_of_a_batch_by_its_pictures(tiny_flux_pipe, tmp_path, monkeypatch):
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    monkeypatch.setattr(bench, "_sample", lambda *_: (images, 6.0, 8.0))
    tiny_flux_pipe._num_timesteps = 2  # of a call that was not made
    row = measure(tiny_flux_pipe, PLAIN, PROMPTS[:2], HOW, tmp_path)
    assert (row.loop_s, row.call_s) == ((3.0, 3.0), (4.0, 4.0))


def test_the_asked_guidance_is_that_of_the_call(tiny_flux_pipe, monkeypatch):
    told = []
    monkeypatch.setattr(
        type(tiny_flux_pipe), "__call__", lambda _, *__, **given: told.append(given) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        bench._sample(tiny_flux_pipe, PROMPTS[:1], dataclasses.replace(HOW, guidance=1.5), 2)
    assert told[0]["guidance_scale"] == 1.5


def test_a_score_of_two_estimates_has_them_while_warming_up(tiny_flux_pipe, tmp_path):
    (way,) = (
        way for way in rows.ablation_groups()["score"].ways if "temporal_variance low" in way.name
    )
    assert len(measure(tiny_flux_pipe, way, PROMPTS[:1], HOW, tmp_path).images) == 1


def test_a_row_that_was_cut_while_it_was_written_is_not_there(
    tiny_flux_pipe, tmp_path, monkeypatch
):
    def cut(_, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bench.torch, "save", cut)
        with pytest.raises(KeyboardInterrupt):
            measure(tiny_flux_pipe, PLAIN, PROMPTS[:2], HOW, tmp_path)
    assert len(measure(tiny_flux_pipe, PLAIN, PROMPTS[:2], HOW, tmp_path).images) == 2


def test_every_picture_has_its_own_seed_whatever_the_batch(tiny_flux_pipe, tmp_path):
    batched = measure(tiny_flux_pipe, PLAIN, PROMPTS[:3], HOW, tmp_path)
    alone = measure(tiny_flux_pipe, PLAIN, PROMPTS[2:3], How(seed=5, batch=1), tmp_path)
    assert (batched.images[2].int() - alone.images[0].int()).abs().max() <= 1  # rounding
    assert not torch.equal(batched.images[0], batched.images[1])


def test_an_accelerated_row_costs_what_its_plan_says(tiny_flux_pipe, tmp_path):
    way = Way("fresco", FRESCO_5, 12)
    row = measure(tiny_flux_pipe, way, PROMPTS[:2], HOW, tmp_path)
    assert row.n_steps == 12
    flops = [pass_flops(tiny_flux_pipe.transformer, n, 40) for n in (4, 16, 64)]
    assert row.full_steps == pytest.approx([4 * sum(flops) / flops[-1]] * 2)
    assert row.images.dtype == torch.uint8
    assert not tiny_flux_pipe.transformer._forward_pre_hooks


def test_the_key_changes_with_everything_but_the_name(tiny_flux_pipe):
    weights = weights_digest(tiny_flux_pipe)
    key = batch_key(PLAIN, PROMPTS, HOW, weights)
    assert batch_key(Way("other", None, 2), PROMPTS, HOW, weights) == key
    with torch.no_grad():
        tiny_flux_pipe.transformer.proj_out.bias[0] += 1
    other_recipe = {**FRESCO_5, "stages": [{"cell": 1, "steps": 12}]}
    others = {
        batch_key(Way("plain", None, 3), PROMPTS, HOW, weights),
        batch_key(Way("plain", FRESCO_5, 2), PROMPTS, HOW, weights),
        batch_key(Way("plain", other_recipe, 2), PROMPTS, HOW, weights),
        batch_key(PLAIN, PROMPTS[:4], HOW, weights),
        batch_key(PLAIN, PROMPTS, dataclasses.replace(HOW, seed=4), weights),
        batch_key(PLAIN, PROMPTS, dataclasses.replace(HOW, batch=1), weights),
        batch_key(PLAIN, PROMPTS, dataclasses.replace(HOW, guidance=1.0), weights),
        batch_key(PLAIN, PROMPTS, HOW, weights_digest(tiny_flux_pipe)),
    }
    assert len(others | {key}) == 9


@pytest.fixture(scope="module")
def real():
    """Rendered pictures whose captions say everything, and their pictures as a row."""
    captions, pictures = [], []
    for index in range(6):
        scene, picture = make_example(figures.REAL_SEED, index)
        things = " and ".join(
            f"a {t.size} {t.texture} {t.colour} {t.shape} at the {t.place}".replace(
                "at the centre", "in the centre"
            )
            for t in scene.objects
        )
        text = f"{things} on a {scene.background_kind} {scene.background_colour} background"
        captions.append(Caption(text, (), parse(text)))
        pictures.append(torch.from_numpy(picture))
    return captions, row_of(torch.stack(pictures), 2.0, 50)


def row_of(images, loop_s, full_steps):
    n = len(images)
    return Measured(images, (loop_s,) * n, (float(full_steps),) * n, full_steps, (loop_s,) * n)


def test_figures_of_the_same_pictures(real, tmp_path):
    captions, full = real
    features = figures.real_features(tmp_path, 6)
    assessed = figures.assess(full, full, captions)
    found = figures.figures(assessed, assessed, features)
    assert found["psnr_db"] is None  # infinite
    assert found["psnr_db_interval"] is None
    for name in ("speedup", "flops_speedup", "hf"):
        assert found[name] == pytest.approx(1)
    assert found["ssim"] == pytest.approx(1, abs=2e-3)  # float32, where a picture is flat
    assert found["hf_interval"] == pytest.approx([1, 1])
    assert found["frechet"] == pytest.approx(0, abs=1e-4)
    assert found["judge"] > 0.95
    json.dumps(found, allow_nan=False)


def test_figures_of_worse_pictures(real, tmp_path):
    captions, full = real
    grey = torch.nn.functional.avg_pool2d(full.images.float(), 2).repeat_interleave(2, -1)
    coarse = row_of(grey.repeat_interleave(2, -2).round().byte(), 0.5, 10)
    blank = row_of(torch.full_like(full.images, 255), 0.1, 5)
    assessed = [figures.assess(row, full, captions) for row in (full, coarse, blank)]
    features = figures.real_features(tmp_path, 6)
    found = [figures.figures(row, assessed[0], features) for row in assessed]
    assert found[1]["speedup"] == pytest.approx(4)
    assert found[1]["flops_speedup"] == pytest.approx(5)
    error = (coarse.images.float() - full.images.float()).div(255).square().mean((1, 2, 3))
    assert found[1]["psnr_db"] == pytest.approx(-10 * error.log10().mean().item(), abs=1e-3)
    assert found[2]["hf"] == 0
    assert found[2]["scene"] == 0
    assert found[0]["judge"] > found[2]["judge"]
    assert found[0]["frechet"] < found[1]["frechet"] < found[2]["frechet"]
    for figure in found:
        for name in ("ssim", "judge", "scene", "hf"):
            low, high = figure[f"{name}_interval"]
            assert low <= figure[name] + 1e-6
            assert figure[name] <= high + 1e-6
    lost = figures.judge_difference(assessed[2], assessed[0])
    assert lost["judge_difference"] == pytest.approx(found[2]["judge"] - found[0]["judge"])
    assert lost["judge_difference_interval"][1] < 0
    same = figures.judge_difference(assessed[0], assessed[0])
    assert same == {"judge_difference": 0, "judge_difference_interval": [0, 0]}


def test_real_features_are_drawn_once(tmp_path, monkeypatch):
    drawn = figures.real_features(tmp_path, 2)
    monkeypatch.setattr(figures, "make_example", lambda *_: pytest.fail("drawn again"))
    assert torch.equal(figures.real_features(tmp_path, 2), drawn)
    assert drawn.shape == (2, 192)


def all_ways():
    groups = {**rows.ablation_groups(), **rows.pareto_groups()}
    ways = [way for group in groups.values() for way in group.ways]
    assert len(ways) > 30
    return {way.name: way for way in ways}, ways


def test_a_name_stands_for_one_way_and_no_two_names_for_the_same():
    named, ways = all_ways()
    assert all(named[way.name] == way for way in ways)
    contents = {json.dumps([way.recipe, way.steps], sort_keys=True) for way in ways}
    assert len(contents) == len(named)


def test_every_row_is_a_valid_recipe():
    recipes = [way.recipe for way in all_ways()[0].values() if way.recipe is not None]
    assert len(recipes) > 25
    for recipe in recipes:
        assert load_recipe(recipe).baseline_steps == 50


def test_groups_vary_one_thing():
    base = rows.ablation_groups()["lift"].ways[0].recipe["stages"]
    changed = {
        "field": "lift", "lift": "lift", "score": "promote", "promotion": "promote",
        "positions": "positions",
    }  # fmt: skip
    for name, key in changed.items():
        group = rows.ablation_groups()[name]
        assert len(group.ways) > 1
        for way in group.ways[1:]:
            first, mixed, last = way.recipe["stages"]
            assert (first, last) == (base[0], base[2])
            assert {k for k in mixed | base[1] if mixed.get(k) != base[1].get(k)} == {key}
    for way in rows.ablation_groups()["score"].ways:
        assert way.recipe["stages"][1]["promote"]["budget"] == 0.4


@pytest.fixture(scope="module")
def transformer():
    return build_transformer()


def flops(transformer, stages):
    """In full steps, of 1024 fine tokens; a mixed stage has the budget's share of the cells."""
    tokens = {4: 64, 2: 256, 1: 1024, "mixed": int(256 * (1 + 3 * rows.BUDGET))}
    full = pass_flops(transformer, 1024, 40)
    return sum(s["steps"] * pass_flops(transformer, tokens[s["cell"]], 40) / full for s in stages)


def test_one_and_two_coarse_levels_cost_the_same(transformer):
    base, two = rows.ablation_groups()["levels"].ways
    assert flops(transformer, two.recipe["stages"]) == pytest.approx(
        flops(transformer, base.recipe["stages"]), rel=0.02
    )


def test_fresco_is_the_recipes_that_ship_and_rivals_those_that_name_a_paper():
    groups = rows.pareto_groups()
    rivals = {"bottleneck", "jit", "mrflow", "ralu", "spectral"}
    assert set(groups) == {"fresco", "fewer steps", *rivals}
    assert [way.name for way in groups["ralu"].ways] == [f"ralu {x}x" for x in rows.SPEEDUPS]
    assert [way.steps for way in groups["ralu"].ways] == [150, 100, 60, 43, 30]  # 50 at 6x
    stages = [way.recipe["stages"][-1]["steps"] for way in groups["fresco"].ways]
    names = ("quality", "quality", "5x", "balanced", "10x")
    assert stages == [load_recipe(f"reference_{name}").stages[-1].steps for name in names]


@pytest.mark.parametrize("method", ["fresco", "bottleneck", "jit", "mrflow", "ralu", "spectral"])
def test_methods_cost_about_what_their_rows_are_named_for(transformer, method):
    for speedup, way in zip(rows.SPEEDUPS, rows.pareto_groups()[method].ways, strict=True):
        request = PlanRequest(way.steps, 32, 32, lambda _n_tokens: 2.5)
        plan = make_plan(load_recipe(way.recipe), request)
        cost = sum(pass_flops(transformer, step.n_tokens, 40) for step in plan.steps)
        assert 50 * pass_flops(transformer, 1024, 40) / cost == pytest.approx(speedup, rel=0.25)


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch):
    monkeypatch.setattr(figures, "FRECHET_DRAWS", 20)


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Two rows of a study, whose pictures are rendered instead of sampled."""
    pictures = torch.stack([torch.from_numpy(make_example(12, i)[1]) for i in range(3)])

    def measured(pipe, way, prompts, how, folder, on_pictures):
        on_pictures(len(prompts))
        spoiled = pictures // (51 - way.steps)
        return row_of(spoiled, way.steps / 10, way.steps)

    monkeypatch.setattr(studies, "measure", measured)
    groups = (
        rows.Group("steps", "fewer steps", (rows.BASELINE, rows.plain(10))),
        rows.Group("again", "the same", (rows.plain(10), rows.plain(49))),
    )
    json_ = tmp_path / "new" / "study.json"
    return studies.Study("fresco ablate", groups, json_, tmp_path / "rows", 3, n_real=4)


def test_a_study_writes_all_its_figures(study):
    progress = []
    report = studies.run_study(study, lambda *made: progress.append(made), pipe=object())
    assert json.loads(study.json.read_text()) == report
    assert list(report["rows"]) == ["50 steps", "10 steps", "49 steps"]
    assert report["rows"]["10 steps"]["speedup"] == pytest.approx(5)
    assert set(report["differences"]["steps"]) == {"10 steps"}
    assert set(report["differences"]["again"]) == {"49 steps"}
    assert {"n_prompts", "seeds", "versions", "threads", "code", "hardware"} <= set(report)
    assert ("10 steps", 3, 3) in progress


def test_the_pareto_plot_is_a_picture(tmp_path):
    points = {f"{n} steps": {"speedup": 50 / n, "judge": 0.9, "frechet": 9 / n} for n in (50, 9, 5)}
    for point in points.values():
        point |= {"judge_interval": [0.8, 0.95], "frechet_interval": [0.1, 2.0]}
    report = {"baseline": "50 steps", "n_prompts": 3, "rows": points,
              "groups": {"fewer steps": {"rows": ["9 steps", "5 steps"]}}}  # fmt: skip
    save_pareto(report, tmp_path / "pareto.png")
    with Image.open(tmp_path / "pareto.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 400


def test_a_bad_study_is_refused_before_anything_is_loaded(study, tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "load", lambda **_: pytest.fail("loaded"))
    taken = tmp_path / "file"
    taken.touch()
    bad = (rows.Group("bad", "a bad recipe", (Way("bad", {"schema": 1}),)),)
    for changes, error, message in (
        ({"n_prompts": 0}, studies.StudyError, "at least 2 captions, got 0"),
        ({"how": How(batch=0)}, studies.StudyError, "got 0"),
        ({"dtype": "float8"}, studies.StudyError, "got float8"),
        ({"groups": bad}, RecipeError, r"\$\.model"),
        ({"folder": taken}, OutputError, "--folder"),
        ({"json": taken / "x.json"}, OutputError, "JSON file"),
        ({"json": tmp_path}, OutputError, "got the directory"),
    ):
        with pytest.raises(error, match=message):
            studies.run_study(dataclasses.replace(study, **changes))


def test_groups_are_picked_by_name():
    groups = rows.ablation_groups()
    assert studies.pick_groups(groups, None) == tuple(groups.values())
    assert [g.name for g in studies.pick_groups(groups, "lift, steps")] == ["lift", "steps"]
    for only, got in (("lift,lfit", "got 'lfit'"), ("", "got none")):
        with pytest.raises(studies.StudyError, match=got):
            studies.pick_groups(groups, only)


def test_fewer_steps_are_rounded_half_up():
    assert [w.steps for w in rows.pareto_groups()["fewer steps"].ways] == [
        math.floor(50 / x + 0.5) for x in rows.SPEEDUPS
    ]
