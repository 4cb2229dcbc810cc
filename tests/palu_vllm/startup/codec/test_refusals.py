"""A model as it is and a codec that cannot work end while vLLM builds its configuration, in one sentence."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file
from vllm.config.utils import replace
from vllm.engine.arg_utils import EngineArgs
from vllm.platforms.interface import DeviceCapability

from palu_vllm.attention_backend.codec.served import codec_directory, served_codec
from palu_vllm.format.codec.file import JSON, TENSORS
from palu_vllm.startup.check import StartError
from palu_vllm.startup.codec import check
from palu_vllm.startup.codec import refusals as of_codecs
from palu_vllm.startup.codec.refusals import REFUSALS
from tests.palu_vllm.startup.test_refusals import FILES, connector, drafts, several
from tests.support.codecs.models import write_codec


@pytest.fixture(scope="module")
def codec(dense, tmp_path_factory):
    return write_codec(tmp_path_factory.mktemp("codec"), dense())


@pytest.fixture
def copy(codec, tmp_path):
    return shutil.copytree(codec, tmp_path / "codec")


def config_of(model, settings, **options):
    return EngineArgs(
        str(model), dtype="float32", additional_config={"palu": settings}, **options
    ).create_engine_config()


def refusal(model, settings, **options) -> str:
    with pytest.raises(StartError) as refused:
        config_of(model, settings, **options)
    sentence = str(refused.value)
    assert "\n" not in sentence and sentence.endswith(".")
    return sentence


def of(codec, **others) -> dict:
    return {"codec": str(codec), **others}


@pytest.mark.parametrize("options", [{}, {"attention_backend": "palu"}])
def test_a_codec_of_the_model_is_welcome(dense, codec, options):
    """The configuration names no backend then: layers without a codec keep vLLM's."""
    config = config_of(dense(), of(codec), **options)
    assert config.attention_config.backend is None and config.additional_config["palu"] == of(codec)


def test_a_codec_lies_in_the_directory_of_the_model(dense, codec, tmp_path):
    model = shutil.copytree(dense(), tmp_path / "model")
    for name in (JSON, TENSORS):
        shutil.copy(codec / name, model)
    assert config_of(model, {}, attention_backend="palu").additional_config["palu"] == of(model)
    assert "palu" not in (EngineArgs(str(model), dtype="float32").create_engine_config().additional_config or {})


def test_a_codec_of_the_hub(dense, codec, tmp_path, monkeypatch):
    """As the hub's client keeps it."""
    root = tmp_path / "hub" / "models--someone--codec"
    shutil.copytree(codec, root / "snapshots" / "a1")
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("a1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    codec_directory.cache_clear()
    config_of(dense(), of("someone/codec"))
    assert codec_directory("someone/codec") == root / "snapshots" / "a1"
    assert "the codec someone/other is neither a directory nor on the hub" in refusal(dense(), of("someone/other"))


def test_no_codec(dense):
    sentence = refusal(dense(), {}, attention_backend="palu")
    assert f"{dense()} is neither a palu checkpoint nor has a codec" in sentence
    assert f"make one with `palu-calibrate {dense()} OUT`" in sentence


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"latent_bits": 4},
            "settings {'latent_bits'}; expected codec, codec_digest, drift, cuda_graphs for a model",
        ),
        ({"codec_digest": "no"}, "codec_digest='no' for palu; expected ignore."),
        ({"cuda_graphs": 1}, "cuda_graphs=1 for palu; expected true, or leave it out."),
        ({"codec": 4}, "codec=4 for palu; expected a directory or a hub id."),
    ],
)
def test_unknown_settings(dense, codec, settings, expected):
    assert expected in refusal(dense(), of(codec) | settings, attention_backend="palu")


def test_a_codec_of_other_weights(dense, codec):
    """Refused by its digest, and served where the user knows better."""
    other = dense(seed=1)
    sentence = refusal(other, of(codec))
    assert f"the codec was made of {dense()}, whose K and V projections are not those of {other}" in sentence
    config_of(other, of(codec, codec_digest="ignore"))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"num_hidden_layers": 1}, "the codec has a layer 1, and {model} has 1 layers"),
        ({"num_key_value_heads": 2}, "4 KV heads of 32 numbers in layer 0, and {model} has 2 of 32"),
        ({"head_dim": 64}, "4 KV heads of 32 numbers in layer 0, and {model} has 4 of 64"),
    ],
)
def test_a_codec_of_another_geometry(dense, codec, options, expected):
    """Whatever is said of the digest."""
    other = dense(**options)
    assert expected.format(model=other) in refusal(other, of(codec, codec_digest="ignore"))


def test_weights_that_are_no_safetensors(dense, codec, tmp_path):
    model = shutil.copytree(dense(), tmp_path / "model")
    (model / "model.safetensors").rename(model / "model.bin")
    assert "is not known" in refusal(model, of(codec)) and "set codec_digest to ignore if it is." in refusal(
        model, of(codec)
    )


def test_a_truncated_codec(dense, copy):
    whole = (copy / TENSORS).read_bytes()
    (copy / TENSORS).write_bytes(whole[: len(whole) // 2])
    assert "cannot be read" in refusal(dense(), of(copy))


def test_a_codec_of_wrong_shapes(dense, copy):
    tensors = load_file(copy / TENSORS)
    save_file(tensors | {"layers.1.key.sink": tensors["layers.1.key.sink"][:, 1:].contiguous()}, copy / TENSORS)
    assert "layers.1.key.sink is [4, 31], expected [4, 32]" in refusal(dense(), of(copy))


def test_a_codec_that_is_not_there(dense, tmp_path):
    assert "cannot be read as JSON" in refusal(dense(), of(tmp_path))


DEEPSEEK = {"architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "kv_lora_rank": 32,
            "qk_rope_head_dim": 16, "qk_nope_head_dim": 32, "v_head_dim": 32, "q_lora_rank": None}  # fmt: skip
REFUSED = {  # the function, options of a server, what the sentence says
    "another backend": ("other_backend", {"attention_backend": "cpu_attn"}, "palu, not CPU_ATTN; choose that"),
    "cache dtype": ("other_cache_dtype", {"kv_cache_dtype": "fp8"}, "--kv-cache-dtype fp8 is not what a KV codec"),
    "connector": ("other_connector", connector("LMCacheConnectorV1"), "LMCacheConnectorV1 is not proven; use Offload"),
    "one of several": (
        "other_connector",
        several(connector("OffloadingConnector"), connector("LMCacheConnectorV1"), connector("MultiConnector")),
        "with the connector LMCacheConnectorV1 is not proven",
    ),
    "peers among several": (
        "peers_of_several_devices",
        several(connector("OffloadingConnector"), connector("NixlConnector")) | {"tensor_parallel_size": 2},
        "several devices; leave the parallel sizes at 1.",
    ),
    "lmcache": (
        "other_connector",
        {"kv_offloading_size": 1.0, "kv_offloading_backend": "lmcache"},
        "with the connector LMCacheMPConnector is not proven",
    ),
    "peers": (
        "peers_of_several_devices",
        connector("NixlConnector") | {"tensor_parallel_size": 2},
        "several devices; leave the parallel sizes at 1.",
    ),
    "offloading": (
        "offloading_beyond_host_memory",
        connector("OffloadingConnector", spec_name="TieringOffloadingSpec"),
        "offloading blocks with TieringOffloadingSpec is not proven",
    ),
    "files": ("files_without_a_folder", connector("ExampleConnector"), "needs a shared_storage_path"),
    "adapters": ("files_with_adapters", FILES | {"enable_lora": True}, "leave --enable-lora out"),
    "devices": ("files_of_several_devices", FILES | {"tensor_parallel_size": 2}, "overwrite each other's files"),
    "fast prefill": ("fast_prefill", {"kv_sharing_fast_prefill": True}, "--kv-sharing-fast-prefill is not proven"),
    "groups": ("cut_groups", {"tensor_parallel_size": 4}, "2 groups of KV heads into 4 parts; the largest number"),
    "drafts": (
        "other_speculation",
        drafts("ngram_gpu", 2),
        "by ngram_gpu is not proven with a KV codec; use ngram, draft",
    ),
    "context parallel": ("context_parallelism", {"prefill_context_parallel_size": 2}, "context parallel sizes at 1"),
    "pipeline": (
        "stages_without_compilation",
        {"pipeline_parallel_size": 2, "enforce_eager": True},
        "leave --enforce-eager out",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_proven(dense, codec, monkeypatch, case):
    """By the whole table, and in the same words by the function alone."""
    function, options, expected = REFUSED[case]
    sentence = refusal(dense(), of(codec), **options)
    assert expected in sentence
    monkeypatch.setattr(check, "REFUSALS", [each for each in REFUSALS if each.__name__ == function])
    assert refusal(dense(), of(codec), **options) == sentence


def test_models_with_latents_of_their_own(dense, codec, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    config = json.loads((dense() / "config.json").read_text()) | DEEPSEEK
    (model / "config.json").write_text(json.dumps(config))
    options = {"load_format": "dummy", "skip_tokenizer_init": True}
    assert "has latents of its own (MLA)" in refusal(model, of(codec), **options)


@pytest.mark.parametrize(("capability", "refused"), [((7, 5), True), ((8, 0), False), ((12, 0), False)])
def test_a_gpu_that_is_too_old(dense, codec, monkeypatch, capability, refused):
    config = config_of(dense(), of(codec))
    assert of_codecs.old_gpu(config, None) is None, "a CPU has no capability"
    monkeypatch.setattr(of_codecs.of_latents, "on_cpu", lambda config: False)
    monkeypatch.setattr(of_codecs.current_platform, "get_device_capability", lambda: DeviceCapability(*capability))
    sentence = of_codecs.old_gpu(config, None)
    assert (sentence is not None) == refused
    assert not refused or "has compute capability 7.5, and attention over codes needs 8.0" in sentence


ATTEND, STORE = "vllm::unified_attention_with_output", "vllm::unified_kv_cache_update"


@pytest.mark.parametrize(("compilation", "refused"), [
    ({}, False), ({"splitting_ops": []}, False), ({"splitting_ops": [ATTEND, STORE]}, False),
    ({"splitting_ops": [ATTEND]}, True), ({"use_inductor_graph_partition": True}, True),
])  # fmt: skip
def test_stores_inside_the_graphs_of_a_part(dense, codec, monkeypatch, compilation, refused):
    config = config_of(dense(), of(codec), compilation_config=compilation)
    assert of_codecs.stores_inside_graphs(config, None) is None, "a CPU has no graphs"
    monkeypatch.setattr(of_codecs.of_latents, "on_cpu", lambda config: False)
    sentence = of_codecs.stores_inside_graphs(config, None)
    assert (sentence is not None) == refused
    assert not refused or "leave use_inductor_graph_partition out of --compilation-config" in sentence


def test_graphs_on_a_cpu(dense, codec):
    assert refusal(dense(), of(codec, cuda_graphs=True)) == "cuda_graphs is for a GPU; leave it out on a CPU."


def test_experts_on_several_cpus(dense, codec, monkeypatch):
    alone, config = (config_of(dense(), of(codec), tensor_parallel_size=devices) for devices in (1, 2))
    assert of_codecs.experts_on_several_cpus(config, None) is None
    alone.parallel_config.enable_expert_parallel = config.parallel_config.enable_expert_parallel = True
    assert of_codecs.experts_on_several_cpus(alone, None) is None, "its experts are all on one device"
    assert "leave --enable-expert-parallel out" in of_codecs.experts_on_several_cpus(config, None)
    monkeypatch.setattr(of_codecs.of_latents, "on_cpu", lambda config: False)
    assert of_codecs.experts_on_several_cpus(config, None) is None


def test_files_of_a_model_that_is_not_local(dense, codec):
    config = config_of(dense(), of(codec), **FILES)
    config.model_config.model = "someone/model"
    assert "a local directory" in of_codecs.of_latents.files_of_a_hubs_checkpoint(config, None)


def test_a_drafter_is_neither_checked_nor_coded(dense, codec):
    """vLLM makes its configuration out of the server's, settings and all."""
    told = {"method": "draft_model", "model": str(dense(seed=1)), "num_speculative_tokens": 2}
    config = config_of(dense(), of(codec), speculative_config=told)
    assert served_codec(config) is not None
    drafter = replace(config, model_config=config.speculative_config.draft_model_config)
    assert served_codec(drafter) is None


def test_prediction_layers_of_another_family(dense, codec):
    """Some read the cache of the model's own layers, where codes are."""
    drafter = dense("glm4_moe", n_routed_experts=4, moe_intermediate_size=96, num_nextn_predict_layers=1)
    told = {"method": "mtp", "model": str(drafter), "num_speculative_tokens": 1}
    sentence = refusal(dense(), of(codec), speculative_config=told)
    assert "speculative decoding by glm4_moe_mtp is not proven with a KV codec; use ngram" in sentence


def test_images_that_see_each_other_both_ways(dense, codec):
    config = config_of(dense(), of(codec))
    assert of_codecs.prefixes_seen_both_ways(config, None) is None
    config.model_config.is_mm_prefix_lm = True
    assert "serve its language alone with --language-model-only" in of_codecs.prefixes_seen_both_ways(config, None)


def test_every_refusal_has_a_case():
    shown = {case[0] for case in REFUSED.values()}
    shown |= {
        "other_geometry",
        "other_model",
        "latent_attention",
        "prefixes_seen_both_ways",
        "files_of_a_hubs_checkpoint",
        "old_gpu",
        "graphs_without_a_gpu",
        "experts_on_several_cpus",
        "ray_on_a_cpu",
        "stores_inside_graphs",
    }
    assert {function.__name__ for function in REFUSALS} == shown
