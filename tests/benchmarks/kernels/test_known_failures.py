"""The list of known failures stays true: what is new fails, and what no longer fails has to leave it."""

from dataclasses import replace

from benchmarks.kernels.check import CHIPS, LAYERS, LONGEST, PIPELINED, RECOMMENDED, failures, judge, place
from benchmarks.kernels.known_failures import KNOWN, Failure, judged

SPILL = Failure("3.6", "sm_90", "llama_3_8b_256_256", "decode_split_kernel (1)", "stack")
TRIED = (SPILL.triton, SPILL.arch, SPILL.layer, SPILL.kernel)
ROW = {
    "triton": "3.6.0", "arch": "sm_90", "layer": SPILL.layer, "kernel": "decode_split_kernel", "queries": 1,
    "limit": 227 * 1024, "registers": 255, "stack": 304, "shared_memory": 0, "tensor_memory": 0, "seconds": 9.0,
    "synchronous_loads": 7,
}  # fmt: skip


def test_what_is_not_listed_is_new():
    verdict = judged([SPILL], [TRIED], [])
    assert verdict.new == [SPILL] and not verdict.passed


def test_what_is_listed_and_fails_passes():
    verdict = judged([SPILL], [TRIED], [SPILL])
    assert verdict.known == [SPILL] and verdict.passed


def test_what_is_listed_and_is_fine_now_fails():
    verdict = judged([], [TRIED], [SPILL])
    assert verdict.mended == [SPILL] and not verdict.passed


def test_what_was_not_compiled_is_not_judged():
    assert judged([], [], [SPILL]).passed
    assert judged([], [("3.9", *TRIED[1:])], [SPILL]).passed


def test_another_kind_of_failure_of_a_listed_kernel_is_new():
    slow = replace(SPILL, kind="seconds")
    verdict = judged([SPILL, slow], [TRIED], [SPILL])
    assert verdict.new == [slow] and verdict.known == [SPILL]


def test_a_row_says_where_it_is_and_what_fails():
    assert place(ROW) == TRIED
    assert failures(ROW) == [SPILL]
    assert failures(ROW | {"layer": "llama_3_8b_256_256_tiers"}) == [], "spilling is allowed there"
    slow = ROW | {"seconds": LONGEST + 1, "stack": 0, "layer": "llama_3_8b_256_256_tiers"}
    assert [failure.kind for failure in failures(slow)] == ["seconds"]


def test_only_kernels_that_claim_it_must_not_wait():
    waits = ROW | {"stack": 0}
    assert failures(waits) == []
    claimed = waits | {"kernel": min(PIPELINED)}
    assert [failure.kind for failure in failures(claimed)] == ["waiting"]
    assert failures(claimed | {"synchronous_loads": 0}) == []


def test_rows_without_failures_and_without_listed_kernels_pass():
    assert judge([ROW | {"stack": 0, "triton": "4.0.0"}]).passed
    assert not judge([ROW | {"triton": "4.0.0"}]).passed


def test_entries_name_what_is_compiled_and_have_a_reason():
    for entry, reason in KNOWN.items():
        assert entry.layer in LAYERS and entry.arch in CHIPS and reason
        assert entry.kind not in ("stack", "waiting") or entry.layer in RECOMMENDED
