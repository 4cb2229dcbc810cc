"""The attention tensors of one compressed layer, from dense projections to the checkpoint's names."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from offline_compress.factors.clip_ratio import ClipSearch
from offline_compress.factors.decomposition import Factors
from offline_compress.factors.fuse_output import constant_output, fuse_output
from offline_compress.factors.layer_views import LayerView
from offline_compress.factors.mixing import rotate_columns, rotate_factors, rotate_rows
from offline_compress.factors.objective import Objective
from offline_compress.factors.refit import Refit, read_keys, read_values
from offline_compress.model.access import KEY, NORMS, OUTPUT, QUERY, VALUE, projection
from offline_compress.model.source import SourceModel
from palu_vllm.format.config import PaluConfig
from palu_vllm.format.mixing import mixing_of_tiers
from palu_vllm.format.shape import LayerShape

Put = Callable[[str, Iterable[torch.Tensor]], None]
Outputs = Iterable[tuple[Put, torch.Tensor]]  # output projections, and where they go


class Rotations(NamedTuple):
    """``[rank, rank]`` for the latents of K and of V, float64; None to leave them as they are."""

    key: torch.Tensor | None = None
    value: torch.Tensor | None = None

    @classmethod
    def of(cls, palu: PaluConfig, layer: int) -> "Rotations":
        """Those that ``palu_config`` asks for; their blocks are the tiers, whole where they are cut into groups."""
        if not palu.hadamard:
            return cls()
        return cls(mixing_of_tiers(palu.key_tiers(layer)), mixing_of_tiers(palu.value_tiers(layer)))


class ClipSearches(NamedTuple):
    """For the latents of K and of V."""

    key: ClipSearch
    value: ClipSearch


class Outcome(NamedTuple):
    """Of one projection: its relative Frobenius error, 0 where it is stored uncompressed, and its clip ratio."""

    error: float
    clip: float


class LayerOutcome(NamedTuple):
    """Of K and of V of one layer."""

    key: Outcome
    value: Outcome


@dataclass(frozen=True)
class Factorize:
    """A projection's dense weight to its factors."""

    objective: Objective
    refit: Refit
    rotation: torch.Tensor | None

    def __call__(self, weight: torch.Tensor, num_groups: int, rank: int) -> Factors:
        factors = self.refit(self.objective.factors(weight, num_groups, rank), weight)
        return factors if self.rotation is None else rotate_factors(factors, self.rotation)


def write_attention(
    put_of: Callable[[int], Put],
    view: LayerView,
    layer: int,
    readers: Sequence[int],
    shape: LayerShape,
    bias: bool,
    rotations: Rotations,
    searches: ClipSearches,
    dtype: torch.dtype,
    device: torch.device,
) -> LayerOutcome:
    """Passes every tensor of ``layer`` and its ``readers`` to ``put_of(layer)(name below self_attn., runs of rows)``.

    Readers attend to this layer's latents: they have queries, with its order of heads, and output projections, behind
    its values, and nothing else. A projection at full rank is passed on as it is stored, values rotated per head where
    ``rotations`` say so; keys are not, because rotary pairs must stay.
    """
    source, put = view.plan.source, put_of(layer)

    def read(name: str, of: int = layer) -> torch.Tensor:
        return source.tensor(projection(of, name)).to(device)

    for each in (layer, *readers):
        put_of(each)("q_proj.weight", source.chunks(projection(each, QUERY)))
        if bias:
            _write_query_and_output_bias(put_of(each), source, each, layer, shape, read(OUTPUT, each))
        if shape.qk_norm:
            put_of(each)("q_norm.weight", [read(NORMS[QUERY], each)])
    keys = Factorize(view.objectives.key, Refit(read_keys, view.probes), rotations.key)
    values = Factorize(view.objectives.value, Refit(read_values, view.probes), rotations.value)
    key = _write_key(put, read(KEY), shape, keys, searches.key)
    outputs = ((put_of(each), read(OUTPUT, each)) for each in (layer, *readers))
    value = _write_value(put, read, outputs, shape, values, searches.value, dtype)
    if bias:
        put("k_bias", [source.tensor(projection(layer, KEY, "bias"))])
    if shape.qk_norm:
        put("k_norm.weight", [read(NORMS[KEY])])
    return LayerOutcome(key, value)


def _write_key(
    put: Put,
    weight: torch.Tensor,
    shape: LayerShape,
    factorize: Factorize,
    search: ClipSearch,
) -> Outcome:
    if not shape.has_k_up:
        put("k_down.weight", [weight])
        return Outcome(0.0, search(weight, None))
    factors = factorize(weight, shape.num_groups_k, shape.rank_k)
    put("k_down.weight", [factors.down])
    put("k_up", [factors.up])
    return Outcome(factors.relative_error, search(factors.down, factors.up))


def _write_value(
    put: Put,
    read: Callable[[str], torch.Tensor],
    outputs: Outputs,
    shape: LayerShape,
    factorize: Factorize,
    search: ClipSearch,
    dtype: torch.dtype,
) -> Outcome:
    """``outputs`` of all layers that read these values are read one at a time."""
    if shape.value_path == "uncompressed":
        rotates = factorize.rotation is not None
        value = rotate_rows(read(VALUE), shape.head_dim) if rotates else read(VALUE)
        put("v_down.weight", [value])
        for put_to, output in outputs:
            put_to("o_proj.weight", [rotate_columns(output, shape.head_dim) if rotates else output])
        return Outcome(0.0, search(value, None))
    factors = factorize(read(VALUE), shape.num_groups_v, shape.rank_v)
    put("v_down.weight", [factors.down])
    fused = shape.value_path == "fused"
    if not fused:
        put("v_up", [factors.up])
    for put_to, output in outputs:
        rows = fuse_output(output, factors.up, shape.num_kv_heads, dtype) if fused else [output]
        put_to("o_proj.weight", rows)
    return Outcome(factors.relative_error, search(factors.down, factors.up))


def _write_query_and_output_bias(
    put: Put, source: SourceModel, layer: int, values_of: int, shape: LayerShape, output: torch.Tensor
) -> None:
    """The query bias as it is; the value bias, of the layer ``values_of``, leaves attention as a constant."""
    put("q_proj.bias", [source.tensor(projection(layer, QUERY, "bias"))])
    value_bias = source.tensor(projection(values_of, VALUE, "bias")).to(output.device)
    constant = constant_output(output, value_bias, shape.num_kv_heads)
    own = projection(layer, OUTPUT, "bias")
    put("o_proj.bias", [constant + source.tensor(own).to(output.device) if own in source.tensors else constant])
