"""Linear layers quantized by compressed-tensors after palu-compress; latents stay numbers.

The steps are those of docs/guide/deployment.md.
"""

import shutil
from pathlib import Path

import pytest
import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import (
    QuantizationConfig,
    QuantizationStatus,
    apply_quantization_config,
    disable_quantization,
    preset_name_to_scheme,
)
from compressed_tensors.quantization.utils import calculate_qparams
from transformers import AutoModelForCausalLM
from vllm import SamplingParams

from palu_vllm.format.checkpoint import tensor_shapes
from palu_vllm.huggingface import register as transformers_hook
from tests.support.serving import engine, prompts

pytestmark = pytest.mark.serving

FACTORS = ["re:.*k_down", "re:.*v_down"]
PROMPTS = prompts(*[8] * 7)


def quantized(model: Path, out: Path, name: str, ignore: list[str], **changes: object) -> Path:
    """The route of the documentation: ranges of weights, ``compress_model``, ``update_config``."""
    transformers_hook.install()
    dense = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    scheme = preset_name_to_scheme(name, ["Linear"])
    if scheme.weights.group_size:
        scheme.weights.group_size = 32  # 128 does not divide the widths of tiny models
    config = QuantizationConfig(config_groups={"all": scheme}, ignore=["lm_head", *ignore], **changes)
    apply_quantization_config(dense, config)
    for linear in dense.modules():
        if hasattr(linear, "quantization_scheme"):
            groups = linear.weight.detach().unflatten(1, (-1, scheme.weights.group_size or linear.weight.shape[1]))
            scale, _ = calculate_qparams(groups.amin(-1), groups.amax(-1), scheme.weights)
            linear.weight_scale.data.copy_(scale)
            linear.quantization_status = QuantizationStatus.FROZEN
    compressor = ModelCompressor.from_pretrained_model(dense)
    compressor.compress_model(dense)
    dense.save_pretrained(out)
    compressor.update_config(out)
    for file in model.glob("*token*"):
        shutil.copy(file, out)
    return out


@pytest.fixture(scope="module")
def model(palu):
    return palu("llama", (32, 24), (40, 16))


def rounded_input(linear: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    """What dynamic quantization of activations does: each token to 8 bits of its own range."""
    scale = inputs[0].abs().amax(-1, keepdim=True) / 127
    return ((inputs[0] / scale).round() * scale,)


@torch.no_grad()
def in_transformers(directory: Path) -> torch.Tensor:
    """Log probabilities ``[prompts, tokens - 1, vocabulary]``, weights dequantized, inputs rounded where they are."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    model.apply(disable_quantization)
    for linear in model.modules():
        scheme = getattr(linear, "quantization_scheme", None)
        if scheme is not None and scheme.input_activations is not None:
            linear.register_forward_pre_hook(rounded_input)
    return model(torch.tensor(PROMPTS)).logits[:, :-1].log_softmax(-1)


def in_vllm(directory: Path, dtype: str) -> torch.Tensor:
    options = {"attention_backend": "palu", "dtype": dtype, "max_logprobs": 512}
    with engine(directory, **options) as llm:
        params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=512)
        answers = llm.generate([{"prompt_token_ids": ids} for ids in PROMPTS], params, use_tqdm=False)
    rows = [[[row[token].logprob for token in range(512)] for row in a.prompt_logprobs[1:]] for a in answers]
    return torch.tensor(rows)


# vLLM's 4-bit kernel for CPUs takes no float32
@pytest.mark.skipif(
    "AVX512" not in torch.backends.cpu.get_cpu_capability(),
    reason="without AVX-512 vLLM has no 4-bit product, and its 8-bit product is wrong, for dense models too",
)
@pytest.mark.parametrize(("name", "dtype", "near"), [("W8A8", "float32", 1e-3), ("W4A16", "float16", 0.03)])
def test_served_like_dequantized_weights(model, tmp_path, name, dtype, near):
    """Of most prompts: an input that lies between two codes may be rounded the other way, and so change all behind."""
    out = quantized(model, tmp_path / name, name, FACTORS)
    shapes = tensor_shapes(out / "model.safetensors")
    assert any(name.endswith("down_proj.weight_scale") for name in shapes)
    assert not any("_down.weight_" in name or "_up.weight_" in name for name in shapes)
    expected, plain = in_transformers(out), in_transformers(model)
    assert (plain - expected).abs().amax((1, 2)).min() > 3 * near, "quantization would not be seen"
    assert (in_vllm(out, dtype) - expected).abs().amax((1, 2)).median() < near
