"""An emulator of the few PTX instructions of ``look_up``: whole words, as NVIDIA's manual of PTX describes them."""

import re
from collections.abc import Sequence

WORD = 0xFFFFFFFF


def permuted(a: int, b: int, selector: int) -> int:
    """``prmt.b32`` in its default mode: four of the eight bytes of ``b a``, or copies of their signs."""
    both, out = (b << 32 | a).to_bytes(8, "little"), []
    for place in range(4):
        nibble = selector >> 4 * place & 15
        byte = both[nibble & 7]
        out.append((255 if byte & 128 else 0) if nibble & 8 else byte)
    return int.from_bytes(bytes(out), "little")


def looked_up(a: int, b: int, c: int, table: int) -> int:
    """``lop3.b32``: every bit is that of ``table`` at the number which the bits of a, b and c make, a's the highest."""
    return sum((table >> ((a >> i & 1) << 2 | (b >> i & 1) << 1 | c >> i & 1) & 1) << i for i in range(32))


OPERATIONS = {
    "mov.b32": lambda a: a,
    "and.b32": lambda a, b: a & b,
    "shl.b32": lambda a, b: a << b & WORD,
    "shr.b32": lambda a, b: a >> b,
    "prmt.b32": permuted,
    "lop3.b32": looked_up,
}


def run(code: str, results: int, inputs: Sequence[int]) -> list[int]:
    """The registers ``$0`` on that ``code`` leaves, with ``inputs`` in those behind them."""
    registers = {f"${results + number}": word for number, word in enumerate(inputs)}
    for statement in re.findall(r"(?:mov|and|shl|shr|prmt|lop3)\.b32 [^;]*", code):
        name, *operands = re.split(r",? +", statement.strip())
        to, *given = operands
        registers[to] = OPERATIONS[name](*(registers[x] if x in registers else int(x, 0) for x in given))
    return [registers[f"${number}"] for number in range(results)]
