"""What a served model keeps in its cache: latents, or codes of a codec, for the banner, metrics and the info route."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from vllm.config import VllmConfig

from palu_vllm.attention_backend.codec.served import served_codec
from palu_vllm.format.config import TierConfig
from palu_vllm.kernels.choose import kernel_path
from palu_vllm.startup.codec.facts import CodecFacts
from palu_vllm.startup.served import ServedConfig, served_config, serves_palu


@dataclass(frozen=True)
class CacheFacts:
    """Bytes are those of all layers on all devices together, scales and minima of packed latents counted."""

    base_model: str
    group_sizes: str  # in words
    group_size_k: int
    group_size_v: int
    rank_k: tuple[int, ...]  # of a group, per layer
    rank_v: tuple[int, ...]
    full_rank_k: int
    full_rank_v: int
    bits_k: str  # of the tiers of a latent, like "8/4"
    bits_v: str
    value_path: str
    source_layers: tuple[int, ...]  # whose latents each layer reads: its own or an earlier layer's
    kernels: str
    dtype: str  # that is served, and that the bytes are of
    bytes_per_token: int
    dense_bytes_per_token: int

    @classmethod
    def of(cls, served: ServedConfig, device_type: str) -> Self:
        palu, geometry = served.palu, served.geometry
        return cls(
            base_model=palu.base_model,
            group_sizes=palu.group_sizes,
            group_size_k=palu.group_size_k,
            group_size_v=palu.group_size_v,
            rank_k=tuple(palu.rank_k),
            rank_v=tuple(palu.rank_v),
            full_rank_k=palu.group_size_k * geometry.head_dim,
            full_rank_v=palu.group_size_v * geometry.head_dim,
            bits_k=_bits(palu.tiers_k),
            bits_v=_bits(palu.tiers_v),
            value_path=palu.value_path,
            source_layers=tuple(palu.source_layer(layer) for layer in range(geometry.num_layers)),
            kernels=kernel_path(device_type),
            dtype=served.dtype,
            bytes_per_token=palu.bytes_per_token(geometry, served.dtype),
            dense_bytes_per_token=geometry.dense_bytes_per_token(served.dtype),
        )

    @property
    def num_shared(self) -> int:
        """Layers that hold no latents, because they read an earlier layer's."""
        return len(self.source_layers) - len(set(self.source_layers))

    @property
    def compression_ratio(self) -> float:
        """Times fewer bytes than the dense cache."""
        return self.dense_bytes_per_token / self.bytes_per_token

    @property
    def labels(self) -> dict[str, str]:
        """For ``palu_info``."""
        names = ("base_model", "group_size_k", "group_size_v", "bits_k", "bits_v", "value_path", "kernels")
        return {name: str(getattr(self, name)) for name in names}

    def as_json(self) -> dict[str, Any]:
        saved = self.dense_bytes_per_token - self.bytes_per_token
        ratio = {"compression_ratio": round(self.compression_ratio, 4), "saved_bytes_per_token": saved}
        return {"kind": "latents", **asdict(self), **ratio}


def served_facts(vllm_config: VllmConfig) -> CacheFacts | CodecFacts | None:
    """Of the model of a server, None where it is neither a palu model nor has a codec."""
    if serves_palu(vllm_config):
        return CacheFacts.of(served_config(vllm_config), vllm_config.device_config.device_type)
    codec = served_codec(vllm_config) if vllm_config.model_config is not None else None
    return None if codec is None else CodecFacts.of(vllm_config)


def _bits(tiers: Sequence[TierConfig]) -> str:
    return "/".join(map(str, sorted({tier.bits for tier in tiers}, reverse=True)))
