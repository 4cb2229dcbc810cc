"""How many adjacent KV heads share a decomposition: of K and of V, as asked or as the model allows."""

from dataclasses import dataclass

from offline_compress.options import DEFAULT_GROUP_SIZE, CompressOptions
from offline_compress.run.errors import CompressionError
from palu_vllm.format.config import AttentionGeometry
from palu_vllm.format.kv import KV


@dataclass(frozen=True)
class Grouping:
    """The groups of K or of V, the same in all layers."""

    size: int  # KV heads of a group
    num_groups: int
    full_rank: int  # of a group

    @classmethod
    def of(cls, size: int, geometry: AttentionGeometry) -> "Grouping":
        return cls(size, geometry.num_kv_heads // size, size * geometry.head_dim)


def groupings(options: CompressOptions, geometry: AttentionGeometry) -> tuple[KV[Grouping], tuple[str, ...]]:
    """Those of K and of V, and sentences about a default that gave way to the model.

    Raises CompressionError for sizes that do not divide the KV heads, or neither of which divides the other: a slot of
    the cache holds whole groups of both.
    """
    heads = geometry.num_kv_heads
    default = max(size for size in _divisors(heads) if size <= DEFAULT_GROUP_SIZE)
    wanted = [own or options.group_size for own in (options.group_size_k, options.group_size_v)]
    size_k, size_v = (default if size is None else _checked(size, heads) for size in wanted)
    if max(size_k, size_v) % min(size_k, size_v):
        raise CompressionError(
            f"neither of the group sizes {size_k} of K and {size_v} of V divides the other; give --group-size-k and "
            "--group-size-v so that one does."
        )
    notes: tuple[str, ...] = ()
    if None in wanted and default != DEFAULT_GROUP_SIZE:
        notes = (f"group size {default}, because {DEFAULT_GROUP_SIZE} does not divide {heads} key-value heads",)
    return KV(Grouping.of(size_k, geometry), Grouping.of(size_v, geometry)), notes


def _divisors(heads: int) -> list[int]:
    return [size for size in range(1, heads + 1) if heads % size == 0]


def _checked(size: int, heads: int) -> int:
    if size not in _divisors(heads):
        raise CompressionError(
            f"group size {size} does not divide the {heads} key-value heads; "
            f"expected one of {', '.join(map(str, _divisors(heads)))}."
        )
    return size
