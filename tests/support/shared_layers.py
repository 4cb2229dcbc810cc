"""The oracle of layers that share: the harness's KVSharer, on a dense model whose keys and values may be low-rank."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.methods.harness.attention import layers_of, methods_attention
from benchmarks.methods.harness.cache import MethodCache
from benchmarks.methods.shared.kvsharer import KVSharer
from palu_vllm.format.checkpoint import read_config
from palu_vllm.format.layers import layer_shape
from tests.support.plain_svd import split


def dense_of(dense: Path, palu: Path) -> PreTrainedModel:
    """The float32 model ``dense`` with key and value projections of the ranks of ``palu``, by plain SVD."""
    model = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32)
    _, config, geometry = read_config(palu)
    for layer in config.caching_layers:
        shape, attention = layer_shape(config, geometry, layer), model.model.layers[layer].self_attn
        _lower_rank(attention.k_proj, shape.num_groups_k, shape.rank_k)
        _lower_rank(attention.v_proj, shape.num_groups_v, shape.rank_v)
    return model


def _lower_rank(linear: torch.nn.Linear, groups: int, rank: int) -> None:
    down, up = split(linear.weight.detach().double(), groups, rank)
    linear.weight.data = (up.mT @ down.unflatten(0, (groups, rank))).flatten(0, 1).float()


def _cache(model: PreTrainedModel, source_layers: Sequence[int]) -> MethodCache:
    sharing = tuple((layer, source) for layer, source in enumerate(source_layers) if layer != source)
    return MethodCache(KVSharer(sharing=sharing), layers_of(model, torch.float32))


@torch.inference_mode()
def harness_logits(model: PreTrainedModel, source_layers: Sequence[int], tokens: torch.Tensor) -> torch.Tensor:
    """``[rows, length, vocabulary]`` of ``tokens [rows, length]`` by ``benchmarks.methods``."""
    with methods_attention(model):
        return model(tokens, past_key_values=_cache(model, source_layers)).logits


@torch.inference_mode()
def harness_tokens(
    model: PreTrainedModel, source_layers: Sequence[int], requests: Sequence[Sequence[int]], count: int
) -> list[list[int]]:
    """``count`` greedy tokens of every request, each alone, by ``benchmarks.methods``."""
    continued = []
    with methods_attention(model):
        for ids in requests:
            cache, step, tokens = _cache(model, source_layers), ids, []
            while len(tokens) < count:
                tokens.append(model(torch.tensor([list(step)]), past_key_values=cache).logits[0, -1].argmax().item())
                step = tokens[-1:]
            continued.append(tokens)
    return continued
