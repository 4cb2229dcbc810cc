"""Latents of few bits, really packed in vLLM's pool: the same tokens as transformers, however they were scheduled."""

import pytest

from palu_vllm.format.checkpoint import read_config
from tests.integration.checkpoints.test_half_rank import POOL, RANKS, TOKENS, with_transformers
from tests.support.plain_svd import with_tiers
from tests.support.serving import attention_used, engine, greedy, outputs, prompts
from tests.support.speed.cases import few_names

pytestmark = pytest.mark.serving

FORMATS = {
    "8_bits": ([(1.0, 8)], [(1.0, 8)]),
    "4_bits": ([(1.0, 4)], [(1.0, 4)]),
    "3_bits": ([(1.0, 3)], [(1.0, 3)]),
    "2_bits": ([(1.0, 2)], [(1.0, 2)]),
    "keys_16_values_4_bits": ([(1.0, 16)], [(1.0, 4)]),
    "tiers": ([(0.5, 8), (0.5, 3)], [(0.5, 4), (0.5, 2)]),
    "groups_symmetric_clipped": ([(1.0, 4)], [(1.0, 8)]),
    "key_norm_4_bits": ([(1.0, 4)], [(1.0, 4)]),
    "keys_in_smaller_groups": ([(0.5, 8), (0.5, 3)], [(1.0, 4)]),
}
GROUPS = {"keys_in_smaller_groups": (2, 4)}  # 2 otherwise
FAMILY = {"key_norm_4_bits": "qwen3"}  # llama otherwise
CHANGES = {
    "groups_symmetric_clipped": {
        "latent_group_size": 16,
        "latent_symmetric": True,
        "clip_k": [0.9, 0.8],
        "clip_v": [1.0, 0.95],
    }
}
REQUESTS = prompts(130, 5, 40)


@pytest.fixture(scope="module")
def packed(palu, tmp_path_factory):
    def get(name: str):
        out = tmp_path_factory.getbasetemp() / f"packed-{name}"
        if out.exists():
            return out
        model = palu(FAMILY.get(name, "llama"), **RANKS, group_size=GROUPS.get(name, 2))
        return with_tiers(model, out, *FORMATS[name], **CHANGES.get(name, {}))

    return get


def capacity(llm) -> int:
    cache = llm.llm_engine.vllm_config.cache_config
    return cache.num_gpu_blocks * cache.block_size


@pytest.mark.parametrize(
    "name",
    few_names(FORMATS, "keys_16_values_4_bits", "tiers", "groups_symmetric_clipped", "keys_in_smaller_groups"),
)
def test_vllm_and_transformers_agree_and_capacity_grows_by_the_bytes(packed, name):
    """Nearly all requests: in a random model a latent within rounding of the border of a code changes everything."""
    directory, requests = packed(name), [request for salt in range(8) for request in prompts(6, 45, salt=salt)]
    _, config, geometry = read_config(directory)
    with engine(directory, attention_backend="palu", num_gpu_blocks_override=None) as llm:
        both = zip(greedy(llm, requests, TOKENS), with_transformers(directory, requests), strict=True)
        assert sum(served == expected for served, expected in both) >= 12
        assert attention_used(llm) == {("PALU", "TorchAttention")}
        assert capacity(llm) == pytest.approx(POOL / config.bytes_per_token(geometry, "float32"), rel=0.02)


@pytest.mark.parametrize("name", ["4_bits", pytest.param("2_bits", marks=pytest.mark.slow)])
def test_cold_hit_and_chunked_give_equal_tokens(packed, name, batches):
    with engine(packed(name), enable_prefix_caching=False) as llm:
        cold = [greedy(llm, [request], TOKENS)[0] for request in REQUESTS]
    with engine(packed(name), max_num_batched_tokens=48) as llm:
        batches.clear()
        assert greedy(llm, REQUESTS, TOKENS) == cold
        assert any(row.is_continuation for batch in batches for row in batch)
        again = [outputs(llm, [request], TOKENS)[0] for request in REQUESTS]
        assert [output.num_cached_tokens for output in again] == [len(request) // 16 * 16 for request in REQUESTS]
        assert [output.outputs[0].token_ids for output in again] == cold


def test_bits_may_be_chosen_when_the_server_starts(packed, palu):
    settings = {"additional_config": {"palu": {"latent_bits": 4}}, "num_gpu_blocks_override": None}
    with engine(packed("4_bits"), num_gpu_blocks_override=None) as llm:
        expected, tokens = greedy(llm, REQUESTS, TOKENS), capacity(llm)
    with engine(palu("llama", **RANKS), **settings) as llm:
        assert greedy(llm, REQUESTS, TOKENS) == expected
        assert capacity(llm) == tokens
