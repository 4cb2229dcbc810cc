"""``make load``: streaming users ask the compressed shipped model for five minutes, on a CPU.

Compresses the shipped model, or with ``--codec`` makes a codec for it and drafts by n-grams. Serves it with a small
pool, so that requests are preempted and every page is touched early. Locust's users stream, one in ten hanging up.
Ends non-zero, with a sentence for each, after an error, a block that is still held after the load, or memory that
grows. What follows ``--`` goes to ``python -m benchmarks.load``.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from benchmarks.common.metrics import metrics
from benchmarks.common.output import IMAGES, RESULTS
from benchmarks.common.provenance import provenance
from benchmarks.common.server import ONE_THREAD, Server, serve
from benchmarks.load.client.prompts import FIRST_ID
from benchmarks.load.client.stream import make_client
from benchmarks.load.command import locust_command, locust_environment
from benchmarks.load.options import api_key
from benchmarks.load.soak.report import page, picture
from benchmarks.load.soak.served import Served, with_codec, with_latents
from benchmarks.load.soak.server_state import Sample, sample_of, sample_when_idle, tree_rss
from benchmarks.load.soak.verdict import GROWTH_LIMIT, growth, violations

MIX = ["--prompt-tokens", "lognormal:128:0.6:512", "--output-tokens", "lognormal:64:0.5:256",
       "--prefix-share", "0.3", "--prefix-tokens", "64", "--disconnect-share", "0.1"]  # fmt: skip
STEP_TOKENS = 128
REQUEST_SECONDS = 600  # of a request of the warm-up, on a machine that does other things too
IDLE_SECONDS = 60
SAMPLE_SECONDS = 2.0


def warm_up(server: Server) -> None:
    """One step of every size.

    vLLM's linear layers on the CPU, a dense model's too, keep an oneDNN kernel for every number of tokens that a step
    has had. Filled by and by under load, that looks like a leak for minutes.
    """
    client = make_client(server.url, api_key(), REQUEST_SECONDS)
    for tokens in range(1, STEP_TOKENS + 1):
        # different from the first token on, so that nothing comes from the prefix cache
        client.completions.create(model=server.model, prompt=[FIRST_ID + tokens] * tokens, max_tokens=1)


@contextmanager
def sampling(server: Server) -> Iterator[list[Sample]]:
    """A list that grows by a sample every ``SAMPLE_SECONDS`` until the end of the block."""
    samples: list[Sample] = []
    ended = threading.Event()
    start = time.monotonic()

    def watch() -> None:
        while not ended.wait(SAMPLE_SECONDS):
            found = metrics(server.url)
            samples.append(sample_of(time.monotonic() - start, tree_rss(server.process.pid), found))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


def run_load(server: Server, users: int, seconds: int, more: Sequence[str], result: Path) -> dict:
    """Locust's result. Raises RuntimeError if it wrote none."""
    command = locust_command(["--headless", "--only-summary", "--host", server.url, "--load-shape", "soak", *MIX])
    command += ["--users", str(users), "--run-time", f"{seconds}s", "--json-result", str(result), *more]
    ended = subprocess.run(command, env=locust_environment())
    if not result.exists():
        raise RuntimeError(f"locust ended with {ended.returncode} and wrote no result.")
    return json.loads(result.read_text())


def soak(served: Served, options: argparse.Namespace, scratch: Path) -> tuple[dict, list[Sample]]:
    """The report and its samples, of ``vllm serve``."""
    pool = ["--block-size", "16", "--num-gpu-blocks-override", str(options.blocks)]
    pool += ["--max-num-batched-tokens", str(STEP_TOKENS)]
    arguments = ["--attention-backend", "palu", "--dtype", "float32", "--max-model-len", "1024", *pool, *served.flags]
    with serve(served.model, arguments, environment=os.environ | ONE_THREAD) as server:
        warm_up(server)
        with sampling(server) as samples:
            load = run_load(server, options.users, options.seconds, options.more, scratch / "load.json")
        final = sample_when_idle(server.url, server.process.pid, IDLE_SECONDS)
        found, log = metrics(server.url), server.log.read_text(errors="replace")
        capacity = server.capacity_tokens()
    broken = violations(load, samples, final, log)
    return {
        "passed": not broken,
        "violations": broken,
        "load": {name: value for name, value in load.items() if name != "provenance"},
        "server": {
            "model": served.said,
            "bytes_per_token": found["palu_cache_bytes_per_token"],
            "capacity_tokens": capacity,
            "preemptions": found["vllm:num_preemptions_total"],
            "generated_tokens": found["vllm:generation_tokens_total"],
            "prefix_cache_hits": found["vllm:prefix_cache_hits_total"],
            "drafted_tokens": found.get("vllm:spec_decode_num_draft_tokens_total", 0.0),
            "accepted_drafts": found.get("vllm:spec_decode_num_accepted_tokens_total", 0.0),
        },
        "final": asdict(final),
        "growth_share_per_minute": growth(samples),
        "growth_limit_per_minute": GROWTH_LIMIT,
        "samples": [asdict(sample) for sample in samples],
        "provenance": provenance(),
    }, samples


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--users", type=int, default=32)
    parser.add_argument("--blocks", type=int, default=384, help="of 16 tokens, in the pool")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--model", type=Path, help="a compressed checkpoint (default: compress the shipped model)")
    kind.add_argument("--codec", action="store_true", help="the shipped model as it is with a codec at 4x, and drafts")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of load_soak.json and load_soak.html")
    parser.add_argument("--picture", type=Path, default=IMAGES, help="folder of load_soak.png")
    parser.add_argument("more", nargs="*", help="after --: options of python -m benchmarks.load")
    return parser.parse_args(arguments)


def main() -> None:
    options = parse(sys.argv[1:])
    with tempfile.TemporaryDirectory(prefix="palu-soak-") as folder:
        scratch = Path(folder)
        served = with_codec(scratch) if options.codec else with_latents(options.model, scratch)
        report, samples = soak(served, options, scratch)
    png, name = picture(samples), "load_soak_codec" if options.codec else "load_soak"
    (options.picture / f"{name}.png").write_bytes(png)
    (options.out / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    (options.out / f"{name}.html").write_text(page(report, png), encoding="utf-8")
    for sentence in report["violations"]:
        print(f"SOAK FAILED: {sentence}")
    print(f"{'failed' if report['violations'] else 'passed'}; report: {options.out / name}.html")
    raise SystemExit(1 if report["violations"] else 0)


if __name__ == "__main__":
    main()
