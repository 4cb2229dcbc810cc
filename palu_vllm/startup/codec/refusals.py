"""Every pairing of a model as it is, its codec and a server that cannot work, in the order of asking.

To add one, write a function under ``@refusal`` that returns a sentence, and a case in ``test_refusals.py``.
"""

from collections.abc import Callable
from pathlib import Path

from vllm.config import VllmConfig
from vllm.platforms import current_platform

from palu_vllm.attention_backend.backend import PaluBackend
from palu_vllm.attention_backend.codec.peers import NIXL
from palu_vllm.attention_backend.codec.weights import other_weights
from palu_vllm.format.codec.file import Codec
from palu_vllm.format.codec.parts import part
from palu_vllm.registry import BACKEND
from palu_vllm.startup import refusals as of_latents
from palu_vllm.startup.connectors import FILES, OFFLOADING, named, other_than

Refusal = Callable[[VllmConfig, Codec], str | None]
REFUSALS: list[Refusal] = []
MOVING = OFFLOADING, FILES, NIXL
STORE = "vllm::unified_kv_cache_update"  # the operation of vLLM's layers that writes into a cache
DRAFTING = "ngram", "draft_model", "eagle", "eagle3", "medusa", "ernie_mtp"


def refusal(function: Refusal) -> Refusal:
    """Adds a function to ``REFUSALS``. It returns None where there is nothing to refuse."""
    REFUSALS.append(function)
    return function


@refusal
def latent_attention(config: VllmConfig, codec: Codec) -> str | None:
    if not config.model_config.use_mla:
        return None
    return f"{config.model_config.model} has latents of its own (MLA), which a KV codec does not serve; leave it out."


@refusal
def old_gpu(config: VllmConfig, codec: Codec) -> str | None:
    """Layers get their backend by name, so vLLM does not ask it what it needs."""
    capability = None if of_latents.on_cpu(config) else current_platform.get_device_capability()
    if capability is None or PaluBackend.supports_compute_capability(capability):
        return None
    return (
        f"this GPU has compute capability {capability.as_version_str()}, and attention over codes needs 8.0 or more; "
        "leave the codec out, or take a newer GPU."
    )


@refusal
def stores_inside_graphs(config: VllmConfig, codec: Codec) -> str | None:
    """Graphs of a part of the model are captured without a batch, and would store nothing ever after."""
    compilation = config.compilation_config
    given = compilation.splitting_ops
    outside = not compilation.use_inductor_graph_partition and (given is None or not given or STORE in given)
    if outside or of_latents.on_cpu(config):
        return None
    return (
        f"a KV codec stores between the graphs of a model, not inside them; leave use_inductor_graph_partition out of "
        f"--compilation-config, and {STORE} in its splitting_ops."
    )


@refusal
def prefixes_seen_both_ways(config: VllmConfig, codec: Codec) -> str | None:
    if not config.model_config.is_mm_prefix_lm:
        return None
    return (
        f"tokens of an image see each other both ways in {config.model_config.model}, which a KV codec does not serve; "
        "serve its language alone with --language-model-only, or leave the codec out."
    )


@refusal
def other_geometry(config: VllmConfig, codec: Codec) -> str | None:
    """Layers, KV heads and their width, layer by layer."""
    arch, model = config.model_config.model_arch_config, config.model_config.model
    for number, layer in codec.layers.items():
        if number >= arch.total_num_hidden_layers:
            return (
                f"the codec has a layer {number}, and {model} has {arch.total_num_hidden_layers} layers; "
                f"make a codec of this model with `palu-calibrate {model} OUT`."
            )
        own = arch[number]
        heads, width = layer.key.sink.shape
        if (heads, width) != (own.total_num_kv_heads, own.head_size):
            return (
                f"the codec is for {heads} KV heads of {width} numbers in layer {number}, and {model} has "
                f"{own.total_num_kv_heads} of {own.head_size}; make a codec of this model with "
                f"`palu-calibrate {model} OUT`."
            )
    return None


@refusal
def other_model(config: VllmConfig, codec: Codec) -> str | None:
    """By the digest of its K and V projections, which dummy weights do not have."""
    if config.load_config.load_format == "dummy":
        return None
    return other_weights(config, codec, _weights, config.model_config.model)


def _weights(config: VllmConfig) -> Path:
    """The directory of the weights, which are fetched as vLLM would fetch them."""
    model = config.model_config
    if Path(model.model).is_dir():
        return Path(model.model)
    from huggingface_hub import snapshot_download

    patterns = ["*.safetensors", "*.safetensors.index.json"]
    cache = config.load_config.download_dir
    return Path(snapshot_download(model.model, revision=model.revision, cache_dir=cache, allow_patterns=patterns))


@refusal
def cut_groups(config: VllmConfig, codec: Codec) -> str | None:
    devices = config.parallel_config.tensor_parallel_size
    try:
        for layer in codec.layers.values():
            part(layer, 0, min(devices, layer.num_kv_heads))
    except ValueError as error:
        return str(error)
    return None


@refusal
def other_backend(config: VllmConfig, codec: Codec) -> str | None:
    others = of_latents.chosen_backends(config) - {BACKEND}
    if not others:
        return None
    return f"a KV codec is served by --attention-backend palu, not {min(others)}; choose that or leave the flag out."


@refusal
def other_cache_dtype(config: VllmConfig, codec: Codec) -> str | None:
    asked = config.cache_config.cache_dtype
    if asked in ("auto", str(config.model_config.dtype).removeprefix("torch.")):
        return None
    return f"--kv-cache-dtype {asked} is not what a KV codec stores; leave it at auto."


@refusal
def other_connector(config: VllmConfig, codec: Codec) -> str | None:
    if (name := other_than(config, MOVING)) is None:
        return None
    return (
        f"moving blocks of a KV codec with the connector {name} is not proven; use {', '.join(MOVING[:-1])} or "
        f"{MOVING[-1]}, or leave --kv-transfer-config and --kv-offloading-size out."
    )


@refusal
def peers_of_several_devices(config: VllmConfig, codec: Codec) -> str | None:
    if not named(config, NIXL) or config.parallel_config.world_size == 1:
        return None
    return f"{NIXL} is not proven for a KV codec on several devices; leave the parallel sizes at 1."


@refusal
def other_speculation(config: VllmConfig, codec: Codec) -> str | None:
    drafting = _drafting(config)
    if drafting is None or drafting in DRAFTING:
        return None
    return (
        f"speculative decoding by {drafting} is not proven with a KV codec; use {', '.join(DRAFTING[:-1])} "
        f"or {DRAFTING[-1]}, or leave --speculative-config out."
    )


def _drafting(config: VllmConfig) -> str | None:
    """The method, and of MTP whose: some prediction layers read the cache of layers that are coded."""
    speculation = config.speculative_config
    if speculation is None or speculation.method != "mtp":
        return speculation and speculation.method
    return str(getattr(speculation.draft_model_config.hf_config, "model_type", None))


@refusal
def experts_on_several_cpus(config: VllmConfig, codec: Codec) -> str | None:
    """vLLM 0.32's CPU kernel reads past its experts there, with a dense cache too, until vLLM mends it."""
    parallel = config.parallel_config
    if not parallel.enable_expert_parallel or parallel.world_size_across_dp == 1 or not of_latents.on_cpu(config):
        return None
    return "vLLM 0.32 computes experts of several devices wrongly on a CPU; leave --enable-expert-parallel out."


@refusal
def fast_prefill(config: VllmConfig, codec: Codec) -> str | None:
    if not config.cache_config.kv_sharing_fast_prefill:
        return None
    return "--kv-sharing-fast-prefill is not proven with a KV codec; leave the flag out."


REFUSALS += [
    of_latents.offloading_beyond_host_memory,
    of_latents.files_without_a_folder,
    of_latents.files_of_a_hubs_checkpoint,
    of_latents.files_with_adapters,
    of_latents.files_of_several_devices,
    of_latents.graphs_without_a_gpu,
    of_latents.ray_on_a_cpu,
    of_latents.context_parallelism,
    of_latents.stages_without_compilation,
]
