"""What ``make kernels-check`` finds today and may find: one list, with the reason of each entry.

The check fails for whatever is not listed, and for an entry that it compiled and that no longer fails: so the list
stays true. Entries name the Triton version, because tiles that fit one may spill with another.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Failure:
    """One thing that is wrong with one kernel of one layer; ``kind`` is a key of ``check.problems``."""

    triton: str  # without the patch
    arch: str
    layer: str
    kernel: str  # with the queries per request, where it is compiled for several
    kind: str

    def __str__(self) -> str:
        return f"Triton {self.triton}, {self.arch}, {self.layer}, {self.kernel}: {self.kind}"


def listed(triton: str, arch: str, kind: str, *kernels: tuple[str, str]) -> list[Failure]:
    """``kernels`` are a layer and a kernel each."""
    return [Failure(triton, arch, layer, kernel, kind) for layer, kernel in kernels]


ONE, FOUR = "decode_split_kernel (1)", "decode_split_kernel (4)"
DECODE, STORE = "decode_codes_kernel", "store_codes_kernel"
JOINT, PER_HEAD, SMOLLM2 = "codec_llama_3_8b", "codec_llama_3_8b_per_head", "codec_smollm2"
WINDOW = "codec_window_and_sinks"
LATENTS = listed(
    "3.6", "sm_90", "stack",
    ("llama_2_7b_128_384", FOUR), ("llama_3_8b_256_256", ONE), ("llama_2_7b_128_384_4_bits", ONE),
    ("llama_2_7b_128_384_4_bits", FOUR), ("llama_3_8b_128_384_4_bits", ONE), ("llama_3_8b_256_256_4_bits", FOUR),
    ("qwen_2_7b_128_384_4_bits", ONE),
)  # fmt: skip
ALWAYS = (JOINT, DECODE), (SMOLLM2, DECODE)
CODECS = [
    *listed("3.9", "sm_80", "stack", *ALWAYS),
    *listed("3.9", "sm_89", "stack", *ALWAYS),
    *listed("3.9", "sm_90", "stack", *ALWAYS, (PER_HEAD, DECODE)),
    *listed("3.9", "sm_100", "stack", *ALWAYS, (PER_HEAD, DECODE)),
    *listed("3.6", "sm_90", "stack", *ALWAYS, (PER_HEAD, DECODE)),
]
STORES = [
    *listed("3.9", "sm_80", "stack", (JOINT, STORE), (PER_HEAD, STORE), (WINDOW, STORE)),
    *listed("3.9", "sm_89", "stack", (JOINT, STORE)),
    *listed("3.9", "sm_90", "stack", (WINDOW, STORE)),
    *listed("3.9", "sm_100", "stack", (PER_HEAD, STORE), (WINDOW, STORE)),
]
CHIPS = ("3.9", "sm_80"), ("3.9", "sm_89"), ("3.9", "sm_90"), ("3.9", "sm_100"), ("3.6", "sm_90")
WAITING = [
    failure
    for chip in CHIPS
    for failure in listed(*chip, "waiting", *((layer, DECODE) for layer in (JOINT, PER_HEAD, SMOLLM2, WINDOW)))
]
KNOWN: dict[Failure, str] = {
    **dict.fromkeys(LATENTS, "tiles are fitted to the registers that Triton 3.9 takes, and 3.6 takes more"),
    **dict.fromkeys(CODECS, "means of all numbers of a group and the levels of a tile take all registers; never timed"),
    **dict.fromkeys(STORES, "8 bytes that the assembler sets aside with most registers free"),
    **dict.fromkeys(WAITING, "planes of high bits and short tiers are loaded by less than four bytes a thread"),
}


@dataclass(frozen=True)
class Verdict:
    """``new`` failures are not listed; ``mended`` ones are, and did not happen though their kernel was compiled."""

    new: list[Failure]
    known: list[Failure]
    mended: list[Failure]

    @property
    def passed(self) -> bool:
        return not self.new and not self.mended


def judged(failures: Iterable[Failure], compiled: Iterable[tuple], listed: Iterable[Failure]) -> Verdict:
    """``compiled`` has ``(triton, arch, layer, kernel)`` of every kernel that was tried."""
    failures, listed, tried = list(failures), list(listed), set(compiled)
    within = [entry for entry in listed if (entry.triton, entry.arch, entry.layer, entry.kernel) in tried]
    new = [failure for failure in failures if failure not in listed]
    known = [failure for failure in failures if failure in listed]
    return Verdict(new, known, [entry for entry in within if entry not in failures])
