"""Reading a buffer that fits into L2 many times: a Triton kernel, because no library call reads without writing."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl


@triton.jit
def read_kernel(source, target, passes, tiles: tl.constexpr, tile_numbers: tl.constexpr):
    """Program p reads tiles p, p + 1, ... past the first-level cache and leaves their sum."""
    program = tl.program_id(0)
    offsets = tl.arange(0, tile_numbers)
    total = tl.zeros([tile_numbers], dtype=tl.int32)
    for step in range(passes):
        tile = (program + step) % tiles
        total += tl.load(source + tile * tile_numbers + offsets, cache_modifier=".cg")
    tl.store(target + program * tile_numbers + offsets, total)


@dataclass(frozen=True)
class L2Read:
    """``programs`` that read ``passes`` tiles each of ``tiles`` tiles of int32."""

    programs: int
    passes: int
    tiles: int
    tile_numbers: int

    @property
    def bytes(self) -> int:
        return 4 * self.programs * self.passes * self.tile_numbers

    def buffers(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Random numbers to read, and where the sums go, unwritten."""
        source = torch.randint(-100, 100, (self.tiles * self.tile_numbers,), dtype=torch.int32, device=device)
        return source, torch.full((self.programs * self.tile_numbers,), -1, dtype=torch.int32, device=device)

    def run(self, source: torch.Tensor, target: torch.Tensor) -> None:
        read_kernel[(self.programs,)](
            source, target, self.passes, tiles=self.tiles, tile_numbers=self.tile_numbers, num_warps=8
        )

    def expected(self, source: torch.Tensor) -> torch.Tensor:
        tiles = source.view(self.tiles, -1)
        read = (torch.arange(self.programs)[:, None] + torch.arange(self.passes)) % self.tiles
        return tiles[read.to(source.device)].sum(1, dtype=torch.int32).flatten()


ON_H200 = L2Read(programs=528, passes=256, tiles=768, tile_numbers=8192)  # 24 MiB, of an L2 of 60
TINY = L2Read(programs=3, passes=4, tiles=5, tile_numbers=64)
