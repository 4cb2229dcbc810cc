"""Positions of a step's tokens are those of their texts."""

import torch
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.attention.backend import CommonAttentionMetadata

from palu_vllm.attention_backend.codec.metadata import CodecMetadataBuilder, token_positions


def positions(lengths: list[int], queries: list[int], tokens: int) -> list[int]:
    starts = torch.tensor([0, *queries], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return token_positions(starts, torch.tensor(lengths, dtype=torch.int32), tokens).tolist()


def test_a_prompt_a_chunk_a_decoded_token_and_drafts():
    assert positions([3, 20, 7, 9], [3, 2, 1, 3], 9) == [0, 1, 2, 18, 19, 6, 6, 7, 8]


def test_padding_has_some_position_and_shifts_nobody():
    found = positions([3, 20, 0], [3, 1, 0], 8)
    assert found[:4] == [0, 1, 2, 19] and min(found) >= 0


def common(lengths: list[int], queries: list[int]) -> CommonAttentionMetadata:
    """A step of these requests."""
    starts = torch.tensor([0, *queries], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    tokens, requests = sum(queries), len(queries)
    return CommonAttentionMetadata(
        query_start_loc=starts, query_start_loc_cpu=starts, seq_lens=torch.tensor(lengths, dtype=torch.int32),
        num_reqs=requests, num_actual_tokens=tokens, max_query_len=max(queries), max_seq_len=max(lengths),
        block_table_tensor=torch.zeros(requests, 4, dtype=torch.int32), slot_mapping=torch.arange(tokens),
    )  # fmt: skip


def test_steps_have_their_positions_in_the_same_memory(dense):
    """As a captured step reads them there; a batch that is larger than any graph has more."""
    options = {"max_num_batched_tokens": 64, "max_model_len": 64, "additional_config": {"palu": {"drift": False}}}
    config = EngineArgs(str(dense()), dtype="float32", **options).create_engine_config()
    builder = CodecMetadataBuilder(None, ["model.layers.0.self_attn.attn"], config, torch.device("cpu"))
    first = builder.build(0, common([20, 7], [2, 1])).positions
    assert first.tolist() == [18, 19, 6]
    captured = builder.build_for_cudagraph_capture(common([64, 64], [1, 1]))
    assert captured.sample is None and captured.positions.tolist() == [63, 63]
    later = builder.build(0, common([21, 8], [1, 1])).positions
    assert later.data_ptr() == captured.positions.data_ptr() == first.data_ptr()
    assert captured.positions.tolist() == [20, 7]
    assert builder.build(0, common([70], [70])).positions.tolist() == list(range(70))
