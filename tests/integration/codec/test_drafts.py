"""Drafts of a second model, of heads and of a prediction layer change no token of a coded cache."""

import pytest

from palu_vllm.kernels.choose import codec_attention
from tests.integration.codec.families.test_families import options
from tests.support.codecs.models import write_codec
from tests.support.draft_heads import build_eagle, build_eagle3, build_medusa, with_prediction_layer
from tests.support.processes.engine import ask
from tests.support.serving import engine, greedy, prompts

pytestmark = [pytest.mark.serving, pytest.mark.slow]

BLOCK, TOKENS = 32, 40
REQUESTS = prompts(130, 5, 40, 64)
ERNIE = {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 96, "moe_num_shared_experts": 1}


def coded(model, directory):
    """Options of a server of ``model`` and a codec, with prompts in chunks."""
    return options(write_codec(directory, model)) | {"block_size": BLOCK, "max_num_batched_tokens": 96}


@pytest.fixture(scope="module")
def asked(dense, tmp_path_factory):
    return coded(dense(), tmp_path_factory.mktemp("codec"))


@pytest.fixture(scope="module")
def plain(dense, asked):
    with engine(dense(), **asked) as llm:
        return greedy(llm, REQUESTS, TOKENS)


def drafted(model, asked, method, drafter, count=3):
    told = {"method": method, "model": str(drafter), "num_speculative_tokens": count}
    return ask(model, REQUESTS, TOKENS, asked | {"speculative_config": told})


def verified(found, count=3) -> bool:
    """Whether the token before them and all drafts were decoded at once."""
    return any(queries == count + 1 and context > queries for queries, context in found.rows)


@pytest.mark.parametrize("seed", [0, 1], ids=["itself", "a stranger"])
def test_a_draft_model(dense, asked, plain, seed):
    """The model itself, without a codec, guesses well; a stranger's guesses are turned down."""
    found = drafted(dense(), asked, "draft_model", dense(seed=seed))
    assert ["PALU", codec_attention("cpu").__name__] in found.attention
    assert found.tokens == found.tokens_again == plain and verified(found)
    assert (found.accepted_drafts > TOKENS) == (seed == 0)


HEADS = {"eagle": build_eagle, "eagle3": build_eagle3, "medusa": build_medusa}


@pytest.mark.parametrize("method", HEADS)
def test_heads(dense, asked, plain, tmp_path, method):
    found = drafted(dense(), asked, method, HEADS[method](tmp_path / "head", dense()))
    assert found.tokens == found.tokens_again == plain and verified(found)


def test_a_prediction_layer(dense, tmp_path):
    """The model's own checkpoint has it, behind the layers that are coded; it drafts one token."""
    model = with_prediction_layer(tmp_path / "model", dense("ernie4_5_moe", **ERNIE))
    asked = coded(model, tmp_path / "codec")
    with engine(model, **asked) as llm:
        plain = greedy(llm, REQUESTS, TOKENS)
    found = drafted(model, asked, "mtp", model, 1)
    assert ["PALU", codec_attention("cpu").__name__] in found.attention
    assert found.tokens == found.tokens_again == plain and verified(found, 1)
