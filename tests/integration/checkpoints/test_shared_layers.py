"""Layers that read the latents of an earlier one: the oracle's tokens, and the capacity that the others leave."""

import openai
import pytest
import torch
from transformers import AutoModelForCausalLM

from offline_compress import compress
from palu_vllm.format.checkpoint import read_config
from palu_vllm.server.facts import served_facts
from tests.integration.checkpoints.test_half_rank import POOL, with_transformers
from tests.integration.checkpoints.test_packed import capacity
from tests.support.oracles.shared_layers import dense_of, shared_tokens
from tests.support.plain_svd import with_tiers
from tests.support.processes.engine import V2, ask
from tests.support.serving import attention_used, engine, greedy, outputs, prompts, server

pytestmark = pytest.mark.serving

TOKENS, BLOCK, CHUNK = 12, 16, 32
REQUESTS = prompts(130, 5, 45)
SOURCES = (0, 1, 0, 1, 0)
MODEL = {"num_hidden_layers": len(SOURCES)}
UNEVEN = {"rank_k": (32, 48, 32, 48, 32), "rank_v": (40, 24, 40, 24, 40), "source_layers": SOURCES} | MODEL
WHOLE = {"rank_k": (64, 8, 64, 8, 64), "rank_v": (16, 64, 16, 64, 16), "source_layers": SOURCES} | MODEL


def test_alone_it_is_kvsharer(dense, tmp_path):
    """At full rank, biases of keys and values included; of the pool's bytes, layers that share take none."""
    source, out = dense("qwen2", **MODEL), tmp_path / "out"
    plain = {"rank_ratio": 1.0, "objective": "svd", "search": "uniform"}
    report = compress(source, out, share_map=((2, 0), (3, 1), (4, 0)), **plain)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    expected = shared_tokens(model, SOURCES, REQUESTS, TOKENS)
    assert expected != shared_tokens(model, range(len(SOURCES)), REQUESTS, TOKENS)
    with engine(out, num_gpu_blocks_override=None) as llm:
        assert greedy(llm, REQUESTS, TOKENS) == expected
        assert attention_used(llm) == {("PALU", "TorchAttention")}
        assert capacity(llm) == POOL // (BLOCK * report["bytes_per_token"]) * BLOCK
        assert served_facts(llm.llm_engine.vllm_config).source_layers == SOURCES
    assert report["bytes_per_token"] * 5 == report["dense_bytes_per_token"] * 2


def test_with_low_rank_chunked_batched_and_cached(dense, palu, batches):
    """Ranks differ between the layers that hold latents. The reference is the oracle on projections of these ranks."""
    directory = palu("llama", **UNEVEN)
    expected = shared_tokens(dense_of(dense("llama", **MODEL), directory), SOURCES, REQUESTS, TOKENS)
    assert with_transformers(directory, REQUESTS) == expected
    with engine(directory, max_num_batched_tokens=CHUNK, num_gpu_blocks_override=None) as llm:
        assert greedy(llm, REQUESTS, TOKENS) == expected
        assert any(row.is_continuation for batch in batches for row in batch)
        again = outputs(llm, REQUESTS, TOKENS)
        assert [list(output.outputs[0].token_ids) for output in again] == expected
        assert [output.num_cached_tokens for output in again] == [len(ids) // BLOCK * BLOCK for ids in REQUESTS]
        assert attention_used(llm) == {("PALU", "TorchAttention")}
        _, config, geometry = read_config(directory)
        bytes_per_token = config.bytes_per_token(geometry, "float32")
        assert bytes_per_token == 4 * 2 * (32 + 40 + 48 + 24), "two layers of five"
        assert capacity(llm) == POOL // (BLOCK * bytes_per_token) * BLOCK


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", UNEVEN | {"value_path": "factored"}),
        ("llama", WHOLE),
        ("mistral", UNEVEN | {"sliding_window": 24}),
        ("qwen2", UNEVEN),
        ("qwen3", WHOLE | {"value_path": "factored"}),
        ("qwen3", UNEVEN | {"rank_k": 48, "rank_v": 96, "group_size": (2, 4)}),
    ],
)
def test_every_kind_of_layer(dense, palu, family, options):
    """The oracle has no windows: where there is one, the reference is transformers with latents."""
    directory = palu(family, **options)
    if "sliding_window" in options:
        expected = with_transformers(directory, REQUESTS)
    else:
        expected = shared_tokens(dense_of(dense(family, **MODEL), directory), SOURCES, REQUESTS, TOKENS)
    with engine(directory) as llm:
        assert greedy(llm, REQUESTS, TOKENS) == expected


@pytest.mark.slow
def test_preempted_and_resumed(palu, batches):
    requests, tokens = prompts(40, 30, 50, 20), 100
    with engine(palu("llama", **UNEVEN)) as llm:
        expected = [greedy(llm, [request], tokens)[0] for request in requests]
    batches.clear()
    few = {"num_gpu_blocks_override": 24, "max_model_len": 256, "enable_prefix_caching": False}
    with engine(palu("llama", **UNEVEN), **few) as llm:
        assert greedy(llm, requests, tokens) == expected
    lengths = {len(request) for request in requests}
    assert any(row.is_first_chunk and row.seq_len not in lengths for batch in batches for row in batch)


@pytest.mark.slow
def test_packed_latents_and_fewer_ranks_at_the_start(palu, tmp_path):
    directory = palu("llama", **UNEVEN)
    packed = with_tiers(directory, tmp_path / "packed", [(1.0, 8)], [(0.5, 8), (0.5, 4)])
    expected = with_transformers(packed, REQUESTS)
    _, config, geometry = read_config(packed)
    with engine(packed, num_gpu_blocks_override=None) as llm:
        assert greedy(llm, REQUESTS, TOKENS) == expected
        assert capacity(llm) == POOL // (BLOCK * config.bytes_per_token(geometry, "float32")) * BLOCK
    with engine(directory, additional_config={"palu": {"rank_ratio": 0.5}}) as llm:
        facts = served_facts(llm.llm_engine.vllm_config)
        assert facts.rank_k[:2] == facts.rank_k[2:4] and sum(facts.rank_k[:2] + facts.rank_v[:2]) == 128
        assert len(greedy(llm, REQUESTS, TOKENS)) == len(REQUESTS)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [{}, {"rank_k": 32, "rank_v": 32}], ids=["ranks differ", "equal ranks"])
def test_model_runner_v2(palu, ranks):
    directory = palu("llama", **UNEVEN | ranks)
    with engine(directory) as llm:
        expected = greedy(llm, REQUESTS, TOKENS)
    found = ask(directory, REQUESTS, TOKENS, {"max_num_batched_tokens": CHUNK}, **{V2: "1"})
    assert found.tokens == found.tokens_again == expected
    assert found.runner == "vllm.v1.worker.cpu.model_runner"


@pytest.mark.slow
def test_kernels_serve_the_same_tokens(palu, monkeypatch):
    """The Triton kernels, in Triton's interpreter."""
    directory, requests = palu("qwen3", **UNEVEN), prompts(40, 5)
    with engine(directory) as llm:
        expected = greedy(llm, requests, 4)
    monkeypatch.setenv("PALU_KERNELS", "triton")
    with engine(directory) as llm:
        assert greedy(llm, requests, 4) == expected
        assert attention_used(llm) == {("PALU", "TritonAttention")}


@pytest.mark.slow
def test_a_compiled_server_on_two_devices(palu, tmp_path):
    """Compiled layers that share follow their sources, and groups are split over devices."""
    directory = palu("qwen2", **UNEVEN)
    with engine(directory) as llm:
        expected = greedy(llm, REQUESTS, TOKENS)
    arguments = ("--dtype", "float32", "--max-model-len", "512", "-tp", "2")
    with server(directory, tmp_path / "log", *arguments) as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)
        greedily = {"max_tokens": TOKENS, "temperature": 0}
        greedily |= {"extra_body": {"ignore_eos": True, "return_token_ids": True}}
        found = [client.completions.create(model=str(directory), prompt=ids, **greedily) for ids in REQUESTS]
    assert [each.choices[0].token_ids for each in found] == expected
    assert "3 of 5 layers read those of an earlier one" in (tmp_path / "log").read_text()
