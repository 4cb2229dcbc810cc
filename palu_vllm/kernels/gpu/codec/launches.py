"""The launches of attention over one layer's codes, bound to what is the same at every step."""

from typing import Any

import torch

from palu_vllm.format.latent_format import CodedSlot
from palu_vllm.kernels.gpu.bound import BoundKernel
from palu_vllm.kernels.gpu.codec.decode import decode_codes_kernel
from palu_vllm.kernels.gpu.codec.plan import MOST_QUERIES, CodecTiling, piece_numbers
from palu_vllm.kernels.gpu.codec.put_values import put_values_kernel
from palu_vllm.kernels.gpu.codec.reduce import reduce_pieces_kernel
from palu_vllm.kernels.gpu.codec.work import number_items_kernel
from palu_vllm.kernels.gpu.tiling import ceil_div
from palu_vllm.kernels.interface import PagedBatch

REDUCED_COLUMNS, REDUCED_PIECES = 128, 16  # of one program that joins pieces
NUMBERED_REQUESTS = 256  # at a time
Arguments = dict[str, Any]  # of kernels, by name


class CodecLaunches:
    """Of one layer, a type of queries and a cache's strides; ``given`` names what kernels get at every step.

    ``programs`` decode. Arguments of one step, ``others``, are those that ``attention`` names.
    """

    def __init__(self, given: Arguments, slot: CodedSlot, num_groups: int, tiling: CodecTiling, programs: int) -> None:
        self.num_groups, self.rows, self.programs = num_groups, tiling.rows, programs
        self.pieces = piece_numbers(slot, tiling, programs)
        self.joining = programs, tiling.rows, ceil_div(given["COLUMNS_V"], REDUCED_COLUMNS)
        self.heads = given["GROUP_SIZE"] * given["QUERIES_PER_KV"]  # of a group
        self.given = given
        given = given | {"TILE_TOKENS": tiling.tokens, "TILE_ROWS": tiling.rows, "num_groups": num_groups}
        wide = given | {"num_warps": tiling.num_warps, "num_stages": tiling.num_stages}
        items = {"HEADS": self.heads, "MOST_QUERIES": MOST_QUERIES, "TILE_REQUESTS": NUMBERED_REQUESTS, "num_warps": 4}
        joined = {"TILE_COLUMNS": REDUCED_COLUMNS, "TILE_PIECES": REDUCED_PIECES, "num_warps": 4}
        self.number_items = BoundKernel(number_items_kernel, given | items)
        self.decode_codes = BoundKernel(decode_codes_kernel, wide)
        self.reduce_pieces = BoundKernel(reduce_pieces_kernel, given | joined)
        self.put = BoundKernel(put_values_kernel, given | {"num_warps": 4})
        self.same_items = num_groups, self.heads, given["SLIDING_WINDOW"], tiling.tokens, tiling.rows

    def decode(self, others: Arguments, batch: PagedBatch) -> None:
        """The requests of at most ``MOST_QUERIES`` queries, into the means of ``others``."""
        pieces = torch.empty(self.pieces, dtype=torch.float32, device=batch.seq_lens.device)
        others = others | {"item_starts_ptr": self.item_starts(others, batch), "piece_ptr": pieces}
        self.decode_codes.launch((self.programs, 1, 1), others)
        self.reduce_pieces.launch(self.joining, others)

    def item_starts(self, others: Arguments, batch: PagedBatch) -> torch.Tensor:
        """The first item of every request: of all layers whose tiles are the same, made by the first one that runs, in
        a graph by the first one of that graph.
        """
        captured = batch.seq_lens.is_cuda and torch.cuda.is_current_stream_capturing()
        made = (*self.same_items, captured)
        found = batch.shared.get(made)
        if found is None:
            found = batch.seq_lens.new_empty(len(batch.seq_lens) + 1)
            self.number_items.launch((1, 1, 1), others | {"item_starts_ptr": found})
            batch.shared[made] = found
        return found

    def put_values(self, values: torch.Tensor, out: torch.Tensor, others: Arguments) -> None:
        """``values [kv_heads, tokens * queries_per_kv, value_dim]`` into the rows of the batch's queries."""
        token, head, _ = out.stride()
        own = {"values_ptr": values, "out_ptr": out, "stride_out_token": token, "stride_out_head": head}
        self.put.launch((others["tokens_in_batch"], values.shape[0], 1), others | own)
