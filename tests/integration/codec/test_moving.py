"""Blocks of codes leave the cache and come back as bytes: from host memory, and from files that another server wrote.

Copies to host memory are torch's in the place of CUDA's, as in ``test_offloading``.
"""

import pytest

from palu_vllm.format.checkpoint import tensor_shapes
from palu_vllm.format.codec.file import load_codec
from tests.integration.codec.families.test_families import CASES, options
from tests.integration.serving.test_offloading import (
    BLOCK,
    HOST_BYTES,
    OFFLOADING,
    connected,
    copies,
    evicted_and_asked_again,
    files,
    several,
)
from tests.support.codecs.models import write_codec
from tests.support.serving import outputs, prompts

__all__ = ["copies"]  # a fixture
pytestmark = pytest.mark.serving


@pytest.fixture(scope="module")
def gemma(dense, tmp_path_factory):
    """A model with sliding and full layers, and a codec of it."""
    family, overrides, _, groups = CASES["gemma3 with sliding and full layers"]
    model = dense(family, **overrides)
    return model, write_codec(tmp_path_factory.mktemp("codec"), model, groups=groups)


@pytest.fixture(scope="module")
def codecs(dense, tmp_path_factory):
    """Two of one model, with the same formats."""
    base = tmp_path_factory.mktemp("codecs")
    return [write_codec(base / str(seed), dense(), seed=seed) for seed in range(2)]


def test_blocks_come_back_from_host_memory(dense, codecs, copies):
    model, asked, requests = dense(), options(codecs[0]), prompts(200, 220, 210)
    with connected(model, **asked) as llm:
        expected, cached = evicted_and_asked_again(llm, requests)
        assert cached < 200 // BLOCK * BLOCK, "the first request was still in the cache"
    with connected(model, **asked, kv_transfer_config=OFFLOADING | HOST_BYTES) as llm:
        assert evicted_and_asked_again(llm, requests) == (expected, 200 // BLOCK * BLOCK)
    (codes,) = copies
    assert codes.loaded and codes.stored >= 18
    assert codes.bytes_per_block == BLOCK * load_codec(codecs[0]).bytes_per_token


def test_another_server_reads_the_files(dense, codecs, tmp_path):
    """Of the same model and codec only: one with another codec, of the same formats, finds nothing."""
    one, other = codecs
    (request,), answers = prompts(200), []
    for codec in (one, one, other):
        with connected(dense(), **options(codec), kv_transfer_config=files(tmp_path)) as llm:
            answers += outputs(llm, [request], 8)
    computed, read, others = (list(answer.outputs[0].token_ids) for answer in answers)
    assert computed == read != others
    assert [answer.num_cached_tokens for answer in answers] == [0, 192, 0]
    assert len(list(tmp_path.iterdir())) == 2
    for layer, codec in load_codec(one).layers.items():
        written = [*tmp_path.glob(f"*/*/model.layers.{layer}.self_attn.attn.safetensors")]
        assert len(written) == 2
        for file in written:
            assert tensor_shapes(file) == {"kv_cache": (192, codec.num_groups, codec.slot.bytes)}


def test_memory_and_files_at_once(dense, codecs, copies, tmp_path):
    """A block that has left the cache comes back from memory; another server finds it in files."""
    parts = [OFFLOADING | HOST_BYTES, files(tmp_path)]
    asked = options(codecs[0]) | {"kv_transfer_config": several(*parts)}
    requests = prompts(200, 220, 210)
    with connected(dense(), **options(codecs[0])) as llm:
        expected, _ = evicted_and_asked_again(llm, requests)
    with connected(dense(), **asked) as llm:
        assert evicted_and_asked_again(llm, requests) == (expected, 200 // BLOCK * BLOCK)
    assert copies[0].loaded
    with connected(dense(), **asked) as llm:
        (read,) = outputs(llm, requests[:1], 8)
    assert (list(read.outputs[0].token_ids), read.num_cached_tokens) == (expected[0], 192)
    assert not copies[1].loaded
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith("palu-"), "blocks of one codec"


def test_files_of_sliding_and_full_layers(gemma, tmp_path):
    model, codec = gemma
    (request,), answers = prompts(200), []
    for _ in range(2):
        with connected(model, **options(codec), kv_transfer_config=files(tmp_path)) as llm:
            answers += outputs(llm, [request], 8)
    assert answers[0].outputs[0].token_ids == answers[1].outputs[0].token_ids
    assert [answer.num_cached_tokens for answer in answers] == [0, 192]


def test_sliding_and_full_layers_come_back_from_host_memory(gemma, copies):
    model, codec = gemma
    asked, requests = options(codec) | {"num_gpu_blocks_override": 18}, prompts(200, 220, 210)  # two groups of layers
    with connected(model, **asked) as llm:
        expected, _ = evicted_and_asked_again(llm, requests)
    with connected(model, **asked, kv_transfer_config=OFFLOADING | HOST_BYTES) as llm:
        tokens, cached = evicted_and_asked_again(llm, requests)
    assert tokens == expected and cached > 0 and copies[0].loaded
