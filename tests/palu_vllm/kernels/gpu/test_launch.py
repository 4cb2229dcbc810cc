"""What a captured graph needs: the host reads no tensor, allocates nothing but scratch, and the launches are right
for other lengths.

Launches are recorded and run again in Triton's interpreter; that is no CUDA graph, which ``tests/gpu`` captures.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.interpreter import InterpretedFunction

from palu_vllm.kernels.cpu.attention import TorchAttention
from palu_vllm.kernels.gpu.launch import TritonAttention, new_scratch
from palu_vllm.kernels.interface import PagedBatch
from palu_vllm.kernels.reference import ReferenceAttention
from tests.palu_vllm.kernels.paged_batches import UNTOUCHED, Problem, random_problem
from tests.palu_vllm.kernels.same_precision import assert_as_precise
from tests.palu_vllm.kernels.test_value_up import assert_values_as_precise, factored
from tests.support.shapes import LAYERS, PACKED_LAYERS

ALL_LAYERS = LAYERS | PACKED_LAYERS
VIEWS = {
    "view",
    "slice",
    "select",
    "unsqueeze",
    "transpose",
    "as_strided",
    "expand",
    "alias",
    "detach",
    "_unsafe_view",
    "split",
}
every_layer = pytest.mark.parametrize("name", ["two_groups_bias_head_dim_80", "sliding_window", "4_bits_odd_ranks"])
STEPS = {"decode": 1, "several_queries": 4, "prefill": 20}
every_step = pytest.mark.parametrize("query_len", STEPS.values(), ids=STEPS)


@dataclass
class Operations(TorchDispatchMode):
    """The names of torch's operations that run, those of ``allocate`` left out."""

    names: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.names.append(operation.overloadpacket.__name__)
        return operation(*args, **(kwargs or {}))

    def allocate(self, shapes: tuple[tuple[int, ...], ...], device: torch.device) -> tuple[torch.Tensor, ...]:
        before = len(self.names)
        scratch = new_scratch(shapes, device)
        del self.names[before:]
        return scratch


@dataclass(frozen=True)
class Recording:
    """The launches of kernels, to be run again with the same arguments."""

    launches: list[Callable[[], None]]

    @classmethod
    def of(cls, run: Callable[[], None], monkeypatch: pytest.MonkeyPatch, launch: bool = True) -> "Recording":
        launches, original = [], InterpretedFunction.run

        def record(kernel: InterpretedFunction, *args: Any, **kwargs: Any) -> None:
            launches.append(lambda: original(kernel, *args, **kwargs))
            if launch:
                launches[-1]()

        with monkeypatch.context() as patch:
            patch.setattr(InterpretedFunction, "run", record)
            run()
        return cls(launches)

    def replay(self) -> None:
        for launch in self.launches:
            launch()


def without_values(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """The same on the meta device, where reading a value raises."""
    if tensor is None:
        return None
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def unreadable(problem: Problem) -> Problem:
    """The table of rotations stays, which the constructor reads."""
    rebuild, batch = problem.rebuild, problem.batch
    tensors = (without_values(each) for each in (batch.block_table, batch.seq_lens, batch.query_start_loc))
    return replace(
        problem,
        rebuild=replace(
            rebuild,
            k_up=without_values(rebuild.k_up),
            k_bias=without_values(rebuild.k_bias),
            k_norm=without_values(rebuild.k_norm),
        ),
        query=without_values(problem.query),
        cache=without_values(problem.cache),
        batch=PagedBatch(*tensors, batch.max_query_len, batch.max_seq_len),
    )


@every_layer
@every_step
def test_no_tensor_is_read_on_the_host(name, query_len, monkeypatch):
    problem = unreadable(random_problem(ALL_LAYERS[name], [(query_len, 40), (1, 9)], dtype=torch.float16))
    out = problem.empty_out().to("meta")
    operations = Operations()
    attention = TritonAttention(problem.shape, problem.rebuild, operations.allocate)

    def step() -> None:
        latents = (torch.empty(49, problem.shape.num_groups, size, device="meta") for size in sizes)
        attention.store(*latents, problem.cache, torch.empty(49, dtype=torch.int64, device="meta"))
        with operations:
            attention.attend(problem.query, problem.cache, problem.batch, out)

    sizes = (problem.shape.numbers_k, problem.shape.numbers_v)
    recorded = Recording.of(step, monkeypatch, launch=False)
    assert len(recorded.launches) >= 3
    assert set(operations.names) <= VIEWS, "something else than views of scratch"


@pytest.mark.parametrize("query_len", [1, 4])
def test_applying_v_up_in_the_reduce_kernel_allocates_nothing(query_len, monkeypatch):
    problem, v_up = factored("per_head_odd_ranks", [(query_len, 40)], torch.float16)
    operations, out = Operations(), torch.empty_like(problem.query)
    attention = TritonAttention(problem.shape, problem.rebuild, operations.allocate, v_up=v_up)

    def step() -> None:
        with operations:
            attention.attend(problem.query, problem.cache, problem.batch, out)

    Recording.of(step, monkeypatch, launch=False)
    assert set(operations.names) <= VIEWS


def relengthened(problem: Problem, query_lens: list[int], seq_lens: list[int]) -> None:
    """Other lengths in the tensors that were captured."""
    batch = problem.batch
    batch.seq_lens.copy_(torch.tensor(seq_lens, dtype=torch.int32))
    batch.query_start_loc.copy_(torch.tensor([0, *query_lens], dtype=torch.int32).cumsum(0))


@every_layer
def test_what_is_decoded_may_be_captured(name):
    """Scratch of prefill follows from lengths that a graph would not know."""
    problem = random_problem(ALL_LAYERS[name], [(1, 5)], dtype=torch.float16)
    attention = TritonAttention(problem.shape, problem.rebuild)
    assert attention.captures(1) and not attention.captures(9)
    assert not TorchAttention(problem.shape, problem.rebuild).captures(1), "it reads lengths on the host"


@every_layer
@pytest.mark.parametrize("query_len", [1, 4])
def test_launches_are_right_for_other_lengths(name, query_len, monkeypatch):
    """Of the batch, and of fewer requests: the last is padding, as in a graph of a larger batch."""
    lens = [query_len] * 3
    problem = random_problem(ALL_LAYERS[name], list(zip(lens, [63, 5, 40], strict=True)), dtype=torch.float16)
    out = problem.empty_out()
    attention = TritonAttention(problem.shape, problem.rebuild)
    captured = Recording.of(
        lambda: attention.attend(problem.query, problem.cache, problem.batch, out), monkeypatch, launch=False
    )
    for query_lens, seq_lens in ((lens, [63, 5, 40]), (lens, [20, 4, 33]), ([query_len, query_len, 0], [50, 4, 0])):
        relengthened(problem, query_lens, seq_lens)
        out.copy_(problem.empty_out())
        captured.replay()
        problem.batch.seq_lens.clamp_(min=1)  # the yardstick wants a token
        expected = problem.empty_out().float()
        ReferenceAttention(problem.shape, problem.rebuild).attend(problem.query, problem.cache, problem.batch, expected)
        assert_as_precise(out, expected, problem)


def test_launches_with_v_up_are_right_for_other_lengths(monkeypatch):
    problem, v_up = factored("two_groups_bias_head_dim_80", [(1, 63), (1, 30)], torch.float16)
    out = torch.full_like(problem.query, UNTOUCHED)
    attention = TritonAttention(problem.shape, problem.rebuild, v_up=v_up)
    captured = Recording.of(
        lambda: attention.attend(problem.query, problem.cache, problem.batch, out), monkeypatch, launch=False
    )
    relengthened(problem, [1, 1], [17, 9])
    captured.replay()
    assert_values_as_precise(out, problem, v_up)
