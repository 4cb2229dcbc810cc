"""Which exact route to the truncated factors of a group is fastest, and do workers help?

``python -m benchmarks.decomposition_routes [--repeats 3] [--out FILE]``

One group of four heads of 128 over a hidden size of 4096, whitened, ranks 128 and 256, one thread. Routes: LAPACK's
gesdd on ``W S`` (what ``torch.linalg.svd`` calls on a CPU) in float64 and float32, gesvd where SciPy is installed, and
the eigenvectors of ``W H W^T`` in float64, which the compressor takes. Errors are ``|(W - up down) S| / |W S|`` in
float64, over the least possible; weights are random, with flat and with steep spectra. Then eight groups: linear
algebra of all threads, worker threads of one, and worker processes of one.
"""

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.provenance import ROOT, provenance
from offline_compress.decomposition import damp, decompose_group
from offline_compress.workers import in_order, one_thread, working

FULL, HIDDEN, RANKS, GROUPS, SAMPLES = 512, 4096, (128, 256), 8, 6000
RESULT = ROOT / "benchmarks" / "results" / "decomposition_routes.json"
Factors = tuple[torch.Tensor, torch.Tensor]


def case(spectrum: str, rows: int = FULL, hidden: int = HIDDEN) -> tuple[torch.Tensor, torch.Tensor]:
    """``W [rows, hidden]`` and ``H [hidden, hidden]`` in float64; steep: singular values from 1 to 1e-10."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, hidden, generator=generator, dtype=torch.float64)
    if spectrum == "steep":
        left, _, right = torch.linalg.svd(weight, full_matrices=False)
        weight = (left * torch.logspace(0, -10, len(left), dtype=torch.float64)) @ right
    inputs = torch.randn(min(SAMPLES, 2 * hidden), hidden, generator=generator, dtype=torch.float64)
    return weight, damp(inputs.T @ inputs / len(inputs))


def by_svd(
    weight: torch.Tensor, root: torch.Tensor, rank: int, svd: Callable[[torch.Tensor], tuple[torch.Tensor, ...]]
) -> Factors:
    """``up [full, rank]`` and ``down [rank, hidden]`` from the SVD of ``W S``."""
    left, values, _ = svd(weight @ root)
    scale = values[:rank].sqrt()
    down = (left[:, :rank] / scale.where(scale > 0, torch.inf)).T @ weight
    return left[:, :rank] * scale, down


def gesdd(matrix: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.linalg.svd(matrix, full_matrices=False)


def gesvd(matrix: torch.Tensor) -> tuple[torch.Tensor, ...]:
    from scipy.linalg import svd

    return tuple(torch.from_numpy(part) for part in svd(matrix.numpy(), full_matrices=False, lapack_driver="gesvd"))


def routes(weight: torch.Tensor, moment: torch.Tensor) -> dict[str, Callable[[int], Factors]]:
    """Every route from ``W`` and ``H`` to factors, what they need beyond ``H`` included."""

    def single(rank: int) -> Factors:
        half = torch.linalg.cholesky(moment).float()
        return tuple(part.double() for part in by_svd(weight.float(), half, rank, gesdd))

    return {
        "eigh of the Gram matrix, float64": lambda rank: decompose_group(weight, rank, moment)[:2],
        "gesdd, float64": lambda rank: by_svd(weight, torch.linalg.cholesky(moment), rank, gesdd),
        "gesdd, float32": single,
        "gesvd, float64": lambda rank: by_svd(weight, torch.linalg.cholesky(moment), rank, gesvd),
    }


def relative_error(weight: torch.Tensor, root: torch.Tensor, factors: Factors) -> float:
    up, down = factors
    return (((weight - up @ down) @ root).norm() / (weight @ root).norm()).item()


def timed(work: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Median seconds and the last result."""
    seconds, result = [], None
    for _ in range(repeats):
        started = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - started)
    return round(statistics.median(seconds), 3), result


def compare_routes(spectrum: str, repeats: int) -> list[dict[str, Any]]:
    weight, moment = case(spectrum)
    root = torch.linalg.cholesky(moment)
    values = torch.linalg.svdvals(weight @ root).square()
    rows = []
    for rank in RANKS:
        least = (values[rank:].sum() / values.sum()).sqrt().item()
        for name, route in routes(weight, moment).items():
            try:
                seconds, factors = timed(lambda route=route, rank=rank: route(rank), repeats)
            except ImportError as error:
                rows.append({"spectrum": spectrum, "rank": rank, "route": name, "missing": str(error)})
                continue
            error = relative_error(weight, root, factors)
            rows.append({"spectrum": spectrum, "rank": rank, "route": name, "seconds": seconds})
            rows[-1] |= {"relative_error": error, "above_the_least_possible": error / least - 1}
    return rows


def _group(rank: int, path: str, seed: int) -> float:
    """A group's decomposition in a process of its own, which maps ``H`` from a file; its factors travel back."""
    torch.set_num_threads(1)
    moment = torch.from_file(path, shared=False, size=HIDDEN**2, dtype=torch.float64).view(HIDDEN, HIDDEN)
    weight = torch.randn(FULL, HIDDEN, generator=torch.Generator().manual_seed(seed)).bfloat16()
    return [part.numpy() for part in decompose_group(weight, rank, moment)[:2]]


def compare_workers(repeats: int) -> list[dict[str, Any]]:
    """Eight groups at rank 256."""
    _, moment = case("flat")
    seeds, rank, cores = range(GROUPS), RANKS[-1], torch.get_num_threads()
    with tempfile.NamedTemporaryFile() as file:
        moment.numpy().tofile(file.name)
        rows = []

        def one(seed: int) -> Factors:
            weight = torch.randn(FULL, HIDDEN, generator=torch.Generator().manual_seed(seed)).bfloat16()
            return decompose_group(weight, rank, moment)[:2]

        def add(how: str, number: int, work: Callable[[], Any]) -> None:
            rows.append({"how": how, "number": number, "seconds": timed(work, repeats)[0]})

        add("threads of linear algebra", cores, lambda: [one(seed) for seed in seeds])
        for number in sorted({1, cores}):
            with working(number):
                add("workers, threads of this process", number, lambda: list(in_order(one, seeds)))
        with ProcessPoolExecutor(cores, mp_context=multiprocessing.get_context("spawn")) as pool:
            calls = [[rank] * GROUPS, [file.name] * GROUPS, seeds]
            list(pool.map(_group, *calls))  # processes have started
            add("workers, processes", cores, lambda: list(pool.map(_group, *calls)))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    with one_thread():
        rows = [row for spectrum in ("flat", "steep") for row in compare_routes(spectrum, arguments.repeats)]
    result = {"routes": rows, "workers": compare_workers(arguments.repeats), "provenance": provenance()}
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
