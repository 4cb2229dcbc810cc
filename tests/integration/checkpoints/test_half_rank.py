"""A compressed checkpoint is one model: vLLM and transformers continue a prompt with the same tokens."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.common.shipped import CALIBRATION
from offline_compress import compress
from tests.support.serving import attention_used, engine, greedy, prompts
from tests.support.speed.cases import few_names

pytestmark = pytest.mark.serving

RANKS = {"rank_k": (32, 24), "rank_v": (40, 16)}
UNEVEN = {"rank_k": (64, 8), "rank_v": (16, 64)}  # a layer with uncompressed keys, one with uncompressed values
CASES = {
    "llama-fused": ("llama", RANKS),
    "llama-factored": ("llama", RANKS | {"value_path": "factored"}),
    "llama-some-uncompressed": ("llama", UNEVEN),
    "llama-one-group": ("llama", {"rank_k": 48, "rank_v": 72, "group_size": 4}),
    "llama-keys-in-smaller-groups": ("llama", {"rank_k": (16, 24), "rank_v": (80, 128), "group_size": (1, 4)}),
    "qwen2-values-in-smaller-groups-factored": (
        "qwen2",
        {"rank_k": (64, 48), "rank_v": (16, 40), "group_size": (4, 2), "value_path": "factored"},
    ),
    "mistral-window": ("mistral", RANKS | {"sliding_window": 24}),
    "qwen2-fused": ("qwen2", RANKS),
    "qwen2-factored": ("qwen2", RANKS | {"value_path": "factored"}),
    "qwen3-fused": ("qwen3", RANKS),
    "phi3-window-factored": ("phi3", RANKS | {"sliding_window": 24, "value_path": "factored"}),
    "qwen3-some-uncompressed": ("qwen3", UNEVEN | {"value_path": "factored"}),
}
# each family, path and grouping once
QUICK = (
    "llama-factored",
    "llama-some-uncompressed",
    "llama-keys-in-smaller-groups",
    "qwen2-values-in-smaller-groups-factored",
    "mistral-window",
    "qwen3-fused",
    "phi3-window-factored",
)
FAMILIES = ("phi3", "llama", "mistral", "qwen2", "qwen3")  # at full rank in test_full_rank.py, of low rank above
TOKENS = 12
POOL = 2**30  # bytes; VLLM_CPU_KVCACHE_SPACE of tests/conftest.py


def with_transformers(directory, requests, max_tokens=TOKENS):
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    continued = [
        model.generate(torch.tensor([ids]), max_new_tokens=max_tokens, do_sample=False, eos_token_id=None)
        for ids in requests
    ]
    return [tokens[0, len(ids) :].tolist() for tokens, ids in zip(continued, requests, strict=True)]


@pytest.mark.parametrize("case", few_names(CASES, *QUICK))
def test_vllm_and_transformers_agree(case, palu):
    family, options = CASES[case]
    directory, requests = palu(family, **options), prompts(6, 45)
    with engine(directory, attention_backend="palu") as llm:
        assert greedy(llm, requests, TOKENS) == with_transformers(directory, requests)
        assert attention_used(llm) == {("PALU", "TorchAttention")}


@pytest.mark.parametrize(
    ("family", "groups"),
    [
        ("llama", {"group_size_k": 2, "group_size_v": 4}),
        *(pytest.param(family, {"group_size": 2}, marks=pytest.mark.slow) for family in FAMILIES),
    ],
)
def test_what_the_compressor_writes_is_served(family, groups, dense, tmp_path):
    """Half the rank, whitened on real text, ranks by Fisher information; vLLM's capacity is the report's."""
    out = tmp_path / "out"
    options = {"rank_ratio": 0.5, "calib_data": str(CALIBRATION), "calib_samples": 8, "calib_seqlen": 256}
    report = compress(dense(family), out, **groups, **options)
    requests = prompts(6, 45)
    with engine(out, attention_backend="palu", num_gpu_blocks_override=None) as llm:
        assert greedy(llm, requests, TOKENS) == with_transformers(out, requests)
        assert attention_used(llm) == {("PALU", "TorchAttention")}
        cache = llm.llm_engine.vllm_config.cache_config
        capacity = cache.num_gpu_blocks * cache.block_size
    assert capacity == pytest.approx(POOL / report["bytes_per_token"], rel=0.02)
