"""The GPUs of the models and checks: published rates, and what the kernels' tiling knows of a chip."""

from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from palu_vllm.kernels.gpu.tiling import Device
from palu_vllm.kernels.gpu.tuned import tuned_for

KIB, GIGA, TERA = 1024, 1e9, 1e12
SCHEDULERS = 4  # of a multiprocessor, since Volta
Entry = TypeVar("Entry")


@dataclass(frozen=True)
class Gpu:
    """Rates per second. ``tensor_flops`` are dense, of bfloat16 operands summed in float32."""

    arch: str  # what Triton compiles for
    device: Device
    memory_bandwidth: float  # bytes
    tensor_flops: float
    l2_bandwidth: float  # bytes, an estimate: vendors publish none for most
    clock: float  # cycles, the highest of the data sheet
    source: str

    @property
    def instructions(self) -> float:
        """Of a warp each: one per cycle from each of a multiprocessor's schedulers."""
        return SCHEDULERS * self.device.multiprocessors * self.clock


def chip(arch: str, multiprocessors: int, shared_kib: int, shared_operands: bool = True) -> tuple[str, Device]:
    """An architecture and what tiles are chosen by, those stored for it included."""
    return arch, Device(multiprocessors, shared_kib * KIB, shared_operands, tuned_for(arch))


# Memory, tensor cores and multiprocessors are the vendor's data sheets', but for the H200, whose rates are the measured
# ones of the design (a device-to-device copy, a product of 8192^3). Bandwidths of L2 are guesses: NVIDIA gives one for
# the A100 only (5120 bytes per cycle, 7.2 TB/s, never reached), and the others are scaled by multiprocessors and clock.
GPUS = {
    "a100": Gpu(
        *chip("sm_80", 108, 163, shared_operands=False),
        2.039 * TERA,
        312 * TERA,
        4.5 * TERA,
        1.41 * GIGA,
        "A100 80 GB SXM data sheet",
    ),
    "l40s": Gpu(
        *chip("sm_89", 142, 99, shared_operands=False),
        0.864 * TERA,
        362 * TERA,
        4.5 * TERA,
        2.52 * GIGA,
        "L40S data sheet",
    ),
    "h100": Gpu(*chip("sm_90", 132, 227), 3.35 * TERA, 989 * TERA, 5.5 * TERA, 1.98 * GIGA, "H100 SXM data sheet"),
    "h200": Gpu(*chip("sm_90", 132, 227), 4.3 * TERA, 788 * TERA, 5.5 * TERA, 1.98 * GIGA, "measured: copy, product"),
    "b200": Gpu(*chip("sm_100", 148, 227), 8.0 * TERA, 2250 * TERA, 10.0 * TERA, 1.85 * GIGA, "HGX B200 data sheet"),
}
CHIPS = {gpu.arch: gpu.device for gpu in (GPUS[name] for name in ("a100", "l40s", "h200", "b200"))}


def chosen(table: Mapping[str, Entry], name: str, kind: str) -> Entry:
    """The entry of that name. Raises ValueError with the known names."""
    if name not in table:
        raise ValueError(f"unknown {kind} {name!r}; known: {', '.join(sorted(table))}")
    return table[name]


def one_of(table: Mapping[str, object], kind: str) -> Callable[[str], str]:
    """For argparse: a name of ``table``, or one sentence that lists them."""

    def name_of(text: str) -> str:
        try:
            chosen(table, text, kind)
        except ValueError as error:
            raise ArgumentTypeError(str(error)) from None
        return text

    return name_of


def gpu_of_device(device_name: str) -> Gpu | None:
    """By the name that CUDA gives, such as "NVIDIA H100 80GB HBM3"; None where it is not in the table."""
    words = device_name.lower().replace("-", " ").split()
    return next((gpu for name, gpu in GPUS.items() if name in words), None)
