"""Mixed layouts of video families, against what they should be, written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

import fresco
from fresco.layout import TokenLayout
from fresco.noise import NoiseField
from fresco.registry import find_adapter
from fresco.transfer import cut_patches, restrict
from fresco.wraps import call_by_name
from tests.conftest import traces
from tests.families import FAMILIES, MIXING
from tests.family import noise, repeated
from tests.picture_families import FROM_PICTURES
from tests.staged import MIXED, RANDOM
from tests.test_image_families import record_call

VIDEOS = [name for name in MIXING if FAMILIES[name].frames > 1]
VIDEOS = [
    name for name in VIDEOS if name not in {"ltx", "ltx2", "cogvideox"}
]  # not of `VideoAdapter`
SIDES = torch.tensor(
    [[2, 2, 1, 1, 2, 2], [2, 2, 1, 1, 2, 2], [1, 1, 2, 2, 1, 1], [1, 1, 2, 2, 1, 1]]
)
pytestmark = pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning")  # Mochi's positions


def test_all_of_them_are_tested():
    assert VIDEOS == ["wan", "hunyuan_video", "mochi", "hunyuan_video_15"]


def enter_first_block(transformer, call):
    """Tokens and rotations that the first block is given."""
    first = getattr(transformer, "blocks", None) or transformer.transformer_blocks
    given = []

    def record(block, args, kwargs):
        given.append(call_by_name(block, args, kwargs))

    with first[0].register_forward_pre_hook(record, with_kwargs=True), torch.no_grad():
        transformer(**call)
    rotary = next(value for value in given[0].values() if isinstance(value, tuple))
    return given[0]["hidden_states"], [each.squeeze() for each in rotary]


def angles(name, transformer, place):
    """Angles by which a token at (frame, row, column) of a 4 x 6 grid is rotated."""
    if name == "mochi":
        unit = 192 / math.sqrt(4 * 6)
        frame, row, column = place
        centred = torch.tensor([frame, (row - 1.5) * unit, (column - 2.5) * unit])
        return torch.einsum("a,ahk->hk", centred, transformer.pos_frequencies)
    base, widths = {
        "wan": (10000, (4, 4, 4)),
        "hunyuan_video": (256, (4, 4, 4)),
        "hunyuan_video_15": (256, (4, 6, 6)),
    }[name]
    axes = zip(place, widths, strict=True)
    return torch.tensor([at * base ** (-2 * k / d) for at, d in axes for k in range(d // 2)])


@pytest.mark.parametrize("name", VIDEOS)
@torch.no_grad()
def test_every_frame_s_cells_enter_as_the_model_s_own_tokens_at_their_centres(name):
    pipe = FAMILIES[name].make()
    transformer, call = pipe.transformer, record_call(FAMILIES[name], pipe)
    adapter = find_adapter(transformer)
    p = adapter.patch_px
    call["hidden_states"] = noise(*call["hidden_states"].shape, seed=7)  # conditions, too
    small = functional.avg_pool3d(call["hidden_states"], (1, 2, 2))
    fine, _ = enter_first_block(transformer, call)
    coarse, _ = enter_first_block(transformer, {**call, "hidden_states": small})

    layout = TokenLayout(SIDES, p)
    carrier = adapter.read(call, layout)
    tokens = restrict(carrier, NoiseField(torch.zeros_like(carrier), p), 0.0, layout)
    undo = adapter.attach(transformer, {"fine"})
    entered = adapter.embed(call, tokens, layout, layout.positions("fine"))
    seen, (cosines, sines) = enter_first_block(transformer, entered)
    undo()

    starts = list(zip(layout.token_starts.tolist(), layout.token_sides.tolist(), strict=True))
    of_token = [(frame, start, side) for frame in range(2) for start, side in starts]
    assert seen.shape[1] == len(of_token) == 2 * 15
    for i, (frame, (row, column), side) in enumerate(of_token):
        n = (frame * 4 + row) * 6 + column
        n_coarse = (frame * 2 + row // 2) * 3 + column // 2
        expected = fine[:, n] if side == 1 else coarse[:, n_coarse]
        torch.testing.assert_close(seen[:, i], expected, rtol=0, atol=1e-5)
        centre = (side - 1) / 2
        angle = angles(name, transformer, (frame, row + centre, column + centre))
        step = 1 if name == "mochi" else 2  # the others say each twice
        torch.testing.assert_close(cosines[i][..., ::step], angle.cos(), rtol=0, atol=1e-5)
        torch.testing.assert_close(sines[i][..., ::step], angle.sin(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", VIDEOS)
@torch.no_grad()
def test_coarse_cells_alone_in_one_row_predict_what_the_coarse_model_does(name):
    pipe = FAMILIES[name].make()
    transformer, call = pipe.transformer, record_call(FAMILIES[name], pipe)
    adapter = find_adapter(transformer)
    call["hidden_states"] = noise(*call["hidden_states"].shape, seed=7)
    small = functional.avg_pool3d(call["hidden_states"], (1, 2, 2))
    layout = TokenLayout.whole(4, 6, 2, adapter.patch_px)
    expected = adapter.unembed(transformer(**{**call, "hidden_states": small}), layout)

    tokens = cut_patches(functional.avg_pool2d(adapter.read(call, layout), 2), adapter.patch_px)
    # Mochi scales positions by the size: those of the coarse grid are its centres in the fine
    units = "fine" if name == "mochi" else "native"
    undo = adapter.attach(transformer, {"fine"})
    entered = adapter.embed(call, tokens, layout, layout.positions(units) + 1e-6)
    got = adapter.unembed(transformer(**entered), layout)
    undo()
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", VIDEOS)
def test_rows_of_a_batch_are_selected_with_everything_that_is_theirs(name):
    family = FAMILIES[name]
    pipe = family.make()
    call = record_call(family, pipe)
    n = 2 * len(call["hidden_states"])
    tensors = {key: value for key, value in call.items() if isinstance(value, torch.Tensor)}
    several = {
        key: torch.stack([value[i % len(value)] + i for i in range(n)])
        for key, value in tensors.items()
    }
    part = find_adapter(pipe.transformer).select({**call, **several}, [n - 1, 0])
    assert part.keys() == call.keys()
    for key, value in several.items():
        assert part[key].equal(value[[n - 1, 0]])


def test_first_and_last_picture_of_a_video_are_selected_together():
    adapter = find_adapter(FAMILIES["wan"].make().transformer)
    latents, pictures = torch.zeros(3, 4, 2, 8, 8), torch.arange(6.0).view(6, 1, 1)
    call = {"hidden_states": latents, "timestep": latents, "encoder_hidden_states": latents}
    part = adapter.select({**call, "encoder_hidden_states_image": pictures}, [2, 0])
    assert part["encoder_hidden_states_image"].flatten().tolist() == [4, 5, 0, 1]


@pytest.mark.parametrize("n_pictures", [1, 2])
def test_pictures_and_text_that_all_videos_share_are_selected_as_they_are(n_pictures):
    adapter = find_adapter(FAMILIES["wan"].make().transformer)
    text, pictures = torch.ones(1, 5, 32), torch.ones(n_pictures, 7, 16)
    call = {"hidden_states": torch.zeros(2, 4, 2, 8, 8), "timestep": torch.arange(2)}
    shared = {"encoder_hidden_states": text, "encoder_hidden_states_image": pictures}
    part = adapter.select({**call, **shared}, [1])
    assert part["timestep"].tolist() == [1]
    assert all(part[key] is value for key, value in shared.items())


SHARED = {name: FAMILIES[name] for name in ("hunyuan_video", "cogview4", "qwen_image_21")}
SHARED["wan_ti2v"] = FROM_PICTURES["wan_ti2v"]


@pytest.mark.parametrize("name", SHARED)
def test_several_of_one_text_are_those_of_as_many_texts(name):
    """Pipelines do not repeat embeddings that are given: the model has one text for them all."""
    family = SHARED[name]
    pipe = family.make()
    many = "num_videos_per_prompt" if family.frames > 1 else "num_images_per_prompt"

    def draw(**asked):
        generators = [torch.Generator().manual_seed(seed) for seed in (0, 2)]
        return family.draw(pipe, generator=generators, **asked)

    with fresco.accelerate(pipe, RANDOM) as accelerated:
        together = draw(**{many: 2})
        run = accelerated._middleware.last
        assert len(run.groups(run.plan.steps[2])) == 2
        torch.testing.assert_close(together, draw(**repeated(family.asked())), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", VIDEOS)
def test_mixed_runs_of_other_sizes_and_lengths_leave_nothing_to_the_next(name):
    family = FAMILIES[name]
    pipe = family.make()
    plain, before = family.draw(pipe), traces(pipe)
    longer = 2 * family.asked()["num_frames"] - 1
    with fresco.accelerate(pipe, MIXED) as accelerated:
        first = family.draw(pipe)
        video = family.draw(pipe, height=80, width=64, num_frames=longer)  # 5 x 4 tokens
        assert video.isfinite().all()
        assert accelerated.plan.n_full_tokens == 3 * 5 * 4
        assert accelerated.report.steps[2].tokens % 3 == 0
        assert family.draw(pipe).equal(first)
    assert traces(pipe) == before
    assert family.draw(pipe).equal(plain)
