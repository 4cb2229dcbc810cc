"""Leading latents of a compressed model are the model compressed at the lower rank, where ``up`` was not refitted."""

import pytest
import torch

from offline_compress import compress
from palu_vllm.format.checkpoint import iterate_tensors, read_config
from palu_vllm.loading.leading import leading_latents, ranks_at

CALIBRATION = {"calib_samples": 6, "calib_seqlen": 48}


@pytest.mark.parametrize("value_path", ["fused", "factored"])
@pytest.mark.parametrize(
    ("family", "objective", "group_size"), [("llama", "svd", 4), ("qwen2", "whiten", 4), ("qwen3", "weighted", 4)]
)
def test_a_lower_ratio_of_the_uniform_search(dense, tmp_path, text, family, objective, group_size, value_path):
    options = {"objective": objective, "search": "uniform", "refit": False, "value_path": value_path}
    options |= CALIBRATION | {"group_size": group_size, "calib_data": text}
    compress(dense(family), tmp_path / "more", rank_ratio=0.75, **options)
    compress(dense(family), tmp_path / "less", rank_ratio=0.5, **options)
    _, more, geometry = read_config(tmp_path / "more")
    _, less, _ = read_config(tmp_path / "less")
    rank_k, rank_v = ranks_at(more, geometry, 0.5)
    assert (rank_k, rank_v) == (less.rank_k, less.rank_v)
    served = more.model_copy(update={"rank_k": rank_k, "rank_v": rank_v})
    found = dict(leading_latents(iterate_tensors(tmp_path / "more"), more, served, geometry))
    expected = dict(iterate_tensors(tmp_path / "less"))
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)
