"""What errors cost, to first order, against sums written out and against attention itself."""

from dataclasses import replace

import pytest
import torch

from offline_compress.calibration.probe import AttentionProbe, rotate
from offline_compress.factors.error_metric import (
    distances_read,
    key_metric,
    read_energy,
    shared_reading,
    turned_moment,
    value_metric,
)
from tests.offline_compress.calibration.test_probe import (
    HEAD_DIM,
    KV_HEADS,
    QUERIES_PER_KV,
    TOKENS,
    attention,
    make_probe,
    normal,
)

HEADS = KV_HEADS * QUERIES_PER_KV


def quadratic(metric: torch.Tensor, errors: torch.Tensor) -> float:
    """``e^T A e`` summed over the rows of ``errors [tokens, width]``."""
    return torch.einsum("ti,ij,tj->", errors.double(), metric, errors.double()).item()


def turned(x: torch.Tensor, positions: int) -> torch.Tensor:
    return rotate(x, tuple(table[positions].double() for table in make_probe().rotary))


def test_distances_are_diagonals():
    read = normal(TOKENS, TOKENS).tril()
    expected = torch.stack([read.diagonal(-distance).sum() for distance in range(TOKENS)])
    torch.testing.assert_close(distances_read(read), expected)


def test_a_moment_is_turned_by_every_distance():
    queries, reads = normal(20, HEAD_DIM).double(), normal(TOKENS, seed=1).double().square()
    expected = sum(
        share * torch.einsum("qi,qj->ij", turned(queries, d), turned(queries, d)) for d, share in enumerate(reads)
    )
    torch.testing.assert_close(turned_moment(queries.T @ queries, reads, make_probe().rotary), expected)


def test_after_many_turns_only_the_energy_of_pairs_is_left():
    queries = normal(6, HEAD_DIM).double()
    angles = torch.outer(torch.arange(40_000), torch.tensor([1.0, 0.7, 0.51, 0.33])).double().repeat(1, 2)
    share = torch.full((40_000,), 1 / 40_000).double()
    found = turned_moment(queries.T @ queries, share, (angles.cos(), angles.sin()))
    energy = queries.square().sum(0)
    half = HEAD_DIM // 2
    pairs = (energy[:half] + energy[half:]) / 2
    torch.testing.assert_close(found, torch.diag(pairs.repeat(2)), rtol=1e-2, atol=1e-2)


def test_without_turns_nothing_is_averaged():
    moment = normal(HEAD_DIM, HEAD_DIM).double()
    moment = moment @ moment.T
    here = torch.nn.functional.one_hot(torch.tensor(0), TOKENS).double()
    torch.testing.assert_close(turned_moment(moment, here, make_probe().rotary), moment)


@pytest.mark.parametrize("token", [0, 3, TOKENS - 1])
def test_read_energy_is_what_a_changed_score_does(token):
    """A small change of all scores of one token, head by head."""
    probe = make_probe()
    for head in range(HEADS):
        kv_head, query = divmod(head, QUERIES_PER_KV)
        scores = probe.probabilities[kv_head, query].double().log()
        changed = scores.clone()
        changed[:, token] += 1e-4
        change = (changed.softmax(-1) - scores.softmax(-1)) @ probe.values[kv_head].double()
        output = probe.output.double()[:, head * HEAD_DIM : (head + 1) * HEAD_DIM]
        cost = ((change @ output.T).square().sum(-1) / probe.energy).mean() / 1e-8
        found = read_energy(probe, kv_head, query)[:, token].sum().item()
        assert found == pytest.approx(cost.item(), rel=1e-3)


def uniform_probe() -> AttentionProbe:
    """Every query head has one query for all tokens, and attention sees the token itself only one step back."""
    probe = make_probe()
    queries = probe.queries[:, :1].expand(-1, TOKENS, -1)
    return AttentionProbe(**(vars(probe) | {"queries": queries}))


def test_the_key_metric_is_the_sum_where_queries_and_distances_are_independent():
    """All queries alike: averaging them apart from the distances loses nothing."""
    probe = uniform_probe()
    found = key_metric([probe])
    for kv_head in range(KV_HEADS):
        expected = torch.zeros(HEAD_DIM, HEAD_DIM, dtype=torch.float64)
        for query in range(QUERIES_PER_KV):
            read = read_energy(probe, kv_head, query).double()
            q = probe.queries[kv_head * QUERIES_PER_KV + query, 0].double()
            for distance in range(TOKENS):
                row = turned(q, distance)
                expected += read.diagonal(-distance).sum() * torch.outer(row, row) / HEAD_DIM
        torch.testing.assert_close(found[kv_head], expected, rtol=1e-4, atol=1e-9)


def test_the_key_metric_predicts_the_error_of_small_random_changes():
    probe = make_probe()
    metric, total, predicted = key_metric([probe]), 0.0, 0.0
    for seed in range(40):
        error = 1e-2 * normal(KV_HEADS, TOKENS, HEAD_DIM, seed=100 + seed)
        total += probe.key_error(probe.keys + error)
        predicted += sum(quadratic(metric[head], error[head]) for head in range(KV_HEADS)) / TOKENS
    assert predicted == pytest.approx(total, rel=0.25)


def test_the_value_metric_is_the_error_of_independent_changes():
    probe = make_probe()
    whole = value_metric(shared_reading([probe]), probe.output, KV_HEADS, 1)[0]
    exact = attention(probe, probe.keys, probe.values)
    total, predicted = 0.0, 0.0
    for seed in range(200):
        error = normal(KV_HEADS, TOKENS, HEAD_DIM, seed=300 + seed)
        changed = attention(probe, probe.keys, probe.values + error)
        total += ((changed - exact).square().sum(-1) / probe.energy).mean().item()
        predicted += quadratic(whole, error.transpose(0, 1).flatten(1)) / TOKENS
    assert predicted == pytest.approx(total, rel=0.05)


def test_groups_are_blocks_of_the_whole_layer():
    overlap, output = shared_reading([make_probe()]), make_probe().output
    whole = value_metric(overlap, output, KV_HEADS, 1)[0]
    for head, block in enumerate(value_metric(overlap, output, KV_HEADS, KV_HEADS)):
        columns = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
        torch.testing.assert_close(block, whole[columns, columns])


def test_means_over_probes():
    one, other = make_probe(), make_probe(window=4)
    torch.testing.assert_close(shared_reading([one, other]), (shared_reading([one]) + shared_reading([other])) / 2)
    torch.testing.assert_close(key_metric([one, one]), key_metric([one]))


def test_a_norm_between_projection_and_rotation_multiplies_errors():
    """Errors of projected keys through the norm, orthogonal to the key, cost what errors of finished keys cost."""
    probe = make_probe()
    gain = (1 + normal(KV_HEADS, TOKENS, HEAD_DIM, seed=50).square()) / 2
    normed = replace(probe, key_gain=gain)
    metric, finished = key_metric([normed]), key_metric([probe])
    total, predicted = 0.0, 0.0
    for seed in range(40):
        error = normal(KV_HEADS, TOKENS, HEAD_DIM, seed=500 + seed)
        total += sum(quadratic(finished[head], (gain * error)[head]) for head in range(KV_HEADS))
        predicted += sum(quadratic(metric[head], error[head]) for head in range(KV_HEADS))
    assert predicted == pytest.approx(total, rel=0.1)
    torch.testing.assert_close(key_metric([replace(probe, key_gain=torch.ones_like(gain))]), finished)
