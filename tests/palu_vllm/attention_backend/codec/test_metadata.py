"""Positions of a step's tokens are those of their texts."""

import torch

from palu_vllm.attention_backend.codec.metadata import token_positions


def positions(lengths: list[int], queries: list[int], tokens: int) -> list[int]:
    starts = torch.tensor([0, *queries], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return token_positions(starts, torch.tensor(lengths, dtype=torch.int32), tokens).tolist()


def test_a_prompt_a_chunk_a_decoded_token_and_drafts():
    assert positions([3, 20, 7, 9], [3, 2, 1, 3], 9) == [0, 1, 2, 18, 19, 6, 6, 7, 8]


def test_padding_has_some_position_and_shifts_nobody():
    found = positions([3, 20, 0], [3, 1, 0], 8)
    assert found[:4] == [0, 1, 2, 19] and min(found) >= 0
