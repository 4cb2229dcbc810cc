"""A batch is cut where its long requests begin, and only where no short one follows."""

import pytest
import torch

from palu_vllm.attention_backend.codec.batch_parts import batch_parts
from palu_vllm.kernels.gpu.codec.plan import MOST_QUERIES
from palu_vllm.kernels.interface import BatchParts, PagedBatch

MANY = MOST_QUERIES + 1
LENGTHS = 50


def cut(*queries: int, known: bool = True) -> tuple[PagedBatch, BatchParts | None]:
    """A batch whose request r has ``50 + r`` tokens and the block r, and its parts."""
    starts = torch.tensor([0, *torch.tensor(queries).cumsum(0).tolist()], dtype=torch.int32)
    lengths = LENGTHS + torch.arange(len(queries), dtype=torch.int32)
    table = torch.arange(len(queries), dtype=torch.int32)[:, None]
    batch = PagedBatch(table, lengths, starts, max(queries), LENGTHS + len(queries) - 1)
    return batch, batch_parts(batch, starts, lengths if known else None)


def test_both_parts():
    batch, parts = cut(1, MOST_QUERIES, MANY, 30)
    assert parts is not None and parts.few is not None and parts.many is not None
    assert parts.tokens == 1 + MOST_QUERIES
    assert parts.few.query_start_loc.tolist() == [0, 1, 1 + MOST_QUERIES]
    assert parts.many.query_start_loc.tolist() == [0, MANY, MANY + 30]
    assert parts.few.seq_lens.tolist() + parts.many.seq_lens.tolist() == batch.seq_lens.tolist()
    assert torch.cat((parts.few.block_table, parts.many.block_table)).tolist() == batch.block_table.tolist()
    assert parts.few.max_query_len == MOST_QUERIES and parts.many.max_query_len == 30
    assert (parts.many.max_seq_len, parts.many.total_seq_len) == (53, 52 + 53)


@pytest.mark.parametrize("queries", [(1, 2), (MANY, 40)], ids=["few", "many"])
def test_one_part(queries):
    _, parts = cut(*queries)
    assert parts is not None
    there, missing = (parts.few, parts.many) if max(queries) <= MOST_QUERIES else (parts.many, parts.few)
    assert missing is None and there is not None and there.query_start_loc.tolist() == [0, queries[0], sum(queries)]


def test_a_short_request_behind_a_long_one():
    assert cut(1, MANY, 2)[1] is None


def test_lengths_that_only_the_device_knows():
    _, parts = cut(1, MANY, known=False)
    assert parts is not None and parts.many is not None
    assert (parts.many.max_seq_len, parts.many.total_seq_len) == (LENGTHS + 1, None)
