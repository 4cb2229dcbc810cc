"""Groups of heads are decomposed side by side: threads of this process, each with linear algebra of one thread.

An eigendecomposition of a group's size gains nothing from more threads and its last bits depend on their number; with
one thread for each, the bytes are the same for any number of workers. PyTorch holds no lock while it computes, so
that processes would only add their own memory (``benchmarks/decomposition_routes.py``).
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

_NUMBER: ContextVar[int] = ContextVar("workers", default=1)


@contextmanager
def working(number: int) -> Iterator[None]:
    """``number`` workers for every :func:`in_order` inside the block."""
    token = _NUMBER.set(number)
    try:
        yield
    finally:
        _NUMBER.reset(token)


@contextmanager
def one_thread() -> Iterator[None]:
    """Linear algebra of one thread, in the whole process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_order(function: Callable[..., Any], *arguments: Iterable[Any]) -> Iterator[Any]:
    """``map(function, *arguments)``, several calls at a time."""
    with one_thread():
        if _NUMBER.get() == 1:
            yield from map(function, *arguments)
            return
        # the number of threads of a thread that is new is not that of the process
        with ThreadPoolExecutor(_NUMBER.get(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from pool.map(function, *arguments)
