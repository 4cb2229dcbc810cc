"""``--rank-ratio 1`` loses nothing: vLLM serves exactly the dense model's greedy tokens, in float32.

Once the dense model runs in vLLM too; every kind of model is compared with transformers, which starts in no time.
"""

from pathlib import Path

import pytest

from offline_compress import compress
from tests.integration.checkpoints.test_half_rank import with_transformers
from tests.support.serving import attention_used, engine, greedy, prompts
from tests.support.speed.cases import few_names

pytestmark = pytest.mark.serving

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 256}

CASES = {
    "llama": ("llama", {}),
    "llama-no-groups-tied": ("llama", {"num_key_value_heads": 8, "tie_word_embeddings": True}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama3-rope": ("llama", {"rope_parameters": LLAMA3}),
    "linear-rope": ("llama", {"rope_parameters": LINEAR}),
    "yarn-rope": ("llama", {"rope_parameters": YARN}),
    "mistral-window": ("mistral", {"sliding_window": 24}),
    "qwen2-biases": ("qwen2", {}),
    "qwen3-key-norm": ("qwen3", {}),
    "phi3-joined-window": ("phi3", {"sliding_window": 24}),
}

# every family of which the others are kinds, in one run with what else may differ
QUICK = (
    "llama-no-groups-tied",
    "llama-biases",
    "llama3-rope",
    "yarn-rope",
    "qwen3-key-norm",
    "phi3-joined-window",
)
REQUESTS = prompts(5, 33, 130)


def compressed(source: Path, out: Path) -> Path:
    compress(source, out, rank_ratio=1.0, search="uniform", objective="svd")
    return out


def test_tokens_are_those_of_the_dense_model_in_vllm(dense, tmp_path):
    with engine(dense("llama"), block_size=32) as llm:
        expected = greedy(llm, REQUESTS)
        assert attention_used(llm) == {("CPU_ATTN", "CPUAttentionBackendImpl")}
    with engine(compressed(dense("llama"), tmp_path / "out")) as llm:
        assert greedy(llm, REQUESTS) == expected


@pytest.mark.parametrize("case", few_names(CASES, *QUICK))
def test_tokens_are_those_of_the_dense_model_in_transformers(case, dense, tmp_path):
    family, overrides = CASES[case]
    source = dense(family, **overrides)
    expected = with_transformers(source, REQUESTS, 16)
    with engine(compressed(source, tmp_path / "out"), attention_backend="palu") as llm:
        assert greedy(llm, REQUESTS) == expected
        assert attention_used(llm) == {("PALU", "TorchAttention")}
    assert len({tuple(tokens) for tokens in expected}) == len(REQUESTS)
    assert min(len(set(tokens)) for tokens in expected) > 4, "degenerate tokens prove nothing"
