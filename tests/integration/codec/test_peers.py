"""One server computes prompts and another decodes behind them: NIXL moves blocks of codes between real servers."""

import pytest
from openai import APIError

from benchmarks.serving.peers import TRANSFER, pair
from palu_vllm.format.codec.file import load_codec
from tests.integration.codec.families.test_families import CASES, options
from tests.integration.serving.test_offloading import files, several
from tests.support.codecs.models import write_codec
from tests.support.serving import engine, greedy, prompts

pytest.importorskip("nixl", reason="the extra `disaggregated` is not installed")
pytestmark = [pytest.mark.serving, pytest.mark.slow]

BLOCK, TOKENS = 32, 12
REQUESTS = prompts(129, 200, 65)
FLAGS = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "512", "--block-size", str(BLOCK)]


def flags(codec) -> list[str]:
    return [*FLAGS, "--attention-backend", "palu", "--additional-config", f'{{"palu": {{"codec": "{codec}"}}}}']


@pytest.fixture(scope="module")
def codecs(dense, tmp_path_factory):
    base = tmp_path_factory.mktemp("codecs")
    return [write_codec(base / str(seed), dense(), seed=seed) for seed in range(2)]


def test_tokens_are_those_of_one_server(dense, codecs):
    """Every block of every prompt moves."""
    assert moved(dense(), codecs[0]) == whole_bytes(codecs[0])


def test_sliding_and_full_layers(dense, tmp_path):
    family, overrides, _, groups = CASES["gemma3 with sliding and full layers"]
    model = dense(family, **overrides)
    codec = write_codec(tmp_path / "codec", model, groups=groups)
    assert 0 < moved(model, codec) < whole_bytes(codec), "of sliding layers only the window moves"


def test_files_beside_what_moves(dense, codecs, tmp_path):
    """``MultiConnector`` with NIXL and files: both servers write what they computed or read, in the codec's folder."""
    assert moved(dense(), codecs[0], several(TRANSFER, files(tmp_path))) == whole_bytes(codecs[0])
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith("palu-") and len(list(folder.iterdir())) == len(REQUESTS)


def moved(model, codec, transfer=TRANSFER) -> int:
    """Bytes, once two servers have given the tokens of one."""
    with engine(model, **options(codec), block_size=BLOCK) as llm:
        expected = greedy(llm, REQUESTS, TOKENS)
    with pair(model, [flags(codec)] * 2, transfer=transfer) as servers:
        assert [servers.ask(request, TOKENS).tokens for request in REQUESTS] == expected
        return servers.bytes_moved()


def whole_bytes(codec) -> int:
    return sum(-(-len(request) // BLOCK) for request in REQUESTS) * BLOCK * load_codec(codec).bytes_per_token


def test_a_server_with_another_codec_reads_nothing(dense, codecs):
    with pair(dense(), [flags(codec) for codec in codecs]) as servers:
        with pytest.raises(APIError):
            servers.ask(REQUESTS[0], TOKENS)
        assert servers.bytes_moved() == 0
        assert "compatibility hash mismatch" in servers.decode.log.read_text()
