"""Tiles that were timed come before the formulas, by GPU and shape; a bad file is one clear sentence."""

import json
from dataclasses import replace

import pytest
import torch

from benchmarks.kernels.layers import SERVED_LAYERS, SERVED_PACKED_LAYERS
from palu_vllm.kernels.gpu import tuned
from palu_vllm.kernels.gpu.decode.plan import plan_absorbed_tiles
from palu_vllm.kernels.gpu.launch import STAND_IN, TritonAttention
from palu_vllm.kernels.gpu.prefill.plan import prefill_tiling
from palu_vllm.kernels.gpu.tiling import decode_tiling
from palu_vllm.kernels.gpu.tuned import Tiles, read_tuned, tuned_for, tuned_key
from palu_vllm.kernels.reference import ReferenceAttention
from tests.palu_vllm.kernels.paged_batches import random_problem
from tests.palu_vllm.kernels.same_precision import assert_as_precise
from tests.support.shapes import LAYERS

SHAPE = SERVED_LAYERS["llama_3_8b_256_256"].shape
TILES = {"tokens": 64, "num_stages": 1, "num_warps": 4}
GPU = "NVIDIA Test/1"


def content(**change: object) -> str:
    return json.dumps({"format": 1, "gpu": GPU, "tiles": {tuned_key("decode", SHAPE, 2): TILES}} | change)


def test_what_is_stored_for_a_gpu_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(tuned, "FOLDER", tmp_path)
    assert tuned_for(GPU) == ()
    (tmp_path / "nvidia_test_1.json").write_text(content())
    device = replace(STAND_IN, tuned=tuned_for(GPU))
    usual = decode_tiling(SHAPE, 2, STAND_IN)
    assert decode_tiling(SHAPE, 2, device) == replace(usual, **TILES) != usual


def test_other_kernels_keep_the_formulas():
    device = replace(STAND_IN, tuned=((tuned_key("decode", SHAPE, 2), Tiles(**TILES)),))
    packed = SERVED_PACKED_LAYERS["llama_3_8b_256_256_4_bits"].shape
    for shape, size, queries in ((SHAPE, 2, 2), (SHAPE, 4, 1), (packed, 2, 1), (replace(SHAPE, rank_v=128), 2, 1)):
        assert decode_tiling(shape, size, device, queries) == decode_tiling(shape, size, STAND_IN, queries)
    assert prefill_tiling(SHAPE, 2, device) == prefill_tiling(SHAPE, 2, STAND_IN)


def test_of_two_files_the_first_holds():
    key, own, of_arch = tuned_key("decode", SHAPE, 2), Tiles(**TILES), Tiles(32, 1, 8, rank=64)
    for tiles in (own, of_arch):
        device = replace(STAND_IN, tuned=((key, tiles), (key, own), (key, of_arch)))
        assert decode_tiling(SHAPE, 2, device) == decode_tiling(SHAPE, 2, replace(STAND_IN, tuned=((key, tiles),)))


@pytest.mark.parametrize("sizes", [{"rank": 16}, {"pairs": 16}, {"values": 16}, {"values": 128}])
def test_optional_sizes_leave_the_others_and_cover_the_same_numbers(sizes):
    usual = decode_tiling(SHAPE, 2, STAND_IN)
    tiling = usual.tuned(Tiles(usual.tokens, usual.num_stages, usual.num_warps, **sizes))
    assert {name: getattr(tiling, name) for name in sizes} == sizes
    assert tiling.values_per_program >= usual.values_per_program
    assert tiling.pairs * tiling.half_tiles == tiling.half == usual.half
    kept = {"rank", "values", "value_tiles", "half_tiles"}
    assert {**vars(tiling), **dict.fromkeys(kept)} == {**vars(usual), **dict.fromkeys(kept)}


def test_a_rank_is_never_more_than_that_of_the_formulas():
    usual = decode_tiling(SHAPE, 2, STAND_IN)
    assert usual.tuned(Tiles(usual.tokens, usual.num_stages, usual.num_warps, rank=512)).rank == usual.rank


def test_pairs_are_kept_where_some_are_absorbed():
    layer = SERVED_LAYERS["llama_3_8b_256_256"]
    tiling = replace(decode_tiling(SHAPE, 2, STAND_IN), half_tiles=4)
    plan = plan_absorbed_tiles(layer.frequencies(), SHAPE, tiling, torch.bfloat16, STAND_IN)
    assert plan.tiling.slow and plan.tiling.pairs == tiling.pairs == 16


def test_every_way_of_storing_has_a_key_of_its_own():
    shapes = {name: layer.shape for name, layer in (SERVED_LAYERS | SERVED_PACKED_LAYERS).items()}
    assert len({tuned_key("decode", shape, 2) for shape in shapes.values()}) == len(set(shapes.values()))
    assert tuned_key("decode", replace(SHAPE, sliding_window=9), 2) == tuned_key("decode", SHAPE, 2)
    assert tuned_key("decode", SHAPE, 2, has_key_norm=True) != tuned_key("decode", SHAPE, 2)


@pytest.mark.parametrize(("query_len", "sizes"), [(1, {}), (1, {"rank": 16, "pairs": 16, "values": 32}), (20, {})])
def test_kernels_run_in_tuned_tiles(query_len, sizes):
    problem = random_problem(LAYERS["two_groups_bias_head_dim_80"], [(query_len, 63), (1, 9)], dtype=torch.float16)
    keys = tuned_key("decode", problem.shape, 2), tuned_key("prefill", problem.shape, 2)
    device = replace(STAND_IN, tuned=tuple((key, Tiles(32, 1, 4, **sizes)) for key in keys))
    out, expected = problem.empty_out(), problem.empty_out().float()
    TritonAttention(problem.shape, problem.rebuild, device=device).attend(
        problem.query, problem.cache, problem.batch, out
    )
    ReferenceAttention(problem.shape, problem.rebuild).attend(problem.query, problem.cache, problem.batch, expected)
    assert_as_precise(out, expected, problem)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "bad.json that is no JSON"),
        ("[]", "bad.json that is not format 1 with tiles of NVIDIA Test/1"),
        (content(format=2), "bad.json that is not format 1"),
        (content(gpu="another"), "bad.json that is not format 1 with tiles of NVIDIA Test/1"),
        (content(tiles={"x": {"tokens": 64}}), "at 'x', expected tokens, num_stages, num_warps"),
        (content(tiles={"x": TILES | {"tokens": 48}}), "with tokens 48 at 'x', expected one of"),
        (content(tiles={"x": TILES | {"num_stages": True}}), "with num_stages True at 'x'"),
        (content(tiles={"x": TILES | {"pairs": 48}}), "with pairs 48 at 'x', expected one of (16, 32, 64)"),
        (content(tiles={"x": TILES | {"heads": 2}}), "and perhaps rank, pairs, values"),
    ],
)
def test_a_bad_file_is_refused(tmp_path, text, said):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="^got bad.json") as refused:
        read_tuned(path, GPU)
    assert said in str(refused.value)


@pytest.mark.parametrize("path", sorted(tuned.FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_stored_files_are_read(path):
    assert read_tuned(path, json.loads(path.read_text())["gpu"])
