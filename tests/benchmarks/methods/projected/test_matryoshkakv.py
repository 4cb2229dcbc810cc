"""MatryoshkaKV: projections that are trained, any prefix of which is a method, and ranks per head."""

from dataclasses import replace

import pytest
import torch

from benchmarks.methods.harness.measure import Judge
from benchmarks.methods.projected.matryoshka_training import Teacher, Training, leading
from benchmarks.methods.projected.matryoshkakv import MatryoshkaKV
from tests.benchmarks.methods.stores import layer

FULL = 2 * 3 * 2 * 16  # keys and values, layers, heads, numbers
TRAINED = MatryoshkaKV(max_steps=60, interval=4, update_num=4)
UNTRAINED = replace(TRAINED, max_steps=0)


@pytest.fixture(scope="module")
def rows():
    return torch.randint(256, (3, 64), generator=torch.Generator().manual_seed(6))


@pytest.fixture(scope="module")
def judge(dense_model, rows):
    """On the rows that were trained on."""
    return Judge(dense_model, rows, 50)


@pytest.fixture(scope="module")
def trained(dense_model, rows):
    return TRAINED.studied(dense_model, rows)


@pytest.fixture(scope="module")
def untrained(dense_model, rows):
    return UNTRAINED.studied(dense_model, rows)


def uniform(method, found, rank):
    return replace(method, key_truncate_index=rank, value_truncate_index=rank).taught(found)


@pytest.mark.parametrize("which", ["trained", "untrained"])
def test_every_prefix_of_matryoshkas_directions_is_a_method(dense_model, judge, which, request):
    found, scores = request.getfixturevalue(which), []
    for rank in (4, 12, 16):
        scores.append(judge.score_method(dense_model, uniform(TRAINED, found, rank), torch.float32))
    assert scores[0]["kl"] > scores[1]["kl"] > scores[2]["kl"] and scores[2]["kl"] < 1e-5
    assert [score["bytes_at_prompt_end"] / 50 for score in scores] == [3 * 2 * 2 * rank * 4 for rank in (4, 12, 16)]


def test_projections_stay_orthogonal_and_move(trained, untrained):
    for found in (trained, untrained):
        unit = torch.eye(16).expand(2, 3, 2, 16, 16)
        torch.testing.assert_close(found.directions.mT @ found.directions, unit, atol=1e-5, rtol=0)
    assert (trained.directions - untrained.directions).abs().amax((-1, -2)).min() > 1e-3


@pytest.mark.parametrize("rank", [4, 8, 12])
def test_training_lowers_the_loss_of_truncated_models_on_the_text_that_it_saw(
    dense_model, rows, trained, untrained, rank
):
    teacher, ranks = Teacher(dense_model, rows), torch.full((2, 3, 2), rank)
    form = Training(max_steps=0, lr=0, soft_target_loss_weight=1, ce_loss_weight=0, batch=3, seed=0)
    with torch.inference_mode():
        for start in (20, 40):
            losses = [
                teacher.loss(
                    dense_model, torch.arange(3), slice(start, start + 16), leading(found.directions, ranks), form
                )
                for found in (trained, untrained)
            ]
            assert losses[0] < losses[1]


def test_training_leaves_the_model_as_it_is_and_can_be_repeated(dense_model, rows):
    before = {name: tensor.clone() for name, tensor in dense_model.state_dict().items()}
    short = replace(TRAINED, max_steps=2)
    first, second = (short.studied(dense_model, rows).directions for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(replace(short, seed=1).studied(dense_model, rows).directions, first)
    assert all(torch.equal(tensor, before[name]) for name, tensor in dense_model.state_dict().items())
    assert all(each.requires_grad and each.grad is None for each in dense_model.parameters())


@pytest.mark.parametrize("total", [2 * 3 * 2 * 4, 100, 101, FULL - 1, FULL])
def test_greedy_ranks_take_exactly_the_total_and_leave_every_head_some(dense_model, judge, untrained, total):
    method = replace(UNTRAINED, total_rank=total).taught(untrained)
    assert sum(side.shape[-1] for space in method.spaces for side in (space.keys, space.values)) == total
    for space in method.spaces:
        for side in (space.keys, space.values):
            per_head = (side[0].unflatten(0, (2, 16)).abs().sum(1) > 0).sum(-1)
            assert per_head.min() >= 4 and per_head.max() <= 16 and per_head.sum() == side.shape[-1]
    assert judge.score_method(dense_model, method, torch.float32)["bytes_at_prompt_end"] == 50 * total * 4


def test_what_cannot_be_is_refused(untrained):
    with pytest.raises(ValueError, match="calibrated first"):
        MatryoshkaKV().store(layer())
    with pytest.raises(ValueError, match="a head has 16"):
        uniform(UNTRAINED, untrained, 17)
    for total, words in ((FULL + 1, "all heads together have 192"), (47, "leaves 48 at least")):
        with pytest.raises(ValueError, match=words):
            replace(UNTRAINED, total_rank=total).taught(untrained)
    for knobs in ({"key_truncate_index": 0}, {"interval": 0}, {"max_steps": -1}):
        with pytest.raises(ValueError, match="."):
            MatryoshkaKV(**knobs)
