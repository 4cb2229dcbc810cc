"""What is stored depends on the tokens before alone, so it does not matter how a request was scheduled, at 4 bits."""

import pytest

from palu_vllm.kernels.choose import codec_attention
from tests.integration.codec.families.test_families import options
from tests.integration.serving.test_speculation import ngram
from tests.support.codecs.models import write_codec, write_exact_codec
from tests.support.processes.engine import ask
from tests.support.serving import engine, greedy, outputs, prompts

pytestmark = pytest.mark.serving

REQUESTS = prompts(130, 5, 40, 130)
TOKENS = 24


@pytest.fixture(scope="module")
def asked(dense, tmp_path_factory):
    """Joint groups, so that a slot is shared by heads; layers differ in everything but their formats."""
    return options(write_codec(tmp_path_factory.mktemp("codec"), dense()))


@pytest.fixture(scope="module")
def cold(dense, asked):
    with engine(dense(), **asked, enable_prefix_caching=False) as llm:
        return [greedy(llm, [request], TOKENS)[0] for request in REQUESTS]


def test_batched_then_from_the_prefix_cache(dense, asked, cold, batches):
    with engine(dense(), **asked, max_num_batched_tokens=512) as llm:
        strangers = prompts(7, 90, 33, 61, salt=5)
        mixed = [request for pair in zip(strangers, REQUESTS, strict=True) for request in pair]
        assert greedy(llm, mixed, TOKENS)[1::2] == cold
        assert max(len(batch) for batch in batches) == len(mixed)
        again = outputs(llm, REQUESTS, TOKENS)
    assert [output.num_cached_tokens for output in again] == [len(request) // 16 * 16 for request in REQUESTS]
    assert [output.outputs[0].token_ids for output in again] == cold


def test_chunked_and_preempted(dense, asked, cold, batches):
    few = {"num_gpu_blocks_override": 24, "max_model_len": 256, "enable_prefix_caching": False}
    with engine(dense(), **asked, **few, max_num_batched_tokens=48) as llm:
        assert greedy(llm, REQUESTS, TOKENS) == cold
    rows = [row for batch in batches for row in batch]
    assert any(row.is_continuation for row in rows) and max(row.query_len for row in rows) <= 48
    firsts = [row for row in rows if row.query_len == row.seq_len]
    assert len(firsts) > len(REQUESTS), "no request began again, so nothing was preempted"


@pytest.mark.slow
def test_drafted(dense, asked):
    """Prompts that repeat themselves are guessed from themselves."""
    repeating, tokens = [prompts(11)[0] * 6, prompts(7)[0] * 20], 96
    with engine(dense(), **asked) as llm:
        expected = greedy(llm, repeating, tokens)
    drafted = ask(dense(), repeating, tokens, asked | ngram(3))
    assert drafted.attention == [["PALU", codec_attention("cpu").__name__]]
    assert drafted.tokens == drafted.tokens_again == expected
    assert drafted.accepted_drafts > 0


def test_16_bits_in_an_orthogonal_basis_are_the_dense_model(dense, tmp_path):
    with engine(dense(), block_size=32) as llm:
        expected = greedy(llm, REQUESTS, TOKENS)
    with engine(dense(), **options(write_exact_codec(tmp_path / "codec", dense()))) as llm:
        assert greedy(llm, REQUESTS, TOKENS) == expected
