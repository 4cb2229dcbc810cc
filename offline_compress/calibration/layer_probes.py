"""Probes of a dense layer's attention on calibration samples, from its weights and its inputs."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import rms_norm

from offline_compress.calibration.probe import AttentionProbe, sketch
from offline_compress.calibration.statistics import KeptSample, kept_tokens
from offline_compress.model.access import KEY, NORMS, OUTPUT, QUERY, VALUE, LayerRunner, projection, stored_bytes
from offline_compress.model.source import SourceModel
from offline_compress.plan import Plan

FLOAT32 = 4


@dataclass(frozen=True)
class LayerProbes:
    """Probes of one layer with the ``inputs [tokens, hidden]`` that they were made from, made anew at every pass.

    ``source`` gives the layer's weights, perhaps with its heads in another order than the model of ``runner``.
    """

    source: SourceModel
    runner: LayerRunner
    layer: int
    samples: Sequence[KeptSample]

    def __iter__(self) -> Iterator[tuple[AttentionProbe, torch.Tensor]]:
        for sample in self.samples:
            yield self._probe(sample), sample.inputs

    def __len__(self) -> int:
        return len(self.samples)

    def first(self, count: int) -> "LayerProbes":
        """Those of the first ``count`` samples."""
        return LayerProbes(self.source, self.runner, self.layer, self.samples[:count])

    def finished(self, name: str) -> Callable[[torch.Tensor], torch.Tensor]:
        """What makes projected heads ``[heads, tokens, head_dim]`` those that are rotated: bias, and norm if any."""
        bias = self._heads(self._bias(name)[None])
        stored = self.source.tensors.get(projection(self.layer, NORMS[name]))
        if stored is None:
            return lambda heads: heads + bias
        weight, eps = stored.read().float().to(self.runner.device), self.runner.config.rms_norm_eps
        return lambda heads: rms_norm(heads + bias, weight.shape, weight, eps)

    def _probe(self, sample: KeptSample) -> AttentionProbe:
        """The dense layer's attention on a sample. The value bias is left out: it leaves attention as a constant."""
        inputs, tokens = sample.inputs, len(sample.inputs)
        visible = torch.ones(tokens, tokens, dtype=torch.bool, device=inputs.device).tril()
        mask = self.runner.mask(tokens)
        positions = torch.arange(tokens, device=inputs.device)[None]
        cosines, sines = self.runner.rotary(inputs, positions)
        return AttentionProbe(
            queries=self._projected(QUERY, inputs),
            keys=self._projected(KEY, inputs),
            values=self._projected(VALUE, inputs),
            output=sketch(self._weight(OUTPUT)),
            rotary=(cosines[0], sines[0]),
            visible=visible if mask is None else mask[0, 0],
            energy=sample.energy,
            key_gain=self._key_gain(inputs),
        )

    def _projected(self, name: str, inputs: torch.Tensor) -> torch.Tensor:
        heads = self._heads(inputs @ self._weight(name).float().T)
        return heads if name == VALUE else self.finished(name)(heads)

    def _key_gain(self, inputs: torch.Tensor) -> torch.Tensor | None:
        """What the norm of keys multiplies a small error by, ``[num_kv_heads, tokens, head_dim]``; None without it."""
        name = projection(self.layer, NORMS[KEY])
        if name not in self.source.tensors:
            return None
        heads = self._heads(inputs @ self._weight(KEY).float().T + self._bias(KEY))
        length = (heads.square().mean(-1, keepdim=True) + self.runner.config.rms_norm_eps).sqrt()
        return self.source.tensor(name).float().to(self.runner.device) / length

    def _weight(self, name: str) -> torch.Tensor:
        return self.source.tensor(projection(self.layer, name)).to(self.runner.device)

    def _bias(self, name: str) -> torch.Tensor:
        """Float32; zero where the projection has none."""
        bias = projection(self.layer, name, "bias")
        if bias not in self.source.tensors:
            rows = self.source.tensors[projection(self.layer, name)].shape[0]
            return torch.zeros(rows, device=self.runner.device)
        return self.source.tensor(bias).float().to(self.runner.device)

    def _heads(self, rows: torch.Tensor) -> torch.Tensor:
        """``[tokens, heads * head_dim]`` to ``[heads, tokens, head_dim]``."""
        return rows.unflatten(-1, (-1, self.source.geometry.head_dim)).transpose(0, 1)


def probabilities_bytes(plan: Plan) -> int:
    """What the softmax of one sample gives."""
    return FLOAT32 * plan.geometry.num_heads * kept_tokens(plan) ** 2


def heads_bytes(plan: Plan) -> int:
    """Queries, keys and values of one sample."""
    geometry = plan.geometry
    return FLOAT32 * kept_tokens(plan) * geometry.head_dim * (geometry.num_heads + 2 * geometry.num_kv_heads)


def probing_bytes(plan: Plan) -> int:
    """A sample's attention when it is computed, or while the next one's heads are projected."""
    geometry, tokens = plan.geometry, kept_tokens(plan)
    widest = (stored_bytes(plan.source) + FLOAT32) * geometry.hidden_size * geometry.num_heads * geometry.head_dim
    computed = 2 * probabilities_bytes(plan) + 6 * FLOAT32 * tokens**2 + heads_bytes(plan)
    return max(computed, probabilities_bytes(plan) + 3 * heads_bytes(plan) + widest)
