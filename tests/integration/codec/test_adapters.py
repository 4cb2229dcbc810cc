"""LoRA on every projection, those of keys and values too: what attention sees is stored, whatever made it."""

import peft
import pytest
import torch
from vllm import SamplingParams
from vllm.lora.request import LoRARequest

from tests.integration.codec.families.test_families import options
from tests.support.codecs.in_transformers import chosen, with_codec
from tests.support.codecs.models import write_codec
from tests.support.serving import engine, prompts

pytestmark = pytest.mark.serving

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]


def test_tokens_are_those_of_peft_with_the_codec(dense, tmp_path):
    source, (request,) = dense(), prompts(45)
    # 8 bits: vLLM adds adapters in another order than peft, and a code of 4 bits that flips for it can change a token
    codec = write_codec(tmp_path / "codec", source, ((64, 8),), ((64, 8),))
    wanted = peft.LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS, init_lora_weights=False)
    torch.manual_seed(1)
    with with_codec(source, codec) as model:
        adapted = peft.get_peft_model(model, wanted, "first")
        adapted.save_pretrained(tmp_path)
        adapter = LoRARequest("first", 1, str(tmp_path / "first"))
        params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
        with engine(source, **options(codec), enable_lora=True, max_lora_rank=8) as llm:
            (output,) = llm.generate([{"prompt_token_ids": request}], params, lora_request=adapter, use_tqdm=False)
        answer = list(output.outputs[0].token_ids)
        assert chosen(adapted, request, answer) == answer
        with adapted.disable_adapter():
            assert chosen(adapted, request, answer) != answer, "the adapter changes nothing"
