"""Each pairing that cannot work ends while vLLM builds its configuration, in one sentence that says what to do."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file
from vllm.engine.arg_utils import EngineArgs

from palu_vllm.format.checkpoint import read_json
from palu_vllm.kernels.gpu.launch import DECODE_QUERIES
from palu_vllm.startup import check, refusals
from palu_vllm.startup.check import StartError
from palu_vllm.startup.refusals import MAX_DRAFTS, REFUSALS
from palu_vllm.startup.served import ServedConfig


def refusal(model, **options) -> str:
    with pytest.raises(StartError) as refused:
        EngineArgs(str(model), dtype="float32", **options).create_engine_config()
    sentence = str(refused.value)
    assert "\n" not in sentence and sentence.endswith(".")
    return sentence


def test_dense_model_without_palu_is_left_alone(dense):
    assert EngineArgs(str(dense()), dtype="float32").create_engine_config().attention_config.backend is None


@pytest.mark.parametrize("options", [{}, {"attention_backend": "palu"}, {"attention_backend": "PALU"}])
def test_palu_model_with_or_without_the_flag(palu, options):
    EngineArgs(str(palu()), dtype="float32", **options).create_engine_config()


def connector(name, **extra) -> dict:
    return {"kv_transfer_config": {"kv_connector": name, "kv_role": "kv_both", "kv_connector_extra_config": extra}}


def several(*parts) -> dict:
    return connector("MultiConnector", connectors=[part["kv_transfer_config"] for part in parts])


def drafts(method, count) -> dict:
    told = {"method": method, "num_speculative_tokens": count, "prompt_lookup_max": 3}
    return {"speculative_config": told}


def asked(**settings) -> dict:
    return {"additional_config": {"palu": settings}}


FILES = connector("ExampleConnector", shared_storage_path="x")
SINKS = asked(streaming_llm={"start_size": 4, "recent_size": 60})
MIXED = asked(hadamard=True, latent_bits=4)
# the function of startup/refusals.py, options of a server, what the sentence says
REFUSED = {
    "another backend": ("other_backend", {"attention_backend": "cpu_attn"}, "only --attention-backend palu serves"),
    "cache dtype": ("other_cache_dtype", {"kv_cache_dtype": "fp8"}, "--kv-cache-dtype fp8 is not supported"),
    "quantization": ("quantization_at_load", {"quantization": "fp8"}, "leave --quantization out"),
    "long drafts": ("long_drafts", drafts("ngram", 8), "set num_speculative_tokens to 7 or less"),
    "ngram drafts on the GPU": (
        "other_speculation",
        drafts("ngram_gpu", 2),
        "speculative decoding by ngram_gpu is not proven for palu models; use the method ngram",
    ),
    "connector": ("other_connector", connector("NixlConnector"), "leave --kv-transfer-config out"),
    "lmcache": (
        "other_connector",
        {"kv_offloading_size": 1.0, "kv_offloading_backend": "lmcache"},
        "LMCacheMPConnector is not proven",
    ),
    "offloading in tiers": (
        "offloading_beyond_host_memory",
        connector("OffloadingConnector", spec_name="TieringOffloadingSpec"),
        "by the name of the model alone",
    ),
    "one of several that shares files": (
        "files_with_adapters",
        several(connector("OffloadingConnector"), FILES) | {"enable_lora": True},
        "leave --enable-lora out",
    ),
    "files without a folder": (
        "files_without_a_folder",
        connector("ExampleConnector"),
        "needs a shared_storage_path",
    ),
    "files with adapters": ("files_with_adapters", FILES | {"enable_lora": True}, "leave --enable-lora out"),
    "files of devices": (
        "files_of_several_devices",
        FILES | {"tensor_parallel_size": 2},
        "leave the parallel sizes at 1",
    ),
    "classifier": ("classification", {"runner": "pooling", "convert": "classify"}, "leave --convert classify out"),
    "context parallel prefill": (
        "context_parallelism",
        {"prefill_context_parallel_size": 2},
        "leave the context parallel sizes at 1",
    ),
    "context parallel decoding": (
        "context_parallelism",
        {"decode_context_parallel_size": 2, "tensor_parallel_size": 2},
        "leave the context parallel sizes at 1",
    ),
    "pipeline without compilation": (
        "stages_without_compilation",
        {"pipeline_parallel_size": 2, "enforce_eager": True},
        "leave --enforce-eager out",
    ),
    "graphs": ("graphs_without_a_gpu", asked(cuda_graphs=True), "cuda_graphs is for a GPU; leave it out on a CPU."),
    "mixing of 16 bits": ("mixing_of_whole_numbers", asked(hadamard=True), "these have 16; give latent_bits too"),
    "sinks and offloading": (
        "streaming_with_a_connector",
        SINKS | {"kv_offloading_size": 1.0},
        "does not know which blocks streaming_llm keeps; leave one of the two out",
    ),
    "sinks and a connector": (
        "streaming_with_a_connector",
        SINKS | connector("ExampleConnector"),
        "does not know which blocks streaming_llm keeps; leave one of the two out",
    ),
}


def assert_refused(monkeypatch, model, function, options, expected):
    """By the whole table, and in the same words by the function alone."""
    sentence = refusal(model, **options)
    assert expected in sentence
    monkeypatch.setattr(check, "REFUSALS", [getattr(refusals, function)])
    assert refusal(model, **options) == sentence


@pytest.mark.parametrize("case", REFUSED)
def test_settings_that_are_not_proven(palu, monkeypatch, case):
    assert_refused(monkeypatch, palu(), *REFUSED[case])


SHARED = {
    "pipeline": ("stages_of_shared_layers", {"pipeline_parallel_size": 2}, "leave --pipeline-parallel-size at 1"),
    "offloading": (
        "connector_of_shared_layers",
        {"kv_offloading_size": 1.0},
        "leave --kv-transfer-config and --kv-offloading-size out",
    ),
    "connector": (
        "connector_of_shared_layers",
        connector("OffloadingConnector"),
        "moving latents that layers share with a KV connector is not proven",
    ),
    "fast prefill": (
        "fast_prefill_of_shared_layers",
        {"kv_sharing_fast_prefill": True},
        "--kv-sharing-fast-prefill is not proven",
    ),
    "mixing": ("mixing_of_shared_layers", MIXED, "hadamard is not proven for layers that share a cache"),
    "sinks": ("streaming_with_shared_layers", SINKS, "streaming_llm is not proven for layers that share a cache"),
}


@pytest.mark.parametrize("case", SHARED)
def test_settings_that_layers_which_share_do_not_allow(palu, monkeypatch, case):
    assert_refused(monkeypatch, palu(source_layers=(0, 0)), *SHARED[case])


def test_sinks_beside_a_window_of_the_model(palu, monkeypatch):
    sentence = "this one has a sliding window of 24 tokens; leave streaming_llm out."
    assert_refused(monkeypatch, palu("mistral", sliding_window=24), "streaming_with_a_window", SINKS, sentence)


QUANTIZED = {  # the function, the form of values, the setting, what the sentence says
    "cut": ("cut_of_a_quantized_output", 48, "fused", {"rank_ratio": 0.5}, "rank_ratio cannot cut a quantized o_proj"),
    "mixed latents": ("mixing_of_a_quantized_output", 48, "fused", MIXED, "hadamard cannot mix a quantized o_proj"),
    "mixed whole": ("mixing_of_a_quantized_output", 64, "factored", MIXED, "hadamard cannot mix a quantized o_proj"),
}


@pytest.mark.parametrize("case", QUANTIZED)
def test_quantized_output_projections(palu, case):
    """Only where the setting reaches them, and they are quantized."""
    function, rank_v, value_path, options, expected = QUANTIZED[case]
    settings = options.get("additional_config", {"palu": options})["palu"]
    refused = getattr(refusals, function)
    config = read_json(palu("llama", 48, rank_v, value_path=value_path) / "config.json")
    quantized = config | {"quantization_config": {"quant_method": "compressed-tensors"}}
    assert expected in refused(None, ServedConfig.of(quantized, settings, "float32"))
    assert refused(None, ServedConfig.of(quantized, {}, "float32")) is None
    assert refused(None, ServedConfig.of(config, settings, "float32")) is None


def test_files_of_a_checkpoint_that_is_not_local(palu):
    config = EngineArgs(str(palu()), dtype="float32", **FILES).create_engine_config()
    assert refusals.files_of_a_hubs_checkpoint(config, None) is None
    config.model_config.model = "someone/model"
    assert "a local directory" in refusals.files_of_a_hubs_checkpoint(config, None)


def test_ray_on_a_cpu(palu, monkeypatch):
    """vLLM asks for the package first, so the configuration is told of Ray afterwards."""
    config = EngineArgs(str(palu()), dtype="float32").create_engine_config()
    assert refusals.ray_on_a_cpu(config, None) is None
    config.parallel_config.distributed_executor_backend = "ray"
    assert "leave --distributed-executor-backend out" in refusals.ray_on_a_cpu(config, None)
    monkeypatch.setattr(refusals, "on_cpu", lambda config: False)
    assert refusals.ray_on_a_cpu(config, None) is None


def test_every_refusal_has_a_case():
    shown = {case[0] for table in (REFUSED, SHARED, QUANTIZED) for case in table.values()}
    shown |= {
        "streaming_with_a_window",
        "files_of_a_hubs_checkpoint",
        "cut_groups",
        "beyond_the_positions",
        "ray_on_a_cpu",
    }
    assert {function.__name__ for function in REFUSALS} == shown


def test_contexts_beyond_the_positions_that_vllm_allows(palu, monkeypatch):
    """Log-probabilities were NaN behind them."""
    monkeypatch.setenv("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1")
    positions = read_json(palu() / "config.json")["max_position_embeddings"]
    EngineArgs(str(palu()), dtype="float32", max_model_len=positions).create_engine_config()
    sentence = refusal(palu(), max_model_len=positions + 1)
    assert f"{positions + 1} is beyond the {positions} positions" in sentence
    assert f"set it to {positions} or less" in sentence


def test_a_draft_model(palu, dense):
    model = {"method": "draft_model", "model": str(dense()), "num_speculative_tokens": 2}
    assert "speculative decoding by draft_model" in refusal(palu(), speculative_config=model)


def test_drafts_of_the_request_itself_are_welcome(palu):
    """As many as the kernels decode at once, with the token before them."""
    EngineArgs(str(palu()), dtype="float32", **drafts("ngram", MAX_DRAFTS)).create_engine_config()
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
