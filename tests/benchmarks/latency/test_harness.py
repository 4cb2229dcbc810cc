"""The harness of the latency benchmarks, run for real on a CPU: every arm is right or says why it is missing."""

import json
from dataclasses import replace

import pytest
import torch

from benchmarks.common.provenance import ROOT
from benchmarks.kernels.gpus import GPUS
from benchmarks.kernels.layers import Model
from benchmarks.kernels.roofline_model import Batch, Work
from benchmarks.latency import attention_latency, kernel_latency
from benchmarks.latency.attention_case import Case, UnavailableError
from benchmarks.latency.attention_latency import AttentionModule
from benchmarks.latency.dense_arms import FP8, Dense, TorchSdpa
from benchmarks.latency.harness import ARMS, SMOKE, checked_error, run, share_of_bound
from benchmarks.latency.latent_arms import Palu
from benchmarks.latency.plot import lines_of
from benchmarks.latency.table import fastest_dense, table
from benchmarks.latency.timing import Spread, WallTimer

EXPERIMENTS = {"kernel": kernel_latency.EXPERIMENT, "attention": attention_latency.EXPERIMENT}
GROUPED = Model(num_heads=8, num_kv_heads=2, head_dim=16, hidden_size=48, theta=1e4, has_bias=True)
every_experiment = pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=EXPERIMENTS)


class InBlocks(Dense):
    """A cache in blocks, as FlashAttention-3 and vLLM's Triton kernel read it, attended to in float32."""

    def attend(self, query: torch.Tensor) -> torch.Tensor:
        return self.expected(query).to(query.dtype)


@pytest.fixture
def case() -> Case:
    return Case(GROUPED.layer(16, 24, 2), 48, Batch(2, 37), torch.float16, torch.device("cpu"), block_size=16)


@every_experiment
def test_smoke(experiment, tmp_path, capsys):
    before = set((ROOT / "benchmarks" / "results").iterdir())
    out = tmp_path / "rows.json"
    run(experiment, ["--smoke", "--contexts", "24", "--repeats", "2", "--out", str(out)])
    result, printed = json.loads(out.read_text()), capsys.readouterr().out
    assert result["kind"] == SMOKE and SMOKE in printed
    rows = {row["arm"]: row for row in result["rows"]}
    assert tuple(rows) == ARMS
    for name in ("palu", "palu_packed", "torch_sdpa"):
        assert rows[name]["relative_error"] < 0.02 and rows[name]["seconds"]["median"] > 0, rows[name]
        assert rows[name]["share_of_bound"] is None
    for name in ("flash_attention_3", "flash_attention_3_fp8", "vllm_triton"):
        assert rows[name]["missing"] in printed and str(ROOT) not in rows[name]["missing"]
    assert {"commit", "versions", "device"} <= set(result["provenance"])
    assert out.with_suffix(".png").stat().st_size > 0
    assert set((ROOT / "benchmarks" / "results").iterdir()) == before


def test_a_smoke_without_a_file_writes_none(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(kernel_latency.EXPERIMENT, ["--smoke", "--contexts", "8", "--arms", "torch_sdpa"])
    assert "written" not in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@every_experiment
def test_without_a_gpu_there_is_one_sentence(experiment, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        run(experiment, [])
    assert stopped.value.code == 2
    said = capsys.readouterr().err.strip()
    assert "no CUDA device" in said and len(said.splitlines()) == 1


def test_an_interpreter_is_not_timed(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(SystemExit) as stopped:
        run(kernel_latency.EXPERIMENT, [])
    assert stopped.value.code == 2
    assert "TRITON_INTERPRET=1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "build", [Palu, lambda case: Palu(case, 8), TorchSdpa, InBlocks], ids=["latents", "packed", "sdpa", "blocks"]
)
def test_a_module_stores_the_new_token_and_then_attends(build, case):
    """Queries rotated as the cache's keys are, groups of queries per KV head, several requests."""
    arm = build(case)
    module = AttentionModule(arm, case)
    out = module().float()
    query = module.rotate(module.project()[0])
    expected = arm.expected(query).flatten(1) @ module.out_weight.float()
    assert out.shape == (2, 48)
    assert (out - expected).norm() / expected.norm() < 0.02
    module.hidden_states = -module.hidden_states
    assert not torch.equal(module().float(), out)


def test_dense_arms_of_the_same_seed_hold_the_same_tokens(case):
    kept = []
    for build in (InBlocks, TorchSdpa):
        torch.manual_seed(0)
        kept.append(torch.stack(build(replace(case)).contiguous()))
    assert torch.equal(*kept)


@pytest.mark.parametrize("stored", [torch.float16, FP8], ids=str)
def test_a_token_is_written_where_it_is_read(stored, case):
    arm = InBlocks(case, stored)
    before = torch.stack(arm.contiguous()).float()
    new = case.random(2, 2, 32)
    arm.store(*new)
    after = torch.stack(arm.contiguous()).float()
    torch.testing.assert_close(after[:, :, :, -1].flatten(2), new.to(stored).float())
    assert torch.equal(after[:, :, :, :-1], before[:, :, :, :-1])


def test_wrong_results_are_not_timed(case):
    class Zeros(TorchSdpa):
        def attend(self, query):
            return torch.zeros_like(query)

    with pytest.raises(UnavailableError, match="wrong result: relative error 1, allowed 0.02"):
        checked_error(Zeros(case), case)


def test_latents_have_less_to_move_than_keys_and_values(case):
    dense, latents, packed = InBlocks(case).least_work()[0], Palu(case).least_work()[0], Palu(case, 4).least_work()[0]
    assert packed.memory_bytes < latents.memory_bytes < dense.memory_bytes
    assert InBlocks(case, FP8).least_work()[0].memory_bytes == dense.memory_bytes / 2


def test_the_share_of_the_bound_is_that_of_the_best_plan():
    gpu = GPUS["h200"]
    one_second = Work(gpu.memory_bandwidth, 0, 0)
    assert share_of_bound([one_second + one_second, one_second], gpu, 4.0) == pytest.approx(0.25)
    assert share_of_bound([one_second], None, 4.0) is None


def test_spread():
    assert Spread.of([5.0, 1.0, 2.0, 3.0, 4.0]) == Spread(3.0, 2.0, 4.0)
    assert Spread.of([2.0]) == Spread(2.0, 2.0, 2.0)


def test_warm_up_is_not_timed():
    calls = []
    assert len(WallTimer().seconds(lambda: calls.append(1), warmup=3, repeats=2)) == 2
    assert len(calls) == 5


def test_the_table_compares_with_the_fastest_dense_arm_of_a_context():
    def row(arm: str, context: int, micros: float) -> dict:
        seconds = dict.fromkeys(("median", "low", "high"), micros / 1e6)
        return {"arm": arm, "batch": 1, "context": context, "seconds": seconds, "bytes_per_second": 1e12,
                "flops_per_second": 1e12, "share_of_bound": 0.5}  # fmt: skip

    rows = [row("palu", 8, 10), row("torch_sdpa", 8, 40), row("flash_attention_3", 8, 20), row("torch_sdpa", 16, 1)]
    rows.append({"arm": "vllm_triton", "batch": 1, "context": 8, "missing": "ImportError: none"})
    assert fastest_dense(rows, 8) == pytest.approx(20e-6) and fastest_dense(rows, 9) is None
    lines = table(rows).splitlines()
    assert lines[1].endswith("2.00x") and "50%" in lines[1]
    assert "missing: ImportError: none" in lines[5]
    assert "vllm_triton" not in lines_of(rows) and len(lines_of(rows)["torch_sdpa"]) == 2
