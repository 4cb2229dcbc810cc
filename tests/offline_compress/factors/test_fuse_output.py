import pytest
import torch

from offline_compress.factors.fuse_output import constant_output, fuse_output

HIDDEN, HEAD_DIM, RANK = 10, 4, 3


@pytest.mark.parametrize(("heads", "kv_heads", "group_size"), [(4, 4, 2), (8, 4, 2), (6, 2, 1), (8, 2, 2)])
def test_fused_output_equals_rebuilding_values_first(heads, kv_heads, group_size, monkeypatch):
    monkeypatch.setattr("offline_compress.factors.fuse_output.FUSED_ROWS", 3)
    torch.manual_seed(0)
    groups = kv_heads // group_size
    output = torch.randn(HIDDEN, heads * HEAD_DIM).double()
    value_up = torch.randn(groups, RANK, group_size * HEAD_DIM).double()
    latents = torch.randn(heads, RANK).double()  # what attention returns for each query head
    fused = torch.cat(list(fuse_output(output, value_up, kv_heads, torch.float64)))
    expected = torch.zeros(HIDDEN).double()
    for head in range(heads):
        kv_head = head // (heads // kv_heads)
        group, inside = divmod(kv_head, group_size)
        up = value_up[group][:, inside * HEAD_DIM : (inside + 1) * HEAD_DIM]
        expected += output[:, head * HEAD_DIM : (head + 1) * HEAD_DIM] @ (latents[head] @ up)
    assert fused.shape == (HIDDEN, heads * RANK)
    torch.testing.assert_close(fused @ latents.flatten(), expected)


def test_value_bias_becomes_a_constant():
    torch.manual_seed(0)
    output, bias = torch.randn(HIDDEN, 8 * HEAD_DIM), torch.randn(2 * HEAD_DIM)
    per_query_head = bias.view(2, HEAD_DIM).repeat_interleave(4, 0).flatten()
    torch.testing.assert_close(constant_output(output, bias, 2), output.double() @ per_query_head.double())
