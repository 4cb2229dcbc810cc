"""Which tiles a compiled kernel loads while it waits: read from the last form that Triton has of it before LLVM.

Loads that Triton pipelines become ``ttg.async_copy_global_to_local``. A ``tt.load`` of a tile that is left in a loop
stops the warps until it has come, once in every step.
"""

import re

LOOP = re.compile(r"\bscf\.(for|while)\b.*\{\s*$")
TILE_LOAD = re.compile(r"= tt\.load\b.*tensor<\d+x\d")  # of two dimensions or more


def synchronous_tile_loads(ttgir: str) -> int:
    """How many loads of tiles in loops wait for memory."""
    return sum(bool(TILE_LOAD.search(line)) for line in lines_in_loops(ttgir))


def lines_in_loops(ttgir: str) -> list[str]:
    """The lines inside of at least one loop, found by the braces that lines end in."""
    found: list[str] = []
    open_blocks: list[bool] = []  # whether each is a loop
    for line in ttgir.splitlines():
        text = line.strip()
        if text.startswith("}") and open_blocks:
            open_blocks.pop()
        if any(open_blocks):
            found.append(text)
        if text.endswith("{"):
            open_blocks.append(bool(LOOP.search(text)))
    return found
