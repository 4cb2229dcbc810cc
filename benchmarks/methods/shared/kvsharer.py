"""KVSharer (Yang et al. 2024, arXiv 2410.18517): layers that read the cache of an earlier, *dissimilar* layer."""

from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Self

import torch
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel

from benchmarks.methods.harness.attention import layers_of, methods_attention
from benchmarks.methods.harness.cache import MethodCache
from benchmarks.methods.harness.calibration import keys_and_values
from benchmarks.methods.harness.dense import DenseStore
from benchmarks.methods.harness.interface import Layer, Method, Store, expect

Sharing = tuple[tuple[int, int], ...]  # (layer, the earlier layer whose keys and values it reads)


@dataclass(frozen=True, kw_only=True)
class KVSharer(Method):
    """``shared_layers`` of them hold nothing, in the prompt too. Pairs are tried from the most dissimilar on, and kept
    if the last hidden states stay as similar to the model's own (cosine) as ``threshold``.
    """

    name = "kvsharer"

    shared_layers: int = 1
    threshold: float = 0.5
    sharing: Sharing | None = field(default=None, repr=False, compare=False)

    def source_layer(self, layer: int) -> int:
        expect(self.sharing is not None, "kvsharer has to be calibrated first")
        return dict(self.sharing or ()).get(layer, layer)

    def store(self, layer: Layer) -> Store:
        return DenseStore(layer)

    @property
    def lesson(self) -> float:
        return self.threshold

    def studied(self, model: PreTrainedModel, rows: torch.Tensor) -> Sharing:
        """All layers that can be shared, in the order in which they are found."""
        own = _last_hidden(model, rows, ())
        sharing: Sharing = ()
        for layer, source in _dissimilar_pairs(model, rows):
            taken = {each for pair in sharing for each in pair}
            sources = {pair[1] for pair in sharing}
            if layer in taken or source in taken - sources:
                continue
            tried = (*sharing, (layer, source))
            if cosine_similarity(_last_hidden(model, rows, tried), own, dim=-1).mean() >= self.threshold:
                sharing = tried
        return sharing

    def taught(self, found: Sharing) -> Self:
        """Raises ValueError if no ``shared_layers`` layers may be shared."""
        enough = len(found) >= self.shared_layers
        expect(enough, f"{len(found)} layers can be shared at threshold {self.threshold}")
        return replace(self, sharing=tuple(sorted(found[: self.shared_layers])))


def _dissimilar_pairs(model: PreTrainedModel, rows: torch.Tensor) -> list[tuple[int, int]]:
    """``(layer, earlier layer)``, greatest Euclidean distance of their mean keys and values first."""
    means = [torch.cat([k.mean(0).flatten(), v.mean(0).flatten()]) for k, v in keys_and_values(model, rows)]
    pairs = [(later, earlier) for earlier, later in combinations(range(len(means)), 2)]
    return sorted(pairs, key=lambda pair: -(means[pair[0]] - means[pair[1]]).norm().item())


@torch.inference_mode()
def _last_hidden(model: PreTrainedModel, rows: torch.Tensor, sharing: Sharing) -> torch.Tensor:
    """``[rows, tokens, hidden]``."""
    cache = MethodCache(KVSharer(sharing=sharing), layers_of(model, torch.float32))
    with methods_attention(model):
        return model.get_decoder()(rows, past_key_values=cache).last_hidden_state
