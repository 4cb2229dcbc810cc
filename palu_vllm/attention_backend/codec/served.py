"""Which codec a server has: ``--additional-config '{"palu": {"codec": "OUT"}}'``, a directory or a hub id."""

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path

from vllm.config import VllmConfig

from palu_vllm.attention_backend.settings import palu_settings
from palu_vllm.format.checkpoint import CheckpointError
from palu_vllm.format.codec.file import JSON, REPORT, TENSORS, Codec, load_codec
from palu_vllm.format.latent_format import NUMBER_BYTES

CODEC, DIGEST, IGNORE = "codec", "codec_digest", "ignore"  # settings, and what the second may be
DIGITS = 16  # of a digest, as it is shown


def served_name(vllm_config: VllmConfig) -> str | None:
    """The directory or hub id that the server's settings name."""
    settings = palu_settings(vllm_config)
    name = settings.get(CODEC) if isinstance(settings, Mapping) else None
    return None if name is None else str(name)


def is_of_a_drafter(vllm_config: VllmConfig) -> bool:
    """Whether it is the configuration that vLLM makes for a draft model, out of that of the model it drafts for."""
    speculation = vllm_config.speculative_config
    if speculation is None or speculation.method != "draft_model":
        return False
    return vllm_config.model_config is speculation.draft_model_config


def served_codec(vllm_config: VllmConfig) -> Codec | None:
    """The codec that the server's settings name, read once per process; None for a drafter, whose cache is dense.

    Raises CheckpointError.
    """
    name = None if is_of_a_drafter(vllm_config) else served_name(vllm_config)
    return None if name is None else named_codec(name)


@functools.lru_cache(maxsize=2)
def named_codec(name: str) -> Codec:
    """The codec in a directory or on the hub. Raises CheckpointError."""
    return load_codec(codec_directory(name))


def dense_bytes_per_token(codec: Codec, dtype: str) -> int:
    """What the layers of a codec would keep per token without it, in a ``dtype`` like ``bfloat16``."""
    numbers = (layer.key.sink.numel() + layer.value.sink.numel() for layer in codec.layers.values())
    return sum(numbers) * NUMBER_BYTES[dtype]


@functools.lru_cache(maxsize=2)
def codec_directory(name: str, revision: str | None = None) -> Path:
    """A local directory, or the local copy of a hub's codec. Raises CheckpointError."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=[JSON, TENSORS, REPORT]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"the codec {name} is neither a directory nor on the hub ({type(error).__name__}); "
            "give the directory that palu-calibrate wrote."
        ) from error


@functools.lru_cache(maxsize=2)
def files_digest(directory: Path) -> str:
    """SHA-256 over what is served of a codec, the first ``DIGITS`` hexadecimal digits."""
    digest = hashlib.sha256()
    for name in (JSON, TENSORS):
        with (directory / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:DIGITS]
