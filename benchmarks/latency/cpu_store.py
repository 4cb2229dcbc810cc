"""How long does storing new tokens of one layer take on a CPU, in a codec's slots beside vLLM's own copy?

``python -m benchmarks.latency.cpu_store``. Between calls a step does other work, so before each one 4 MiB of other
memory are read: matrices of a layer are not in the caches of a core when it begins. Arms take turns; rows have medians.
"""

import torch

from benchmarks.common.output import command_line, say, table, write_result
from benchmarks.latency.cpu_arms import BLOCK_SIZE, Run, Shape, random_codec
from benchmarks.latency.cpu_codec import CODECS, EIGHT_OF_FOUR, THREE_OF_THREE, timed
from palu_vllm.kernels.choose import codec_attention
from palu_vllm.kernels.codec.interface import CodecSettings

SHAPES = [Shape(requests, BLOCK_SIZE, *heads) for heads in (THREE_OF_THREE, EIGHT_OF_FOUR) for requests in (1, 8, 32)]
OTHER_NUMBERS = 1 << 20  # float32
COLUMNS = ("shape", "arm", "dense_us", "palu_us")


def new_tokens(shape: Shape) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys and values of one token per request, and a slot in a block of its own for each."""
    key, value = (torch.randn(shape.requests, shape.kv_heads, shape.head_dim) for _ in range(2))
    return key, value, torch.arange(shape.requests) * BLOCK_SIZE


def dense(shape: Shape) -> Run:
    """``cpu_attn_reshape_and_cache`` as vLLM's CPU_ATTN calls it, float32."""
    from vllm import _custom_ops as ops
    from vllm.platforms import current_platform

    current_platform.import_kernels()
    key, value, slots = new_tokens(shape)
    keys, values = torch.zeros(shape.num_blocks, shape.kv_heads, 2 * BLOCK_SIZE, shape.head_dim).chunk(2, dim=2)
    return lambda: ops.cpu_attn_reshape_and_cache(key, value, keys, values, slots, "vec")


def coded(shape: Shape, arm: str) -> Run:
    """As it is served on this machine."""
    groups, tiers = CODECS[shape.kv_heads, shape.queries_per_kv, shape.head_dim][arm]
    codec = random_codec(shape.kv_heads, shape.head_dim, groups, tiers)
    attention = codec_attention("cpu")(codec, CodecSettings(shape.heads, shape.head_dim**-0.5))
    key, value, slots = new_tokens(shape)
    cache = torch.zeros(shape.num_blocks, groups, BLOCK_SIZE, codec.slot.bytes, dtype=torch.uint8)
    return lambda: attention.store(key, value, slots, cache, slots)


def rows_of(shape: Shape, repeats: int) -> list[dict[str, object]]:
    """One per codec."""
    other = torch.zeros(OTHER_NUMBERS)
    arms: dict[str, Run] = {}
    for name in CODECS[shape.kv_heads, shape.queries_per_kv, shape.head_dim]:
        arms |= {f"before {name}": other.sum, name: coded(shape, name)}
    arms |= {"before dense": other.sum, "dense": dense(shape)}
    times = {name: 1e6 * median for name, (median, _) in timed(arms, repeats).items() if not name.startswith("before")}
    said = {"shape": f"{shape.requests} tokens, {shape.name.split(', ', 1)[1]}", "dense_us": times.pop("dense")}
    return [said | {"arm": name, "palu_us": microseconds} for name, microseconds in times.items()]


def main() -> None:
    parser = command_line("benchmarks.latency.cpu_store", __doc__ or "", "cpu_store.json")
    parser.add_argument("--repeats", type=int, default=200, help="turns of every arm (default: %(default)s)")
    options = parser.parse_args()
    torch.manual_seed(0)
    rows = [row for shape in SHAPES for row in rows_of(shape, options.repeats)]
    for row in rows:
        say(row)
    write_result(options.out, {"rows": rows, "repeats": options.repeats, "threads": torch.get_num_threads()})
    print(table(COLUMNS, [[row[column] for column in COLUMNS] for row in rows]))


if __name__ == "__main__":
    main()
