"""Fewer ranks than a checkpoint has: which ones, which tensors, and one sentence for what cannot be."""

import itertools
from dataclasses import replace

import pytest
import torch

from offline_compress.ranks.allocation import allocate_ranks, by_matrix
from palu_vllm.format.checkpoint import expected_tensors, iterate_tensors, read_config
from palu_vllm.format.config import AttentionGeometry, PaluConfig
from palu_vllm.loading.checked import checked
from palu_vllm.loading.leading import leading_latents, ranks_at
from tests.support.truncated import truncate

GEOMETRY = AttentionGeometry(hidden_size=512, num_layers=4, num_heads=8, num_kv_heads=8, head_dim=64)  # full rank 64 n
NUMBERS = 4 * 2 * 8 * 64  # of the dense cache per token
DENSE_BYTES = 2 * 2 * 4 * 32 * 4  # per token, of the tiny models in float32
SIZES = ((2, 2), (4, 4), (1, 4), (4, 2))
CASES = {
    "fused": ("llama", {"rank_k": (48, 40), "rank_v": (48, 64)}),
    "factored, biases": ("qwen2", {"rank_k": (48, 40), "rank_v": (48, 32), "value_path": "factored"}),
    "groups apart, norms": ("qwen3", {"rank_k": (24, 32), "rank_v": (96, 64), "group_size": (1, 4)}),
}


def config(rank_k, rank_v, sizes=(2, 2), **fields) -> PaluConfig:
    told = dict(base_model="m", value_path="fused", objective="svd", search="uniform", calibration="none", seed=0)
    sides = dict(group_size_k=sizes[0], group_size_v=sizes[1], rank_k=list(rank_k), rank_v=list(rank_v))
    return PaluConfig(**(told | sides | {"tool_version": "tests"} | fields))


def random_ranks(sizes, seed: int) -> PaluConfig:
    """Any ranks, at full rank and off the steps too."""
    chooser = torch.Generator().manual_seed(seed)
    ranks = [torch.randint(16, 64 * size + 1, (4,), generator=chooser).tolist() for size in sizes]
    ranks[seed % 2][0] = 64 * sizes[seed % 2]
    return config(*ranks, sizes)


def numbers(palu: PaluConfig) -> int:
    """Of the cache per token, all layers."""
    return 8 // palu.group_size_k * sum(palu.rank_k) + 8 // palu.group_size_v * sum(palu.rank_v)


def served(palu: PaluConfig, ratio: float) -> PaluConfig:
    rank_k, rank_v = ranks_at(palu, GEOMETRY, ratio)
    return palu.model_copy(update={"rank_k": rank_k, "rank_v": rank_v})


@pytest.mark.parametrize(("sizes", "seed"), itertools.product(SIZES, range(6)))
def test_the_fraction_is_kept_in_multiples_of_16_and_never_above_the_checkpoint(sizes, seed):
    palu = random_ranks(sizes, seed)
    own, largest_step = numbers(palu), 16 * 8 // min(sizes)
    for ratio in torch.linspace(0.55, 1, 9, dtype=torch.float64).mul(own / NUMBERS).tolist():
        fewer = served(palu, ratio)
        assert abs(numbers(fewer) - ratio * NUMBERS) <= largest_step / 2
        for kept, rank, size in [
            *zip(fewer.rank_k, palu.rank_k, itertools.repeat(sizes[0])),
            *zip(fewer.rank_v, palu.rank_v, itertools.repeat(sizes[1])),
        ]:
            assert kept == rank or (kept % 16 == 0 and 16 <= kept < rank < 64 * size)


@pytest.mark.parametrize("ratio", [0.2, 0.3, 0.47])
def test_layers_that_share_have_the_ranks_of_their_source(ratio):
    """The others have those of a model without layers that share."""
    rank_k, rank_v = [64, 96], [80, 32]
    alone = ranks_at(config(rank_k, rank_v), replace(GEOMETRY, num_layers=2), ratio)
    shared = config([*rank_k, *rank_k[::-1]], [*rank_v, *rank_v[::-1]], source_layers=[0, 1, 1, 0])
    assert ranks_at(shared, GEOMETRY, ratio) == tuple([*side, *side[::-1]] for side in alone)


@pytest.mark.parametrize("sizes", SIZES)
def test_every_projection_keeps_one_fraction_rounded_to_its_step(sizes):
    """To the nearest; with unequal groups, whose last step may not fit any more, to a step."""
    rounding = 8 if sizes[0] == sizes[1] else 16
    palu = config([48 * sizes[0], 32 * sizes[0]] * 2, [16 * sizes[1], 48 * sizes[1]] * 2, sizes)
    for share in (0.5, 0.6, 0.7, 0.8, 0.9):
        fewer = served(palu, share * numbers(palu) / NUMBERS)
        pairs = list(zip(fewer.rank_k + fewer.rank_v, palu.rank_k + palu.rank_v, strict=True))
        at_least = max((kept - rounding) / rank for kept, rank in pairs if kept > 16)
        assert at_least <= min((kept + rounding) / rank for kept, rank in pairs if kept < rank)


@pytest.mark.parametrize("seed", range(4))
def test_fewer_ranks_are_a_part_of_more_ranks(seed):
    chooser = torch.Generator().manual_seed(seed)
    palu = config(*(torch.randint(1, 8, (2, 4), generator=chooser) * 16).tolist())
    lowest, own = 8 * 16 * 4 / NUMBERS, numbers(palu) / NUMBERS
    ratios = torch.linspace(lowest, own, 30, dtype=torch.float64).tolist()
    for less, more in itertools.pairwise([served(palu, ratio) for ratio in ratios]):
        assert all(a <= b for a, b in zip(less.rank_k + less.rank_v, more.rank_k + more.rank_v, strict=True))


@pytest.mark.parametrize(("sizes", "seed"), itertools.product(SIZES, range(6)))
def test_the_checkpoints_own_ratio_changes_nothing(sizes, seed):
    palu = random_ranks(sizes, seed)
    assert served(palu, numbers(palu) / NUMBERS) == palu


@pytest.mark.parametrize("ratio", [0.15, 0.2, 0.27, 0.35, 0.43, 0.5])
def test_equal_ranks_become_those_of_the_uniform_search(ratio):
    def uniform(wanted: float) -> PaluConfig:
        ranks = allocate_ranks(by_matrix, [[1.0]] * 8, [128] * 8, wanted)
        return config(ranks[0::2], ranks[1::2])

    assert served(uniform(0.5), ratio) == uniform(ratio)
    assert served(uniform(ratio), ratio) == uniform(ratio), "the ratio that was asked for is the checkpoint's own"


@pytest.mark.parametrize(
    ("palu", "ratio", "expected"),
    [
        (config([64] * 4, [64] * 4), 0.6, "rank_ratio 0.6 is above 0.5, the fraction of ranks that the checkpoint has"),
        (config([64] * 4, [64] * 4), 0.1, "rank_ratio 0.1 is below 0.125"),
        (config([64] * 4, [128] * 4), 0.5, "is below 0.5625, where .* stored whole stay whole"),
        (config([64] * 4, [64] * 4, hadamard=True), 0.3, "mixed for few bits"),
        (config([64] * 4, [64] * 4, objective="unknown"), 0.3, r"not known of this checkpoint \(objective unknown\)"),
    ],
)
def test_what_cannot_be_served_is_refused(palu, ratio, expected):
    with pytest.raises(ValueError, match=expected) as refused:
        ranks_at(palu, GEOMETRY, ratio)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("case", CASES)
def test_tensors_are_those_of_a_checkpoint_cut_on_disk(palu, tmp_path, case):
    family, options = CASES[case]
    directory = palu(family, **options)
    whole, own, geometry = read_config(directory)
    rank_k, rank_v = ranks_at(own, geometry, 0.7 * own.bytes_per_token(geometry, "float32") / DENSE_BYTES)
    assert (rank_k, rank_v) != (own.rank_k, own.rank_v)
    smaller = truncate(directory, tmp_path / "cut", rank_k, rank_v)
    asked = whole | {"palu_config": whole["palu_config"] | {"rank_k": rank_k, "rank_v": rank_v}}
    fewer = PaluConfig.from_hf_config(asked)
    found = dict(leading_latents(checked(iterate_tensors(directory), whole), own, fewer, geometry))
    expected = dict(iterate_tensors(smaller))
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == expected_tensors(asked)
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def test_equal_ranks_pass_all_tensors_on(palu):
    _, own, geometry = read_config(palu())
    same = zip(leading_latents(iterate_tensors(palu()), own, own, geometry), iterate_tensors(palu()), strict=True)
    assert all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in same)
