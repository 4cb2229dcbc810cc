"""LoRA adapters on the projections that a palu model still has; those on the others are refused by name."""

import subprocess
from pathlib import Path

import openai
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from vllm import SamplingParams
from vllm.lora.ops.torch_ops import bgmv_expand
from vllm.lora.request import LoRARequest

from palu_vllm.huggingface import register as transformers_hook
from tests.support.serving import VLLM, engine, outside, prompts, server

pytestmark = pytest.mark.serving

MLP = ["gate_proj", "up_proj", "down_proj"]
TARGETS = {"fused": ["q_proj", *MLP], "factored": ["q_proj", "o_proj", *MLP]}
TOKENS = 12
SERVED = ["--dtype=float32", "--max-model-len=512", "--enforce-eager", "--enable-lora", "--lora-modules"]


@pytest.fixture(scope="module", params=TARGETS)
def path(request):
    return request.param


@pytest.fixture(scope="module")
def model(palu, path):
    return palu("llama", (32, 24), (40, 16), value_path=path)


@pytest.fixture(scope="module")
def adapted(model, path, tmp_path_factory):
    """The model in transformers with two adapters by peft, and their directories."""
    transformers_hook.install()
    torch.manual_seed(1)
    options = peft.LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS[path], init_lora_weights=False)
    adapted = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), options, "first")
    adapted.add_adapter("second", options)
    directory = tmp_path_factory.mktemp("adapters")
    adapted.save_pretrained(directory)
    return adapted, {name: directory / name for name in ("first", "second")}


@pytest.fixture(scope="module")
def served(model):
    with engine(model, attention_backend="palu", enable_lora=True, max_loras=2, max_lora_rank=8) as llm:
        yield llm


@torch.no_grad()
def generated(adapted, ids: list[int]) -> list[int]:
    options = {"max_new_tokens": TOKENS, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    return adapted.generate(torch.tensor([ids]), **options)[0, len(ids) :].tolist()


def test_tokens_are_those_of_peft(served, adapted):
    """Two adapters in one batch, then none, over one prompt that the prefix cache must keep apart; all of it twice."""
    (ids,), (in_peft, directories) = prompts(45), adapted
    expected = []
    for name in directories:
        in_peft.set_adapter(name)
        expected.append(generated(in_peft, ids))
    with in_peft.disable_adapter():
        expected.append(generated(in_peft, ids))
    assert len({tuple(tokens) for tokens in expected}) == 3
    adapters = [LoRARequest(name, number, str(path)) for number, (name, path) in enumerate(directories.items(), 1)]
    params = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True)
    for _ in range(2):
        batches = [
            served.generate([{"prompt_token_ids": ids}] * len(batch), params, lora_request=batch, use_tqdm=False)
            for batch in (adapters, [None])
        ]
        assert [list(answer.outputs[0].token_ids) for batch in batches for answer in batch] == expected


def test_vllm_on_a_cpu_takes_no_adapter_for_the_last_one():
    """Why the server warns: vLLM marks a token without adapter by -1, and indexes with it (vLLM pull request 48421).

    When this fails, vLLM has mended it, and the warning can go.
    """
    adapters = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)])  # [adapter, 1, out, in]
    output = torch.zeros(1, 4)
    bgmv_expand(torch.ones(1, 4), adapters, output, torch.tensor([-1]))
    assert output.ne(0).all()


def renamed(adapter: Path, directory: Path, old: str, new: str) -> str:
    """A copy of an adapter for another module."""
    tensors = load_file(adapter / "adapter_model.safetensors")
    directory.mkdir()
    (directory / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    changed = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    save_file(changed, directory / "adapter_model.safetensors", {"format": "pt"})
    return str(directory)


def test_refused_while_they_are_loaded(served, adapted, path, tmp_path):
    """By the call that --lora-modules and /v1/load_lora_adapter end in; the engine lives on."""
    first = adapted[1]["first"]
    expected = {"k_proj": "low-rank factors", "v_proj": "low-rank factors", "k_down": "may have q_proj"}
    expected |= {"o_proj": "--value-path factored"} if path == "fused" else {}
    for number, (module, sentence) in enumerate(expected.items(), 10):
        other = LoRARequest(module, number, renamed(first, tmp_path / module, "q_proj", module))
        with pytest.raises(ValueError, match=sentence):
            served.llm_engine.add_lora(other)
    assert served.llm_engine.list_loras() <= {1, 2}


only_once = pytest.mark.parametrize("path", ["factored"], indirect=True, scope="module")


@pytest.mark.slow
@only_once
def test_server_does_not_start_with_an_adapter_for_keys(model, adapted, tmp_path):
    keys = renamed(adapted[1]["first"], tmp_path / "keys", "q_proj", "k_proj")
    command = [VLLM, "serve", model, "--port=0", *SERVED, f"keys={keys}"]
    ended = subprocess.run(command, capture_output=True, text=True, env=outside({}))
    assert ended.returncode != 0
    assert "a palu checkpoint holds keys and values as low-rank factors" in ended.stderr + ended.stdout


@pytest.mark.slow
@only_once
def test_server_refuses_an_adapter_for_keys_and_goes_on(model, adapted, tmp_path):
    (ids,), (in_peft, directories) = prompts(20), adapted
    in_peft.set_adapter("first")
    allowed = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
    with server(model, tmp_path / "log", *SERVED, f"first={directories['first']}", **allowed) as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)
        keys = renamed(directories["first"], tmp_path / "keys", "q_proj", "k_proj")
        with pytest.raises(openai.APIStatusError, match="low-rank factors"):
            client.post("/load_lora_adapter", body={"lora_name": "keys", "lora_path": keys}, cast_to=str)
        options = {"temperature": 0.0, "max_tokens": TOKENS}
        options["extra_body"] = {"ignore_eos": True, "return_token_ids": True}
        answer = client.completions.create(model="first", prompt=ids, **options)
    assert answer.choices[0].token_ids == generated(in_peft, ids)
