"""What the layers of one model may have: formats of their own, or no codec. Memory is what the codec says."""

import pytest
import torch

from palu_vllm.attention_backend.codec.served import dense_bytes_per_token
from palu_vllm.format.codec.file import load_codec, save_codec
from palu_vllm.kernels.choose import codec_attention
from palu_vllm.server.endpoint import describe
from tests.integration.codec.families.test_families import REQUESTS, options
from tests.support.codecs.in_transformers import chosen, with_codec
from tests.support.codecs.models import EIGHT_TO_TWO, random_layer, write_codec
from tests.support.serving import attention_used, engine, greedy

pytestmark = pytest.mark.serving

POOL = 1 << 30  # VLLM_CPU_KVCACHE_SPACE in conftest


@pytest.fixture(scope="module")
def codec(dense, tmp_path_factory):
    """The second layer has another format."""
    out = write_codec(tmp_path_factory.mktemp("codec"), dense(), EIGHT_TO_TWO, ((64, 3),))
    found = load_codec(out)
    other = random_layer(4, 32, 4, ((32, 3),), ((16, 4), (16, 2)), seed=9)
    save_codec(out, type(found)({**found.layers, 1: other}, found.model))
    return out


def test_formats_by_layer_capacity_and_info(dense, codec):
    said = load_codec(codec)
    with engine(dense(), **options(codec), num_gpu_blocks_override=None) as llm:
        answers, config = greedy(llm, REQUESTS, 12), llm.llm_engine.vllm_config
        pages = {name: layer.kv_cache.shape[-1] for name, layer in of_layers(config).items()}
    assert list(pages.values()) == [said.layers[number].slot.bytes for number in range(2)]
    with with_codec(dense(), codec) as model:
        assert answers == [chosen(model, *pair) for pair in zip(REQUESTS, answers, strict=True)]
    info = describe(config)
    assert (info["kind"], info["bytes_per_token"], info["layers"]) == ("codec", said.bytes_per_token, (0, 1))
    assert info["saved_bytes_per_token"] == dense_bytes_per_token(said, "float32") - said.bytes_per_token
    assert config.cache_config.kv_cache_size_tokens * said.bytes_per_token == pytest.approx(POOL, rel=0.02)


def of_layers(config) -> dict[str, torch.nn.Module]:
    return config.compilation_config.static_forward_context


def test_nan_stays_where_nobody_looks(dense, codec):
    """Blocks that were never written, and those of a request that is over, may hold anything."""
    with engine(dense(), **options(codec), enable_prefix_caching=False) as llm:
        expected = greedy(llm, REQUESTS, 12)
        for layer in of_layers(llm.llm_engine.vllm_config).values():
            layer.kv_cache.fill_(0xFF)  # scales that are NaN
        assert greedy(llm, REQUESTS, 12) == expected


def test_layers_that_the_codec_does_not_list_stay_dense(dense, tmp_path):
    codec = write_codec(tmp_path / "codec", dense(), layers=[1])
    with engine(dense(), **options(codec), block_size=32) as llm:
        assert attention_used(llm) == {
            ("CPU_ATTN", "CPUAttentionBackendImpl"),
            ("PALU", codec_attention("cpu").__name__),
        }
        assert len(set(map(tuple, greedy(llm, REQUESTS, 12)))) == len(REQUESTS)
