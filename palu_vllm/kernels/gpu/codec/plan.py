"""How the kernels cut a codec's layer into tiles: pure functions of shapes and device."""

from dataclasses import dataclass

from palu_vllm.format.latent_format import CodedSlot
from palu_vllm.kernels.gpu.codec.layout import column_count
from palu_vllm.kernels.gpu.tiling import SMALLEST_TILE, Device, padded

MOST_QUERIES = 8  # of one request that is decoded; more are prefilled
ROWS = 16  # of one program: fewer than any product has columns, so that Triton gives its warps columns alone
TOKENS, TOKENS_OF_FLOAT32 = 64, 16  # float32 has no tensor cores, so that products are unrolled
MANY_COLUMNS = 256  # sums of values of one row, beyond which a program needs 8 warps
PROGRAMS = 1  # of decoding, per multiprocessor
SCRATCH_BYTES = 256 * 2**20  # of queries in the basis of codes and of means, at a time
LEAST_TOKENS = 256  # of one pass


@dataclass(frozen=True)
class CodecTiling:
    """Tiles of one kernel, and how it is compiled."""

    tokens: int
    rows: int
    num_warps: int
    num_stages: int


def codec_tiling(slot: CodedSlot, element_size: int, device: Device) -> CodecTiling:
    """Of decoding, for products in numbers of ``element_size`` bytes. Never timed."""
    columns = column_count(slot.key), column_count(slot.value)
    tokens = TOKENS_OF_FLOAT32 if element_size == 4 else TOKENS
    while tokens > SMALLEST_TILE and shared_bytes(sum(columns), tokens, element_size) > device.shared_memory:
        tokens //= 2
    return CodecTiling(tokens, ROWS, num_warps=8 if columns[1] > MANY_COLUMNS else 4, num_stages=2)


def shared_bytes(columns: int, tokens: int, element_size: int) -> int:
    """More than a program shares: its queries, and bytes and levels of its tokens. Fitted to what
    ``benchmarks.kernels.check`` counts.
    """
    return columns * element_size * (ROWS + tokens // 2)


def pass_tokens(heads: int, columns: int) -> int:
    """Tokens of a batch that are attended to in one pass, of ``columns`` float32 numbers per head."""
    return max(LEAST_TOKENS, SCRATCH_BYTES // (4 * heads * columns))


def piece_numbers(slot: CodedSlot, tiling: CodecTiling, programs: int) -> int:
    """Float32 numbers of sums of requests that several programs share, two of each at most, and of their states."""
    return 2 * programs * tiling.rows * (column_count(slot.value) + 3)


def features_width(count: int) -> int:
    """Columns of ``count`` features of a block of positions."""
    return max(SMALLEST_TILE, padded(count))
