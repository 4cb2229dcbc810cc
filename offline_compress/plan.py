"""What will be done, once options and model are both known; nothing has been computed yet."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from transformers import PreTrainedConfig

from offline_compress.grouping import Grouping, groupings
from offline_compress.model.access import KEY, NORMS, check_shapes, hf_config, projection
from offline_compress.model.source import SourceModel
from offline_compress.options import (
    CONDITION_SEARCH,
    DEFAULT_SEQLEN,
    ENERGY_SEARCHES,
    FISHER_SEARCHES,
    GREEDY_SEARCH,
    CompressOptions,
    LayerPairs,
)
from offline_compress.plan_checks import check_data, check_sharing
from offline_compress.ranks.allocation import allocate_ranks, keeps_all
from offline_compress.ranks.layer_sharing import SHARING_SAMPLES, source_layers
from offline_compress.run.errors import CompressionError
from offline_compress.run.provenance import tool_version
from palu_vllm.format.checkpoint import attention_tensors
from palu_vllm.format.config import DTYPE_BYTES, AttentionGeometry, PaluConfig, TierConfig
from palu_vllm.format.latent_format import (
    UNQUANTIZED,
    LatentFormat,
    TierFractions,
    cut_into_scale_groups,
    cut_into_tiers,
)

NO_CALIBRATION = "none"
WEIGHED_SAMPLES = 8  # whose attention is looked at
SENSITIVITY_SAMPLES = 4  # that pass through the whole model for every projection
GREEDY_SAMPLES = 2  # that do so at every step of the greedy search
T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """Options joined with the model. ``notes`` are sentences about defaults that gave way to the model.

    ``source_layers`` is the layer that every layer reads latents of, None while that is each its own.
    """

    options: CompressOptions
    source: SourceModel
    config: PreTrainedConfig
    key: Grouping
    value: Grouping
    seqlen: int
    dtype: str
    device: torch.device
    notes: tuple[str, ...]
    source_layers: tuple[int, ...] | None = None

    @property
    def geometry(self) -> AttentionGeometry:
        return self.source.geometry

    def sharing(self, pairs: LayerPairs) -> "Plan":
        """The plan where layers read others."""
        return replace(self, source_layers=source_layers(pairs, self.geometry.num_layers))

    @property
    def sources(self) -> tuple[int, ...]:
        """The layer that every layer reads."""
        return self.source_layers or tuple(range(self.geometry.num_layers))

    @property
    def caching_layers(self) -> list[int]:
        """Layers that read themselves: those that have ranks to choose."""
        return sorted(set(self.sources))

    def of_caching(self, of_matrices: Sequence[T]) -> list[T]:
        """Of K0, V0, K1, V1, ... of all layers those of the layers that have a cache."""
        return [of_matrices[2 * layer + side] for layer in self.caching_layers for side in range(2)]

    def for_all(self, of_caching: Sequence[T]) -> tuple[list[T], list[T]]:
        """K and V of every layer, which are its source's, from K and V of one caching layer after the other."""
        places = [self.caching_layers.index(source) for source in self.sources]
        return [of_caching[2 * place] for place in places], [of_caching[2 * place + 1] for place in places]

    @property
    def full_ranks(self) -> list[int]:
        """Of K and V of one caching layer after the other."""
        return [self.key.full_rank, self.value.full_rank] * len(self.caching_layers)

    @property
    def workers(self) -> int:
        """Groups that are decomposed at a time."""
        threads = torch.get_num_threads() if self.device.type == "cpu" else 1
        return min(self.options.workers or threads, max(self.key.num_groups, self.value.num_groups))

    @property
    def budget_bytes(self) -> int | None:
        """Most bytes of cache per token, all layers; None where ranks and bits follow from the options."""
        options = self.options
        if options.target_compression is None:
            return options.bytes_per_token
        return int(self.geometry.dense_bytes_per_token(self.dtype) / options.target_compression)

    @property
    def truncates(self) -> bool:
        """Whether ranks may be below full rank; if not, nothing is decomposed and no data is needed."""
        if self.options.has_budget:
            return True
        return not keeps_all(self.full_ranks, self.options.rank_ratio)

    @property
    def needs_whitening(self) -> bool:
        return self.truncates and self.options.objective in ("whiten", "weighted")

    @property
    def needs_weights(self) -> bool:
        return self.truncates and self.options.objective == "weighted"

    @property
    def refits(self) -> bool:
        """As asked, by default where attention is looked at anyway."""
        wanted = self.options.refit
        return self.truncates and (self.options.objective == "weighted" if wanted is None else wanted)

    @property
    def reorders(self) -> bool:
        """Whether heads change places: not where all or none share a group."""
        matters = any(1 < side.size < self.geometry.num_kv_heads for side in (self.key, self.value))
        return self.truncates and self.options.reorder_heads and matters

    @property
    def needs_fisher(self) -> bool:
        return self.truncates and self.options.search in FISHER_SEARCHES

    @property
    def searches_energy(self) -> bool:
        return self.truncates and not self.options.has_budget and self.options.search in ENERGY_SEARCHES

    @property
    def measures_sensitivity(self) -> bool:
        return self.searches_energy and self.options.search == "sensitivity"

    @property
    def needs_conditions(self) -> bool:
        return self.truncates and self.options.search == CONDITION_SEARCH

    @property
    def searches_greedily(self) -> bool:
        return self.truncates and self.options.search == GREEDY_SEARCH

    @property
    def searches_ranks(self) -> bool:
        """Whether ranks are not known before the model is looked at."""
        return self.truncates and (self.options.has_budget or self.options.search != "uniform")

    @property
    def needs_probes(self) -> bool:
        """Whether the attention of calibration samples is looked at."""
        return self.needs_weights or self.refits

    @property
    def kept_samples(self) -> int:
        """Samples whose inputs are kept, layer by layer."""
        return WEIGHED_SAMPLES if self.needs_probes else int(self.searches_clip)

    @property
    def searches_clip(self) -> bool:
        """Whether clip ratios are searched: latents may be quantized, no ratio was given, and there is data."""
        options = self.options
        quantized = any(bits != UNQUANTIZED for _, bits in options.fractions_k + options.fractions_v)
        wanted = options.latent_clip_ratio is None and options.calib_data is not None
        return wanted and (quantized or options.has_budget)

    @property
    def passes_samples(self) -> int:
        """How many samples go through the layers before they are written; 0: none."""
        if self.needs_whitening:
            return self.options.whiten_samples
        probed = SENSITIVITY_SAMPLES if self.measures_sensitivity else 0
        return max(self.kept_samples, probed, GREEDY_SAMPLES if self.searches_greedily else 0)

    @property
    def samples_needed(self) -> int:
        whitening = self.options.whiten_samples if self.options.has_budget else self.passes_samples
        fisher = self.options.fisher_samples if self.needs_fisher else 0
        return max(whitening, fisher, SHARING_SAMPLES if self.options.share_layers else 0)

    def rotates(self, tiers: Iterable[TierFractions]) -> bool:
        """Whether latents with these tiers are rotated: as asked, by default where they are quantized."""
        if self.options.hadamard is not None:
            return self.options.hadamard
        return any(bits != UNQUANTIZED for fractions in tiers for _, bits in fractions)

    def latent_format(self, rank: int, fractions: TierFractions) -> LatentFormat:
        """The bytes of a latent of one group."""
        tiers = cut_into_scale_groups(cut_into_tiers(rank, fractions), self.options.latent_group_size)
        return LatentFormat(tiers, self.dtype, self.options.latent_symmetric, self.options.latent_clip_ratio or 1.0)

    @property
    def clip_ratios(self) -> list[float] | None:
        """One per layer where the user gave one for all."""
        ratio = self.options.latent_clip_ratio
        return None if ratio is None else [ratio] * self.geometry.num_layers

    def ranks(self, search: str, importance: list[list[float]]) -> tuple[list[int], list[int]]:
        """``(rank_k, rank_v)`` per layer from the importance of every group of K0, V0, K1, V1, ..."""
        ranks = allocate_ranks(search, self.of_caching(importance), self.full_ranks, self.options.rank_ratio)
        return self.for_all(ranks)

    def uniform_ranks(self) -> tuple[list[int], list[int]]:
        return self.ranks("uniform", [[1.0]] * (2 * self.geometry.num_layers))

    def palu_config(
        self,
        ranks: tuple[Sequence[int], Sequence[int]],
        calibration: str,
        tiers: tuple[TierFractions, TierFractions] | None = None,
    ) -> PaluConfig:
        """The ``palu_config`` of the output, value path chosen; ``tiers`` of K and V where options do not say them."""
        tiers_k, tiers_v = tiers or (self.options.fractions_k, self.options.fractions_v)
        fused = PaluConfig(
            base_model=self.source.name,
            base_revision=self.source.revision,
            group_size_k=self.key.size,
            group_size_v=self.value.size,
            rank_k=list(ranks[0]),
            rank_v=list(ranks[1]),
            tiers_k=[TierConfig(share=fraction, bits=bits) for fraction, bits in tiers_k],
            tiers_v=[TierConfig(share=fraction, bits=bits) for fraction, bits in tiers_v],
            hadamard=self.rotates((tiers_k, tiers_v)),
            latent_group_size=self.options.latent_group_size,
            latent_symmetric=self.options.latent_symmetric,
            clip_k=self.clip_ratios,
            clip_v=self.clip_ratios,
            source_layers=None if self.source_layers is None else list(self.source_layers),
            value_path="fused",
            attention_bias=projection(0, KEY, "bias") in self.source.tensors,
            qk_norm=projection(0, NORMS[KEY]) in self.source.tensors,
            objective=self.options.objective,
            search="budget" if self.options.has_budget else self.options.search,
            calibration=calibration,
            seed=self.options.seed,
            tool_version=tool_version(),
        )
        return fused.model_copy(update={"value_path": self._value_path(fused)})

    def _value_path(self, palu: PaluConfig) -> str:
        if self.options.value_path != "auto":
            return self.options.value_path
        sizes = value_path_bytes(palu, self.geometry, self.dtype)
        return min(sizes, key=sizes.__getitem__)


def value_path_bytes(palu: PaluConfig, geometry: AttentionGeometry, dtype: str) -> dict[str, int]:
    """Bytes of what follows the value latents (``o_proj.weight`` and ``v_up``) for both value paths, all layers."""
    sizes = {}
    for path in ("factored", "fused"):
        shapes = attention_tensors(palu.model_copy(update={"value_path": path}), geometry)
        kept = [shape for name, shape in shapes.items() if name.endswith((".o_proj.weight", ".v_up"))]
        sizes[path] = sum(torch.Size(shape).numel() for shape in kept) * DTYPE_BYTES[dtype]
    return sizes


def make_plan(options: CompressOptions, source: SourceModel) -> Plan:
    """Joins options and model. Raises CompressionError where they do not fit each other."""
    config = hf_config(source.config)
    check_shapes(source, config)
    key, value, notes = groupings(options, source.geometry)
    dtype = source.dtype if options.dtype == "auto" else options.dtype
    plan = Plan(
        options,
        source,
        config,
        key,
        value,
        _seqlen(options.calib_seqlen, config),
        dtype,
        device_of(options.device),
        notes,
    )
    if options.share_map is not None:
        plan = plan.sharing(options.share_map)
    check_sharing(options, plan.geometry.num_layers, plan.searches_greedily)
    check_data(options, plan.samples_needed)
    return plan


def _seqlen(wanted: int | None, config: PreTrainedConfig) -> int:
    context = config.max_position_embeddings
    if wanted is not None and wanted > context:
        raise CompressionError(
            f"calibration samples of {wanted} tokens exceed the model's context of {context}; give fewer."
        )
    return wanted or min(DEFAULT_SEQLEN, context)


def device_of(wanted: str) -> torch.device:
    available = torch.cuda.is_available()
    if wanted == "auto":
        return torch.device("cuda" if available else "cpu")
    device = torch.device(wanted)
    if device.type == "cuda" and (not available or (device.index or 0) >= torch.cuda.device_count()):
        raise CompressionError(f"device {wanted} is not there; PyTorch sees {torch.cuda.device_count()} CUDA devices.")
    return device
