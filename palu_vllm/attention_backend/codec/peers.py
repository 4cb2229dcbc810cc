"""Servers that read each other's blocks by NIXL have one codec, or refuse each other.

vLLM internals used: ``compute_nixl_compatibility_hash`` of its NIXL workers (wrapped, once a process). It names model,
heads, cache dtype and backend, and a codec changes none of them. Until a backend may name what its blocks depend on.
"""

import functools
import hashlib
from collections.abc import Callable
from typing import Any

from vllm.config import VllmConfig

from palu_vllm.attention_backend.codec.served import codec_directory, files_digest, served_name

NIXL = "NixlConnector"


def tell_peers_apart(vllm_config: VllmConfig) -> None:
    """In the process of a worker, before its cache is registered. Does nothing for servers without NIXL."""
    transfer = vllm_config.kv_transfer_config
    if transfer is not None and transfer.has_connector(NIXL):
        _wrap()


@functools.cache
def _wrap() -> None:
    from vllm.distributed.kv_transfer.kv_connector.v1.nixl import base_worker  # imports NIXL

    base_worker.compute_nixl_compatibility_hash = with_codec_digest(base_worker.compute_nixl_compatibility_hash)


def with_codec_digest(of_model: Callable[..., str]) -> Callable[..., str]:
    """What two servers compare before one reads the other's blocks, codecs included."""

    @functools.wraps(of_model)
    def compatibility(vllm_config: VllmConfig, *args: Any, **kwargs: Any) -> str:
        name, own = served_name(vllm_config), of_model(vllm_config, *args, **kwargs)
        if name is None:
            return own
        return hashlib.sha256(f"{own} {files_digest(codec_directory(name))}".encode()).hexdigest()

    return compatibility
