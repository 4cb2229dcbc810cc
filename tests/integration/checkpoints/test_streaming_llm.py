"""Sinks and a window over latents in vLLM: the published tokens, the same however scheduled, and bounded blocks."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from vllm import SamplingParams

from palu_vllm.format.checkpoint import attention_prefix
from tests.integration.serving.test_requests import free_blocks
from tests.support.oracles.streaming import StreamingCache, continued
from tests.support.serving import attention_used, engine, greedy, outputs, prompts

pytestmark = pytest.mark.serving

START, RECENT, BLOCK, CHUNK, TOKENS = 20, 40, 16, 48, 90
KNOBS = {"start_size": START, "recent_size": RECENT}
SHORT = prompts(5, 33, START + RECENT + 1)  # the published method lets a prompt see all of itself
LONG = prompts(230, 7, 101, salt=3)
HELD = -(-START // BLOCK) + -(-(RECENT + 1) // BLOCK) + 1  # while decoding: sinks, a window that begins anywhere
POOL, MAX_MODEL_LEN = 3 * HELD - 1, 512


def streaming(shift: bool = True, **options) -> dict:
    knobs = KNOBS | {"enable_pos_shift": shift}
    return {"additional_config": {"palu": {"streaming_llm": knobs}}, "enable_prefix_caching": False} | options


@pytest.fixture(scope="module")
def model(palu):
    return palu("llama", (48, 32), (40, 16))


@pytest.fixture(scope="module")
def rebuilt(model, dense):
    """The dense model of the same products: its keys and values are what the latents are rebuilt to."""
    twin = AutoModelForCausalLM.from_pretrained(dense("llama"), dtype=torch.float32)
    stored = load_file(model / "model.safetensors")
    whole = load_file(dense("llama") / "model.safetensors")
    for index, layer in enumerate(twin.model.layers):
        prefix = attention_prefix(index)
        k_up = stored[prefix + "k_up"]  # [groups, rank, full]
        down = stored[prefix + "k_down.weight"].unflatten(0, (len(k_up), -1))
        layer.self_attn.k_proj.weight.data = torch.einsum("grf,gri->gfi", k_up, down).flatten(0, 1)
        down = stored[prefix + "v_down.weight"].unflatten(0, (len(k_up), -1))
        full = whole[prefix + "v_proj.weight"].unflatten(0, (len(k_up), -1))
        # v_up is part of o_proj, but it is the orthogonal basis of a plain SVD: least squares gives it back
        basis = torch.linalg.lstsq(down.transpose(1, 2), full.transpose(1, 2)).solution
        layer.self_attn.v_proj.weight.data = torch.einsum("grf,gri->gfi", basis, down).flatten(0, 1)
    return twin.eval()


def by_oracle(twin, shift: bool) -> list[list[int]]:
    return [continued(twin, lambda: StreamingCache(twin, START, RECENT, shift), ids, TOKENS) for ids in SHORT]


def per_request(llm) -> int:
    """Blocks that vLLM reserves: sinks, the window, and what may be computed at once."""
    in_flight = llm.llm_engine.vllm_config.max_in_flight_tokens
    return -(-START // BLOCK) + -(-(RECENT + in_flight) // BLOCK) + 1


@pytest.fixture(scope="module")
def calm(model):
    """Tokens of the short prompts together, then of the long ones, each alone and whole."""
    with engine(model, **streaming()) as llm:
        assert attention_used(llm) == {("PALU", "TorchAttention")}
        return greedy(llm, SHORT, TOKENS), [greedy(llm, [request], TOKENS)[0] for request in LONG]


@pytest.fixture(scope="module")
def cold(calm):
    return calm[1]


def test_tokens_are_the_published_far_past_the_window(calm, rebuilt):
    assert calm[0] == by_oracle(rebuilt, shift=True)
    for tokens in calm:
        assert len({tuple(each) for each in tokens}) == len(tokens)
        assert min(len(set(each)) for each in tokens) > 4, "degenerate tokens prove nothing"


@pytest.mark.slow
def test_tokens_are_the_published_where_positions_are_kept(model, rebuilt, cold):
    with engine(model, **streaming(shift=False)) as llm:
        kept = greedy(llm, SHORT, TOKENS)
        assert kept == by_oracle(rebuilt, shift=False)
        assert greedy(llm, LONG, TOKENS) != cold
    assert kept != by_oracle(rebuilt, shift=True)


@pytest.fixture(scope="module")
def llm(model, cold):
    """With blocks for fewer than the three requests at their longest."""
    few = {"num_gpu_blocks_override": POOL, "max_num_batched_tokens": CHUNK, "enable_prefix_caching": True}
    with engine(model, **streaming(**few, disable_log_stats=False)) as llm:
        yield llm


def test_chunked_cached_and_preempted_tokens_are_those_of_a_calm_run(llm, cold, batches):
    everything = free_blocks(llm)
    assert greedy(llm, LONG, TOKENS) == cold
    assert any(row.is_continuation for batch in batches for row in batch)
    assert {metric.name: metric for metric in llm.get_metrics()}["vllm:num_preemptions"].value > 0
    for cached in (None, len(LONG[0]) // BLOCK * BLOCK):
        again = outputs(llm, LONG[:1], TOKENS)[0]
        assert list(again.outputs[0].token_ids) == cold[0]
        assert cached in (None, again.num_cached_tokens)
    assert free_blocks(llm) == everything


def test_a_request_holds_no_more_blocks_the_longer_it_gets(llm):
    everything, running, held = free_blocks(llm), llm.llm_engine, []
    params = SamplingParams(temperature=0.0, max_tokens=100, ignore_eos=True)
    running.add_request("alone", {"prompt_token_ids": prompts(300, salt=9)[0]}, params)
    while running.has_unfinished_requests():
        running.step()
        held.append(everything - free_blocks(llm))
    assert max(held) <= per_request(llm)
    decoding = held[300 // CHUNK + 2 : -1]
    assert max(decoding) <= HELD and max(decoding[:20]) == max(decoding[-20:])
    assert held[-1] == 0


def test_capacity_is_the_pool_over_what_a_request_holds(llm):
    """As vLLM reports it; without sinks and window it is the pool."""
    reported = llm.llm_engine.vllm_config.cache_config.kv_cache_size_tokens
    assert reported == int(POOL / per_request(llm) * MAX_MODEL_LEN) > 2 * POOL * BLOCK


@pytest.mark.slow
@pytest.mark.parametrize("shift", [False, True], ids=["keep", "shift"])
def test_kernels_serve_the_same_tokens(model, monkeypatch, shift):
    """In Triton's interpreter."""
    knobs = {"start_size": 3, "recent_size": 20, "enable_pos_shift": shift}
    options = {"additional_config": {"palu": {"streaming_llm": knobs}}, "max_num_batched_tokens": 32}
    requests = prompts(50, 21)
    with engine(model, **options) as llm:
        expected = greedy(llm, requests, 8)
    monkeypatch.setenv("PALU_KERNELS", "triton")
    with engine(model, **options) as llm:
        assert greedy(llm, requests, 8) == expected
        assert attention_used(llm) == {("PALU", "TritonAttention")}
