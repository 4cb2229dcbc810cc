"""KV connectors that may move blocks of latents. To them a block is bytes, fewer than a dense one.

Blocks come back by what a connector takes for their name, so latents of another checkpoint must never have the same.
``OffloadingConnector`` keeps blocks in memory of the server itself, by hashes that include adapters and cache salts.
``ExampleConnector`` keeps files by hashes of the tokens alone, so each checkpoint gets a folder of its own.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from vllm import envs
from vllm.config import VllmConfig

from palu_vllm.startup.served import ServedConfig

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


def separate_files(vllm_config: VllmConfig, served: ServedConfig) -> None:
    """Gives ``ExampleConnector`` its folder. Harmless to repeat."""
    if connector(vllm_config) == FILES:
        extra = extra_config(vllm_config)
        extra["shared_storage_path"] = _own_folder(vllm_config, served, extra["shared_storage_path"])


def _own_folder(vllm_config: VllmConfig, served: ServedConfig, path: str) -> str:
    """``path/palu-DIGEST``, of the checkpoint's bytes and of what a server may change about latents."""
    model = vllm_config.model_config
    named = {"palu_config": served.palu.model_dump(), "dtype": served.dtype, "revision": model.revision}
    digest = hashlib.sha256(json.dumps(named, sort_keys=True).encode())
    for file in sorted([*Path(model.model).glob("*.safetensors"), Path(model.model, "config.json")]):
        with file.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    own = f"palu-{digest.hexdigest()[:32]}"
    return path if Path(path).name == own else str(Path(path, own))
