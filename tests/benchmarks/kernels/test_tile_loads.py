"""Loads of tiles are counted where they wait: inside of loops, of two dimensions or more, and not pipelined."""

import pytest

from benchmarks.kernels.tile_loads import lines_in_loops, synchronous_tile_loads

TILE = "%k = tt.load %p, %m, %o : tensor<64x128x!tt.ptr<i8>, #blocked>"
VECTOR = "%s = tt.load %p : tensor<64x!tt.ptr<f16>, #blocked>"
AHEAD = "%c = ttg.async_copy_global_to_local %p, %v : tensor<64x128x!tt.ptr<i8>, #blocked> -> <64x128xi8>"
LOOP = "%r:2 = scf.for %i = %a to %b step %c iter_args(%x = %y, %z = %w) -> (i32, i32)  : i32 {"


def module(*lines: str) -> str:
    return "\n".join(["module {", "  tt.func public @kernel(%p: !tt.ptr<i8>) {", *lines, "  }", "}"])


@pytest.mark.parametrize(
    ("lines", "waits"),
    [
        ((TILE,), 0),
        ((LOOP, TILE, "}"), 1),
        ((LOOP, VECTOR, AHEAD, "}"), 0),
        ((LOOP, TILE, "scf.if %c {", TILE, "}", LOOP, TILE, "}", "}", TILE), 3),
        ((LOOP, "} {tt.num_stages = 2 : i32}", TILE), 0),
        (("%r = scf.while (%x = %y) : (i32) -> i32 {", "} do {", TILE, "}"), 0),
    ],
    ids=["outside", "inside", "ahead", "nested", "behind", "a region that is no loop's beginning"],
)
def test_loads_that_wait(lines, waits):
    assert synchronous_tile_loads(module(*lines)) == waits


def test_lines_of_a_loop_end_with_it():
    assert lines_in_loops(module(LOOP, VECTOR, "}", TILE)) == [VECTOR]
