"""KV connectors that may move blocks of latents. To them a block is bytes, fewer than a dense one.

Blocks come back by what a connector takes for their name, so latents of another checkpoint must never have the same.
``OffloadingConnector`` keeps blocks in memory of the server itself, by hashes that include adapters and cache salts.
``ExampleConnector`` keeps files by hashes of the tokens alone, so each checkpoint gets a folder of its own.
"""

import hashlib
import json
from pathlib import Path

from vllm import envs
from vllm.config import VllmConfig

from palu_vllm.startup.streaming_llm import STREAMING_LLM, StreamingLLM

OFFLOADING, FILES = "OffloadingConnector", "ExampleConnector"
HOST_MEMORY = "CPUOffloadingSpec"


def check_connector(vllm_config: VllmConfig) -> None:
    """Raises ValueError with one sentence; gives ``ExampleConnector`` its folder. Harmless to repeat."""
    name, transfer = _connector(vllm_config), vllm_config.kv_transfer_config
    if name is None:
        return
    if StreamingLLM.served(vllm_config.model_config.hf_config):
        raise ValueError(
            f"the KV connector {name} does not know which blocks {STREAMING_LLM} keeps; leave one of the two out."
        )
    if name not in (OFFLOADING, FILES) or (transfer and transfer.kv_connector_module_path):
        raise ValueError(
            f"moving latents with the KV connector {name} is not proven; use --kv-offloading-size, "
            "or leave --kv-transfer-config out."
        )
    extra = transfer.kv_connector_extra_config if transfer else {}
    if name == FILES:
        _check_files(vllm_config)
        extra["shared_storage_path"] = _own_folder(vllm_config, extra["shared_storage_path"])
    elif extra.get("spec_name", HOST_MEMORY) != HOST_MEMORY:
        raise ValueError(
            f"offloading latents with {extra['spec_name']} is not proven, because it may share blocks between servers "
            f"by the name of the model alone; leave spec_name at {HOST_MEMORY}."
        )


def _connector(vllm_config: VllmConfig) -> str | None:
    """The name that vLLM arrives at; it looks at --kv-offloading-size only after these checks."""
    if vllm_config.cache_config.kv_offloading_size is None:
        return vllm_config.kv_transfer_config and vllm_config.kv_transfer_config.kv_connector
    if vllm_config.cache_config.kv_offloading_backend != "native":
        return "LMCacheMPConnector"
    return "SimpleCPUOffloadConnector" if envs.VLLM_USE_SIMPLE_KV_OFFLOAD else OFFLOADING


def _check_files(vllm_config: VllmConfig) -> None:
    refused = {
        "needs a shared_storage_path in kv_connector_extra_config": "shared_storage_path"
        not in vllm_config.kv_transfer_config.kv_connector_extra_config,
        "needs the checkpoint in a local directory": not Path(vllm_config.model_config.model).is_dir(),
        "gives a block of one adapter to requests with another; leave --enable-lora out": vllm_config.lora_config,
        "lets devices overwrite each other's files; leave the parallel sizes at 1": (
            vllm_config.parallel_config.world_size > 1
        ),
    }
    for sentence, applies in refused.items():
        if applies:
            raise ValueError(f"{FILES} {sentence}.")


def _own_folder(vllm_config: VllmConfig, path: str) -> str:
    """``path/palu-DIGEST``, of the checkpoint's bytes and of what a server may change about latents."""
    model = vllm_config.model_config
    served = {"palu_config": model.hf_config.palu_config, "dtype": str(model.dtype), "revision": model.revision}
    digest = hashlib.sha256(json.dumps(served, sort_keys=True).encode())
    for file in sorted([*Path(model.model).glob("*.safetensors"), Path(model.model, "config.json")]):
        with file.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    own = f"palu-{digest.hexdigest()[:32]}"
    return path if Path(path).name == own else str(Path(path, own))
