"""Random codecs of whole tiny models, different in every layer, as files beside the models."""

from collections.abc import Collection
from pathlib import Path

import torch
from transformers import AutoConfig, PreTrainedConfig

from palu_vllm.format.codec.digest import model_digest
from palu_vllm.format.codec.file import Codec, save_codec
from palu_vllm.format.codec.layer_codec import LayerCodec, SideCodec
from tests.support.codecs.layers import Tiers, coded_format, side_codec

EIGHT_TO_TWO = ((8, 8), (24, 4), (16, 3), (16, 2))  # of 64 numbers: two heads of 32


def write_codec(
    directory: Path,
    model: Path,
    tiers_k: Tiers | None = None,
    tiers_v: Tiers | None = None,
    groups: int = 2,
    layers: Collection[int] | None = None,
    seed: int = 0,
) -> Path:
    """A codec of ``model`` in ``directory``, for all layers or some; 4 bits where no tiers are given."""
    config, heads, dim = heads_of(model)
    width = heads // groups * dim
    tiers = tiers_k or ((width, 4),), tiers_v or ((width, 4),)
    numbers = range(config.num_hidden_layers) if layers is None else layers
    built = {number: random_layer(heads, dim, groups, *tiers, seed=number + 1000 * seed) for number in numbers}
    directory.mkdir(parents=True, exist_ok=True)
    save_codec(directory, Codec(built, {"name": str(model), "digest": model_digest(model)}))
    return directory


def heads_of(model: Path) -> tuple[PreTrainedConfig, int, int]:
    """The configuration of a model's language, its KV heads and their width."""
    config = AutoConfig.from_pretrained(model).get_text_config()
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config, config.num_key_value_heads, dim


def random_layer(heads: int, dim: int, groups: int, tiers_k: Tiers, tiers_v: Tiers, seed: int) -> LayerCodec:
    """Bases are well conditioned, centres about as large as keys of tiny models, and nothing is like another seed's."""
    generator = torch.Generator().manual_seed(100 + seed)

    def centre(size: float) -> torch.Tensor:
        return size * torch.randn(heads, dim, generator=generator)

    return LayerCodec(
        side_codec(tiers_k, groups, centre(1.0), 10 + seed),
        side_codec(tiers_v, groups, centre(1.0), 50 + seed),
        centre(0.7),
        centre(0.7),
        torch.arange(dim) % (dim // 2),
        10_000.0 ** -(torch.arange(dim // 2, dtype=torch.float64) / (dim // 2)),
        centre(0.3),
    )


def write_exact_codec(directory: Path, model: Path, layers: Collection[int] | None = None) -> Path:
    """16 bits in orthogonal bases, around nothing: as good as no codec."""
    config, heads, dim = heads_of(model)
    generator = torch.Generator().manual_seed(0)

    def nothing() -> torch.Tensor:
        return torch.zeros(heads, dim)

    def side() -> SideCodec:
        basis = torch.linalg.qr(torch.randn(heads, dim, dim, generator=generator, dtype=torch.float64)).Q
        return SideCodec(coded_format(((dim, 16),)), basis.float(), nothing())

    def layer() -> LayerCodec:
        where, frequencies = torch.zeros(dim, dtype=torch.long), torch.zeros(1, dtype=torch.float64)
        return LayerCodec(side(), side(), nothing(), nothing(), where, frequencies, nothing())

    directory.mkdir(parents=True, exist_ok=True)
    built = {number: layer() for number in (range(config.num_hidden_layers) if layers is None else layers)}
    save_codec(directory, Codec(built, {"name": str(model), "digest": model_digest(model)}))
    return directory
