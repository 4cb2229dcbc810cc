"""Every pairing of model, server settings and machine that cannot work. One function each, in the order of asking.

To add one, write a function under ``@refusal`` that returns a sentence, and a case in ``test_refusals.py``, which
misses functions without one. The sentence says what was got and what to do.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from vllm.config import VllmConfig

from palu_vllm.attention_backend.graphs import CUDA_GRAPHS
from palu_vllm.attention_backend.settings import palu_settings
from palu_vllm.format.config import rotary_positions
from palu_vllm.format.quantized import METHOD
from palu_vllm.registry import BACKEND
from palu_vllm.startup.connectors import FILES, HOST_MEMORY, OFFLOADING, connectors, named, other_than
from palu_vllm.startup.served import ServedConfig

Refusal = Callable[[VllmConfig, ServedConfig], str | None]
AnyRefusal = TypeVar("AnyRefusal", bound=Refusal)
REFUSALS: list[Refusal] = []
MAX_DRAFTS = 7  # with the token before them, the queries of one request that decoding takes at once


def refusal(function: AnyRefusal) -> AnyRefusal:
    """Adds a function to ``REFUSALS``. It returns None where there is nothing to refuse."""
    REFUSALS.append(function)
    return function


def on_cpu(config: VllmConfig) -> bool:
    return config.device_config.device_type == "cpu"


def chosen_backends(config: VllmConfig) -> set[str]:
    attention = config.attention_config
    chosen = {attention.backend, *attention.backend_per_kind.values()} - {None}
    return {backend.name for backend in chosen}


@refusal
def cut_of_a_quantized_output(config: VllmConfig, served: ServedConfig) -> str | None:
    if not (served.is_cut_at_load and served.is_quantized and served.files.value_path == "fused"):
        return None
    return (
        "rank_ratio cannot cut a quantized o_proj that has v_up multiplied into it; "
        "compress the model with --value-path factored, or quantize it at this ratio."
    )


@refusal
def mixing_of_shared_layers(config: VllmConfig, served: ServedConfig) -> str | None:
    if not (served.is_mixed_at_load and served.palu.num_shared):
        return None
    return "hadamard is not proven for layers that share a cache, which this checkpoint has; leave it out."


@refusal
def mixing_of_whole_numbers(config: VllmConfig, served: ServedConfig) -> str | None:
    if not served.is_mixed_at_load or served.palu.is_packed:
        return None
    return "hadamard mixes latents for few bits, but these have 16; give latent_bits too."


@refusal
def mixing_of_a_quantized_output(config: VllmConfig, served: ServedConfig) -> str | None:
    """An output projection that follows ``v_up`` is not reached by the mixing."""
    plain = all(shape.value_path == "factored" for shape in served.layers)
    if not (served.is_mixed_at_load and served.is_quantized) or plain:
        return None
    return (
        "hadamard cannot mix a quantized o_proj that takes latents or whole values; "
        "quantize a checkpoint that palu-compress has mixed, or leave hadamard out."
    )


@refusal
def streaming_with_shared_layers(config: VllmConfig, served: ServedConfig) -> str | None:
    if served.streaming is None or not served.palu.num_shared:
        return None
    return "streaming_llm is not proven for layers that share a cache, which this checkpoint has; leave it out."


@refusal
def streaming_with_a_window(config: VllmConfig, served: ServedConfig) -> str | None:
    window = getattr(config.model_config.hf_config, "sliding_window", None)
    if served.streaming is None or window is None:
        return None
    return (
        f"streaming_llm is for models that attend to the whole context, and this one has a sliding window of {window} "
        "tokens; leave streaming_llm out."
    )


@refusal
def cut_groups(config: VllmConfig, served: ServedConfig) -> str | None:
    groups, devices = served.palu.num_groups(served.geometry), config.parallel_config.tensor_parallel_size
    if groups % devices == 0:
        return None
    largest = max(size for size in range(1, min(groups, devices) + 1) if groups % size == 0)
    return (
        f"tensor parallel size {devices} would cut a group of the {groups} groups of KV heads; "
        f"the largest size that works is {largest}."
    )


@refusal
def streaming_with_a_connector(config: VllmConfig, served: ServedConfig) -> str | None:
    moving = connectors(config)
    if served.streaming is None or not moving:
        return None
    return (
        f"the KV connector {moving[0].name} does not know which blocks streaming_llm keeps; leave one of the two out."
    )


@refusal
def other_connector(config: VllmConfig, served: ServedConfig) -> str | None:
    if (name := other_than(config, (OFFLOADING, FILES))) is None:
        return None
    return (
        f"moving latents with the KV connector {name} is not proven; use --kv-offloading-size, "
        "or leave --kv-transfer-config out."
    )


@refusal
def offloading_beyond_host_memory(config: VllmConfig, served: object) -> str | None:
    places = [each.extra.get("spec_name", HOST_MEMORY) for each in named(config, OFFLOADING)]
    beyond = [place for place in places if place != HOST_MEMORY]
    if not beyond:
        return None
    return (
        f"offloading blocks with {beyond[0]} is not proven, because it may share blocks between servers "
        f"by the name of the model alone; leave spec_name at {HOST_MEMORY}."
    )


@refusal
def files_without_a_folder(config: VllmConfig, served: object) -> str | None:
    if all("shared_storage_path" in each.extra for each in named(config, FILES)):
        return None
    return f"{FILES} needs a shared_storage_path in kv_connector_extra_config."


@refusal
def files_of_a_hubs_checkpoint(config: VllmConfig, served: object) -> str | None:
    if not named(config, FILES) or Path(config.model_config.model).is_dir():
        return None
    return f"{FILES} needs the checkpoint in a local directory."


@refusal
def files_with_adapters(config: VllmConfig, served: object) -> str | None:
    if not named(config, FILES) or not config.lora_config:
        return None
    return f"{FILES} gives a block of one adapter to requests with another; leave --enable-lora out."


@refusal
def files_of_several_devices(config: VllmConfig, served: object) -> str | None:
    if not named(config, FILES) or config.parallel_config.world_size == 1:
        return None
    return f"{FILES} lets devices overwrite each other's files; leave the parallel sizes at 1."


@refusal
def other_backend(config: VllmConfig, served: ServedConfig) -> str | None:
    if not chosen_backends(config) - {BACKEND}:
        return None
    return (
        f"{config.model_config.model} is a palu checkpoint, which only --attention-backend palu serves; "
        "choose that or leave the flag out."
    )


@refusal
def other_cache_dtype(config: VllmConfig, served: ServedConfig) -> str | None:
    asked = config.cache_config.cache_dtype
    if asked in ("auto", served.dtype):
        return None
    return f"--kv-cache-dtype {asked} is not supported with latents in {served.dtype}; leave it at auto."


@refusal
def quantization_at_load(config: VllmConfig, served: ServedConfig) -> str | None:
    method = config.model_config.quantization
    if method in (None, METHOD):
        return None
    return (
        f"weight quantization ({method}) is not proven for palu models; "
        "leave --quantization out, or quantize with compressed-tensors after palu-compress."
    )


@refusal
def other_speculation(config: VllmConfig, served: object) -> str | None:
    """Drafts may come from the request's own tokens only, not for instance from a second model."""
    speculation = config.speculative_config
    if speculation is None or speculation.method == "ngram":
        return None
    return (
        f"speculative decoding by {speculation.method} is not proven for palu models; "
        "use the method ngram or leave --speculative-config out."
    )


@refusal
def long_drafts(config: VllmConfig, served: ServedConfig) -> str | None:
    speculation = config.speculative_config
    if speculation is None or speculation.num_speculative_tokens <= MAX_DRAFTS:
        return None
    return (
        f"drafts of {speculation.num_speculative_tokens} tokens are too long, because decoding over latents verifies "
        f"{MAX_DRAFTS} at once; set num_speculative_tokens to {MAX_DRAFTS} or less."
    )


@refusal
def stages_without_compilation(config: VllmConfig, served: object) -> str | None:
    """Dense models end at their first request there, with an assertion that says nothing."""
    stages = config.parallel_config.pipeline_parallel_size
    if stages == 1 or not config.model_config.enforce_eager or not on_cpu(config):
        return None
    return (
        "pipeline parallelism on a CPU needs the compiled model, because vLLM makes the buffers between stages "
        "only while it compiles; leave --enforce-eager out."
    )


@refusal
def stages_of_shared_layers(config: VllmConfig, served: ServedConfig) -> str | None:
    if config.parallel_config.pipeline_parallel_size == 1 or not served.palu.num_shared:
        return None
    return (
        "layers of this checkpoint read latents of earlier layers, which another pipeline stage may hold; "
        "leave --pipeline-parallel-size at 1."
    )


@refusal
def connector_of_shared_layers(config: VllmConfig, served: ServedConfig) -> str | None:
    if not connectors(config) or not served.palu.num_shared:
        return None
    return (
        "moving latents that layers share with a KV connector is not proven; leave --kv-transfer-config and "
        "--kv-offloading-size out."
    )


@refusal
def fast_prefill_of_shared_layers(config: VllmConfig, served: ServedConfig) -> str | None:
    if not config.cache_config.kv_sharing_fast_prefill or not served.palu.num_shared:
        return None
    return "--kv-sharing-fast-prefill is not proven for layers that share latents; leave the flag out."


@refusal
def classification(config: VllmConfig, served: ServedConfig) -> str | None:
    if config.model_config.convert_type != "classify":
        return None
    return "a palu checkpoint has no layer that classifies or scores; leave --convert classify out."


@refusal
def graphs_without_a_gpu(config: VllmConfig, served: object) -> str | None:
    if not (on_cpu(config) and palu_settings(config).get(CUDA_GRAPHS)):
        return None
    return f"{CUDA_GRAPHS} is for a GPU; leave it out on a CPU."


@refusal
def ray_on_a_cpu(config: VllmConfig, served: object) -> str | None:
    """vLLM would say "does not support ray", once its workers are there."""
    if config.parallel_config.distributed_executor_backend != "ray" or not on_cpu(config):
        return None
    return "vLLM has no Ray workers on a CPU; leave --distributed-executor-backend out."


@refusal
def context_parallelism(config: VllmConfig, served: object) -> str | None:
    parallel = config.parallel_config
    if parallel.decode_context_parallel_size == parallel.prefill_context_parallel_size == 1:
        return None
    return "context parallelism is not supported for latents; leave the context parallel sizes at 1."


@refusal
def beyond_the_positions(config: VllmConfig, served: ServedConfig) -> str | None:
    """vLLM allows it with ``VLLM_ALLOW_LONG_MAX_MODEL_LEN=1``, and answers with NaN: the rotary table ends there."""
    asked, positions = config.model_config.max_model_len, rotary_positions(config.model_config.hf_config.to_dict())
    if asked <= positions:
        return None
    return (
        f"--max-model-len {asked} is beyond the {positions} positions of the model's rotary embedding; "
        f"set it to {positions} or less."
    )
