"""A codec of the original weights serves copies with linear layers in 4 bits: compressed-tensors, AWQ and GPTQ."""

import pytest
import torch
from compressed_tensors.quantization import disable_quantization
from vllm import SamplingParams

from tests.integration.checkpoints.test_quantized_weights import PROMPTS, quantized
from tests.integration.codec.families.test_families import model_class, options
from tests.support.codecs.in_transformers import with_codec
from tests.support.codecs.models import write_codec, write_exact_codec
from tests.support.quantized import CONFIGS, quantized_copies
from tests.support.serving import engine

pytestmark = [pytest.mark.serving, pytest.mark.slow]

NEAR = 0.03  # of log probabilities in float16; quantized weights change them by more than three times as much


@torch.no_grad()
def in_transformers(directory, codec) -> torch.Tensor:
    """Log probabilities ``[prompts, tokens - 1, vocabulary]`` by dequantized weights."""
    with with_codec(directory, codec) as model:
        model.apply(disable_quantization)
        return model(torch.tensor(PROMPTS), use_cache=False).logits[:, :-1].log_softmax(-1)


def in_vllm(directory, codec) -> torch.Tensor:
    with engine(directory, **options(codec, codec_digest="ignore"), dtype="float16", max_logprobs=512) as llm:
        assert model_class(llm) == "LlamaForCausalLM"
        params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=512)
        answers = llm.generate([{"prompt_token_ids": ids} for ids in PROMPTS], params, use_tqdm=False)
    rows = [[[row[token].logprob for token in range(512)] for row in a.prompt_logprobs[1:]] for a in answers]
    return torch.tensor(rows)


in_four_bits = pytest.mark.skipif(
    "AVX512" not in torch.backends.cpu.get_cpu_capability(), reason="without AVX-512 vLLM has no 4-bit product"
)


@in_four_bits
def test_served_like_dequantized_weights(dense, tmp_path):
    """With a codec as good as none, which hides nothing that float16 rounds differently."""
    codec = write_exact_codec(tmp_path / "codec", dense())
    out = quantized(dense(), tmp_path / "quantized", "W4A16", [])
    expected, plain = in_transformers(out, codec), in_transformers(dense(), codec)
    assert (plain - expected).abs().amax((1, 2)).min() > 3 * NEAR, "quantization would not be seen"
    assert (in_vllm(out, codec) - expected).abs().amax((1, 2)).median() < NEAR


@in_four_bits
def test_coded_as_well_as_what_whole_weights_make(dense, tmp_path):
    """In codes of 8 bits, where float16 makes other codes of some numbers, whatever the weights are."""
    codec = write_codec(tmp_path / "codec", dense(), ((64, 8),), ((64, 8),))
    out = quantized(dense(), tmp_path / "quantized", "W4A16", [])
    errors = [
        (in_vllm(each, codec) - in_transformers(each, codec)).abs().amax((1, 2)).median() for each in (dense(), out)
    ]
    assert errors[0] > NEAR, "codes of 16 bits would be as good"
    assert errors[1] < 1.5 * errors[0]


@in_four_bits
@pytest.mark.parametrize("layout", CONFIGS)
def test_layouts_of_other_tools(dense, tmp_path, layout):
    """Each beside a checkpoint of float32 with the weights that it means."""
    codec = write_exact_codec(tmp_path / "codec", dense())
    small, same = quantized_copies(dense(), tmp_path, layout)
    expected, plain = in_transformers(same, codec), in_transformers(dense(), codec)
    assert (plain - expected).abs().amax((1, 2)).min() > 3 * NEAR, "quantization would not be seen"
    assert (in_vllm(small, codec) - expected).abs().amax((1, 2)).median() < NEAR
