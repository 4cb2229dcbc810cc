"""How a quantized latent lies in memory: the one description of its bytes. Standard library only.

A latent belongs to one group and token and to K or V; a slot holds the latent of K, then that of V. Where K and V are
grouped differently, a slot holds the latents of all groups within the larger one, those of K first. A latent is cut
into *tiers*, leading numbers (largest singular values) first. Its bytes, padded to ``ALIGNMENT``, are:

1. per quantized tier its scale, then its minimum, float16; of symmetric codes only the scale; all padded likewise;
2. per tier its numbers: those of 16 bits as they are; quantized ones as codes in bit planes.

Codes of 8, 4 and 2 bits are one plane of that width; codes of 5 and 3 bits are a plane of the low four or two bits
and a plane of the high one. Latents have no codes of 5 bits. A plane of width w of n numbers has
``B = ceil(n w / 8)`` bytes; number i is in byte ``i % B`` at bit ``i // B * w``, so that shifting a plane once gives
numbers that are neighbours. A number is ``minimum + scale * code``, or, with symmetric codes of b bits,
``scale * (code - 2^(b-1))``.

A *scale group* is a tier that ``cut_into_scale_groups`` has cut further, so that it has a scale of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby

NUMBER_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
# bits of a code -> widths of its planes, lowest bits first
PLANES = {8: (8,), 5: (4, 1), 4: (4,), 3: (2, 1), 2: (2,)}
UNQUANTIZED = 16
BITS = (UNQUANTIZED, 8, 4, 3, 2)  # of latents
CODED_BITS = (UNQUANTIZED, *PLANES)
HEADER_BYTES = 4  # scale and minimum of a tier
SYMMETRIC_HEADER_BYTES = 2  # scale alone
ALIGNMENT = 4  # bytes: what a latent is padded to, and its scales and minima together
TierFractions = tuple[tuple[float, int], ...]  # of the tiers of a latent: fraction of its rank, bits
TIER_STEP = 16  # numbers: what all tiers of a latent but the last are multiples of


def aligned(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT


def plane_bytes(size: int, width: int) -> int:
    return -(-size * width // 8)


@dataclass(frozen=True)
class Tier:
    """``size`` neighbouring numbers of a latent with the same bits, and one scale and minimum where quantized."""

    size: int
    bits: int

    @property
    def is_quantized(self) -> bool:
        return self.bits != UNQUANTIZED


@dataclass(frozen=True)
class LatentFormat:
    """The bytes of one latent. ``dtype`` is that of numbers that are not quantized, the model's.

    ``clip`` is the fraction of a tier's range, in (0, 1], that codes cover; what lies outside takes the nearest code.
    It is used when a latent is stored and never when it is read.
    """

    tiers: tuple[Tier, ...]
    dtype: str
    symmetric: bool = False
    clip: float = 1.0

    @property
    def rank(self) -> int:
        return sum(tier.size for tier in self.tiers)

    @property
    def runs(self) -> tuple[tuple[Tier, int], ...]:
        """The tiers, equal neighbours joined: ``(one of them, how many they are)``."""
        return tuple((tier, len(list(equal))) for tier, equal in groupby(self.tiers))

    @property
    def has_scale_groups(self) -> bool:
        """Whether neighbours have scales of their own although they are equal tiers."""
        return any(count > 1 and tier.is_quantized for tier, count in self.runs)

    def tier_header_bytes(self, tier: Tier) -> int:
        """Of one tier."""
        if not tier.is_quantized:
            return 0
        return SYMMETRIC_HEADER_BYTES if self.symmetric else HEADER_BYTES

    @property
    def header_bytes(self) -> int:
        """Of all tiers, padding included."""
        return aligned(sum(self.tier_header_bytes(tier) for tier in self.tiers))

    def payload_bytes(self, tier: Tier) -> int:
        if not tier.is_quantized:
            return tier.size * NUMBER_BYTES[self.dtype]
        return sum(plane_bytes(tier.size, width) for width in PLANES[tier.bits])

    @property
    def bytes(self) -> int:
        """Of the whole latent, padding included."""
        return aligned(self.header_bytes + sum(self.payload_bytes(tier) for tier in self.tiers))


@dataclass(frozen=True)
class SlotFormat:
    """The latents in a slot of the paged cache, of one group and token."""

    key: LatentFormat
    value: LatentFormat

    @property
    def bytes(self) -> int:
        """Of one latent of K and one of V."""
        return self.key.bytes + self.value.bytes

    @property
    def has_scale_groups(self) -> bool:
        return self.key.has_scale_groups or self.value.has_scale_groups


@dataclass(frozen=True)
class CodedFormat:
    """The bytes of a codec's numbers of one KV head group and token, K or V: tiers side by side, one scale for all.

    Tiers are planes of codes as above, whose levels are those of ``codec.levels``, or a single tier of 16 bits,
    float16. The scale is not among these bytes, see ``CodedSlot``. Raises ValueError for other tiers.
    """

    tiers: tuple[Tier, ...]

    def __post_init__(self) -> None:
        known = all(tier.size > 0 and tier.bits in CODED_BITS for tier in self.tiers)
        if not self.tiers or not known or (len(self.tiers) > 1 and not all(tier.is_quantized for tier in self.tiers)):
            raise ValueError(f"tiers {self.tiers} are neither of 8, 5, 4, 3 and 2 bits nor a single one of 16")

    @property
    def is_quantized(self) -> bool:
        return self.tiers[0].is_quantized

    @cached_property
    def rank(self) -> int:
        """Numbers."""
        return sum(tier.size for tier in self.tiers)

    @property
    def mean_bits(self) -> float:
        """Per number, the scale left out."""
        return sum(tier.size * tier.bits for tier in self.tiers) / self.rank

    def payload_bytes(self, tier: Tier) -> int:
        if not tier.is_quantized:
            return 2 * tier.size
        return sum(plane_bytes(tier.size, width) for width in PLANES[tier.bits])

    @cached_property
    def bytes(self) -> int:
        """Of all tiers, padding included."""
        return aligned(sum(self.payload_bytes(tier) for tier in self.tiers))


@dataclass(frozen=True)
class CodedSlot:
    """What a codec stores of one token and KV head group: two float16 scales, the tiers of K, those of V.

    The sign of a scale says which centre the numbers belong to: positive the usual one, negative that of the first
    token of a text.
    """

    key: CodedFormat
    value: CodedFormat

    @property
    def key_start(self) -> int:
        """Bytes before the tiers of K."""
        return 2 * SYMMETRIC_HEADER_BYTES

    @cached_property
    def value_start(self) -> int:
        """Bytes before the tiers of V."""
        return self.key_start + self.key.bytes

    @cached_property
    def bytes(self) -> int:
        return self.value_start + self.value.bytes


def cut_into_tiers(rank: int, fractions: Sequence[tuple[float, int]]) -> tuple[Tier, ...]:
    """Tiers of a latent of ``rank`` numbers from ``(fraction of the rank, bits)``, leading tier first.

    They end at multiples of ``TIER_STEP``, but for the last; tiers that get nothing are left out. Raises ValueError
    for unknown bits, more bits after fewer, and fractions that are not positive or do not add up to 1.
    """
    if any(bits not in BITS for _, bits in fractions):
        raise ValueError(f"tiers {list(fractions)} have bits other than {', '.join(map(str, BITS))}")
    if any(fraction <= 0 for fraction, _ in fractions) or abs(sum(fraction for fraction, _ in fractions) - 1) > 1e-6:
        raise ValueError(f"tiers {list(fractions)} have fractions that are not positive or do not add up to 1")
    if any(after > before for (_, before), (_, after) in zip(fractions, fractions[1:], strict=False)):
        raise ValueError(f"tiers {list(fractions)} give later numbers more bits; expected fewer or as many")
    ends = [
        min(rank, round(end * rank / TIER_STEP) * TIER_STEP)
        for end in accumulate(fraction for fraction, _ in fractions)
    ]
    ends[-1] = rank
    sizes = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    return tuple(Tier(size, bits) for size, (_, bits) in zip(sizes, fractions, strict=True) if size)


def cut_into_scale_groups(tiers: Sequence[Tier], scale_group_size: int) -> tuple[Tier, ...]:
    """The same tiers, quantized ones cut into scale groups of that many numbers, the last shorter; 0 cuts nothing.

    Raises ValueError for a size that is not a multiple of ``TIER_STEP``.
    """
    if scale_group_size < 0 or scale_group_size % TIER_STEP:
        raise ValueError(f"latent group size {scale_group_size} is not 0 or a positive multiple of {TIER_STEP}")
    scale_groups = []
    for tier in tiers:
        size = scale_group_size if tier.is_quantized and scale_group_size else tier.size
        scale_groups += [Tier(min(size, tier.size - start), tier.bits) for start in range(0, tier.size, size)]
    return tuple(scale_groups)
