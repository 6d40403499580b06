"""What fresco relies on in diffusers, torch and the libraries of its techniques."""

from __future__ import annotations

import inspect

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from fresco.adapters.techniques import lora, quantize

from fresco.layout import TokenLayout
from fresco.registry import find_adapter
from fresco.sigmas import shifted_sigmas
from tests.families import FAMILIES


def test_flux_prepares_latents_before_timesteps_and_frees_hooks_last():
    source = inspect.getsource(FluxPipeline.__call__)
    order = ["self.prepare_latents(", "retrieve_timesteps(", "self.transformer(", "scheduler.step("]
    places = [source.index(name) for name in [*order, "self.maybe_free_model_hooks()"]]
    assert places == sorted(places)


def test_methods_take_the_arguments_that_are_read():
    assert {"height", "width", "latents"} <= set(
        inspect.signature(FluxPipeline.prepare_latents).parameters
    )
    step = inspect.signature(FlowMatchEulerDiscreteScheduler.step).parameters
    assert list(step)[1:4] == ["model_output", "timestep", "sample"]
    timesteps = inspect.signature(FlowMatchEulerDiscreteScheduler.set_timesteps).parameters
    assert {"sigmas", "timesteps"} <= set(timesteps)


def test_a_scheduler_steps_along_sigmas_that_rise():
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(3)
    scheduler.sigmas = torch.tensor([1.0, 0.5, 0.75, 0.0])
    scheduler.timesteps = scheduler.sigmas[:-1] * 1000
    scheduler.set_begin_index(0)
    clean, eps = torch.tensor([3.0]), torch.tensor([-1.0])
    x = eps
    for t, following in zip(scheduler.timesteps, scheduler.sigmas[1:], strict=True):
        x = scheduler.step(eps - clean, t, x, return_dict=False)[0]
        torch.testing.assert_close(x, (1 - following) * clean + following * eps)


def test_adapter_shift_is_the_pipeline_s(tiny_flux_pipe):
    scheduler, adapter = tiny_flux_pipe.scheduler, find_adapter(tiny_flux_pipe.transformer)
    for n_tokens in (16, 256, 1024, 4096):
        scheduler.set_timesteps(
            sigmas=[1 - i / 7 for i in range(7)], mu=calculate_shift(n_tokens), device="cpu"
        )
        own = shifted_sigmas(1.0, 0.0, 7, adapter.shift(scheduler, n_tokens, 7))
        torch.testing.assert_close(scheduler.sigmas[:-1], torch.tensor(own))


def test_adapter_shift_of_linear_and_static_schedulers(tiny_flux_pipe):
    adapter = find_adapter(tiny_flux_pipe.transformer)
    linear = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="linear")
    linear.set_timesteps(sigmas=[1.0, 0.5], mu=calculate_shift(1024))
    own = shifted_sigmas(1.0, 0.0, 2, adapter.shift(linear, 1024, 2))
    torch.testing.assert_close(linear.sigmas[:-1], torch.tensor(own))
    assert adapter.shift(FlowMatchEulerDiscreteScheduler(shift=3.0), 1024, 2) == 3.0


def test_flux_packs_channels_before_the_pixels_of_a_patch(tiny_flux_pipe):
    adapter, layout = find_adapter(tiny_flux_pipe.transformer), TokenLayout.whole(2, 3, 1, 2)
    latents = torch.arange(2 * 4 * 4 * 6.0).view(2, 4, 4, 6)
    packed = FluxPipeline._pack_latents(latents, 2, 4, 4, 6)
    assert adapter.pack(latents).equal(packed)
    assert adapter.unpack(packed, layout).equal(latents)


def test_positions_of_a_coarse_grid_are_the_pipeline_s_own(tiny_flux_pipe):
    adapter, layout = find_adapter(tiny_flux_pipe.transformer), TokenLayout.whole(5, 8, 2, 2)
    own = FluxPipeline._prepare_latent_image_ids(1, 3, 4, "cpu", torch.float32)
    fine = FluxPipeline._prepare_latent_image_ids(1, 5, 8, "cpu", torch.float32)
    call = {"hidden_states": torch.zeros(1, 40, 16), "img_ids": fine}
    positions = layout.positions("native")
    assert adapter.embed(call, torch.zeros(1, 12, 4, 2, 2), layout, positions)["img_ids"].equal(own)


def test_condition_tokens_are_left_aside(tiny_flux_pipe):
    adapter, layout = find_adapter(tiny_flux_pipe.transformer), TokenLayout.whole(4, 4, 2, 2)
    hidden, ids = torch.randn(1, 21, 16), torch.randn(21, 3)
    call = {"hidden_states": hidden, "img_ids": ids}
    assert adapter.read(call, layout).shape == (1, 4, 8, 8)
    swapped = adapter.embed(call, torch.zeros(1, 4, 4, 2, 2), layout, torch.zeros(4, 2))
    assert swapped["hidden_states"][:, 4:].equal(hidden[:, 16:])
    assert swapped["img_ids"][4:].equal(ids[16:])
    output = (torch.randn(1, 9, 16), "kept")
    replaced = adapter.replace(output, torch.zeros(1, 4, 8, 8), layout)
    assert replaced[0].shape == (1, 21, 16)
    assert replaced[0][:, 16:].equal(output[0][:, 4:])
    assert replaced[1] == "kept"


def test_names_of_diffusers_caches_that_a_cache_is_read_by():
    """Adapters read each cache's state, which has no public view."""
    from diffusers.hooks import (
        faster_cache,
        first_block_cache,
        hooks,
        mag_cache,
        pyramid_attention_broadcast,
        sea_cache,
        taylorseer_cache,
    )
    from fresco.adapters.techniques.cache import METHODS

    sources = [
        inspect.getsource(module)
        for module in (
            faster_cache,
            first_block_cache,
            mag_cache,
            pyramid_attention_broadcast,
            sea_cache,
            taylorseer_cache,
        )
    ]
    for method in METHODS.values():
        for name in method.hook_names:
            assert any(f'"{name}"' in source for source in sources), name
    assert {"should_compute"} <= set(vars(first_block_cache.FBCSharedBlockState()))
    assert {"should_compute", "step_index"} <= set(vars(mag_cache.MagCacheState()))
    assert {"current_step", "last_update_step"} <= set(vars(taylorseer_cache.TaylorSeerState()))
    assert {"consecutive_cached"} <= set(vars(sea_cache.SeaCacheContextState()))
    assert {"cache", "iteration"} <= set(
        vars(pyramid_attention_broadcast.PyramidAttentionBroadcastState())
    )
    assert {"cache", "iteration"} <= set(vars(faster_cache.FasterCacheBlockState()))
    assert len(mag_cache.nearest_interp(mag_cache.FLUX_MAG_RATIOS, 7)) == 7
    registry = hooks.HookRegistry(torch.nn.Identity())
    assert {"hooks", "_hook_order"} <= set(vars(registry))
    assert callable(hooks.StateManager.get_state)


def test_where_diffusers_keeps_the_hooks_of_a_cache(tiny_flux_pipe):
    from diffusers import FirstBlockCacheConfig

    transformer = tiny_flux_pipe.transformer
    assert not transformer.is_cache_enabled
    transformer.enable_cache(FirstBlockCacheConfig())
    assert "_cache_config" in vars(transformer)
    block = transformer.transformer_blocks[0]
    assert {"_diffusers_hook", "forward"} <= set(vars(block))
    (hook,) = block._diffusers_hook.hooks.values()
    with transformer.cache_context("cond"):
        assert hook.state_manager.get_state() is not None
    transformer._reset_stateful_cache()
    transformer.disable_cache()
    assert not block._diffusers_hook.hooks


def test_diffusers_knows_what_every_block_returns(tiny_flux_pipe):
    from diffusers.hooks._helpers import TransformerBlockRegistry

    transformer = tiny_flux_pipe.transformer
    for blocks in (transformer.transformer_blocks, transformer.single_transformer_blocks):
        known = TransformerBlockRegistry.get(type(blocks[0]))
        places = (known.return_encoder_hidden_states_index, known.return_hidden_states_index)
        assert places == (0, 1)
    with pytest.raises(ValueError, match="not registered"):
        TransformerBlockRegistry.get(torch.nn.Identity)


def test_what_peft_and_diffusers_leave_on_a_transformer_with_a_lora(tiny_flux_pipe):
    from peft.tuners.lora import LoraLayer

    from tests.matrix import lora_weights

    transformer = tiny_flux_pipe.transformer
    before = set(vars(transformer))
    state = tiny_flux_pipe.lora_state_dict(lora_weights(tiny_flux_pipe), return_alphas=True)
    transformer.load_lora_adapter(state[0], network_alphas=state[1], adapter_name="one")
    assert set(vars(transformer)) - before == {"peft_config", "_hf_peft_config_loaded"}
    layers = [module for module in transformer.modules() if isinstance(module, LoraLayer)]
    assert layers
    for layer in layers:
        assert layer.get_delta_weight("one").shape == layer.get_base_layer().weight.shape
    transformer.fuse_lora(adapter_names=["one"])
    transformer.unload_lora()
    assert set(vars(transformer)) - before <= set(lora._OWN)


@pytest.mark.parametrize("name", quantize._TORCHAO.values())
def test_torchao_has_every_config_that_a_form_names(name):
    from torchao import quantization

    assert inspect.isclass(getattr(quantization, name))


def test_torchao_swaps_the_weight_and_lists_its_parts():
    from torchao import quantization

    linear = torch.nn.Linear(32, 32)
    own = linear.weight
    quantization.quantize_(torch.nn.Sequential(linear), quantization.Int8WeightOnlyConfig())
    assert linear.weight is not own
    assert type(linear.weight.data) is not torch.Tensor
    names, _ = linear.weight.__tensor_flatten__()
    assert all(isinstance(getattr(linear.weight, name), torch.Tensor) for name in names)


def test_quanto_makes_a_layer_of_its_own_from_a_linear_one():
    from optimum import quanto

    linear = torch.nn.Linear(32, 32)
    module = quanto.QLinear.from_module(linear, weights=quanto.qint8)
    module.freeze()
    assert module is not linear
    assert type(module.weight.data) is not torch.Tensor
    assert {"qint4", "qint8", "qfloat8"} <= set(dir(quanto))


def test_torch_says_what_a_block_was_compiled_with():
    from torch._dynamo import list_backends, lookup_backend
    from torch._dynamo.exc import InvalidBackend

    module = torch.nn.Linear(2, 2)
    assert module._compiled_call_impl is None
    module.compile(backend="eager")
    assert vars(module)["_compiled_call_impl"] is not None
    assert {"eager", "inductor"} <= set(list_backends(exclude_tags=()))
    assert callable(lookup_backend("eager"))
    with pytest.raises(InvalidBackend):
        lookup_backend("eagre")


def test_torch_says_whether_inductor_has_a_compiler():
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    assert callable(get_cpp_compiler)
    assert issubclass(InvalidCxxCompiler, RuntimeError)


def test_torch_keeps_hooks_and_children_where_they_are_looked_for():
    module = torch.nn.Sequential(torch.nn.Identity())
    handle = module.register_forward_pre_hook(lambda *_: None)
    assert list(module._forward_pre_hooks) == [handle.id]
    assert list(module._modules) == ["0"]


def test_cache_dit_counts_the_steps_of_a_context_and_takes_one_in_place_of_its_name():
    import cache_dit
    from cache_dit import caching

    config = cache_dit.DBCacheConfig(
        Fn_compute_blocks=1, residual_diff_threshold=1.0, max_warmup_steps=1
    )
    assert (config.Bn_compute_blocks, config.max_continuous_cached_steps) == (0, -1)
    assert config.num_inference_steps is None  # contexts would begin anew by themselves
    context = caching.CachedContext(name="one", cache_config=config)
    manager = caching.CachedContextManager(name="manager")
    assert manager.set_context(context) is context
    assert context.get_current_step() == -1
    assert context.get_cached_steps() == []
    manager.mark_step_begin()
    assert context.get_current_step() == 0
    taylor = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=2)
    assert taylor.enable_calibrator
    signature = inspect.signature(caching.CachedBlocks.__new__).parameters
    assert {"transformer_blocks", "transformer", "forward_pattern", "check_forward_pattern",
            "check_num_outputs", "cache_prefix", "cache_context", "context_manager"} <= set(
        signature
    )  # fmt: skip
    assert {f"Pattern_{i}" for i in range(6)} <= set(dir(cache_dit.ForwardPattern))


def test_cache_dit_s_own_entry_point_patches_the_pipeline_s_class():
    """Why fresco does not call it; once it no longer does, there is less to write here."""
    from cache_dit.caching import CachedAdapter

    assert "pipe.__class__.__call__ = new_call" in inspect.getsource(CachedAdapter.create_context)


@pytest.mark.parametrize(("rows", "columns"), [(4, 6), (5, 7)])
def test_rotations_of_qwen_s_fine_tokens_are_the_model_s_own(rows, columns):
    transformer = FAMILIES["qwen_image"].make().transformer
    adapter, sides = find_adapter(transformer), torch.ones(rows, columns, dtype=torch.int64)
    sides[:2, :2] = 2
    layout = TokenLayout(sides, 2)
    call = adapter.example_call(transformer, rows * columns, 5)
    call["img_shapes"] = [[(1, rows, columns)]]
    tokens = torch.zeros(1, layout.n_tokens, 4, 2, 2)
    adapter.embed(call, tokens, layout, layout.positions("fine"))
    own, _ = transformer.pos_embed(call["img_shapes"], torch.device("cpu"), 5)
    fine, cells = layout.tokens_of(1)
    torch.testing.assert_close(adapter._rotations[fine], own[cells])
    assert not torch.isclose(adapter._rotations[0], own[0]).all()  # of a cell: its centre
