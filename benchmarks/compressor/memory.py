"""How much memory and time does palu-compress take for a model of 7B shape?

``python -m benchmarks.compressor.memory [options of palu-compress]`` writes a synthetic checkpoint (``synthetic.py``),
compresses it in a process of its own and compares the peak of that process's resident memory, interpreter, libraries
and file-backed pages included, with a limit and with what ``--dry-run`` said. The limit is ``--limit-gib``, or three
layers' weights as stored plus the calibration activations; a Fisher search holds the whole model with gradients and is
not bound by it. Few samples: running layers on them grows with their number, decompositions do not.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common.commands import compress, run
from benchmarks.common.output import command_line, write_result
from benchmarks.compressor.synthetic import SHAPES, large_config, write_model, write_text

FLOAT32, GIB = 4, 1 << 30
REPORTED = ("seconds", "search_layer_seconds", "layer_seconds", "baseline_memory_bytes")


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Writes the model, compresses it, and returns the result."""
    model, out, text = folder / "model", folder / "out", folder / "text.txt"
    config = large_config(options.shape, options.layers)
    layer_bytes = write_model(model, config)
    write_text(text, 2 * options.samples * options.seqlen)
    flags = ["--rank-ratio", 0.5, "--device", "cpu", "--calib-samples", options.samples]
    flags += ["--calib-seqlen", options.seqlen, *options.more]
    dry = run("offline_compress", model, out, "--calib-data", text, *flags, "--dry-run")
    report = compress(out, *flags, model=model, calibration=text, quiet=False)
    activations = options.samples * options.seqlen * config.hidden_size * FLOAT32
    limit = int(options.limit_gib * GIB) if options.limit_gib else 3 * layer_bytes + activations
    asked = {name: getattr(options, name) for name in ("shape", "layers", "samples", "seqlen", "more")}
    sizes = {"layer_bytes": layer_bytes, "activation_bytes": activations, "limit_bytes": limit}
    found = {name: report[name] for name in REPORTED}
    return asked | sizes | found | compared(report["peak_memory_bytes"], limit, json.loads(dry))


def compared(peak: int, limit: int, dry: dict[str, Any]) -> dict[str, Any]:
    """The peak beside the limit and what was predicted."""
    predicted = dry["predicted_peak_memory_bytes"]
    return {
        "peak_bytes": peak,
        "within_limit": peak <= limit,
        "peak_over_limit": round(peak / limit, 3),
        "predicted_peak_bytes": predicted,
        "predicted_over_peak": round(predicted / peak, 3),
        "temporary_disk_bytes": dry["temporary_disk_bytes"],
    }


def main() -> int:
    """Writes the result; the exit code is 1 where the limit is exceeded."""
    parser = command_line("benchmarks.compressor.memory", __doc__, "compressor_memory.json")
    parser.add_argument("--shape", choices=SHAPES, default="llama-2-7b")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--seqlen", type=int, default=1024)
    parser.add_argument("--limit-gib", type=float, help="(default: three layers and the activations)")
    options, more = parser.parse_known_args()
    options.more = more
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), options)
    write_result(options.out, result)
    print(f"peak {result['peak_bytes'] / 2**20:.0f} MiB, {result['seconds']:.0f} s, {options.out}")
    return 0 if result["within_limit"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
