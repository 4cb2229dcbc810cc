"""Is anything right at all? One store, decoding, a prefill and a graph of one arm, each against the specification.

``python -m benchmarks.gpu.smoke --arm palu_16 --rows smoke.jsonl`` appends one row per check as it ends. A check that
fails says why and stops none of the others. Exits with 1 where one failed.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import torch

from benchmarks.gpu.setting import CODED, Row, Setting, append, arm_of, parser_of, setting_of
from benchmarks.latency.attention_case import Arm, Case
from benchmarks.latency.timing import captured
from palu_vllm.kernels.interface import PagedBatch

REQUESTS = 2
Check = tuple[str, Callable[[], float]]


class Smoke:
    """One arm over ``REQUESTS`` contexts of random tokens, and what is asked of it."""

    def __init__(self, name: str, setting: Setting) -> None:
        self.name, self.setting = name, setting
        torch.manual_seed(0)
        self.case: Case = setting.case(REQUESTS)

    def stored(self) -> float:
        """Building an arm writes its whole cache through ``store``; a new token must change what is attended to."""
        self.arm: Arm = arm_of(self.name, self.case)
        self.query = self.random_query()
        before = self.arm.attend(self.query).clone()
        widths = self.arm.projections[0][1:] or tuple(width for (width,) in self.arm.projections[1:])
        self.arm.store(*(8 * self.case.random(REQUESTS, width) for width in widths))
        if torch.equal(before, self.arm.attend(self.query)):
            raise RuntimeError("a stored token changed nothing")
        return 0.0

    def decoded(self) -> float:
        return self.error(self.arm.attend(self.query), self.arm.expected(self.query))

    def prefilled(self) -> float:
        """Several queries of each request at the end of its context."""
        queries, arm = self.setting.queries, cast(Any, self.arm)
        paged, starts = self.case.paged, torch.arange(REQUESTS + 1, dtype=torch.int32, device=self.setting.device)
        batch = PagedBatch(paged.block_table, paged.seq_lens, queries * starts, queries, paged.max_seq_len)
        query = self.case.random(REQUESTS * queries, self.case.layer.shape.num_heads, self.case.layer.shape.head_dim)
        out = torch.full((*query.shape[:2], arm.out_width), float("nan"), dtype=query.dtype, device=query.device)
        expected = torch.empty_like(out, dtype=torch.float32)
        arm.attention.attend(query, arm.cache, batch, out)
        arm.specification().attend(query.float(), arm.cache, batch, expected)
        return self.error(out, expected)

    def replayed(self) -> float:
        """A graph that is replayed with another query; in a rehearsal the call alone is repeated."""
        query, other = self.query.clone(), self.random_query()
        run = partial(self.arm.attend, query)
        again = run if self.setting.rehearsal else captured(run, warmup=2).replay
        query.copy_(other)
        again()
        return self.error(cast(Any, self.arm).out, self.arm.expected(other))

    def random_query(self) -> torch.Tensor:
        shape = self.case.layer.shape
        return self.case.random(REQUESTS, shape.num_heads, shape.head_dim)

    def error(self, out: torch.Tensor, expected: torch.Tensor) -> float:
        """``|out - expected| / |expected|``. Raises RuntimeError where it is too large; NaN is."""
        error = float((out.float() - expected).norm() / expected.norm())
        if not error <= self.arm.tolerance:
            raise RuntimeError(f"wrong result: relative error {error:.3g}, allowed {self.arm.tolerance}")
        return error

    def checks(self) -> list[Check]:
        return [("store", self.stored), ("decode", self.decoded), ("prefill", self.prefilled), ("graph", self.replayed)]


def tried(smoke: Smoke) -> Iterator[Row]:
    """One row per check: ``ok`` and its error, or why it failed."""
    for name, run in smoke.checks():
        start = time.perf_counter()
        row: Row = {"arm": smoke.name, "check": name, "rehearsal": smoke.setting.rehearsal}
        try:
            row |= {"ok": True, "relative_error": run()}
        except Exception as error:  # noqa: BLE001  whatever a kernel does, the next check is tried
            row |= {"ok": False, "reason": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
        yield row | {"seconds": round(time.perf_counter() - start, 3)}


def main() -> None:
    parser = parser_of("smoke", __doc__ or "")
    parser.add_argument("--arm", choices=CODED, required=True)
    options = parser.parse_args()
    failed = False
    with torch.inference_mode():
        for row in tried(Smoke(options.arm, setting_of(options))):
            append(options.rows, row)
            print(row, flush=True)
            failed |= not row["ok"]
    raise SystemExit(int(failed))


if __name__ == "__main__":
    main()
