"""The comparison as one HTML page that needs nothing else."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.common import report
from benchmarks.common.report import Part

ON_CPU = (
    "Measured on a CPU. Latents rebuild keys there, which nothing hides: what they save shows in the contexts held, "
    "not in the time per token. Codecs rebuild nothing."
)
NOTE = (
    "Every arm has the same bytes of KV cache. Contexts held: as many requests as its own pool takes, sent at once; "
    "the number counts if all ran at the same time and none was preempted. The other figures: the same requests for "
    "all arms, as many as the largest pool holds, sent at once; medians of the repeats, least and most in brackets. "
    "Prompts differ in every cell and prefix caching is off. Measured by vllm bench serve."
)
COLUMNS = {
    "output_throughput": "tokens/s", "median_ttft_ms": "TTFT ms", "p99_ttft_ms": "TTFT p99 ms",
    "median_tpot_ms": "TPOT ms", "peak_running": "running at most", "preemptions": "preemptions",
}  # fmt: skip


def arms(found: Mapping[str, Mapping[str, Any]]) -> Part:
    """Capacity and quality, one row per arm; one that did not start has its reason."""
    rows = []
    for name, facts in found.items():
        if "missing" in facts:
            rows.append([name, facts["missing"], "", ""])
            continue
        perplexity = facts.get("perplexity")
        quality = "not measured" if perplexity is None else f"{perplexity:.2f}"
        rows.append([name, f"{facts['bytes_per_token']:.0f}", f"{facts['capacity_tokens']:,}", quality])
    return Part(head=["arm", "bytes per token", "capacity in tokens", "perplexity"], rows=rows)


def figures(rows: Sequence[Mapping[str, Any]]) -> Part:
    cells = [[row["arm"], row["context"], row["held"], row["load"], *(_spread(row[name]) for name in COLUMNS)]
             for row in rows]  # fmt: skip
    return Part(head=["arm", "context", "held", "requests at once", *COLUMNS.values()], rows=cells)


def _spread(value: Mapping[str, float]) -> str:
    return f"{_number(value['median'])} [{_number(value['least'])}, {_number(value['most'])}]"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"


def page(result: Mapping[str, Any], png: bytes) -> str:
    """The whole page of what ``benchmarks.serving`` measured."""
    title = f"{result['model']} served side by side, {result['pool_bytes'] / 2**20:.0f} MiB of KV cache each"
    notes = [NOTE, ON_CPU] if result["on_cpu"] else [NOTE]
    picture = Part("Side by side", png=png)
    parts = [Part(paragraphs=notes), arms(result["arms"]), picture, figures(result["rows"])]
    return report.page(title, parts, result["provenance"])
