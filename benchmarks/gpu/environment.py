"""What the machine is and what it can do: versions, then the rates of a copy, of a large product and of reading L2.

``python -m benchmarks.gpu.environment --rows env.json`` writes one JSON object and writes it again after every
measurement. The rates are what bounds are worked out from; ``as_expected`` says whether they are those of an H200.
"""

import json
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.common.provenance import provenance
from benchmarks.gpu.setting import Row, Setting, parser_of, setting_of
from benchmarks.latency.timing import CudaTimer, WallTimer

TERA = 1e12
EXPECTED = {"copy_bytes_per_second": 4.0 * TERA, "product_flops_per_second": 700 * TERA}  # at least, of an H200
Timed = tuple[str, float, Callable[[], object]]  # name of the rate, amount of one run, the run


def copied(setting: Setting) -> Timed:
    """Bytes read plus bytes written."""
    source = torch.randint(0, 255, (1 << 10 if setting.rehearsal else 1 << 31,), dtype=torch.uint8).to(setting.device)
    target = torch.empty_like(source)
    return "copy_bytes_per_second", 2 * source.nbytes, lambda: target.copy_(source)


def product(setting: Setting) -> Timed:
    """Of random numbers: zeros are multiplied faster."""
    size = 16 if setting.rehearsal else 8192
    left, right = (torch.randn(size, size, device=setting.device, dtype=setting.dtype) for _ in range(2))
    out = torch.empty_like(left)
    return "product_flops_per_second", 2.0 * size**3, lambda: torch.mm(left, right, out=out)


def l2(setting: Setting) -> Timed:
    """Raises RuntimeError where a sum is wrong."""
    from benchmarks.gpu.l2_read import ON_H200, TINY

    size = TINY if setting.rehearsal else ON_H200
    source, target = size.buffers(setting.device)
    size.run(source, target)
    if not torch.equal(target, size.expected(source)):
        raise RuntimeError("the kernel that reads L2 gave wrong sums")
    return "l2_bytes_per_second", size.bytes, lambda: size.run(source, target)


def measured(setting: Setting) -> Iterator[Row]:
    """One rate after the other, medians; under ``missing`` what failed and why."""
    timer = WallTimer() if setting.rehearsal else CudaTimer(setting.device)
    for prepare in (copied, product, l2):
        try:
            name, amount, run = prepare(setting)
            yield {name: amount / statistics.median(timer.seconds(run, 3, 10))}
        except RuntimeError as error:  # of the device, too
            yield {"missing": f"{prepare.__name__}: {str(error).splitlines()[0]}"}


def facts(setting: Setting) -> Row:
    """Versions and machine."""
    found: Row = {"kind": "rehearsal, not a measurement" if setting.rehearsal else "measurement"}
    if not setting.rehearsal:
        about = torch.cuda.get_device_properties(setting.device)
        found |= {"multiprocessors": about.multi_processor_count, "l2_bytes": about.L2_cache_size,
                  "memory_bytes": about.total_memory, "cuda": torch.version.cuda}  # fmt: skip
    return found | {"provenance": provenance()}


def write(path: Path, found: Row) -> None:
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    options = parser_of("environment", __doc__ or "").parse_args()
    setting = setting_of(options)
    found = facts(setting)
    write(options.rows, found)
    for rate in measured(setting):
        found |= rate
        found["as_expected"] = all(found.get(name, 0) > least for name, least in EXPECTED.items())
        write(options.rows, found)
    print(json.dumps({name: value for name, value in found.items() if name != "provenance"}))
    if "missing" in found:
        raise SystemExit(found["missing"])


if __name__ == "__main__":
    main()
