"""CogVideoX: latents [b, f, c, h, w] that preserve variance, predictions of v."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from typing import Any, ClassVar

from torch import Tensor

from fresco.errors import AdapterError
from fresco.layout import PositionUnits, TokenLayout
from fresco.registry import register_adapter
from fresco.target import Prediction
from fresco.transfer import cut_patches
from fresco.wraps import wrap_method

from .cogvideox_positions import learned, put_sines, rotations
from .strip import during_calls
from .video import VideoAdapter, refuse_no_picture


@register_adapter
class CogVideoXAdapter(VideoAdapter):
    """`CogVideoXTransformer3DModel` 1.0 and 1.5, whose patches have two frames.

    Rotations come with the call, sines or a learned table are added inside. Channels behind
    the latents are a picture's: coarse cells get their average. Places between entries of the
    table, which is of one size, have their mean.

    Source:
        huggingface/diffusers@v0.42.1:src/diffusers/pipelines/cogvideo/pipeline_cogvideox.py
        (Apache-2.0).
    """

    model: ClassVar[str] = "CogVideoXTransformer3DModel"
    text_width: ClassVar[str] = "text_embed_dim"
    passes_sigmas: ClassVar[bool] = False
    prediction: ClassVar[Prediction] = "v_prediction"
    scheduler: ClassVar[str] = "CogVideoXDDIMScheduler"
    units: ClassVar[Collection[PositionUnits]] = ("native", "fine", "anchor")
    channel_axis: ClassVar[int] = 2
    _entries: Tensor | None = None  # places in a learned table, [n, 2]; None: the model's own

    def __init__(self, transformer: Any) -> None:
        super().__init__(transformer)
        self.patch_frames = self.config.patch_size_t or 1

    def check(self, pipe: Any) -> None:
        n_seen = self.config.in_channels
        if n_seen > self.channels:
            refuse_no_picture(pipe, f"{n_seen} channels")

    def grid(self, pipe: Any, height: int | None, width: int | None) -> tuple[int, int]:
        px = pipe.vae_scale_factor_spatial
        height = height or self.config.sample_height * px
        width = width or self.config.sample_width * px
        if self.config.use_learned_positional_embeddings:
            self._check_size((int(height) // px, int(width) // px))
        return int(height) // (px * self.patch_px), int(width) // (px * self.patch_px)

    def latents_shape(self, layout: TokenLayout) -> tuple[int, ...]:
        return -1, self.channels, *layout.grid_px

    def frames(self, packed: Tensor, layout: TokenLayout) -> int:
        return int(packed.shape[1] // self.patch_frames)

    def embed(
        self, call: Mapping[str, Any], tokens: Tensor, layout: TokenLayout, positions: Tensor
    ) -> dict[str, Any]:
        entered = super().embed(call, tokens, layout, positions)
        is_native = self._places is None
        if self.config.use_learned_positional_embeddings:
            self._entries = layout.positions("fine") if is_native else positions
            self._check_size(layout.grid_px)
        if call.get("image_rotary_emb") is not None:
            latents = entered["hidden_states"]
            sides = layout.cells(layout.sides_used[0]) if is_native else self._sides
            places, n_frames = positions.to(latents.device), latents.shape[1] // self.patch_frames
            entered["image_rotary_emb"] = rotations(self.config, sides, places, n_frames)
        return entered

    def unembed(self, output: Any, layout: TokenLayout) -> Tensor:
        return cut_patches(output[0].transpose(1, 2).flatten(1, 2), self.patch_px)

    def attach(self, transformer: Any, units: Collection[str]) -> Callable[[], None]:
        module, learns = transformer.patch_embed, "use_learned_positional_embeddings"

        def place(original: Callable[..., Any], args: Any, kwargs: Any) -> Tensor:
            own: Tensor = original(*args, **kwargs)
            return own if self._places is None else put_sines(module, self._places, own)

        def add(_module: object, _given: object, tokens: Tensor) -> Tensor | None:
            if self._entries is None:
                return None
            return tokens + learned(module, self._entries, tokens.shape[1]).to(tokens)

        if not getattr(module, learns):
            return wrap_method(module, "_get_positional_embeddings", place)
        undo = ExitStack()  # it takes one size only: it is told that it learned none
        undo.callback(
            during_calls(module, lambda: {} if self._entries is None else {learns: False})
        )
        undo.callback(module.register_forward_hook(add).remove)
        return undo.close

    def aim(self, call: Mapping[str, Any], layout: TokenLayout | None) -> None:
        super().aim(call, layout)
        if layout is None and not call:
            self._entries = None

    def _check_size(self, grid_px: tuple[int, int]) -> None:
        """Refuse videos of another size than a learned table's."""
        size = self.config.sample_height, self.config.sample_width
        if grid_px != size:
            expected = f"latents of {size} px, the only size that this transformer learned"
            fix = "Ask for that size."
            raise AdapterError("pipe(height, width)", expected, grid_px, fix)

    def example_call(self, transformer: Any, n_tokens: int, n_text_tokens: int) -> dict[str, Any]:
        call = super().example_call(transformer, n_tokens, n_text_tokens)
        latents = call["hidden_states"].transpose(1, 2).expand(-1, self.patch_frames, -1, -1, -1)
        ofs = latents.new_zeros(1) if self.config.ofs_embed_dim else None
        return {**call, "hidden_states": latents, "ofs": ofs}

    def make_countable(self, skeleton: Any) -> None:
        """Have it count any number of tokens: a learned table, of one size, is only added."""
        skeleton.patch_embed.use_learned_positional_embeddings = False
