"""The oracle of layers that share (KVSharer, arXiv 2410.18517): transformers' dense model, whose layers read the cache
of an earlier one, and whose keys and values may be low-rank.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import torch
from torch.nn.functional import cosine_similarity
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from palu_vllm.format.checkpoint import read_config
from palu_vllm.format.layers import layer_shape
from tests.support.plain_svd import split


class SharedCache(DynamicCache):
    """Layers of ``sources`` store nothing and read what their source has, tokens of the same step included."""

    def __init__(self, sources: Mapping[int, int]) -> None:
        super().__init__()
        self.sources = sources

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args, **kwargs):
        if layer_idx in self.sources:
            source = self.layers[self.sources[layer_idx]]
            return source.keys, source.values
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)


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


def _cache(source_layers: Sequence[int]) -> SharedCache:
    return SharedCache({layer: source for layer, source in enumerate(source_layers) if layer != source})


@torch.inference_mode()
def shared_logits(model: PreTrainedModel, source_layers: Sequence[int], tokens: torch.Tensor) -> torch.Tensor:
    """``[rows, length, vocabulary]`` of ``tokens [rows, length]``."""
    return model(tokens, past_key_values=_cache(source_layers)).logits


@torch.inference_mode()
def shared_tokens(
    model: PreTrainedModel, source_layers: Sequence[int], requests: Sequence[Sequence[int]], count: int
) -> list[list[int]]:
    """``count`` greedy tokens of every request, each alone."""
    continued = []
    for ids in requests:
        cache, step, tokens = _cache(source_layers), ids, []
        while len(tokens) < count:
            tokens.append(model(torch.tensor([list(step)]), past_key_values=cache).logits[0, -1].argmax().item())
            step = tokens[-1:]
        continued.append(tokens)
    return continued


@torch.inference_mode()
def searched_pairs(
    model: PreTrainedModel, rows: torch.Tensor, count: int, threshold: float
) -> tuple[tuple[int, int], ...]:
    """KVSharer's search as its paper has it: the most dissimilar pairs first, kept while hidden states stay alike."""

    def hidden(pairs: Sequence[tuple[int, int]]) -> torch.Tensor:
        return model.get_decoder()(rows, past_key_values=SharedCache(dict(pairs))).last_hidden_state

    cache = SharedCache({})
    own = model.get_decoder()(rows, past_key_values=cache).last_hidden_state
    means = [torch.cat([layer.keys.mean(0).flatten(), layer.values.mean(0).flatten()]) for layer in cache.layers]
    candidates = [(later, earlier) for earlier, later in combinations(range(len(means)), 2)]
    found: list[tuple[int, int]] = []
    for layer, source in sorted(candidates, key=lambda pair: -(means[pair[0]] - means[pair[1]]).norm().item()):
        readers, sources = {pair[0] for pair in found}, {pair[1] for pair in found}
        if layer in readers | sources or source in readers:
            continue
        if cosine_similarity(hidden([*found, (layer, source)]), own, dim=-1).mean() >= threshold:
            found.append((layer, source))
    return tuple(sorted(found[:count]))
