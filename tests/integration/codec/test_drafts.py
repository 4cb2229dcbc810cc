"""Drafts of a second model and of an EAGLE head change no token of a coded cache, whoever proposes them."""

import pytest

from palu_vllm.kernels.choose import codec_attention
from tests.integration.codec.test_families import options
from tests.support.codecs.models import write_codec
from tests.support.eagle import build_eagle, build_eagle3
from tests.support.processes.engine import ask
from tests.support.serving import engine, greedy, prompts

pytestmark = [pytest.mark.serving, pytest.mark.slow]

BLOCK, TOKENS = 32, 40
REQUESTS = prompts(130, 5, 40, 64)


@pytest.fixture(scope="module")
def asked(dense, tmp_path_factory):
    codec = write_codec(tmp_path_factory.mktemp("codec"), dense())
    return options(codec) | {"block_size": BLOCK, "max_num_batched_tokens": 96}  # so that prompts come in chunks


@pytest.fixture(scope="module")
def plain(dense, asked):
    with engine(dense(), **asked) as llm:
        return greedy(llm, REQUESTS, TOKENS)


def drafted(model, asked, method, drafter, count=3):
    told = {"method": method, "model": str(drafter), "num_speculative_tokens": count}
    return ask(model, REQUESTS, TOKENS, asked | {"speculative_config": told})


def verified(found) -> bool:
    """Whether the token before them and all drafts were decoded at once."""
    return any(queries == 4 and context > queries for queries, context in found.rows)


@pytest.mark.parametrize("seed", [0, 1], ids=["itself", "a stranger"])
def test_a_draft_model(dense, asked, plain, seed):
    """The model itself, without a codec, guesses well; a stranger's guesses are turned down."""
    found = drafted(dense(), asked, "draft_model", dense(seed=seed))
    assert ["PALU", codec_attention("cpu").__name__] in found.attention
    assert found.tokens == found.tokens_again == plain and verified(found)
    assert (found.accepted_drafts > TOKENS) == (seed == 0)


@pytest.mark.parametrize(("method", "build"), [("eagle", build_eagle), ("eagle3", build_eagle3)])
def test_an_eagle_head(dense, asked, plain, tmp_path, method, build):
    found = drafted(dense(), asked, method, build(tmp_path / "head", dense()))
    assert found.tokens == found.tokens_again == plain and verified(found)
