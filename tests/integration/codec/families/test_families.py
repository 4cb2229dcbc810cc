"""Models as they are, with a codec in vLLM's own classes: greedy tokens are those of transformers with that codec.

In float32. Both run the model's own network; keys and values are coded after norm and RoPE in both. With the
specification in the server every token is equal; with the C++ library, one of a case may be the other one of a tie.
"""

from pathlib import Path

import pytest
import torch

from tests.support.codecs.in_transformers import behind, with_codec
from tests.support.codecs.models import EIGHT_TO_TWO, write_codec
from tests.support.serving import attention_used, engine, greedy, prompts
from tests.support.tiny_models import edit_config

pytestmark = pytest.mark.serving

REQUESTS = prompts(5, 33, 130)
TIE = 0.01  # of logits whose deviation is 1.5: C++ rounds queries and weights to 16 bits
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0, "max_trained_positions": 512}
# vLLM turns every position as transformers does those of a text as long as the context, twice what was trained
AT_THE_END = {"rope_type": "default", "rope_theta": 10000.0 * 3.0 ** (32 / 30)}
LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0 + each / 8 for each in range(16)],
            "long_factor": [1.5 + each for each in range(16)], "original_max_position_embeddings": 4}  # fmt: skip
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
MANY_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 96, "decoder_sparse_step": 1}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 256,
        "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}  # fmt: skip
SLIDING = {"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"]}
CASES = {  # family, its options, the class that vLLM serves, groups
    "llama": ("llama", {}, "LlamaForCausalLM", 2),
    "qwen2 with biases": ("qwen2", {}, "Qwen2ForCausalLM", 4),
    "qwen3 with norms": ("qwen3", {}, "Qwen3ForCausalLM", 2),
    "mistral with its window": ("mistral", {"sliding_window": 24}, "MistralForCausalLM", 1),
    "gemma3 with sliding and full layers": (
        "gemma3_text",
        SLIDING | {"query_pre_attn_scalar": 32, "num_key_value_heads": 1},
        "Gemma3ForCausalLM",
        1,
    ),
    "phi3 turned in part": (
        "phi3",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
        "Phi3ForCausalLM",
        4,
    ),
    "phi3 with longrope": ("phi3", {"rope_parameters": LONGROPE}, "Phi3ForCausalLM", 2),
    "llama with dynamic rope": ("llama", {"rope_parameters": DYNAMIC}, "LlamaForCausalLM", 2),
    "mixture of experts": ("mixtral", EXPERTS, "MixtralForCausalLM", 2),
    "qwen3 of experts with norms": ("qwen3_moe", MANY_EXPERTS, "Qwen3MoeForCausalLM", 2),
    "gpt-oss with sinks in the softmax": (
        "gpt_oss",
        SLIDING | {"num_local_experts": 4, "num_experts_per_tok": 2, "rope_parameters": YARN},
        "GptOssForCausalLM",
        2,
    ),
}
FAST = ("llama", "gemma3 with sliding and full layers", "phi3 with longrope")


def options(codec: Path, **settings: object) -> dict:
    return {"attention_backend": "palu", "additional_config": {"palu": {"codec": str(codec), **settings}}}


def model_class(llm) -> str:
    return llm.apply_model(lambda model: type(model).__name__)[0]


def in_transformers(source: Path, work: Path) -> Path:
    """The model as transformers must read it to compute what vLLM computes."""
    if '"dynamic"' not in (source / "config.json").read_text():
        return source
    work.mkdir()
    for file in source.iterdir():
        (work / file.name).write_bytes(file.read_bytes())
    return edit_config(work, rope_parameters=AT_THE_END)


def answered(case: str, dense, work: Path) -> tuple[list[list[int]], torch.Tensor]:
    """Greedy tokens of a server, and how far each is behind the largest logit of transformers; 0 where it is that."""
    family, overrides, served_class, groups = CASES[case]
    source = dense(family, **overrides)
    tiers = {"tiers_k": EIGHT_TO_TWO, "tiers_v": EIGHT_TO_TWO} if case == "llama" else {}
    codec = write_codec(work / "codec", source, groups=groups, **tiers)
    with engine(source, **options(codec)) as llm:
        assert model_class(llm) == served_class
        assert {name for name, _ in attention_used(llm)} == {"PALU"}
        answers = greedy(llm, REQUESTS, 12)
    with with_codec(in_transformers(source, work / "same"), codec) as model:
        return answers, torch.cat([behind(model, *pair) for pair in zip(REQUESTS, answers, strict=True)])


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_tokens_of_the_specification_are_those_of_transformers(case, dense, tmp_path, monkeypatch):
    monkeypatch.setenv("PALU_KERNELS", "torch")
    _, gaps = answered(case, dense, tmp_path)
    assert (gaps == 0).all()


@pytest.mark.parametrize("case", [pytest.param(case, marks=[] if case in FAST else pytest.mark.slow) for case in CASES])
def test_tokens_are_those_of_transformers_with_the_codec(case, dense, tmp_path):
    answers, gaps = answered(case, dense, tmp_path)
    assert gaps.max() < TIE and (gaps > 0).sum() <= 1, "a token is another, and not by a tie"
    assert min(len(set(tokens)) for tokens in answers) > 4, "degenerate tokens prove nothing"
