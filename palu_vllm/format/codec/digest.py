"""Which model a codec belongs to: a digest of the tensors that make its keys and values."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from palu_vllm.format.checkpoint import CheckpointError, shard_of_tensor

PROJECTIONS = frozenset(
    ("k_proj", "v_proj", "kv_proj", "qkv_proj", "qkv", "query_key_value", "c_attn", "Wqkv", "wqkv", "W_pack")
)
FIRST_BYTES = 1 << 16  # of every tensor


def model_digest(directory: Path) -> str:
    """SHA-256, in hexadecimal, over the K and V projections of a model's safetensors files, in the order of names.

    Of every tensor below a module of ``PROJECTIONS``, biases and quantized forms among them: its name, dtype, shape and
    first 64 KiB. Raises CheckpointError for a directory without such tensors, and for damaged files.
    """
    digest = hashlib.sha256()
    where = {name: file for name, file in shard_of_tensor(directory).items() if PROJECTIONS & {*name.split(".")}}
    if not where:
        raise CheckpointError(f"{directory} has no tensor named like a projection of keys or values.")
    beginnings: dict[str, tuple[list, bytes]] = {}
    for file in set(where.values()):
        beginnings |= {name: read for name, read in _beginnings(file) if where.get(name) == file}
    for name in sorted(beginnings):
        described, first = beginnings[name]
        digest.update(json.dumps([name, *described]).encode() + b"\n")
        digest.update(first)
    return digest.hexdigest()


def _beginnings(file: Path) -> Iterator[tuple[str, tuple[list, bytes]]]:
    """``(name, ([dtype, shape], first bytes))`` of the K and V projections in one file."""
    with file.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        header = json.loads(handle.read(length))
        for name, about in header.items():
            if PROJECTIONS & {*name.split(".")}:
                start, end = about["data_offsets"]
                handle.seek(8 + length + start)
                yield name, ([about["dtype"], about["shape"]], handle.read(min(end - start, FIRST_BYTES)))
