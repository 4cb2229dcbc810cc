"""A checkpoint served with fewer latents is the checkpoint that was cut to them on disk: tokens, logits, bytes."""

import openai
import pytest
from vllm import SamplingParams

from palu_vllm.format.checkpoint import read_config
from palu_vllm.server.facts import served_facts
from tests.integration.checkpoints.test_half_rank import POOL
from tests.integration.checkpoints.test_packed import capacity
from tests.support.rotated import rotate
from tests.support.serving import engine, greedy, prompts, server
from tests.support.truncated import truncate

pytestmark = pytest.mark.serving

TOKENS = 8
REQUESTS = prompts(70, 6, 45)
CASES = {  # family, checkpoint, ratio, the ranks that it leads to; the full rank of 2 heads is 64
    "fused": ("llama", {"rank_k": 48, "rank_v": 48}, 0.5, ((32, 32), (32, 32))),
    "factored, values of one layer whole": (
        "qwen2",
        {"rank_k": (48, 32), "rank_v": (64, 48), "value_path": "factored"},
        0.5,
        ((32, 16), (64, 16)),
    ),
    "groups apart": ("qwen3", {"rank_k": 24, "rank_v": 96, "group_size": (1, 4)}, 0.5, ((16, 16), (64, 64))),
}


def asked(ratio: float, **settings) -> dict:
    return {"additional_config": {"palu": {"rank_ratio": ratio} | settings}, "num_gpu_blocks_override": None}


def answers(llm) -> list[tuple[list[int], list[dict[int, float]]]]:
    """Tokens, and the log probabilities of the whole vocabulary at each, of every request."""
    params = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True, logprobs=-1)
    found = llm.generate([{"prompt_token_ids": ids} for ids in REQUESTS], params, use_tqdm=False)
    told = [each.outputs[0] for each in found]
    return [(list(t.token_ids), [{i: p.logprob for i, p in at.items()} for at in t.logprobs]) for t in told]


@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=() if name.startswith("factored") else pytest.mark.slow) for name in CASES]
)
def test_tokens_logits_and_capacity_are_those_of_the_checkpoint_cut_on_disk(palu, tmp_path, case):
    family, options, ratio, (rank_k, rank_v) = CASES[case]
    whole = palu(family, **options)
    cut = truncate(whole, tmp_path / "cut", rank_k, rank_v)
    _, config, geometry = read_config(cut)
    bytes_per_token = config.bytes_per_token(geometry, "float32")
    with engine(cut, num_gpu_blocks_override=None, max_logprobs=-1) as llm:
        expected, facts, blocks = answers(llm), served_facts(llm.llm_engine.vllm_config), capacity(llm)
    with engine(whole, max_logprobs=-1, **asked(ratio)) as llm:
        assert served_facts(llm.llm_engine.vllm_config) == facts
        assert (facts.rank_k, facts.rank_v) == (rank_k, rank_v)
        assert capacity(llm) == blocks
        assert blocks == POOL // (16 * bytes_per_token) * 16, "what the bytes say, to the block"
        assert answers(llm) == expected


@pytest.mark.slow
def test_packed_latents_of_fewer_ranks(palu, tmp_path):
    """Both settings at once: packed as they are, without a rotation."""
    whole = palu("llama", 48, 48)
    cut = truncate(whole, tmp_path / "cut", (32, 32), (32, 32))
    four_bits = {"additional_config": {"palu": {"latent_bits": 4}}, "num_gpu_blocks_override": None}
    with engine(cut, **four_bits) as llm:
        expected, blocks = greedy(llm, REQUESTS, TOKENS), capacity(llm)
    with engine(whole, **asked(0.5, latent_bits=4)) as llm:
        assert (greedy(llm, REQUESTS, TOKENS), capacity(llm)) == (expected, blocks)


def test_packed_latents_of_fewer_ranks_that_are_rotated(palu, tmp_path):
    """The server of the checkpoint that was cut and then rotated on disk, values of one layer whole."""
    whole = palu("qwen3", (48, 32), (64, 48))
    cut = truncate(whole, tmp_path / "cut", (32, 16), (64, 16))
    rotated = rotate(cut, tmp_path / "rotated", lambda rank: [rank], [{"share": 1.0, "bits": 4}])
    with engine(rotated, num_gpu_blocks_override=None, max_logprobs=-1) as llm:
        expected, blocks = answers(llm), capacity(llm)
    with engine(whole, max_logprobs=-1, **asked(0.5, latent_bits=4, hadamard=True)) as llm:
        found = answers(llm)
        assert capacity(llm) == blocks
    assert [tokens for tokens, _ in found] == [tokens for tokens, _ in expected]
    for (_, ours), (_, theirs) in zip(found, expected, strict=True):
        for at, other in zip(ours, theirs, strict=True):
            assert at == pytest.approx(other, abs=1e-3)


@pytest.mark.slow
def test_a_compiled_server_on_two_devices(palu, tmp_path):
    """Latents are left out before groups go to devices."""
    whole = palu("qwen2", 48, 48)
    with engine(whole, **asked(0.5)) as llm:
        expected = greedy(llm, REQUESTS, TOKENS)
    arguments = ("--dtype", "float32", "--max-model-len", "512", "-tp", "2", "--additional-config")
    with server(whole, tmp_path / "log", *arguments, '{"palu": {"rank_ratio": 0.5}}') as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)
        greedily = {"max_tokens": TOKENS, "temperature": 0}
        greedily |= {"extra_body": {"ignore_eos": True, "return_token_ids": True}}
        found = [client.completions.create(model=str(whole), prompt=ids, **greedily) for ids in REQUESTS]
    assert [each.choices[0].token_ids for each in found] == expected
    assert "rank_k 32, rank_v 32 per group" in (tmp_path / "log").read_text()
