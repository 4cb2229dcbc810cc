"""This module writes the README.md of a compressed checkpoint."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

TAGS = ["palu", "kv-cache-compression", "low-rank"]
BODY = """# {model}, KV cache {compression:.1f} times smaller

Compressed by palu-compress: keys and values are cached as low-rank latents
([Palu, ICLR 2025](https://arxiv.org/abs/2407.21118)).

| | |
|---|---|
| KV cache per token | {bytes_per_token} bytes instead of {dense_bytes_per_token} ({dtype}){served} |
| kept rank | {rank_ratio_realised:.4f}{nominal} |
| bits of latents | keys {bits_k}, values {bits_v} |
| group size | {group_sizes} |
| objective, rank search | {objective}, {search} |
| value path | {value_path} |
| calibration | {calibration} |
| rank of keys per layer | {ranks_k} |
| rank of values per layer | {ranks_v} |
{sharing}
```
vllm serve THIS_DIRECTORY --attention-backend palu
```

Errors per layer, memory, time and provenance are in `palu_report.json`. Quality was not measured when this was
written; measure it on your own text before you use the model.
"""


def write_card(base_model: str, body: str, directory: Path) -> None:
    """Writes ``README.md``: what the hub reads of a model, in front of ``body``."""
    facts = ModelCardData(base_model=base_model, library_name="vllm", pipeline_tag="text-generation", tags=TAGS)
    ModelCard(f"---\n{facts}\n---\n{body}").save(directory / "README.md")


def write_model_card(report: dict[str, Any], directory: Path) -> None:
    """Writes the card for a report of :func:`offline_compress.checkpoint.report.final_report`."""
    model = report["provenance"]["model"]
    body = BODY.format(
        **report,
        model=model,
        served=_served(report),
        nominal="" if report["rank_ratio_nominal"] is None else f", nominal {report['rank_ratio_nominal']:g}",
        group_sizes=_group_sizes(report["group_size_k"], report["group_size_v"]),
        bits_k=_bits(report["tiers_k"]),
        bits_v=_bits(report["tiers_v"]),
        ranks_k=", ".join(map(str, report["rank_k"])),
        ranks_v=", ".join(map(str, report["rank_v"])),
        sharing=_sharing(report["source_layers"] or []),
    )
    write_card(model, body, directory)


def _served(report: dict[str, Any]) -> str:
    """The bytes of a server that was given no dtype, where they are others."""
    if report["served_dtype"] == report["dtype"]:
        return ""
    told = "; {served_bytes_per_token} instead of {served_dense_bytes_per_token} as vLLM serves it ({served_dtype})"
    return told.format(**report)


def _group_sizes(size_k: int, size_v: int) -> str:
    return f"{size_k} KV heads" if size_k == size_v else f"{size_k} KV heads in K, {size_v} in V"


def _sharing(source_layers: list[int]) -> str:
    """A row of the table where layers share, else nothing."""
    pairs = [f"{layer} reads {source}" for layer, source in enumerate(source_layers) if layer != source]
    return f"| layers without a cache | {', '.join(pairs)} |\n" if pairs else ""


def _bits(tiers: list[dict[str, Any]]) -> str:
    return ", then ".join(f"{tier['bits']} for {tier['share']:.3g} of the rank" for tier in tiers)
