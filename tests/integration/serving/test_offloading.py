"""Blocks of latents leave the cache and come back as bytes: to host memory, and to files that another server reads.

vLLM copies to host memory with CUDA only. Here its connector, its scheduler and its pages are the real ones, and the
copies are torch's.
"""

import contextlib

import pytest
from vllm import LLM
from vllm.distributed.kv_transfer import kv_transfer_state
from vllm.v1.kv_offload.base import CanonicalKVCaches, OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.spec import CPUOffloadingSpec

from palu_vllm.format.checkpoint import read_config, tensor_shapes
from tests.support.serving import engine, greedy, outputs, prompts

pytestmark = pytest.mark.serving

BLOCK = 32  # tokens; dense models on a CPU take no smaller one
FEW_BLOCKS = {"num_gpu_blocks_override": 9, "block_size": BLOCK, "max_model_len": 256}
OFFLOADING = {"kv_connector": "OffloadingConnector", "kv_role": "kv_both"}
HOST_BYTES = {"kv_connector_extra_config": {"cpu_bytes_to_use": 2**24}}


class TorchCopies(OffloadingWorker):
    """The copies of vLLM's ``CPUOffloadingWorker`` between pages ``[blocks, bytes]`` and host memory alike."""

    def __init__(self, caches: CanonicalKVCaches, chunks: int) -> None:
        self.pages = [part.tensor for part in caches.tensors]
        self.host = [pages.new_zeros(chunks, pages.shape[1]) for pages in self.pages]
        self.bytes_per_block = sum(pages.shape[1] for pages in self.pages)
        self.finished, self.stored, self.loaded = [], 0, 0

    def submit_store(self, job_id, src_spec, dst_spec):
        self.stored += len(src_spec.block_ids)
        return self._copy(job_id, self.pages, src_spec, self.host, dst_spec)

    def submit_load(self, job_id, src_spec, dst_spec):
        self.loaded += len(dst_spec.block_ids)
        return self._copy(job_id, self.host, src_spec, self.pages, dst_spec)

    def _copy(self, job_id, sources, src_spec, targets, dst_spec):
        for source, target in zip(sources, targets, strict=True):
            target[dst_spec.block_ids] = source[src_spec.block_ids]
        self.finished.append(TransferResult(job_id, success=True))
        return True

    def get_finished(self):
        finished, self.finished = self.finished, []
        return finished

    def wait(self, job_ids):
        """Copies are done when they have been submitted."""


@pytest.fixture
def copies(monkeypatch):
    """Every worker that an engine of this process has made."""
    made: list[TorchCopies] = []

    def get_worker(self, kv_caches):
        made.append(TorchCopies(kv_caches, self.num_chunks))
        return made[-1]

    monkeypatch.setattr(CPUOffloadingSpec, "get_worker", get_worker)
    return made


@contextlib.contextmanager
def connected(model, **options):
    """vLLM keeps one connector per process and leaves it behind."""
    try:
        with engine(model, **(FEW_BLOCKS | options)) as llm:
            yield llm
    finally:
        kv_transfer_state.ensure_kv_transfer_shutdown()


def evicted_and_asked_again(llm: LLM, requests) -> tuple[list[list[int]], int]:
    """Tokens of each request and again of the first, and how many tokens of it were not computed again."""
    tokens = [greedy(llm, [request], 8)[0] for request in requests]
    again = outputs(llm, requests[:1], 8)[0]
    return [*tokens, list(again.outputs[0].token_ids)], again.num_cached_tokens


def test_blocks_come_back_from_host_memory(palu, dense, copies):
    model, requests = palu("llama", (32, 24), (40, 16)), prompts(200, 220, 210)
    with connected(model) as llm:
        expected, cached = evicted_and_asked_again(llm, requests)
        assert cached < 200 // BLOCK * BLOCK, "the first request was still in the cache"
    with connected(model, kv_transfer_config=OFFLOADING | HOST_BYTES) as llm:
        assert evicted_and_asked_again(llm, requests) == (expected, 200 // BLOCK * BLOCK)
    (latents,) = copies
    assert latents.loaded and latents.stored >= 18
    with connected(dense("llama"), kv_transfer_config=OFFLOADING | HOST_BYTES) as llm:
        evicted_and_asked_again(llm, requests)
    _, palu_config, geometry = read_config(model)
    assert latents.bytes_per_block == BLOCK * palu_config.bytes_per_token(geometry, "float32")
    assert copies[1].bytes_per_block == BLOCK * geometry.dense_bytes_per_token("float32")
    assert copies[1].bytes_per_block / latents.bytes_per_block == 256 / 112


def test_vllm_copies_to_host_memory_on_gpus_only(palu):
    with pytest.raises(Exception, match="only supported on CUDA-alike"), connected(palu(), kv_offloading_size=0.01):
        pass


def files(folder) -> dict:
    return {"kv_connector": "ExampleConnector", "kv_role": "kv_both"} | {
        "kv_connector_extra_config": {"shared_storage_path": str(folder)}
    }


def several(*parts) -> dict:
    return {"kv_connector": "MultiConnector", "kv_role": "kv_both", "kv_connector_extra_config": {"connectors": parts}}


def test_another_server_reads_the_files(palu, tmp_path):
    """Of the same checkpoint only: one with other weights, of the same shapes, finds nothing."""
    model, other, (request,) = (
        palu("llama", (32, 24), (40, 16)),
        palu("llama", (32, 24), (40, 16), seed=1),
        prompts(200),
    )
    answers = []
    for served in (model, model, other):
        with connected(served, kv_transfer_config=files(tmp_path)) as llm:
            answers += outputs(llm, [request], 8)
    computed, read, others = (list(answer.outputs[0].token_ids) for answer in answers)
    assert computed == read != others
    assert [answer.num_cached_tokens for answer in answers] == [0, 192, 0]
    folders = list(tmp_path.iterdir())
    assert len(folders) == 2 and all(folder.name.startswith("palu-") for folder in folders)
    for layer, width in enumerate((32 + 40, 24 + 16)):
        written = [*tmp_path.glob(f"*/*/model.layers.{layer}.self_attn.attn.safetensors")]
        assert len(written) == 2
        for file in written:
            assert tensor_shapes(file) == {"kv_cache": (192, 2, width)}
