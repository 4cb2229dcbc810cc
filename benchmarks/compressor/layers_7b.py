"""How long does palu-compress take for a layer of 7B shape, what of it for what, and in how much memory?

``python -m benchmarks.compressor.layers_7b [--shape llama-2-7b] [--layers 4] [--samples 2] [--seqlen 512] [--workers N]
[--out FILE]``

Writes a synthetic checkpoint (``synthetic.py``), compresses it with ``--objective weighted`` (energy search and refit)
in a process of its own, and compares the peak of that process with 6 GiB and with what ``--dry-run`` said. Seconds are
those of ``palu_report.json``; few samples: running layers on samples, second moments and activations grow with them,
decompositions do not.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common.provenance import ROOT, provenance
from benchmarks.compressor.synthetic import SHAPES, large_config, write_model, write_text

LIMIT_BYTES = 6 << 30
RESULT = ROOT / "benchmarks" / "results" / "compressor_7b.json"


def command(model: Path, out: Path, text: Path, arguments: argparse.Namespace) -> list[str]:
    flags = ["--objective", "weighted", "--rank-ratio", "0.5", "--calib-data", text, "--device", "cpu"]
    flags += ["--calib-samples", arguments.samples, "--calib-seqlen", arguments.seqlen]
    if arguments.workers:
        flags += ["--workers", arguments.workers]
    return [sys.executable, "-m", "offline_compress", str(model), str(out), *map(str, flags)]


def measure(directory: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Writes the model, compresses it, and returns the result."""
    model, out, text = directory / "model", directory / "out", directory / "text.txt"
    layer_bytes = write_model(model, large_config(arguments.shape, arguments.layers))
    write_text(text, 2 * arguments.samples * arguments.seqlen)
    run = command(model, out, text, arguments)
    predicted = json.loads(subprocess.run([*run, "--dry-run"], check=True, stdout=subprocess.PIPE).stdout)
    subprocess.run(run, check=True, stdout=sys.stderr)
    report = json.loads((out / "palu_report.json").read_text())
    peak = report["peak_memory_bytes"]
    return {
        "shape": arguments.shape,
        "layers": arguments.layers,
        "samples": arguments.samples,
        "seqlen": arguments.seqlen,
        "workers": arguments.workers,
        "layer_bytes": layer_bytes,
        "peak_bytes": peak,
        "limit_bytes": LIMIT_BYTES,
        "within_limit": peak <= LIMIT_BYTES,
        "predicted_peak_bytes": predicted["predicted_peak_memory_bytes"],
        "predicted_over_peak": round(predicted["predicted_peak_memory_bytes"] / peak, 3),
        "baseline_bytes": report["baseline_memory_bytes"],
        "temporary_disk_bytes": predicted["temporary_disk_bytes"],
        "seconds": report["seconds"],
        "search_layer_seconds": report["search_layer_seconds"],
        "layer_seconds": report["layer_seconds"],
        "provenance": provenance(),
    }


def main() -> int:
    """Writes the result; the exit code is 1 where the limit is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llama-2-7b")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--seqlen", type=int, default=512)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        result = measure(Path(directory), arguments)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"peak {result['peak_bytes'] / 2**20:.0f} MiB, {result['seconds']:.0f} s, {arguments.out}")
    return 0 if result["within_limit"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
