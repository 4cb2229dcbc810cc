"""KV connectors that may move blocks of latents or codes. To them a block is bytes, fewer than a dense one.

Blocks come back by what a connector takes for their name, so those of another checkpoint or codec must never have it.
``OffloadingConnector`` keeps blocks in memory of the server itself, by hashes that include adapters and cache salts.
``ExampleConnector`` keeps files by hashes of the tokens alone, so each checkpoint or codec gets a folder of its own.
``NixlConnector`` reads another server's blocks, after both have shown each other what their blocks are.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from vllm import envs
from vllm.config import VllmConfig

OFFLOADING, FILES = "OffloadingConnector", "ExampleConnector"
HOST_MEMORY = "CPUOffloadingSpec"


def connector(vllm_config: VllmConfig) -> str | None:
    """The name that vLLM arrives at, None without one; it looks at --kv-offloading-size only after these checks."""
    if vllm_config.cache_config.kv_offloading_size is None:
        return vllm_config.kv_transfer_config and vllm_config.kv_transfer_config.kv_connector
    if vllm_config.cache_config.kv_offloading_backend != "native":
        return "LMCacheMPConnector"
    return "SimpleCPUOffloadConnector" if envs.VLLM_USE_SIMPLE_KV_OFFLOAD else OFFLOADING


def extra_config(vllm_config: VllmConfig) -> dict[str, Any]:
    """What is told to the connector itself."""
    transfer = vllm_config.kv_transfer_config
    return transfer.kv_connector_extra_config if transfer else {}


def is_one_of(vllm_config: VllmConfig, names: Collection[str]) -> bool:
    """Whether the connector is vLLM's own of such a name, not a class of the user."""
    transfer = vllm_config.kv_transfer_config
    return connector(vllm_config) in names and not (transfer and transfer.kv_connector_module_path)


def separate_files(vllm_config: VllmConfig, made_by: Mapping[str, Any]) -> None:
    """Gives ``ExampleConnector`` a folder for blocks ``made_by`` such latents or such a codec. Harmless to repeat."""
    if connector(vllm_config) == FILES:
        extra = extra_config(vllm_config)
        extra["shared_storage_path"] = _own_folder(vllm_config, made_by, extra["shared_storage_path"])


def _own_folder(vllm_config: VllmConfig, made_by: Mapping[str, Any], path: str) -> str:
    """``path/palu-DIGEST``, of the checkpoint's bytes, its dtype and what the server stores of its keys and values."""
    model = vllm_config.model_config
    named = {**made_by, "dtype": str(model.dtype), "revision": model.revision}
    digest = hashlib.sha256(json.dumps(named, sort_keys=True).encode())
    for file in sorted([*Path(model.model).glob("*.safetensors"), Path(model.model, "config.json")]):
        with file.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    own = f"palu-{digest.hexdigest()[:32]}"
    return path if Path(path).name == own else str(Path(path, own))
