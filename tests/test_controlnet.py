"""ControlNet residuals in coarse stages: averaged with the cells."""

from __future__ import annotations

import diffusers
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fresco
from fresco import errors
from fresco.layout import TokenLayout
from fresco.transfer import average_tokens
from tests.conftest import make_flux_pipe, traces
from tests.families import FAMILIES
from tests.staged import ALL_FINE, MIXED, RANDOM, STAGED
from tests.started import PICTURE, make_sd3
from tests.strategies import layouts

RESIDUALS = {
    "flux": ("controlnet_block_samples", "controlnet_single_block_samples"),
    "sd3": ("block_controlnet_hidden_states",),
}


def filled(net):
    """With weights where a new ControlNet has zeros."""
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in net.parameters():
            if not weight.any():
                weight.copy_(0.3 * torch.randn(weight.shape, generator=draw))
    return net.eval()


def make_flux_controlnet():
    parts = make_flux_pipe().components
    config = parts["transformer"].config
    names = (
        "in_channels", "num_layers", "num_single_layers", "attention_head_dim",
        "num_attention_heads", "joint_attention_dim", "pooled_projection_dim", "axes_dims_rope",
    )  # fmt: skip
    net = diffusers.FluxControlNetModel(**{name: config[name] for name in names})
    return diffusers.FluxControlNetPipeline(**parts, controlnet=filled(net))


def make_sd3_controlnet():
    family = FAMILIES["sd3"]
    config = family.config | {"in_channels": 16, "out_channels": 16, "num_layers": 1}
    net = filled(diffusers.SD3ControlNetModel(**config))
    return make_sd3("StableDiffusion3ControlNetPipeline", controlnet=net)


class Controlled:
    """A pipeline, how it is asked, and which residuals its transformer gets."""

    def __init__(self, kind):
        self.kind = kind
        self.pipe = {"flux": make_flux_controlnet, "sd3": make_sd3_controlnet}[kind]()
        self.pipe.set_progress_bar_config(disable=True)
        self.asked_for, self.seen = [], []  # by the pipeline, by the transformer

    def _residuals(self, kwargs):
        return [each.clone() for name in RESIDUALS[self.kind] for each in kwargs[name] or ()]

    def draw(self, change=None, **asked):
        """Call for latents; `change` is made to the residuals that the ControlNet returned."""
        self.asked_for.clear()
        self.seen.clear()

        def before(_module, args, kwargs):
            if change:
                kwargs = kwargs | {name: change(kwargs[name]) for name in RESIDUALS[self.kind]}
            self.asked_for.append(self._residuals(kwargs))
            return args, kwargs

        def after(_module, _args, kwargs):
            self.seen.append((self._residuals(kwargs), kwargs["hidden_states"]))

        text = {"prompt": "a red circle", "max_sequence_length": 16}
        text = text if self.kind == "flux" else FAMILIES["sd3"].asked()
        call = {"control_image": PICTURE, "height": 64, "width": 96, "num_inference_steps": 6}
        call["generator"] = torch.Generator().manual_seed(asked.pop("seed", 0))
        torch.manual_seed(0)  # SD3 encodes the control picture by the global generator
        hook = self.pipe.transformer.register_forward_pre_hook
        with hook(before, with_kwargs=True, prepend=True), hook(after, with_kwargs=True):
            call |= text | asked
            return self.pipe(**call, output_type="latent", return_dict=False)[0]


@pytest.fixture(params=RESIDUALS)
def controlled(request):
    return Controlled(request.param)


def test_identity_recipes_leave_controlled_pipelines_as_they_are(controlled):
    plain, before = controlled.draw(), traces(controlled.pipe)
    assert (plain - controlled.draw(controlnet_conditioning_scale=0.0)).abs().max() > 1e-3
    for raw in ("identity", ALL_FINE):
        with fresco.accelerate(controlled.pipe, raw):
            assert controlled.draw().equal(plain)
        assert traces(controlled.pipe) == before


@pytest.mark.parametrize("raw", [STAGED, MIXED], ids=["whole", "mixed"])
def test_residuals_are_averaged_over_the_cells_of_every_step(controlled, raw):
    plain, before, sides = controlled.draw(), traces(controlled.pipe), []

    def watch(*_):
        run = accelerated._middleware.last
        sides.append(run.mixed[0] if run.step.promotion else run.layout(run.step.side))

    with fresco.accelerate(controlled.pipe, raw) as accelerated:
        with controlled.pipe.transformer.register_forward_pre_hook(watch):
            got = controlled.draw()
        steps, plan = accelerated.report.steps, accelerated.plan.steps
    assert got.isfinite().all()
    assert [step.tokens for step in steps] == [step.n_tokens for step in plan]
    checked = 0
    pairs = zip(controlled.asked_for, controlled.seen, sides, strict=True)
    for whole, (averaged, _), layout in pairs:
        assert len(whole) == len(averaged) == len(RESIDUALS[controlled.kind])
        for fine, coarse in zip(whole, averaged, strict=True):
            assert fine.shape[1] == 96
            torch.testing.assert_close(coarse, averages(fine, layout), rtol=0, atol=1e-6)
            checked += layout.n_tokens < 96
    assert checked >= 4
    assert traces(controlled.pipe) == before
    assert controlled.draw().equal(plain)


def averages(fine, layout):
    """Slow and obvious: cell after cell."""
    owner = layout.owner.flatten()
    return torch.stack([fine[:, owner == k].mean(dim=1) for k in range(layout.n_tokens)], dim=1)


@pytest.mark.parametrize("raw", [STAGED, MIXED], ids=["whole", "mixed"])
def test_residuals_of_zero_change_nothing_and_others_do(controlled, raw):
    with fresco.accelerate(controlled.pipe, raw):
        without = controlled.draw(lambda _residuals: None)
        assert not controlled.seen[0][0]
        assert controlled.draw(controlnet_conditioning_scale=0.0).equal(without)
        assert (controlled.draw() - without).abs().max() > 1e-3


@given(layouts(), st.integers(1, 3), st.integers(0, 99))
def test_values_that_are_constant_in_each_cell_are_their_own_average(layout, d, seed):
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randn(2, layout.n_tokens, d, generator=draw)
    spread = tokens[:, layout.owner.flatten()]
    torch.testing.assert_close(average_tokens(spread, layout), tokens)
    fine = torch.randn(2, layout.sides.numel(), d, generator=draw)
    torch.testing.assert_close(average_tokens(fine, layout), averages(fine, layout))


def test_fine_tokens_are_selected_and_types_are_kept():
    values = torch.arange(12.0).view(1, 6, 2).bfloat16()
    layout = TokenLayout(torch.tensor([[2, 2, 1], [2, 2, 1]]))
    averaged = average_tokens(values, layout)
    assert averaged.tolist() == [[[4.0, 5.0], [4.0, 5.0], [10.0, 11.0]]]
    assert averaged.dtype == torch.bfloat16


def test_images_of_other_layouts_keep_their_own_residuals(controlled, monkeypatch):
    asked = {"control_image": torch.cat((PICTURE, 1 - PICTURE))}
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    if controlled.kind == "flux":
        asked |= {"prompt": ["a red circle"] * 2}
    else:
        text = FAMILIES["sd3"].asked()
        asked |= {k: torch.cat((v, v)) for k, v in text.items() if isinstance(v, torch.Tensor)}
    mode = type(controlled.pipe.vae.encode(PICTURE).latent_dist)
    monkeypatch.setattr(
        mode, "sample", lambda own, *_, **__: own.mode()
    )  # each picture as if alone
    with fresco.accelerate(controlled.pipe, RANDOM) as accelerated:
        together = controlled.draw(generator=generators, **asked)
        one, other = accelerated._middleware.last.mixed
        assert not one.sides.equal(other.sides)
        for i, picture in enumerate((PICTURE, 1 - PICTURE)):
            alone = controlled.draw(control_image=picture, seed=i)
            torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-4)


def test_residuals_of_another_grid_are_refused_and_the_next_run_is_right(controlled):
    with fresco.accelerate(controlled.pipe, STAGED):
        right = controlled.draw()
        with pytest.raises(
            errors.AdapterError, match=r"of the picture's 96 tokens .*got 95 tokens"
        ):
            controlled.draw(lambda residuals: [each[:, 1:] for each in residuals])
        assert controlled.draw().equal(right)
