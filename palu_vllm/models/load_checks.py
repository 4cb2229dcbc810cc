"""Names and shapes of all tensors that a palu model loads. vLLM's own loaders accept some wrong shapes."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from palu_vllm.checkpoint import CheckpointError, attention_tensors
from palu_vllm.config import AttentionGeometry, PaluConfig


def expected_tensors(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """``{name: shape}`` for a parsed ``config.json``; ``lm_head.weight`` may be missing where it is tied."""
    geometry = AttentionGeometry.from_hf_config(config)
    hidden, inner, vocab = geometry.hidden_size, config["intermediate_size"], config["vocab_size"]
    tensors = {
        "model.embed_tokens.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocab, hidden),
        **attention_tensors(PaluConfig.from_hf_config(config), geometry),
    }
    layer = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }
    if config.get("mlp_bias"):
        layer |= {"mlp.gate_proj.bias": (inner,), "mlp.up_proj.bias": (inner,), "mlp.down_proj.bias": (hidden,)}
    for index in range(geometry.num_layers):
        tensors |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    return tensors


def checked(
    weights: Iterable[tuple[str, torch.Tensor]], config: Mapping[str, Any]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Passes tensors on; raises CheckpointError at one that is unexpected or has another shape.

    Missing tensors are found by vLLM, which knows the parameters of its pipeline stage.
    """
    expected = expected_tensors(config)
    for name, tensor in weights:
        if name not in expected:
            raise CheckpointError(f"the checkpoint has the unexpected tensor {name}; compress the model again.")
        if tuple(tensor.shape) != expected[name]:
            raise CheckpointError(
                f"{name} has shape {list(tensor.shape)}, expected {list(expected[name])}; compress the model again."
            )
        yield name, tensor
