"""The dense model on some samples, its K and V projections at ranks that fall one by one (``greedy.py``).

Layers run one after the other, read from disk; the samples before every layer lie in a file, so that a change runs
again only what is behind it. In memory are the factors of all projections, in float32.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from offline_compress.calibration.activations import ActivationFile
from offline_compress.factors.head_order import restored
from offline_compress.factors.layer_views import LayerView
from offline_compress.factors.objective import Objective
from offline_compress.model.access import KEY, VALUE, LayerRunner, with_projection
from palu_vllm.format.kv import KV, flattened

CHUNK_TOKENS = 128


@dataclass(frozen=True)
class NestedProjection:
    """A projection at every rank: ``down [groups, full, hidden]`` and ``up [groups, full, full]``, float32.

    Heads lie in ``order`` there, and in the model's own order in what :meth:`at` gives.
    """

    down: torch.Tensor
    up: torch.Tensor
    order: tuple[int, ...]

    @classmethod
    def of(cls, view: LayerView, name: str, objective: Objective) -> "NestedProjection":
        """Of one projection of ``view``; ``up`` is not fitted again."""
        weight = view.weight(name)
        factors = objective.factors(weight, len(weight) // objective.num_groups)
        down = factors.down.unflatten(0, (objective.num_groups, -1))
        return cls(down.float(), factors.up.float(), tuple(view.order))

    def at(self, rank: int) -> torch.Tensor:
        """The weight ``[num_kv_heads * head_dim, hidden]`` of the leading ``rank`` latents."""
        rebuilt = (self.up[:, :rank].mT @ self.down[:, :rank]).flatten(0, 1)
        return restored(rebuilt, self.order)


def nested(view: LayerView) -> KV[NestedProjection]:
    """Both projections of a layer."""
    key, value = view.objectives
    return KV(NestedProjection.of(view, KEY, key), NestedProjection.of(view, VALUE, value))


class LoweredModel:
    """A ``LowerableModel`` on samples ``tokens [samples, length]``, dense at first. Losses are KL in nats per token."""

    def __init__(
        self,
        runner: LayerRunner,
        projections: Sequence[KV[NestedProjection]],
        tokens: torch.Tensor,
        file: ActivationFile,
    ):
        self._runner, self._projections, self._file = runner, flattened(projections), file
        self._layers, self._samples, self._tokens = len(projections), len(tokens), tokens.numel()
        self._modules = [runner.load(layer) for layer in range(self._layers)]
        self._weights: dict[int, torch.Tensor] = {}  # of projections below full rank
        for sample, row in enumerate(tokens):
            self._put(0, sample, runner.embed(row))
        self._advance(0)
        for sample in range(self._samples):
            self._put(self._layers + 1, sample, self._take(self._layers, sample))  # what the dense model ends with
        self._exact = self._layers  # layers whose inputs are those of the ranks as they are

    def lower(self, matrix: int, rank: int) -> None:
        self._weights[matrix] = self._projections[matrix].at(rank)
        self._exact = min(self._exact, matrix // 2)

    @torch.no_grad()
    def loss(self, matrix: int, rank: int) -> float:
        if self._exact < self._layers:
            self._advance(self._exact)
            self._exact = self._layers
        weights = self._weights | {matrix: self._projections[matrix].at(rank)}
        lost = 0.0
        for sample in range(self._samples):
            hidden = self._take(matrix // 2, sample)
            for layer in range(matrix // 2, self._layers):
                hidden = self._behind(layer, hidden, weights)
            lost += self._divergence(self._take(self._layers + 1, sample), hidden)
        return lost / self._tokens

    def _advance(self, start: int) -> None:
        """Writes the samples behind layer ``start`` and all later ones."""
        for layer in range(start, self._layers):
            for sample in range(self._samples):
                self._put(layer + 1, sample, self._behind(layer, self._take(layer, sample), self._weights))

    def _behind(self, layer: int, hidden: torch.Tensor, weights: dict[int, torch.Tensor]) -> torch.Tensor:
        module = self._modules[layer]
        with ExitStack() as stack:
            for side, name in enumerate((KEY, VALUE)):
                if (weight := weights.get(2 * layer + side)) is not None:
                    stack.enter_context(with_projection(module, name, weight))
            return self._runner.run(module, hidden)

    def _divergence(self, dense: torch.Tensor, hidden: torch.Tensor) -> float:
        """Sum over tokens of KL(dense || model)."""
        total = 0.0
        for expected, found in zip(dense.split(CHUNK_TOKENS), hidden.split(CHUNK_TOKENS), strict=True):
            reference, told = (self._runner.logits(each).log_softmax(-1) for each in (expected, found))
            total += (reference.exp() * (reference - told)).sum().item()
        return total

    def _put(self, place: int, sample: int, hidden: torch.Tensor) -> None:
        self._file.write(place * self._samples + sample, hidden)

    def _take(self, place: int, sample: int) -> torch.Tensor:
        return self._file.read(place * self._samples + sample)
