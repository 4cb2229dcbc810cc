"""Which layers read the cache of an earlier one: KVSharer (Yang et al. 2024, arXiv 2410.18517).

Pairs of layers are ranked by the Euclidean distance of their keys and values, averaged over calibration samples, the
most *dissimilar* first. One pair after the other, the later layer is made to read the earlier one's cache, on top of
the pairs accepted before; the pair stays if the last hidden states are still as similar to the model's own (mean
cosine) as the threshold says. A layer that shares is nobody's source.
"""

from itertools import combinations
from typing import Any, NamedTuple

import torch
from torch.nn.functional import cosine_similarity
from transformers import DynamicCache, PreTrainedModel

from offline_compress.model.access import num_parameters
from offline_compress.pair_lists import LayerPairs
from offline_compress.plan import Plan
from offline_compress.run.errors import CompressionError
from offline_compress.run.progress import OnEvent, ignore

FLOAT32 = 4
SHARING_SAMPLES, SHARING_TOKENS = 32, 64  # of the calibration data: samples, and tokens at the beginning of each


class Sharing(NamedTuple):
    """``(layer, the earlier layer that it reads)``, and the mean cosine of the last hidden states with the model's."""

    pairs: LayerPairs
    similarity: float

    def report(self) -> dict[str, Any]:
        return {"pairs": [list(pair) for pair in self.pairs], "similarity": self.similarity}


class SharedCache(DynamicCache):
    """The cache of one forward pass in which layers read others: they are given the keys and values of their source."""

    def __init__(self, pairs: LayerPairs) -> None:
        super().__init__()
        self.sources = dict(pairs)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if layer_idx not in self.sources:
            return super().update(key_states, value_states, layer_idx, *args, **kwargs)
        source = self.layers[self.sources[layer_idx]]
        return source.keys, source.values


@torch.inference_mode()
def search_sharing(
    model: PreTrainedModel, tokens: torch.Tensor, count: int, threshold: float, on_event: OnEvent = ignore
) -> Sharing:
    """``count`` pairs, sorted; ``tokens`` int64 ``[samples, length]`` pass through the model once per pair tried.

    Raises CompressionError where so many layers cannot share.
    """
    cache = SharedCache(())
    own = _last_hidden(model, tokens, cache)
    pairs: LayerPairs = ()
    similarity = 1.0
    for pair in _dissimilar_pairs(cache):
        if len(pairs) == count:
            break
        if not _fits(pair, pairs):
            continue
        tried = (*pairs, pair)
        found = cosine_similarity(_last_hidden(model, tokens, SharedCache(tried)), own, dim=-1).mean().item()
        decided = "shares" if found >= threshold else "does not share"
        on_event({"event": "sharing", "text": f"layer {pair[0]} {decided} with layer {pair[1]}: cosine {found:.4f}"})
        if found >= threshold:
            pairs, similarity = tried, found
    if len(pairs) < count:
        raise CompressionError(
            f"{len(pairs)} layers can share at threshold {threshold}, not {count}; give a lower --share-threshold or "
            "fewer --share-layers."
        )
    return Sharing(tuple(sorted(pairs)), similarity)


def _fits(pair: tuple[int, int], pairs: LayerPairs) -> bool:
    """Whether the layer neither shares nor is a source yet, and the source does not share."""
    layer, source = pair
    sharing, sources = {each for each, _ in pairs}, {each for _, each in pairs}
    return layer not in sharing | sources and source not in sharing


def _dissimilar_pairs(cache: DynamicCache) -> LayerPairs:
    """``(layer, earlier layer)``, greatest distance of their mean keys and values first."""
    means = [torch.cat([side.mean(0).flatten() for side in (layer.keys, layer.values)]) for layer in cache.layers]
    pairs = [(later, earlier) for earlier, later in combinations(range(len(means)), 2)]
    return tuple(sorted(pairs, key=lambda pair: -(means[pair[0]] - means[pair[1]]).norm().item()))


def _last_hidden(model: PreTrainedModel, tokens: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
    """``[samples, length, hidden]``; fills ``cache``."""
    return model.get_decoder()(tokens, past_key_values=cache).last_hidden_state


def peak_bytes(plan: Plan) -> int:
    """The whole model in float32, keys and values of the samples in all layers, and activations of one layer."""
    geometry = plan.geometry
    cached = 2 * geometry.num_layers * geometry.num_kv_heads * geometry.head_dim
    per_token = cached + 12 * geometry.hidden_size + 3 * plan.config.intermediate_size
    tokens = SHARING_SAMPLES * min(SHARING_TOKENS, plan.seqlen)
    return FLOAT32 * (num_parameters(plan.source) + tokens * per_token)
