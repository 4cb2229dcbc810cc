"""``convert()``: a dump of the paper's reference implementation to a checkpoint of this project, factors unchanged.

The reference may give every group of a layer a rank of its own; here a layer has one for keys and one for values.
Smaller groups are padded with zeros to their layer's largest rank, which is exact and costs cache. Where a rank is
that of the whole group, the factors are multiplied out and the projection is stored uncompressed.
"""

import json
import time
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from offline_compress.checkpoint.carried import carried
from offline_compress.checkpoint.companions import copy_companions
from offline_compress.checkpoint.model_card import write_card
from offline_compress.checkpoint.output import compressed_config
from offline_compress.checkpoint.provenance import provenance
from offline_compress.checkpoint.report import REPORT, cache_sizes
from offline_compress.checkpoint.writer import MAX_SHARD_BYTES, CheckpointWriter, TensorSpec
from offline_compress.convert.converted_layer import LayerOfDump
from offline_compress.convert.options import ConvertOptions
from offline_compress.convert.reference_dump import Ranks, ReferenceDump, open_dump
from offline_compress.model.source import check_finite
from offline_compress.run.errors import CompressionError
from offline_compress.run.progress import OnEvent, ignore
from offline_compress.run.provenance import tool_version
from offline_compress.run.staging import check_target, staged_directory
from palu_vllm.format.checkpoint import attention_prefix, attention_tensors, body_tensors
from palu_vllm.format.config import DTYPE_BYTES, PaluConfig
from palu_vllm.format.layers import layer_shape

UNKNOWN = "unknown"  # what a dump does not record
CARD = """# {base_model}, KV cache {compression:.1f} times smaller

Converted by palu-convert from a dump of the [reference implementation](https://github.com/shadowpa0327/Palu) of
[Palu (ICLR 2025)](https://arxiv.org/abs/2407.21118); its factors are unchanged. How they were computed is not recorded
in a dump. KV cache per token: {bytes_per_token} bytes instead of {dense_bytes_per_token}. {note}

```
vllm serve THIS_DIRECTORY --attention-backend palu
```
"""


def convert(options: ConvertOptions, on_event: OnEvent = ignore) -> dict[str, Any]:
    """Writes the checkpoint to the new directory ``out``; returns the report.

    Raises CompressionError or CheckpointError with one sentence for a dump that cannot be converted; then, as after
    any other error, nothing is left behind.
    """
    started = time.monotonic()
    dump = open_dump(options.dump)
    check_target(options.out, [options.dump], options.overwrite)
    keep_dtype = options.dtype == "auto"
    dtype = dump.source.dtype if keep_dtype else options.dtype
    palu = _palu_config(dump, options.value_path)
    report = _report(dump, palu, dtype)
    on_event({"event": "note", "text": report["note"]})
    with staged_directory(options.out) as staging:
        check_finite(dump.source)
        _write_weights(dump, palu, dtype, keep_dtype, staging, on_event)
        config = compressed_config(dump.source.config, dtype, palu)
        (staging / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        copy_companions(dump.source.directory, staging)
        report |= carried(dump.source, staging)
        report["seconds"] = round(time.monotonic() - started, 2)
        (staging / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        write_card(palu.base_model, CARD.format(**report), staging)
    return report


def _palu_config(dump: ReferenceDump, value_path: str) -> PaluConfig:
    """Raises CompressionError where no checkpoint can be what the dump is."""
    kv_heads = dump.source.geometry.num_kv_heads
    fields: dict[str, Any] = dict(
        base_model=dump.source.name,
        group_size_k=kv_heads // len(dump.ranks_k[0]),
        group_size_v=kv_heads // len(dump.ranks_v[0]),
        rank_k=[max(ranks) for ranks in dump.ranks_k],
        rank_v=[max(ranks) for ranks in dump.ranks_v],
        value_path=value_path,
        attention_bias=dump.has_bias,
        objective=UNKNOWN,
        search=UNKNOWN,
        calibration=UNKNOWN,
        seed=0,
        tool_version=tool_version(),
    )
    try:
        return PaluConfig(**fields)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise CompressionError(f"{dump.source.directory} cannot be served with latents: {reason}.") from error


def padding_numbers(ranks: Ranks) -> int:
    """Numbers per cached token that are zeros, all layers."""
    return sum(len(layer) * max(layer) - sum(layer) for layer in ranks)


def _report(dump: ReferenceDump, palu: PaluConfig, dtype: str) -> dict[str, Any]:
    geometry = dump.source.geometry
    cache = cache_sizes(palu, geometry, dtype)
    padding = (padding_numbers(dump.ranks_k) + padding_numbers(dump.ranks_v)) * DTYPE_BYTES[dtype]
    note = "All groups of a layer have one rank; nothing is padded."
    if padding:
        note = (
            f"Groups of unequal rank are padded with zeros to the largest of their layer, which is exact and costs "
            f"{padding} of the {cache['bytes_per_token']} bytes per token."
        )
    return cache | {
        "converted_from": "reference dump",
        "base_model": palu.base_model,
        "rank_k": palu.rank_k,
        "rank_v": palu.rank_v,
        "value_path": palu.value_path,
        "dtype": dtype,
        "padding_bytes_per_token": padding,
        "note": note,
        "provenance": provenance(dump.source, UNKNOWN, None),
    }


def _write_weights(
    dump: ReferenceDump, palu: PaluConfig, dtype: str, keep_dtype: bool, staging: Path, on_event: OnEvent
) -> None:
    source, number = dump.source, getattr(torch, dtype)
    body = [name for name in body_tensors(source.config, source.geometry) if name in source.tensors]
    specs = [TensorSpec(name, source.tensors[name].dtype if keep_dtype else number, source.tensors[name].shape)
             for name in body]  # fmt: skip
    specs += [TensorSpec(name, number, shape) for name, shape in attention_tensors(palu, source.geometry).items()]
    writer = CheckpointWriter(staging, specs, MAX_SHARD_BYTES)
    for layer in range(source.geometry.num_layers):
        tensors = LayerOfDump(dump, layer, layer_shape(palu, source.geometry, layer), number)
        for name, chunks in tensors.all().items():
            writer.write(attention_prefix(layer) + name, chunks)
        on_event({"event": "layer", "number": layer, "of": source.geometry.num_layers})
    for name in body:
        writer.write(name, source.chunks(name))
    writer.finish()
