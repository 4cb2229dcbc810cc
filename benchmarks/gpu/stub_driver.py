"""A GPU that is not there: Triton binds arguments and compiles for it as ever, and launches do nothing.

What is left out is Triton's own launcher in C, a few microseconds per kernel, and the driver behind it.
"""

from types import SimpleNamespace
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from benchmarks.kernels.gpus import GPUS

REGISTERS, THREADS = 128, 1024


class StubDriver:
    """What Triton's runtime asks of a driver."""

    def __init__(self, gpu: str = "h200") -> None:
        chip = GPUS[gpu]
        self.target = GPUTarget("cuda", int(chip.arch.removeprefix("sm_")), 32)
        properties = {"max_shared_mem": chip.device.shared_memory, "multiprocessor_count": chip.device.multiprocessors}
        self.utils = SimpleNamespace(
            load_binary=lambda *_: (self, None, REGISTERS, 0, THREADS), get_device_properties=lambda _: properties
        )
        self.launches = 0

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        """Of one kernel: counts."""

        def launch(*_: Any) -> None:
            self.launches += 1

        return launch

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def pretend() -> StubDriver:
    """Makes Triton launch on a stub in this process."""
    stub = StubDriver()
    driver.set_active(stub)
    return stub
