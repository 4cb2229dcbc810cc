"""What will be done, once options and model are both known; nothing has been computed yet."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from transformers import PreTrainedConfig

from offline_compress.grouping import Grouping, groupings
from offline_compress.model.access import check_shapes, hf_config
from offline_compress.model.source import SourceModel
from offline_compress.options import DEFAULT_SEQLEN, CompressOptions
from offline_compress.pair_lists import LayerPairs
from offline_compress.plan_checks import check_sharing
from offline_compress.rank_steps import keeps_all
from offline_compress.run.errors import CompressionError
from offline_compress.searches import BUDGET, UNIFORM
from offline_compress.shared_layers import source_layers
from palu_vllm.format.config import AttentionGeometry
from palu_vllm.format.kv import KV
from palu_vllm.format.latent_format import (
    UNQUANTIZED,
    LatentFormat,
    TierFractions,
    cut_into_scale_groups,
    cut_into_tiers,
)
from palu_vllm.format.tokenizer import unknown_tokens

NO_CALIBRATION = "none"
PROBED_SAMPLES = 8  # whose attention is looked at
T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """Options joined with the model. ``notes`` are sentences about defaults that gave way to the model, and surprises.

    ``source_layers`` is the layer that every layer reads latents of, None while that is each its own.
    """

    options: CompressOptions
    source: SourceModel
    config: PreTrainedConfig
    groupings: KV[Grouping]
    seqlen: int
    dtype: str
    device: torch.device
    notes: tuple[str, ...]
    source_layers: tuple[int, ...] | None = None

    @property
    def geometry(self) -> AttentionGeometry:
        return self.source.geometry

    @property
    def num_layers(self) -> int:
        return self.geometry.num_layers

    def sharing(self, pairs: LayerPairs) -> "Plan":
        """The plan where layers read others."""
        return replace(self, source_layers=source_layers(pairs, self.num_layers))

    @property
    def sources(self) -> tuple[int, ...]:
        """The layer that every layer reads."""
        return self.source_layers or tuple(range(self.num_layers))

    @property
    def caching_layers(self) -> list[int]:
        """Layers that read themselves: those that have ranks to choose."""
        return sorted(set(self.sources))

    def of_caching(self, of_layers: Sequence[T]) -> list[T]:
        """Of what all layers have, what those with a cache have."""
        return [of_layers[layer] for layer in self.caching_layers]

    def for_all(self, of_caching: Sequence[T]) -> list[T]:
        """What every layer has, which is its source's, from what one caching layer after the other has."""
        return [of_caching[self.caching_layers.index(source)] for source in self.sources]

    @property
    def full_ranks(self) -> KV[int]:
        """Of every layer."""
        return self.groupings.map(lambda side: side.full_rank)

    @property
    def workers(self) -> int:
        """Groups that are decomposed at a time."""
        threads = torch.get_num_threads() if self.device.type == "cpu" else 1
        return min(self.options.workers or threads, max(side.num_groups for side in self.groupings))

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
        return not keeps_all([*self.full_ranks] * len(self.caching_layers), self.options.rank_ratio)

    @property
    def search(self) -> str:
        """The name of what chooses ranks, ``budget`` where bytes are given."""
        return BUDGET if self.options.has_budget else self.options.search or UNIFORM

    @property
    def needs_whitening(self) -> bool:
        return self.truncates and self.options.objective in ("whiten", "weighted")

    @property
    def needs_error_metric(self) -> bool:
        return self.truncates and self.options.objective == "weighted"

    @property
    def refits(self) -> bool:
        """As asked, by default where attention is looked at anyway."""
        wanted = self.options.refit
        return self.truncates and (self.options.objective == "weighted" if wanted is None else wanted)

    @property
    def reorders(self) -> bool:
        """Whether heads change places: not where all or none share a group."""
        matters = any(1 < side.size < self.geometry.num_kv_heads for side in self.groupings)
        return self.truncates and self.options.reorder_heads and matters

    @property
    def needs_probes(self) -> bool:
        """Whether the attention of calibration samples is looked at."""
        return self.needs_error_metric or self.refits

    @property
    def kept_samples(self) -> int:
        """Samples whose inputs are kept at every layer, for what is written."""
        return PROBED_SAMPLES if self.needs_probes else int(self.searches_clip)

    @property
    def searches_clip(self) -> bool:
        """Whether clip ratios are searched: latents may be quantized, no ratio was given, and there is data."""
        options = self.options
        quantized = any(bits != UNQUANTIZED for _, bits in options.fractions_k + options.fractions_v)
        wanted = options.latent_clip_ratio is None and options.calib_data is not None
        return wanted and (quantized or options.has_budget)

    def mixes(self, tiers: Iterable[TierFractions]) -> bool:
        """Whether latents with these tiers are mixed: as asked, by default where they are quantized."""
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
        return None if ratio is None else [ratio] * self.num_layers


def make_plan(options: CompressOptions, source: SourceModel) -> Plan:
    """Joins options and model. Raises CompressionError where they do not fit each other."""
    config = hf_config(source.config)
    check_shapes(source, config)
    sides, notes = groupings(options, source.geometry)
    dtype = source.dtype if options.dtype == "auto" else options.dtype
    plan = Plan(
        options,
        source,
        config,
        sides,
        _seqlen(options.calib_seqlen, config),
        dtype,
        device_of(options.device),
        notes + unknown_tokens(source.directory, config.vocab_size),
    )
    if options.share_map is not None:
        plan = plan.sharing(options.share_map)
    check_sharing(options, plan.num_layers)
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
