"""A model with linear attention: the layers that have a cache are coded, the others keep their states."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from offline_compress.codec.options import CalibrateOptions
from offline_compress.codec.pipeline import run
from palu_vllm.format.codec.file import load_codec
from palu_vllm.huggingface import PaluCache
from palu_vllm.kernels.choose import codec_attention
from tests.integration.codec.families.test_families import options
from tests.support.codecs.models import write_codec, write_exact_codec
from tests.support.serving import attention_used, engine, greedy, prompts
from tests.support.tiny_models import build_dense, peaked

pytestmark = pytest.mark.serving

HYBRID = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 128,  # the only one that vLLM's CPU kernel has
    "linear_value_head_dim": 128,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 96,
    "shared_expert_intermediate_size": 96,
    "decoder_sparse_step": 1,
}
CPU = {"dtype": "bfloat16", "block_size": 32, "num_gpu_blocks_override": None}  # as that kernel asks
REQUESTS = prompts(5, 33, 300)


@torch.no_grad()
def loud(model: PreTrainedModel) -> None:
    """Attention says as much as the rest of the model: else nobody sees what becomes of its keys and values."""
    peaked(model)
    model.model.layers[1].self_attn.o_proj.weight.mul_(32)


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory):
    return build_dense(tmp_path_factory.mktemp("hybrid"), "qwen3_next", randomise=loud, **HYBRID)


def served(model, **asked) -> tuple[list[list[int]], int, set[str]]:
    """Greedy tokens, the tokens of a block, and what attends."""
    with engine(model, **CPU, **asked) as llm:
        block = llm.llm_engine.vllm_config.cache_config.block_size
        return greedy(llm, REQUESTS, 16), block, {name for _, name in attention_used(llm)}


@pytest.fixture(scope="module")
def plain(hybrid):
    return served(hybrid)


def test_a_block_holds_as_many_more_tokens_as_they_have_fewer_bytes(hybrid, plain, tmp_path):
    """Its page is as large as a state of linear attention, whatever it holds."""
    codec = write_codec(tmp_path, hybrid, layers=[1], tiers_k=((64, 2),), tiers_v=((64, 2),))
    tokens, block, attention = served(hybrid, **options(codec))
    dense_bytes = 2 * 4 * 32 * 2  # K and V of 4 heads of 32 numbers in bfloat16
    assert block * load_codec(codec).bytes_per_token == pytest.approx(plain[1] * dense_bytes, rel=0.1)
    assert attention == {codec_attention("cpu").__name__}
    assert tokens != plain[0], "nobody reads what was rounded to 2 bits"


def test_as_good_as_no_codec_gives_the_tokens_without_one(hybrid, plain, tmp_path):
    assert served(hybrid, **options(write_exact_codec(tmp_path, hybrid, layers=[1])))[0] == plain[0]


def test_calibration_finds_the_layers_that_have_a_cache(hybrid, tmp_path):
    made = CalibrateOptions(
        model=str(hybrid), out=tmp_path / "codec", no_data=True, samples=3, held_out=1, seqlen=48, context=64
    )
    run(made, lambda event: None)
    assert set(load_codec(tmp_path / "codec").layers) == {1}
    assert served(hybrid, **options(tmp_path / "codec"))[2] == {codec_attention("cpu").__name__}


def test_the_cache_of_transformers_keeps_states_too(hybrid, tmp_path):
    """Given the model's configuration, from which transformers makes a cache of both kinds."""
    exact = write_exact_codec(tmp_path / "16", hybrid, layers=[1])
    coarse = write_codec(tmp_path / "2", hybrid, layers=[1], tiers_k=((64, 2),), tiers_v=((64, 2),))
    model = AutoModelForCausalLM.from_pretrained(hybrid, dtype=torch.float32).eval()
    prompt = torch.tensor(REQUESTS[1:2])

    def scores(codec: Path | None) -> torch.Tensor:
        """Of greedy tokens, ``[tokens, vocabulary]``."""
        cache = None if codec is None else PaluCache.from_pretrained(codec, model.config)
        asked = {"do_sample": False, "max_new_tokens": 16, "output_logits": True, "return_dict_in_generate": True}
        return torch.cat(model.generate(prompt, past_key_values=cache, **asked).logits)

    dense = scores(None)
    assert len(dense) == 16
    near, far = ((scores(codec) - dense).abs().max() for codec in (exact, coarse))
    assert near < 1e-4 and far > 10 * near, "nobody reads what was rounded to 2 bits"
