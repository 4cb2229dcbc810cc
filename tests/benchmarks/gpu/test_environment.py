"""What the machine can do: rates of what really ran, and the one that failed beside the others."""

import json

import pytest
import torch

from benchmarks.gpu import environment
from benchmarks.gpu.environment import facts, measured, write
from benchmarks.gpu.l2_read import ON_H200, TINY
from benchmarks.gpu.setting import REHEARSED

RATES = {"copy_bytes_per_second", "product_flops_per_second", "l2_bytes_per_second"}


def test_every_rate_is_measured_in_turn():
    rows = list(measured(REHEARSED))
    assert [set(row) for row in rows] == [
        {"copy_bytes_per_second"},
        {"product_flops_per_second"},
        {"l2_bytes_per_second"},
    ]
    assert all(value > 0 for row in rows for value in row.values())


def test_what_fails_says_so_and_the_others_are_measured(monkeypatch):
    def broken(setting):
        raise RuntimeError("out of memory\nmore lines")

    monkeypatch.setattr(environment, "product", broken)
    found = {name: value for row in measured(REHEARSED) for name, value in row.items()}
    assert found["missing"] == "broken: out of memory" and RATES - set(found) == {"product_flops_per_second"}


def test_the_facts_are_json_and_say_what_they_are(tmp_path):
    write(tmp_path / "env.json", facts(REHEARSED))
    found = json.loads((tmp_path / "env.json").read_text())
    assert found["kind"] == "rehearsal, not a measurement" and {"commit", "device"} <= set(found["provenance"])


def test_the_kernel_that_reads_l2_reads_what_it_says():
    source, target = TINY.buffers(torch.device("cpu"))
    TINY.run(source, target)
    assert torch.equal(target, TINY.expected(source)) and target.numel() == 3 * 64
    assert TINY.bytes == 3 * 4 * 64 * 4


def test_what_is_read_fits_into_l2_and_not_into_the_caches_before_it():
    buffer = 4 * ON_H200.tiles * ON_H200.tile_numbers
    assert 132 * 128 << 10 < buffer < 30 << 20, "half of the 60 MB, and more than first-level caches take"
    assert ON_H200.bytes > 100 * buffer


@pytest.mark.parametrize("name", ["copied", "product"])
def test_amounts(name):
    """Worked out by hand: a KiB read and written, 16^3 multiplications with additions."""
    _, amount, _ = getattr(environment, name)(REHEARSED)
    assert amount == {"copied": 2048, "product": 2 * 16**3}[name]
