"""What the tests of this folder share.

The oracle of a truncated model is a dense transformers model whose ``k_proj`` and ``v_proj`` are replaced by their
best approximations of that rank: the same mathematics without latents, and without this project's code.
"""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from palu_vllm.huggingface import modeling

CLASSES = {
    "llama": modeling.PaluLlamaForCausalLM,
    "mistral": modeling.PaluMistralForCausalLM,
    "qwen2": modeling.PaluQwen2ForCausalLM,
    "qwen3": modeling.PaluQwen3ForCausalLM,
    "phi3": modeling.PaluPhi3ForCausalLM,
}
FULL_RANK = 32  # of a group of two heads
RANKS = {"rank_k": [8, 32], "rank_v": [20, 12]}  # different per layer and for K and V; one layer's keys stay whole
EXACT = {"rtol": 0, "atol": 3e-5}  # logits have a standard deviation of about 1


def load(directory: Path, **options):
    return AutoModelForCausalLM.from_pretrained(directory, **options)


def low_rank(weight: torch.Tensor, rank: int, group_width: int) -> torch.Tensor:
    """Every group of rows replaced by its best approximation of ``rank``."""
    parts = []
    for part in weight.double().split(group_width):
        values, vectors = torch.linalg.eigh(part.T @ part)
        kept = vectors[:, values.argsort(descending=True)[:rank]]
        parts.append(part @ kept @ kept.T)
    return torch.cat(parts).float()


def key_value_weights(attention) -> list[torch.Tensor]:
    """Those of keys and of values, which may be rows of a joined matrix."""
    if hasattr(attention, "k_proj"):
        return [attention.k_proj.weight.data, attention.v_proj.weight.data]
    width = attention.num_key_value_heads * attention.head_dim
    return list(attention.qkv_proj.weight.data[-2 * width :].split(width))


def truncated(
    dense: Path,
    rank_k: list[int],
    rank_v: list[int],
    group_width: int = FULL_RANK,
    group_width_v: int | None = None,
):
    """The dense model with keys and values of those ranks, in groups of K and V or of each."""
    model = load(dense)
    widths = group_width, group_width_v or group_width
    for layer, *ranks in zip(model.model.layers, rank_k, rank_v, strict=True):
        for weight, rank, width in zip(key_value_weights(layer.self_attn), ranks, widths, strict=True):
            weight.copy_(low_rank(weight, rank, width))
    return model


@torch.no_grad()
def logits(model, tokens, **options) -> torch.Tensor:
    return model(tokens, **options).logits


def generate(model, tokens, **options) -> torch.Tensor:
    torch.manual_seed(5)
    options = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None} | options
    return model.generate(tokens, attention_mask=options.pop("attention_mask", torch.ones_like(tokens)), **options)


def kv_bytes(cache) -> int:
    """Returns the bytes of the keys and values of a transformers cache."""
    return sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
