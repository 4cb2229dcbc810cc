"""How much memory does palu-compress need for a model of 7B shape?

``python -m benchmarks.compressor.memory [--json] [--samples N] [--seqlen N] [--group-size N]
[--objective NAME] [--search NAME] [--layers N]``

Writes a sharded bfloat16 checkpoint of random weights (hidden 4096, 32 heads, 2 layers unless told otherwise) in a
temporary directory, compresses it in a process of its own and compares the peak of that process's resident memory,
interpreter, libraries and file-backed pages included, with the limit: three layers' weights as stored plus the
calibration activations. ``baseline_bytes`` is the share of the interpreter with torch and transformers imported.
A Fisher search holds the whole model with gradients and is not bound by the limit.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.compressor.synthetic import large_config, write_model, write_text
from offline_compress.options import OBJECTIVES, SEARCHES

FLOAT32 = 4


def measure(directory: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Writes the model, compresses it, and returns one result row."""
    model, out, text = directory / "model", directory / "out", directory / "text.txt"
    config = large_config("llama-2-7b", arguments.layers)
    layer_bytes = write_model(model, config)
    write_text(text, 2 * arguments.samples * arguments.seqlen)
    options = {
        "--rank-ratio": "0.5",
        "--group-size": arguments.group_size,
        "--objective": arguments.objective,
        "--search": arguments.search,
        "--calib-data": text,
        "--calib-samples": arguments.samples,
        "--calib-seqlen": arguments.seqlen,
        "--device": "cpu",
    }
    flags = [str(part) for option in options.items() for part in option]
    command = [sys.executable, "-m", "offline_compress", str(model), str(out), *flags]
    estimate = json.loads(subprocess.run([*command, "--dry-run"], check=True, stdout=subprocess.PIPE).stdout)
    subprocess.run(command, check=True, stdout=sys.stderr)
    report = json.loads((out / "palu_report.json").read_text())
    activations = arguments.samples * arguments.seqlen * config.hidden_size * FLOAT32
    peak, limit = report["peak_memory_bytes"], 3 * layer_bytes + activations
    return {
        "layer_bytes": layer_bytes,
        "activation_bytes": activations,
        "limit_bytes": limit,
        "peak_bytes": peak,
        "baseline_bytes": report["baseline_memory_bytes"],
        "predicted_peak_bytes": estimate["predicted_peak_memory_bytes"],
        "peak_over_limit": round(peak / limit, 3),
        "predicted_over_peak": round(estimate["predicted_peak_memory_bytes"] / peak, 3),
        "within_limit": peak < limit,
        "seconds": report["seconds"],
        "samples": arguments.samples,
        "seqlen": arguments.seqlen,
        "group_size": arguments.group_size,
        "objective": arguments.objective,
        "search": arguments.search,
        "packages": report["provenance"]["packages"],
        "git_revision": report["provenance"]["git_revision"],
    }


def main() -> int:
    """Prints the result; the exit code is 1 where the limit is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--seqlen", type=int, default=1024)
    parser.add_argument("--group-size", type=int, default=4)
    parser.add_argument("--objective", choices=OBJECTIVES, default="whiten")
    parser.add_argument("--search", choices=SEARCHES, default="uniform")
    parser.add_argument("--layers", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        result = measure(Path(directory), arguments)
    if arguments.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:32} {value / 2**20:.0f} MiB" if name.endswith("_bytes") else f"{name:32} {value}")
    return 0 if result["within_limit"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
