"""The first look at a kernel: each check can fail, and none stops the next."""

import pytest
import torch

from benchmarks.gpu.setting import CODED, REHEARSED
from benchmarks.gpu.smoke import Smoke, tried


class Broken(Smoke):
    """An arm that attends to nothing."""

    def stored(self) -> float:
        error = super().stored()
        self.arm.attend = lambda query: torch.zeros_like(self.arm.out)
        self.arm.out = torch.zeros_like(self.arm.out)
        return error


@pytest.mark.parametrize("arm", CODED)
@torch.inference_mode()
def test_every_arm_passes(arm):
    rows = list(tried(Smoke(arm, REHEARSED)))
    assert [row["check"] for row in rows] == ["store", "decode", "prefill", "graph"]
    assert all(row["ok"] for row in rows), rows


@torch.inference_mode()
def test_a_wrong_result_fails_its_checks_alone():
    rows = {row["check"]: row for row in tried(Broken("palu_16", REHEARSED))}
    assert {check for check, row in rows.items() if row["ok"]} == {"store", "prefill"}
    assert rows["decode"]["reason"].startswith("RuntimeError: wrong result: relative error 1,")


@torch.inference_mode()
def test_a_store_that_writes_nothing_fails(monkeypatch):
    smoke = Smoke("codec", REHEARSED)
    monkeypatch.setattr("benchmarks.latency.codec_arm.Codec.store", lambda *_: None)
    assert next(tried(smoke))["reason"] == "RuntimeError: a stored token changed nothing"


@torch.inference_mode()
def test_nan_is_an_error():
    smoke = Smoke("palu_16", REHEARSED)
    smoke.stored()
    with pytest.raises(RuntimeError, match="relative error nan"):
        smoke.error(torch.full((2,), float("nan")), torch.ones(2))
