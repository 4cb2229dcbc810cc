"""The Triton kernels on a real chip against the float32 specification, for every served shape.

``make test-gpu`` runs them, with the fewest imports, so that a machine with no more than torch, Triton and pytest will
do. They have been collected on machines without a GPU and never run on one; what needs none (``run_on``) is tried in
``tests/gpu/test_run_on.py``.
"""

import os
from dataclasses import replace

import pytest
import torch

from benchmarks.kernels.layers import RECOMMENDED, SERVED_LAYERS, SERVED_PACKED_LAYERS
from benchmarks.latency.timing import CudaTimer
from palu_vllm.kernels.gpu.launch import TritonAttention
from palu_vllm.kernels.interface import KeyRebuild, PagedBatch
from palu_vllm.kernels.reference import ReferenceAttention
from tests.palu_vllm.kernels.paged_batches import Problem, random_problem
from tests.palu_vllm.kernels.same_precision import assert_as_precise

COMPILED = torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not COMPILED, reason="needs an NVIDIA GPU and TRITON_INTERPRET=0")]
ALL_LAYERS = SERVED_LAYERS | SERVED_PACKED_LAYERS
OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in ALL_LAYERS if name not in RECOMMENDED]
every_layer = pytest.mark.parametrize("name", [*sorted(RECOMMENDED), *OTHERS])
DECODE = [(1, 1031), (1, 1), (0, 5), (1, 300)]
PREFILL = [(70, 200), (1, 33), (129, 129), (0, 7)]


def moved(problem: Problem, device: str) -> Problem:
    """The same numbers, strides and layout on ``device``."""

    def to(tensor: torch.Tensor | None) -> torch.Tensor | None:
        return None if tensor is None else tensor.to(device)

    rebuild, batch = problem.rebuild, problem.batch
    return replace(
        problem,
        rebuild=KeyRebuild(
            to(rebuild.k_up), to(rebuild.k_bias), to(rebuild.cos_sin), to(rebuild.k_norm), rebuild.k_norm_eps
        ),
        query=to(problem.query),
        cache=to(problem.cache),
        batch=PagedBatch(
            to(batch.block_table), to(batch.seq_lens), to(batch.query_start_loc), batch.max_query_len, batch.max_seq_len
        ),
    )


def run_on(problem: Problem, device: str, implementation: type) -> torch.Tensor:
    """What ``implementation`` gives on ``device``, on the CPU; the specification in float32."""
    there = moved(problem, device)
    dtype = torch.float32 if implementation is ReferenceAttention else problem.query.dtype
    out = problem.empty_out().to(device, dtype)
    implementation(there.shape, there.rebuild).attend(there.query, there.cache, there.batch, out)
    return out.cpu()


def check(problem: Problem) -> None:
    actual = run_on(problem, "cuda", TritonAttention)
    assert_as_precise(actual, run_on(problem, "cpu", ReferenceAttention), problem)


@every_layer
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_decode_is_as_precise_as_torch(name, dtype):
    check(random_problem(ALL_LAYERS[name], DECODE, dtype=dtype))


@every_layer
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_prefill_is_as_precise_as_torch(name, dtype):
    check(random_problem(ALL_LAYERS[name], PREFILL, dtype=dtype))


@pytest.mark.parametrize("name", sorted(RECOMMENDED))
def test_float32_queries(name):
    check(random_problem(ALL_LAYERS[name], [(1, 150)], dtype=torch.float32))


@pytest.mark.parametrize("name", sorted(RECOMMENDED))
def test_decode_over_a_long_context(name):
    check(random_problem(ALL_LAYERS[name], [(1, 20011)], dtype=torch.bfloat16))


@every_layer
def test_the_store_kernel_writes_what_the_specification_writes(name):
    problem = random_problem(ALL_LAYERS[name], DECODE, dtype=torch.bfloat16)
    there = moved(problem, "cuda")
    cache = torch.full_like(there.cache, 255) if there.cache.dtype == torch.uint8 else torch.full_like(there.cache, 0)
    wanted = torch.full_like(problem.cache, 255) if cache.dtype == torch.uint8 else torch.full_like(problem.cache, 0)
    latents = problem.latents
    on_gpu = (latents.latent_k.cuda(), latents.latent_v.cuda(), cache, latents.slot_mapping.cuda())
    TritonAttention(there.shape, there.rebuild).store(*on_gpu)
    on_cpu = (latents.latent_k, latents.latent_v, wanted, latents.slot_mapping)
    ReferenceAttention(problem.shape, problem.rebuild).store(*on_cpu)
    assert torch.equal(cache.cpu(), wanted)


@pytest.mark.parametrize("name", sorted(RECOMMENDED))
def test_a_captured_graph_follows_shorter_contexts(name):
    """Replayed with other lengths than it was captured with, as vLLM does."""
    problem = random_problem(ALL_LAYERS[name], [(1, 700), (1, 450)], dtype=torch.bfloat16)
    there = moved(problem, "cuda")
    out = problem.empty_out().cuda()
    attention = TritonAttention(there.shape, there.rebuild)

    def attend() -> None:
        attention.attend(there.query, there.cache, there.batch, out)

    attend()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attend()
    shorter = torch.tensor([90, 450], dtype=torch.int32)
    there.batch.seq_lens.copy_(shorter)
    graph.replay()
    problem = replace(problem, batch=replace(problem.batch, seq_lens=shorter))
    assert_as_precise(out.cpu(), run_on(problem, "cpu", ReferenceAttention), problem)


def test_a_copy_takes_the_time_of_its_bytes():
    """The timer, on something known: no faster than the memory of any GPU, and no host time in it."""
    source = torch.randn(1 << 28, device="cuda")
    target = torch.empty_like(source)
    seconds = CudaTimer(source.device).seconds(lambda: target.copy_(source), warmup=2, repeats=5)
    assert len(seconds) == 5
    assert 2e11 < 2 * source.nbytes / min(seconds) < 2e13
