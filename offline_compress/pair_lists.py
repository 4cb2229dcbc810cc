"""This module reads lists of pairs as they are written on a command line."""

LayerPairs = tuple[tuple[int, int], ...]  # (layer, the earlier layer whose cache it reads)


def read_tiers(written: str) -> tuple[tuple[float, int], ...]:
    """Returns the pairs of ``0.25:8,0.75:4``."""
    pairs = [pair.split(":") for pair in written.split(",")]
    return tuple((float(fraction), int(bits)) for fraction, bits in pairs)


def read_pairs(written: str) -> LayerPairs:
    """Returns the pairs of ``7:2,9:4``."""
    pairs = [pair.split(":") for pair in written.split(",")]
    return tuple((int(layer), int(source)) for layer, source in pairs)
