"""KV connectors that may move blocks of latents or codes. To them a block is bytes, fewer than a dense one.

Blocks come back by what a connector takes for their name, so those of another checkpoint or codec must never have it.
``OffloadingConnector`` keeps blocks in memory of the server itself, by hashes that include adapters and cache salts.
``ExampleConnector`` keeps files by hashes of the tokens alone, so each checkpoint or codec gets a folder of its own.
``NixlConnector`` reads another server's blocks, after both have shown each other what their blocks are.
``MultiConnector`` has several of these, each for itself.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm import envs
from vllm.config import VllmConfig

OFFLOADING, FILES, SEVERAL = "OffloadingConnector", "ExampleConnector", "MultiConnector"
HOST_MEMORY = "CPUOffloadingSpec"


@dataclass(frozen=True)
class Connector:
    """One that a server is to have. What is written into ``extra`` reaches it."""

    name: str
    extra: dict[str, Any]
    is_vllms: bool  # not a class of the user


def connectors(vllm_config: VllmConfig) -> list[Connector]:
    """Those that vLLM arrives at, a ``MultiConnector``'s one by one.

    It looks at --kv-offloading-size only after these checks, and puts what that says in the place of the name.
    """
    transfer, offloading = vllm_config.kv_transfer_config, _offloading(vllm_config)
    name = offloading or (transfer and transfer.kv_connector)
    if name is None:
        return []
    extra = transfer.kv_connector_extra_config if transfer else {}
    if name == SEVERAL and extra.get("connectors"):
        return [
            Connector(
                str(part.get("kv_connector")),
                part.setdefault("kv_connector_extra_config", {}),
                not part.get("kv_connector_module_path"),
            )
            for part in extra["connectors"]
        ]
    return [Connector(name, extra, not (transfer and transfer.kv_connector_module_path))]


def _offloading(vllm_config: VllmConfig) -> str | None:
    """The name that --kv-offloading-size stands for."""
    if vllm_config.cache_config.kv_offloading_size is None:
        return None
    if vllm_config.cache_config.kv_offloading_backend != "native":
        return "LMCacheMPConnector"
    return "SimpleCPUOffloadConnector" if envs.VLLM_USE_SIMPLE_KV_OFFLOAD else OFFLOADING


def named(vllm_config: VllmConfig, name: str) -> list[Connector]:
    return [each for each in connectors(vllm_config) if each.name == name]


def other_than(vllm_config: VllmConfig, names: Collection[str]) -> str | None:
    """The first that is not vLLM's own of such a name, None where all are."""
    others = (each.name for each in connectors(vllm_config) if not (each.is_vllms and each.name in names))
    return next(others, None)


def separate_files(vllm_config: VllmConfig, made_by: Mapping[str, Any]) -> None:
    """Gives ``ExampleConnector`` a folder for blocks ``made_by`` such latents or such a codec. Harmless to repeat."""
    for each in named(vllm_config, FILES):
        each.extra["shared_storage_path"] = _own_folder(vllm_config, made_by, each.extra["shared_storage_path"])


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
