"""AuraFlow: latents [b, c, h, w], guidance by a doubled batch."""

from __future__ import annotations

from typing import Any, ClassVar

from fresco.ports import register_adapter

from .plain import PlainAdapter


@register_adapter
class AuraFlowAdapter(PlainAdapter):
    """`AuraFlowTransformer2DModel`; positions are learned, from the middle of a table.

    Source:
        huggingface/diffusers@v0.42.1:src/diffusers/pipelines/aura_flow/pipeline_aura_flow.py
        (Apache-2.0).
    """

    model: ClassVar[str] = "AuraFlowTransformer2DModel"

    def example_call(self, transformer: Any, n_tokens: int, n_text_tokens: int) -> dict[str, Any]:
        latents = self.example_latents(transformer, n_tokens)
        width = self.config.joint_attention_dim
        return {
            "hidden_states": latents,
            "encoder_hidden_states": latents.new_zeros(1, n_text_tokens, width),
            "timestep": latents.new_zeros(1),
            "return_dict": False,
        }
