"""Pairings of model, server settings and machine that cannot work, refused before anything is loaded."""

from collections.abc import Callable
from pathlib import Path

from vllm.config import VllmConfig
from vllm.logger import init_logger

from palu_vllm.format.checkpoint import check_shapes, expected_tensors
from palu_vllm.format.config import AttentionGeometry, PaluConfig, rope_type
from palu_vllm.format.quantized import METHOD
from palu_vllm.kernels.choose import kernel_path
from palu_vllm.plugin import ARCHITECTURES, BACKEND
from palu_vllm.startup.connectors import check_connector
from palu_vllm.startup.settings import apply_settings

logger = init_logger("vllm.palu")

MAX_DRAFTS = 7  # with the token before them, the queries of one request that decoding takes at once


class StartError(RuntimeError):
    """This server cannot start. The message is one sentence that says what to do.

    Not a ValueError, which pydantic would bury in a report about VllmConfig.
    """


def check(vllm_config: VllmConfig) -> None:
    """Raises StartError for a palu model that cannot be served as asked, and for a dense model with PALU."""
    model = vllm_config.model_config
    if model is None:
        return
    if ARCHITECTURES.isdisjoint(model.architectures):
        _check_dense(vllm_config)
        return
    try:
        _check_checkpoint(vllm_config)
        _check_parallelism(vllm_config)
        check_connector(vllm_config)
        kernel_path(vllm_config.device_config.device_type)
    except ValueError as error:
        raise StartError(str(error)) from error
    _check_settings(vllm_config)
    if vllm_config.lora_config is not None and _on_cpu(vllm_config):
        logger.warning_once(
            "vLLM on a CPU applies an adapter to requests without one that share a batch with it "
            "(vLLM pull request 48421); give every request an adapter, or serve the plain model apart."
        )


def _on_cpu(vllm_config: VllmConfig) -> bool:
    return vllm_config.device_config.device_type == "cpu"


def _chosen_backends(vllm_config: VllmConfig) -> set[str]:
    attention = vllm_config.attention_config
    chosen = {attention.backend, *attention.backend_per_kind.values()} - {None}
    return {backend.name for backend in chosen}


def _check_dense(vllm_config: VllmConfig) -> None:
    if BACKEND in _chosen_backends(vllm_config):
        name = vllm_config.model_config.model
        raise StartError(
            f"{name} is not a palu checkpoint, so --attention-backend palu cannot serve it; "
            f"compress it with `palu-compress {name} OUT` and serve OUT, or leave the flag out."
        )


def _check_checkpoint(vllm_config: VllmConfig) -> None:
    """The configuration, and the shapes in a local directory; a hub's files are checked while they load."""
    model = vllm_config.model_config
    config = model.hf_config.to_dict()
    PaluConfig.from_hf_config(config)
    apply_settings(vllm_config)
    rope_type(config)
    expected_tensors(config)
    if Path(model.model).is_dir() and vllm_config.load_config.load_format != "dummy":
        check_shapes(Path(model.model))


def _check_parallelism(vllm_config: VllmConfig) -> None:
    config = vllm_config.model_config.hf_config.to_dict()
    groups = PaluConfig.from_hf_config(config).num_groups(AttentionGeometry.from_hf_config(config))
    devices = vllm_config.parallel_config.tensor_parallel_size
    if groups % devices:
        largest = max(size for size in range(1, min(groups, devices) + 1) if groups % size == 0)
        raise StartError(
            f"tensor parallel size {devices} would cut a group of the {groups} groups of KV heads; "
            f"the largest size that works is {largest}."
        )


def _check_settings(vllm_config: VllmConfig) -> None:
    for refused, sentence in _SETTINGS:
        if refused(vllm_config):
            raise StartError(sentence.format(config=vllm_config, max_drafts=MAX_DRAFTS))


def _other_cache_dtype(vllm_config: VllmConfig) -> bool:
    dtype = str(vllm_config.model_config.dtype).removeprefix("torch.")
    return vllm_config.cache_config.cache_dtype not in ("auto", dtype)


def _other_speculation(vllm_config: VllmConfig) -> bool:
    """Whether drafts come from anything but the request's own tokens, for instance from a second model."""
    speculation = vllm_config.speculative_config
    return speculation is not None and speculation.method != "ngram"


def _moves_blocks(vllm_config: VllmConfig) -> bool:
    return vllm_config.kv_transfer_config is not None or vllm_config.cache_config.kv_offloading_size is not None


def _long_drafts(vllm_config: VllmConfig) -> bool:
    speculation = vllm_config.speculative_config
    return speculation is not None and speculation.num_speculative_tokens > MAX_DRAFTS


def _shares_layers(vllm_config: VllmConfig) -> bool:
    return PaluConfig.from_hf_config(vllm_config.model_config.hf_config.to_dict()).num_shared > 0


def _stages_without_compilation(vllm_config: VllmConfig) -> bool:
    """Dense models end at their first request there, with an assertion that says nothing."""
    stages = vllm_config.parallel_config.pipeline_parallel_size
    return stages > 1 and vllm_config.model_config.enforce_eager and _on_cpu(vllm_config)


_SETTINGS: tuple[tuple[Callable[[VllmConfig], bool], str], ...] = (
    (
        lambda config: bool(_chosen_backends(config) - {BACKEND}),
        "{config.model_config.model} is a palu checkpoint, which only --attention-backend palu serves; "
        "choose that or leave the flag out.",
    ),
    (
        _other_cache_dtype,
        "--kv-cache-dtype {config.cache_config.cache_dtype} is not supported with latents in "
        "{config.model_config.dtype}; leave it at auto.",
    ),
    (
        lambda config: config.model_config.quantization not in (None, METHOD),
        "weight quantization ({config.model_config.quantization}) is not proven for palu models; "
        "leave --quantization out, or quantize with compressed-tensors after palu-compress.",
    ),
    (
        _other_speculation,
        "speculative decoding by {config.speculative_config.method} is not proven for palu models; "
        "use the method ngram or leave --speculative-config out.",
    ),
    (
        _long_drafts,
        "drafts of {config.speculative_config.num_speculative_tokens} tokens are too long, because decoding over "
        "latents verifies {max_drafts} at once; set num_speculative_tokens to {max_drafts} or less.",
    ),
    (
        _stages_without_compilation,
        "pipeline parallelism on a CPU needs the compiled model, because vLLM makes the buffers between stages "
        "only while it compiles; leave --enforce-eager out.",
    ),
    (
        lambda config: config.parallel_config.pipeline_parallel_size > 1 and _shares_layers(config),
        "layers of this checkpoint read latents of earlier layers, which another pipeline stage may hold; "
        "leave --pipeline-parallel-size at 1.",
    ),
    (
        lambda config: _moves_blocks(config) and _shares_layers(config),
        "moving latents that layers share with a KV connector is not proven; leave --kv-transfer-config and "
        "--kv-offloading-size out.",
    ),
    (
        lambda config: config.cache_config.kv_sharing_fast_prefill and _shares_layers(config),
        "--kv-sharing-fast-prefill is not proven for layers that share latents; leave the flag out.",
    ),
    (
        lambda config: config.model_config.convert_type == "classify",
        "a palu checkpoint has no layer that classifies or scores; leave --convert classify out.",
    ),
    (
        lambda config: (
            config.parallel_config.decode_context_parallel_size > 1
            or config.parallel_config.prefill_context_parallel_size > 1
        ),
        "context parallelism is not supported for latents; leave the context parallel sizes at 1.",
    ),
)
