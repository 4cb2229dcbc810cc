"""The part of a layer's codec that one device of several holds: whole groups of KV heads."""

from dataclasses import replace

from palu_vllm.format.codec.layer_codec import LayerCodec, SideCodec


def part(codec: LayerCodec, number: int, count: int) -> LayerCodec:
    """Part ``number`` of ``count`` equal ones. Raises ValueError, one sentence, where that would cut a group."""
    if count == 1:
        return codec
    if codec.num_groups % count:
        largest = max(size for size in range(1, codec.num_groups + 1) if not codec.num_groups % size and size < count)
        raise ValueError(
            f"tensor parallelism would cut the codec's {codec.num_groups} groups of KV heads into {count} parts; "
            f"the largest number of parts that works is {largest}."
        )
    groups = slice(number * codec.num_groups // count, (number + 1) * codec.num_groups // count)
    heads = slice(number * codec.num_kv_heads // count, (number + 1) * codec.num_kv_heads // count)

    def side(of: SideCodec) -> SideCodec:
        return SideCodec(of.form, of.decoder[groups], of.sink[heads])

    return replace(
        codec,
        key=side(codec.key),
        value=side(codec.value),
        centre_cos=codec.centre_cos[heads],
        centre_sin=codec.centre_sin[heads],
        value_mean=codec.value_mean[heads],
    )
