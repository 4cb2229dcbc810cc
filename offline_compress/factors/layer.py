"""The attention tensors of one compressed layer, from dense projections to the checkpoint's names."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from offline_compress.factors.all_groups import decomposition_bytes, factor_bytes
from offline_compress.factors.clip_ratio import ClipSearch
from offline_compress.factors.decomposition import Factors
from offline_compress.factors.fuse_output import FUSED_ROWS, constant_output, fuse_output
from offline_compress.factors.layer_views import LayerView, view_bytes
from offline_compress.factors.mixing import mixed_columns, mixed_factors, mixed_rows
from offline_compress.factors.objective import Objective
from offline_compress.factors.outcome import Outcome
from offline_compress.factors.refit import Refit, read_keys, read_values
from offline_compress.factors.refit import peak_bytes as refit_bytes
from offline_compress.grouping import Grouping
from offline_compress.model.access import KEY, NORMS, OUTPUT, QUERY, VALUE, dense_bytes, projection
from offline_compress.plan import Plan
from palu_vllm.format.checkpoint import attention_prefix
from palu_vllm.format.config import DTYPE_BYTES, PaluConfig
from palu_vllm.format.kv import KV
from palu_vllm.format.layers import layer_shape
from palu_vllm.format.mixing import mixing_of_tiers
from palu_vllm.format.shape import LayerShape

Write = Callable[[str, Iterable[torch.Tensor]], None]  # a tensor's name and its runs of rows


class Side(NamedTuple):
    """What makes a projection of this layer, K or V, its factors; ``mixing [rank, rank]`` None leaves latents alone."""

    objective: Objective
    refit: Refit
    mixing: torch.Tensor | None
    search: ClipSearch

    def factors(self, weight: torch.Tensor, rank: int) -> Factors:
        found = self.refit(self.objective.factors(weight, rank), weight)
        return found if self.mixing is None else mixed_factors(found, self.mixing)


@dataclass(frozen=True)
class AttentionWriter:
    """Writes the attention tensors of a layer and of its readers, as ``palu`` asks for them.

    Readers attend to this layer's latents: they have queries, with its order of heads, and output projections, behind
    its values, and nothing else. A projection at full rank is written as it is stored, values mixed per head where
    latents are mixed; keys are not, because rotary pairs must stay.
    """

    plan: Plan
    palu: PaluConfig
    view: LayerView
    write: Write

    def run(self) -> KV[Outcome]:
        """Writes them all."""
        for layer in (self.layer, *self._readers):
            self._write_queries(layer)
        sides = self._sides()
        key = self._write_key(sides.key)
        value = self._write_value(sides.value)
        if self.palu.attention_bias:
            self._put(self.layer, "k_bias", [self.view.source.tensor(projection(self.layer, KEY, "bias"))])
        if self._shape.qk_norm:
            self._put(self.layer, "k_norm.weight", [self._read(NORMS[KEY])])
        return KV(key, value)

    @property
    def layer(self) -> int:
        return self.view.layer

    @property
    def _readers(self) -> list[int]:
        return [each for each, source in enumerate(self.plan.sources) if source == self.layer != each]

    @property
    def _shape(self) -> LayerShape:
        return layer_shape(self.palu, self.plan.geometry, self.layer)

    def _sides(self) -> KV[Side]:
        """Blocks of the mixing are the tiers, whole where they are cut into scale groups."""
        plan, palu, layer = self.plan, self.palu, self.layer
        probes = self.view.probes if plan.refits and self.view.probes else ()
        inputs = self.view.inputs if plan.searches_clip else None
        tiers = KV(palu.key_tiers(layer), palu.value_tiers(layer))
        mixings = tiers.map(mixing_of_tiers) if palu.hadamard else KV(None, None)
        key, value = self.view.objectives
        return KV(
            Side(key, Refit(read_keys, probes), mixings.key, ClipSearch(palu.key_format(layer, plan.dtype), inputs)),
            Side(
                value,
                Refit(read_values, probes),
                mixings.value,
                ClipSearch(palu.value_format(layer, plan.dtype), inputs),
            ),
        )

    def _put(self, layer: int, name: str, rows: Iterable[torch.Tensor]) -> None:
        self.write(attention_prefix(layer) + name, rows)

    def _read(self, name: str, layer: int | None = None) -> torch.Tensor:
        """A dense weight of ``layer``, by default of the layer itself."""
        of = self.layer if layer is None else layer
        return self.view.source.tensor(projection(of, name)).to(self.plan.device)

    def _write_queries(self, layer: int) -> None:
        self._put(layer, "q_proj.weight", self.view.source.chunks(projection(layer, QUERY)))
        if self.palu.attention_bias:
            self._put(layer, "q_proj.bias", [self.view.source.tensor(projection(layer, QUERY, "bias"))])
            self._put(layer, "o_proj.bias", [self._output_bias(layer)])
        if self._shape.qk_norm:
            self._put(layer, "q_norm.weight", [self._read(NORMS[QUERY], layer)])

    def _output_bias(self, layer: int) -> torch.Tensor:
        """The value bias, of the layer that is read, leaves attention as a constant."""
        source, output = self.view.source, self._read(OUTPUT, layer)
        value_bias = source.tensor(projection(self.layer, VALUE, "bias")).to(output.device)
        constant = constant_output(output, value_bias, self._shape.num_kv_heads)
        own = projection(layer, OUTPUT, "bias")
        return constant + source.tensor(own).to(output.device) if own in source.tensors else constant

    def _write_key(self, side: Side) -> Outcome:
        weight = self._read(KEY)
        if not self._shape.has_k_up:
            self._put(self.layer, "k_down.weight", [weight])
            return Outcome(0.0, side.search(weight, None))
        factors = side.factors(weight, self._shape.rank_k)
        self._put(self.layer, "k_down.weight", [factors.down])
        self._put(self.layer, "k_up", [factors.up])
        return Outcome(factors.relative_error, side.search(factors.down, factors.up))

    def _write_value(self, side: Side) -> Outcome:
        if self._shape.value_path == "uncompressed":
            return self._write_whole_value(side)
        factors = side.factors(self._read(VALUE), self._shape.rank_v)
        self._put(self.layer, "v_down.weight", [factors.down])
        fused = self._shape.value_path == "fused"
        if not fused:
            self._put(self.layer, "v_up", [factors.up])
        dtype = getattr(torch, self.plan.dtype)
        for layer, output in self._outputs():
            rows = fuse_output(output, factors.up, self._shape.num_kv_heads, dtype) if fused else [output]
            self._put(layer, "o_proj.weight", rows)
        return Outcome(factors.relative_error, side.search(factors.down, factors.up))

    def _write_whole_value(self, side: Side) -> Outcome:
        mixes, head_dim = side.mixing is not None, self._shape.head_dim
        value = mixed_rows(self._read(VALUE), head_dim) if mixes else self._read(VALUE)
        self._put(self.layer, "v_down.weight", [value])
        for layer, output in self._outputs():
            self._put(layer, "o_proj.weight", [mixed_columns(output, head_dim) if mixes else output])
        return Outcome(0.0, side.search(value, None))

    def _outputs(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Output projections of all layers that read these values, one at a time."""
        return ((layer, self._read(OUTPUT, layer)) for layer in (self.layer, *self._readers))


def peak_bytes(plan: Plan, ranks: KV[int], keep: int) -> int:
    """The most that a layer of these ranks needs beside its view: whichever projection holds most."""
    decomposing = max(_side_bytes(plan, side, rank) for side, rank in zip(plan.groupings, ranks, strict=True))
    sides = zip(plan.groupings, ranks, strict=True)
    refitting = max(refit_bytes(plan, side, [rank]) for side, rank in sides) if plan.refits else 0
    return view_bytes(plan, keep) + max(decomposing, refitting)


def _side_bytes(plan: Plan, side: Grouping, rank: int) -> int:
    """The dense projection, both factors, and either what decomposes them or what is written."""
    rows = max(side.num_groups * rank * plan.geometry.hidden_size, FUSED_ROWS * plan.geometry.num_heads * rank)
    written = 3 * DTYPE_BYTES[plan.dtype] * rows
    own = factor_bytes(plan, side, rank)
    working = max(decomposition_bytes(plan, side, rank) - own, written)
    return dense_bytes(plan.source) + side.num_groups * own + working
