"""Decoding is captured where a server asks for it, as far as every layer allows."""

from types import SimpleNamespace

import pytest
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.attention.backend import AttentionCGSupport

from palu_vllm.attention_backend.codec.metadata import CodecMetadataBuilder
from palu_vllm.attention_backend.graphs import decoding_support
from palu_vllm.attention_backend.metadata import PaluMetadataBuilder

GRAPHS = {"palu": {"cuda_graphs": True}}


@pytest.fixture
def config_of(dense):
    """A server of layers that capture so many queries of a request, beside a dense one that nobody asks."""

    def made(*most, drafts=0, additional=GRAPHS):
        told = {"method": "ngram", "num_speculative_tokens": drafts, "prompt_lookup_max": 3} if drafts else None
        options = {"additional_config": additional, "speculative_config": told}
        config = EngineArgs(str(dense()), dtype="float32", **options).create_engine_config()
        layers = {str(number): layer(queries) for number, queries in enumerate(most)}
        layers |= {"dense": SimpleNamespace(impl=SimpleNamespace()), "an expert": SimpleNamespace()}
        config.compilation_config.static_forward_context = layers
        return config

    return made


def layer(most: int) -> SimpleNamespace:
    return SimpleNamespace(impl=SimpleNamespace(attention=SimpleNamespace(captures=lambda queries: queries <= most)))


def test_nobody_asked(config_of):
    assert decoding_support(config_of(8, additional={})) is AttentionCGSupport.NEVER
    assert decoding_support(config_of(8, additional={"palu": {}})) is AttentionCGSupport.NEVER


@pytest.mark.parametrize(
    ("most", "drafts", "expected"),
    [
        ([1, 1], 0, "UNIFORM_BATCH"),
        ([8, 4], 3, "UNIFORM_BATCH"),
        ([8, 4], 4, "UNIFORM_SINGLE_TOKEN_DECODE"),
        ([8, 0], 0, "NEVER"),
    ],
)
def test_the_layer_that_allows_least_decides(config_of, most, drafts, expected):
    """Of batches of a token and its drafts."""
    assert decoding_support(config_of(*most, drafts=drafts)) is AttentionCGSupport[expected]


@pytest.mark.parametrize("builder", [PaluMetadataBuilder, CodecMetadataBuilder])
def test_vllm_asks_the_builder(config_of, builder):
    assert builder.get_cudagraph_support(config_of(1), None) is AttentionCGSupport.UNIFORM_BATCH
