"""Each pairing that cannot work ends while vLLM builds its configuration, in one sentence that says what to do."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file
from vllm.engine.arg_utils import EngineArgs

from palu_vllm.kernels.gpu.launch import DECODE_QUERIES
from palu_vllm.startup.refusals import MAX_DRAFTS, StartError


def refusal(model, **options) -> str:
    with pytest.raises(StartError) as refused:
        EngineArgs(str(model), dtype="float32", **options).create_engine_config()
    sentence = str(refused.value)
    assert "\n" not in sentence and sentence.endswith(".")
    return sentence


def test_dense_model_with_palu(dense):
    sentence = refusal(dense(), attention_backend="palu")
    assert f"{dense()} is not a palu checkpoint" in sentence and "palu-compress" in sentence


def test_dense_model_without_palu_is_left_alone(dense):
    assert EngineArgs(str(dense()), dtype="float32").create_engine_config().attention_config.backend is None


@pytest.mark.parametrize("options", [{}, {"attention_backend": "palu"}, {"attention_backend": "PALU"}])
def test_palu_model_with_or_without_the_flag(palu, options):
    EngineArgs(str(palu()), dtype="float32", **options).create_engine_config()


REFUSED = {
    "another backend": ({"attention_backend": "cpu_attn"}, "only --attention-backend palu serves"),
    "cache dtype": ({"kv_cache_dtype": "fp8"}, "--kv-cache-dtype fp8 is not supported"),
    "quantization": ({"quantization": "fp8"}, "leave --quantization out"),
    "long drafts": (
        {"speculative_config": {"method": "ngram", "num_speculative_tokens": 8, "prompt_lookup_max": 3}},
        "set num_speculative_tokens to 7 or less",
    ),
    "ngram drafts on the GPU": (
        {"speculative_config": {"method": "ngram_gpu", "num_speculative_tokens": 2, "prompt_lookup_max": 3}},
        "speculative decoding by ngram_gpu is not proven for palu models; use the method ngram",
    ),
    "connector": (
        {"kv_transfer_config": {"kv_connector": "NixlConnector", "kv_role": "kv_both"}},
        "leave --kv-transfer-config out",
    ),
    "classifier": ({"runner": "pooling", "convert": "classify"}, "leave --convert classify out"),
    "context parallel prefill": ({"prefill_context_parallel_size": 2}, "leave the context parallel sizes at 1"),
    "context parallel decoding": (
        {"decode_context_parallel_size": 2, "tensor_parallel_size": 2},
        "leave the context parallel sizes at 1",
    ),
    "pipeline without compilation": (
        {"pipeline_parallel_size": 2, "enforce_eager": True},
        "leave --enforce-eager out",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_settings_that_are_not_proven(palu, case):
    options, expected = REFUSED[case]
    assert expected in refusal(palu(), **options)


SHARED = {
    "pipeline": ({"pipeline_parallel_size": 2}, "leave --pipeline-parallel-size at 1"),
    "offloading": ({"kv_offloading_size": 1.0}, "leave --kv-transfer-config and --kv-offloading-size out"),
    "connector": (
        {"kv_transfer_config": {"kv_connector": "OffloadingConnector", "kv_role": "kv_both"}},
        "moving latents that layers share with a KV connector is not proven",
    ),
    "fast prefill": ({"kv_sharing_fast_prefill": True}, "--kv-sharing-fast-prefill is not proven"),
}


@pytest.mark.parametrize("case", SHARED)
def test_settings_that_layers_which_share_do_not_allow(palu, case):
    options, expected = SHARED[case]
    assert expected in refusal(palu(source_layers=(0, 0)), **options)


def test_a_draft_model(palu, dense):
    drafts = {"method": "draft_model", "model": str(dense()), "num_speculative_tokens": 2}
    assert "speculative decoding by draft_model" in refusal(palu(), speculative_config=drafts)


def test_drafts_of_the_request_itself_are_welcome(palu):
    """As many as the kernels decode at once, with the token before them."""
    drafts = {"method": "ngram", "num_speculative_tokens": MAX_DRAFTS, "prompt_lookup_max": 3}
    EngineArgs(str(palu()), dtype="float32", speculative_config=drafts).create_engine_config()
    assert max(DECODE_QUERIES) == MAX_DRAFTS + 1


@pytest.mark.parametrize(("groups_of", "devices", "largest"), [(2, 4, 2), (1, 8, 4), (4, 2, 1)])
def test_tensor_parallel_size_that_cuts_a_group(palu, groups_of, devices, largest):
    sentence = refusal(palu(group_size=groups_of), tensor_parallel_size=devices)
    assert f"tensor parallel size {devices}" in sentence and f"the largest size that works is {largest}" in sentence


def test_kernels_that_do_not_exist(palu, monkeypatch):
    monkeypatch.setenv("PALU_KERNELS", "cuda")
    assert "expected torch or triton" in refusal(palu())


@pytest.fixture
def copy(palu, tmp_path):
    return shutil.copytree(palu(), tmp_path / "model")


def test_wrong_shape(copy):
    tensors = load_file(copy / "model.safetensors")
    name = "model.layers.1.self_attn.k_up"
    save_file(tensors | {name: tensors[name][:, 1:].contiguous()}, copy / "model.safetensors", {"format": "pt"})
    assert f"{name} has shape [2, 31, 64], expected [2, 32, 64]" in refusal(copy)


def test_missing_tensor(copy):
    tensors = load_file(copy / "model.safetensors")
    del tensors["model.layers.0.self_attn.v_down.weight"]
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    assert "lacks tensor model.layers.0.self_attn.v_down.weight" in refusal(copy)


def test_truncated_file(copy):
    whole = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "is not a readable safetensors file" in refusal(copy)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"palu_config": None}, "no palu_config section"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "'dynamic' is not supported"),
        (
            {"quantization_config": {"quant_method": "compressed-tensors", "kv_cache_scheme": {"a": 1}}},
            "kv_cache_scheme",
        ),
    ],
)
def test_configuration_that_is_not_served(copy, change, expected):
    config = json.loads((copy / "config.json").read_text()) | change
    (copy / "config.json").write_text(json.dumps(config))
    assert expected in refusal(copy)
