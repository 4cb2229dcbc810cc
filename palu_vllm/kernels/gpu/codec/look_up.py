"""Levels of packed codes as instructions of NVIDIA's: bytes are permuted, four codes at a time.

``prmt`` picks four of eight bytes by the nibbles of a selector, so a table of eight levels of 16 bits is two look-ups,
of high and of low bytes, and two more permutations put them together. Codes of 4 and 5 bits have two and four such
tables, chosen between by masks that ``prmt`` makes of their top bits. A level costs 1.3 instructions of 2 bits, 1.6 of
3, 2.6 of 4 and 5.6 of 5 bits, without moves of constants. The interpreter runs none of this; a test runs it in an
emulator of these instructions.
"""

import itertools
from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from palu_vllm.format.codec.levels import levels

EVEN_BYTES, ODD_BYTES = 0x6240, 0x7351  # of two words: bytes 0 and 2, or 1 and 3, low byte before high byte
SIGNS = (0xD9C8, 0xFBEA)  # of two words: masks of the signs of bytes 0 and 1, or 2 and 3, in turn
SHIFTS = {3: 1, 5: 2}  # masks of a byte of high bits
CHOOSE = 0xE4  # lop3: the first where the mask is set, else the second


def words_of_table(bits: int, dtype: torch.dtype) -> list[tuple[list[int], list[int]]]:
    """Tables of eight levels each: the words of their high bytes and those of their low bytes."""
    codes = levels(bits).to(dtype).view(torch.int16).tolist()
    codes = [code & 0xFFFF for code in codes + codes * (len(codes) < 8)]

    def words(numbers: list[int]) -> list[int]:
        return [sum(byte << 8 * place for place, byte in enumerate(numbers[i : i + 4])) for i in (0, 4)]

    tables = [codes[start : start + 8] for start in range(0, len(codes), 8)]
    return [(words([code >> 8 for code in table]), words([code & 255 for code in table])) for table in tables]


def choose(found: list[str], masks: list[str], registers: Iterator[str], lines: list[str]) -> str:
    """One of 1, 2 or 4 registers, by a mask per bit of their number, lowest first."""
    for mask in masks:
        pairs = list(zip(found[::2], found[1::2], strict=True))
        found = list(itertools.islice(registers, len(pairs)))
        for to, (low, high) in zip(found, pairs, strict=True):
            lines.append(f"lop3.b32 {to}, {high}, {low}, {mask}, {CHOOSE:#x};")
    return found[0]


def shifted_high(bits: int) -> list[str]:
    """The byte of high bits, shifted by as many as its masks say: by one where the first is set, by two where the
    second is. What comes from the byte behind is read by no part.
    """
    steps = range(SHIFTS.get(bits, 0))
    return [f"shr.b32 t0, high, {1 << i}; lop3.b32 high, t0, high, shift{i}, {CHOOSE:#x};" for i in steps]


def selectors(bits: int) -> tuple[list[str], list[tuple[str, int, int]]]:
    """What makes registers of nibbles that are the low three bits of codes, and the parts that their low and high
    nibbles are.
    """
    if bits in (4, 5):
        lines = ["and.b32 s0, low, 0x77777777;", "shl.b32 t0, low, 4;"]
        high = ["shl.b32 t1, high, 7;", "shl.b32 t2, high, 3;"]
        return lines + high * (bits == 5), [("s0", 0, 1)]
    lines = ["and.b32 s0, low, 0x33333333;", "shr.b32 s1, low, 2;", "and.b32 s1, s1, 0x33333333;"]
    high = [
        "shl.b32 t0, high, 2;",
        "lop3.b32 s0, t0, 0x44444444, s0, 0xEA;",
        "lop3.b32 s1, high, 0x44444444, s1, 0xEA;",
    ]
    return lines + high * (bits == 3), [("s0", 0, 2), ("s1", 1, 3)]


def look_up(bits: int, dtype: torch.dtype) -> str:
    """PTX from four bytes of codes, and of 3 and 5 bits four of high bits and their masks of ``shifted_high`` behind
    them, to levels of ``dtype``, two registers per part. The high bit of part p is bit ``p w`` of its shifted byte, w
    the width of the low plane.
    """
    tables, (lines, chosen_by) = words_of_table(bits, dtype), selectors(bits)
    registers = (f"r{number}" for number in itertools.count())
    for selector, *parts in chosen_by:
        for half in range(2):
            lines += [f"shr.b32 {selector}, {selector}, 16;"] * half
            masks = list(itertools.islice(registers, max(0, bits - 3)))
            for mask, words in zip(masks, ("t0, low", "t1, t2"), strict=False):
                lines.append(f"prmt.b32 {mask}, {words}, {SIGNS[half]:#x};")
            bytes_of = []
            for kind in range(2):  # high bytes, low bytes
                found = list(itertools.islice(registers, len(tables)))
                for to, table in zip(found, tables, strict=True):
                    lines.append(f"prmt.b32 {to}, {table[kind][0]:#x}, {table[kind][1]:#x}, {selector};")
                bytes_of.append(choose(found, masks, registers, lines))
            for part, order in zip(parts, (EVEN_BYTES, ODD_BYTES), strict=True):
                lines.append(f"prmt.b32 ${2 * part + half}, {bytes_of[1]}, {bytes_of[0]}, {order:#x};")
    first = 4 if bits > 3 else 8  # registers of results come first
    given = ["low", *["high"] * (bits in SHIFTS), *(f"shift{i}" for i in range(SHIFTS.get(bits, 0)))]
    inputs = [f"mov.b32 {name}, ${number};" for number, name in enumerate(given, first)]
    names = ", ".join(["s0", "s1", "t0", "t1", "t2", *given])
    return "{ .reg .b32 " + names + "; .reg .b32 r<64>; " + " ".join(inputs + shifted_high(bits) + lines) + " }"


BFLOAT16_2 = tl.constexpr(look_up(2, torch.bfloat16))
BFLOAT16_3 = tl.constexpr(look_up(3, torch.bfloat16))
BFLOAT16_4 = tl.constexpr(look_up(4, torch.bfloat16))
BFLOAT16_5 = tl.constexpr(look_up(5, torch.bfloat16))
FLOAT16_2 = tl.constexpr(look_up(2, torch.float16))
FLOAT16_3 = tl.constexpr(look_up(3, torch.float16))
FLOAT16_4 = tl.constexpr(look_up(4, torch.float16))
FLOAT16_5 = tl.constexpr(look_up(5, torch.float16))


@triton.jit
def permuted_levels(low, high, shift_by_1, shift_by_2, BITS: tl.constexpr, dtype: tl.constexpr):
    """Levels of the parts of ``low`` bytes, and of 3 and 5 bits ``high`` ones that are shifted where the masks are 255:
    the bits of ``dtype``, int16.
    """
    if BITS == 2:
        CODE: tl.constexpr = BFLOAT16_2 if dtype == tl.bfloat16 else FLOAT16_2
        levels = tl.inline_asm_elementwise(
            CODE, "=r,=r,=r,=r,=r,=r,=r,=r,r", [low],
            dtype=(tl.int16, tl.int16, tl.int16, tl.int16), is_pure=True, pack=4,
        )  # fmt: skip
    elif BITS == 3:
        CODE: tl.constexpr = BFLOAT16_3 if dtype == tl.bfloat16 else FLOAT16_3
        levels = tl.inline_asm_elementwise(
            CODE, "=r,=r,=r,=r,=r,=r,=r,=r,r,r,r", [low, high, shift_by_1],
            dtype=(tl.int16, tl.int16, tl.int16, tl.int16), is_pure=True, pack=4,
        )  # fmt: skip
    elif BITS == 4:
        CODE: tl.constexpr = BFLOAT16_4 if dtype == tl.bfloat16 else FLOAT16_4
        levels = tl.inline_asm_elementwise(
            CODE, "=r,=r,=r,=r,r", [low], dtype=(tl.int16, tl.int16), is_pure=True, pack=4
        )
    else:
        CODE: tl.constexpr = BFLOAT16_5 if dtype == tl.bfloat16 else FLOAT16_5
        levels = tl.inline_asm_elementwise(
            CODE, "=r,=r,=r,=r,r,r,r,r", [low, high, shift_by_1, shift_by_2],
            dtype=(tl.int16, tl.int16), is_pure=True, pack=4,
        )  # fmt: skip
    return levels
