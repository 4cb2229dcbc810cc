"""The report of a soak: a picture over time, and a page that needs nothing else."""

from collections.abc import Mapping, Sequence

from benchmarks.common import report as html
from benchmarks.common.output import png_of, pyplot
from benchmarks.common.report import Part
from benchmarks.load.soak.server_state import Sample
from benchmarks.load.soak.verdict import second_half


def picture(samples: Sequence[Sample]) -> bytes:
    """PNG: memory, requests and cache usage over the run."""
    seconds = [sample.second for sample in samples]
    figure, (memory, requests, cache) = pyplot.subplots(3, 1, figsize=(8, 6), dpi=110, sharex=True, layout="tight")
    mebibytes = [sample.rss_bytes / 2**20 for sample in samples]
    memory.plot(seconds, mebibytes, color="tab:red")
    if half := second_half(samples):
        memory.axvspan(half[0].second, half[-1].second, color="tab:red", alpha=0.08)
    memory.set(
        ylabel="resident, MiB", ylim=(0, 1.2 * max(mebibytes)), title="shaded: the half in which memory must be flat"
    )
    requests.plot(seconds, [sample.running for sample in samples], label="running")
    requests.plot(seconds, [sample.waiting for sample in samples], label="waiting")
    requests.set(ylabel="requests", ylim=(0, 1.2 * max(s.running + s.waiting for s in samples) + 1))
    requests.legend(loc="lower center", ncols=2)
    cache.plot(seconds, [100 * sample.cache_usage for sample in samples], color="tab:green")
    cache.set(ylabel="blocks in use, %", ylim=(0, 102), xlabel="seconds")
    return png_of(figure)


def facts(report: Mapping) -> dict[str, str]:
    """What the page's table says."""
    load, server, grown = report["load"], report["server"], report["growth_share_per_minute"]
    times = {
        f"{name.upper()}, median / p99": f"{spread['p50']:.1f} / {spread['p99']:.1f} ms"
        for name, spread in ((name, load[f"{name}_ms"]) for name in ("ttft", "tpot", "e2e"))
        if spread
    }
    return {
        "verdict": "passed" if report["passed"] else " ".join(report["violations"]),
        "load": load["load"],
        "requests": ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in load["requests"].items()),
        "tokens": f"{load['prompt_tokens']:,} of prompts, {load['output_tokens']:,} of answers",
        "throughput": f"{load['output_tokens_per_second']:.1f} tokens per second",
        **times,
        "client": "SATURATED: its times are its own" if load["client"]["saturated"] else "not saturated",
        "model": f"{server['model']}, {server['bytes_per_token']} bytes of KV cache per token",
        "cache": f"{server['capacity_tokens']:,} tokens, {server['preemptions']:g} preemptions",
        "after the load": "{running:g} running, {waiting:g} waiting, {cache_usage:.2%} of blocks in use".format(
            **report["final"]
        ),
        "growth of memory": "unknown"
        if grown is None
        else f"{grown:.4%} per minute, allowed {report['growth_limit_per_minute']:.2%}",
    }


def page(report: Mapping, png: bytes) -> str:
    parts = [Part(rows=list(facts(report).items())), Part("Memory, requests and blocks over time", png=png)]
    return html.page("Soak of a compressed model", parts, report["provenance"])
