"""What a compressed checkpoint is: the ``palu_config`` section of its ``config.json``, checked.

Imports nothing heavier than pydantic, so that the compressor, transformers and vLLM all read it at no cost.
Words and mathematics are those of ``docs/concepts/idea.md``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from palu_vllm.format.latent_format import (
    NUMBER_BYTES,
    UNQUANTIZED,
    LatentFormat,
    SlotFormat,
    Tier,
    cut_into_scale_groups,
    cut_into_tiers,
)

FORMAT_VERSION = 1  # the one that is written and read

# dynamic and longrope change their frequencies with the length, so a cached latent has no fixed rotation
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
DTYPE_BYTES = NUMBER_BYTES


def served_dtype(stored: str) -> str:
    """What vLLM serves numbers of this dtype in where nobody gives one: float32 in 16 bits."""
    return "bfloat16" if stored == "float32" else stored


def positive(config: Mapping[str, Any], name: str) -> int:
    """An integer above zero of a parsed ``config.json``. Raises ValueError if it is anything else."""
    value = config.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"config.json has {name}={value!r}; expected a positive integer.")
    return value


@dataclass(frozen=True)
class AttentionGeometry:
    """The sizes of a model's attention, the same for every layer."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int

    @classmethod
    def from_hf_config(cls, config: Mapping[str, Any]) -> Self:
        """Reads a parsed ``config.json``. Raises ValueError for a size that is missing or does not divide."""
        names = ("hidden_size", "num_hidden_layers", "num_attention_heads")
        hidden, layers, heads = (positive(config, name) for name in names)
        kv_heads, head_dim = heads, hidden // heads
        if config.get("num_key_value_heads") is not None:
            kv_heads = positive(config, "num_key_value_heads")
        if config.get("head_dim") is not None:
            head_dim = positive(config, "head_dim")
        if heads % kv_heads:
            raise ValueError(f"{heads} attention heads are not a multiple of {kv_heads} key-value heads.")
        if head_dim < 1 or head_dim % 2:
            raise ValueError(f"head_dim {head_dim} is not an even number; rotary embeddings turn pairs.")
        return cls(hidden, layers, heads, kv_heads, head_dim)

    def dense_bytes_per_token(self, dtype: str) -> int:
        """Bytes of KV cache per token of the uncompressed model, all layers."""
        return self.num_layers * 2 * self.num_kv_heads * self.head_dim * DTYPE_BYTES[dtype]


class TierConfig(BaseModel):
    """One tier of every latent, see ``latent_format``: its fraction of the rank, on disk ``share``, and its bits."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, serialize_by_alias=True)

    fraction: float = Field(gt=0, le=1, alias="share")
    bits: int


def whole_latent(bits: int) -> list[TierConfig]:
    """One tier."""
    return [TierConfig(share=1.0, bits=bits)]


class PaluConfig(BaseModel):
    """How the projections of a checkpoint were decomposed. Unknown keys are errors.

    ``rank_k[layer]`` and ``rank_v[layer]`` are latent widths per group of K and of V. A layer whose rank equals
    ``group_size * head_dim`` of its side is stored uncompressed: its down-projection is the original projection
    and it has no up-projection. Where group sizes differ, the smaller divides the larger. ``tiers_k`` and ``tiers_v``
    say how latents are quantized in the cache, leading numbers first; with ``hadamard`` the factors mix the numbers
    of a tier, which spreads them evenly (``mixing.py``).
    ``latent_group_size`` cuts tiers into scale groups, 0 does not; ``latent_symmetric`` codes have
    no minimum. ``clip_k[layer]`` and ``clip_v[layer]`` are the clip ratios of ``LatentFormat``, None for 1. With
    ``qk_norm`` queries and rebuilt keys are normalised per head before they are rotated.
    ``source_layers[layer]`` is the layer whose latents a layer reads: itself, or an earlier one that holds its own;
    None where each holds its own. A layer that shares has no cache, and ranks and clip ratios of its source (KVSharer).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format_version: Literal[1] = 1
    base_model: str
    base_revision: str | None = None
    group_size_k: int = Field(ge=1)
    group_size_v: int = Field(ge=1)
    rank_k: list[int] = Field(min_length=1)
    rank_v: list[int] = Field(min_length=1)
    tiers_k: list[TierConfig] = Field(default_factory=lambda: whole_latent(UNQUANTIZED), min_length=1)
    tiers_v: list[TierConfig] = Field(default_factory=lambda: whole_latent(UNQUANTIZED), min_length=1)
    hadamard: bool = False
    latent_group_size: int = 0
    latent_symmetric: bool = False
    clip_k: list[float] | None = None
    clip_v: list[float] | None = None
    source_layers: list[int] | None = None
    value_path: Literal["fused", "factored"]
    attention_bias: bool = False
    qk_norm: bool = False
    objective: str
    search: str
    calibration: str
    seed: int
    tool_version: str

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if max(self.group_size_k, self.group_size_v) % min(self.group_size_k, self.group_size_v):
            raise ValueError(
                f"neither of group_size_k {self.group_size_k} and group_size_v {self.group_size_v} divides the other"
            )
        if len(self.rank_k) != len(self.rank_v):
            raise ValueError(f"rank_k has {len(self.rank_k)} layers and rank_v {len(self.rank_v)}; expected equal")
        if min(self.rank_k + self.rank_v) < 1:
            raise ValueError("a rank is below 1")
        for tiers in (self.tiers_k, self.tiers_v):
            cut_into_scale_groups(cut_into_tiers(1, _fractions(tiers)), self.latent_group_size)
        for name, ratios in (("clip_k", self.clip_k), ("clip_v", self.clip_v)):
            if ratios is not None and len(ratios) != len(self.rank_k):
                raise ValueError(f"{name} has {len(ratios)} layers and rank_k {len(self.rank_k)}; expected equal")
            if ratios is not None and not all(0 < ratio <= 1 for ratio in ratios):
                raise ValueError(f"{name} has a clip ratio outside (0, 1]")
        self._check_sharing()
        return self

    def _check_sharing(self) -> None:
        """Raises ValueError unless every layer reads itself, or an earlier one that does so and is stored alike."""
        if self.source_layers is None:
            return
        if len(self.source_layers) != len(self.rank_k):
            raise ValueError(
                f"source_layers has {len(self.source_layers)} layers and rank_k {len(self.rank_k)}; expected equal"
            )
        for layer, source in enumerate(self.source_layers):
            if not 0 <= source <= layer:
                raise ValueError(f"layer {layer} reads the latents of layer {source}; expected an earlier layer")
            if self.source_layers[source] != source:
                raise ValueError(f"layer {layer} reads the latents of layer {source}, which holds none of its own")
            for name in ("rank_k", "rank_v", "clip_k", "clip_v"):
                values = getattr(self, name)
                if values is not None and values[layer] != values[source]:
                    raise ValueError(f"layer {layer} reads the latents of layer {source}, but their {name} differ")

    @classmethod
    def from_hf_config(cls, config: Mapping[str, Any]) -> Self:
        """The checked ``palu_config`` of a parsed ``config.json``. Raises ValueError with one sentence."""
        section = config.get("palu_config")
        if not isinstance(section, Mapping):
            raise ValueError("config.json has no palu_config section; expected a checkpoint written by palu-compress.")
        try:
            palu = cls.model_validate(dict(section))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "palu_config"
            raise ValueError(
                f"palu_config is not valid at {where}: {first['msg']} (format version {FORMAT_VERSION})."
            ) from error
        palu.check(AttentionGeometry.from_hf_config(config))
        palu.check_windows(config.get("layer_types"))
        return palu

    def check(self, geometry: AttentionGeometry) -> None:
        """Raises ValueError where ranks or groups do not fit the model."""
        if len(self.rank_k) != geometry.num_layers:
            raise ValueError(
                f"palu_config has ranks for {len(self.rank_k)} layers, the model has {geometry.num_layers}."
            )
        for size, ranks in ((self.group_size_k, self.rank_k), (self.group_size_v, self.rank_v)):
            if geometry.num_kv_heads % size:
                raise ValueError(f"group size {size} does not divide {geometry.num_kv_heads} key-value heads.")
            if max(ranks) > size * geometry.head_dim:
                raise ValueError(f"rank {max(ranks)} is above the full rank {size * geometry.head_dim} of a group.")

    def check_windows(self, layer_types: Sequence[str] | None) -> None:
        """Raises ValueError where a layer shares with one of another kind, full or sliding."""
        if layer_types is None:
            return
        for layer in range(len(self.rank_k)):
            source = self.source_layer(layer)
            if layer_types[layer] != layer_types[source]:
                raise ValueError(
                    f"layer {layer} is of the kind {layer_types[layer]} and reads the latents of layer {source}, "
                    f"which is of the kind {layer_types[source]}."
                )

    def source_layer(self, layer: int) -> int:
        """The layer, itself or an earlier one, whose latents this one reads."""
        return layer if self.source_layers is None else self.source_layers[layer]

    @property
    def caching_layers(self) -> list[int]:
        """Those that hold latents of their own."""
        return [layer for layer in range(len(self.rank_k)) if self.source_layer(layer) == layer]

    @property
    def num_shared(self) -> int:
        """Layers without a cache of their own."""
        return len(self.rank_k) - len(self.caching_layers)

    @property
    def group_size(self) -> int:
        """KV heads of one slot of the cache: a group of K or of V, whichever has more."""
        return max(self.group_size_k, self.group_size_v)

    @property
    def group_sizes(self) -> str:
        """In words."""
        if self.group_size_k == self.group_size_v:
            return f"group size {self.group_size_k}"
        return f"group size {self.group_size_k} in K and {self.group_size_v} in V"

    def num_groups(self, geometry: AttentionGeometry) -> int:
        """Slots per token and layer."""
        return geometry.num_kv_heads // self.group_size

    def bytes_per_token(self, geometry: AttentionGeometry, dtype: str) -> int:
        """Bytes of latent cache per token, all layers; scales, minima and padding counted."""
        groups_k, groups_v = (geometry.num_kv_heads // size for size in (self.group_size_k, self.group_size_v))
        return sum(
            groups_k * self.key_format(layer, dtype).bytes + groups_v * self.value_format(layer, dtype).bytes
            for layer in self.caching_layers
        )

    @property
    def is_packed(self) -> bool:
        return any(tier.bits != UNQUANTIZED for tier in self.tiers_k + self.tiers_v)

    def key_tiers(self, layer: int) -> tuple[Tier, ...]:
        """Before they are cut into scale groups; so are ``value_tiers``."""
        return cut_into_tiers(self.rank_k[layer], _fractions(self.tiers_k))

    def value_tiers(self, layer: int) -> tuple[Tier, ...]:
        return cut_into_tiers(self.rank_v[layer], _fractions(self.tiers_v))

    def key_format(self, layer: int, dtype: str) -> LatentFormat:
        return self._format(self.key_tiers(layer), dtype, 1.0 if self.clip_k is None else self.clip_k[layer])

    def value_format(self, layer: int, dtype: str) -> LatentFormat:
        return self._format(self.value_tiers(layer), dtype, 1.0 if self.clip_v is None else self.clip_v[layer])

    def _format(self, tiers: tuple[Tier, ...], dtype: str, clip: float) -> LatentFormat:
        return LatentFormat(cut_into_scale_groups(tiers, self.latent_group_size), dtype, self.latent_symmetric, clip)

    def slot_format(self, layer: int, dtype: str) -> SlotFormat | None:
        """How a layer's latents are packed, None where the cache holds latents as numbers of the model's dtype."""
        return SlotFormat(self.key_format(layer, dtype), self.value_format(layer, dtype)) if self.is_packed else None


def _fractions(tiers: list[TierConfig]) -> list[tuple[float, int]]:
    return [(tier.fraction, tier.bits) for tier in tiers]


def rope_type(config: Mapping[str, Any]) -> str:
    """The rotary scaling of a ``config.json`` in transformers 4 or 5 spelling. Raises ValueError if not served."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise ValueError(f"config.json has rope parameters {rope!r}; expected an object.")
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ROPE_TYPES:
        raise ValueError(f"rope type {kind!r} is not supported; expected one of {', '.join(ROPE_TYPES)}.")
    if rope.get("partial_rotary_factor", config.get("partial_rotary_factor") or 1.0) != 1.0:
        raise ValueError("partial_rotary_factor is not 1; partial rotary embeddings are not supported.")
    return kind


def rotary_positions(config: Mapping[str, Any]) -> int:
    """How many positions vLLM's rotary table of a ``config.json`` has. Raises ValueError where it is not served."""
    kind, rope = rope_type(config), config.get("rope_parameters") or config.get("rope_scaling") or {}
    positions = positive(config, "max_position_embeddings")
    if kind == "yarn":
        positions = rope.get("original_max_position_embeddings", positions)
    return int(positions * rope.get("factor", 1)) if kind in ("linear", "yarn") else positions
