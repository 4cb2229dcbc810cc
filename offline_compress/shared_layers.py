"""Which layers read the cache of an earlier one: the map of a model from pairs of layers."""

from offline_compress.pair_lists import LayerPairs
from offline_compress.run.errors import CompressionError


def source_layers(pairs: LayerPairs, num_layers: int) -> tuple[int, ...]:
    """The layer that every layer reads. Raises CompressionError for pairs that no model can have."""
    sources = list(range(num_layers))
    for layer, source in pairs:
        if not 0 <= source < layer < num_layers:
            raise CompressionError(
                f"layer {layer} cannot read layer {source} of {num_layers}; expected LAYER:SOURCE with an earlier one."
            )
        if sources[layer] != layer:
            raise CompressionError(f"layer {layer} is given two layers to read; give one of them.")
        sources[layer] = source
    for layer, source in pairs:
        if sources[source] != source:
            raise CompressionError(f"layer {layer} cannot read layer {source}, which reads layer {sources[source]}.")
    return tuple(sources)
