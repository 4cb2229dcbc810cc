"""The greedy search on functions whose best answer is known."""

import torch

from benchmarks.methods.projected.matryoshka_rates import Cut, greedy_cuts, ranks_after

FULL = torch.full((2, 2, 2), 8)
COSTS = torch.arange(8.0).reshape(2, 2, 2) + 1


def hidden(ranks):
    """Each coordinate that a head lacks changes its own number of the state by its cost."""
    return 1000 + ((FULL - ranks) * COSTS).flatten()


def test_the_cheapest_heads_are_cut_first_and_none_to_nothing():
    cuts = greedy_cuts(hidden, FULL, interval=2, update_num=1)
    assert len(cuts) == 8 * 3 and cuts[:3] == [Cut(0, 0, 0)] * 3 and cuts[-1] == Cut(1, 1, 1)
    assert [COSTS[cut].item() for cut in cuts] == sorted(COSTS[cut].item() for cut in cuts)
    assert torch.equal(ranks_after(cuts, FULL, 2, 8 * 2), torch.full((2, 2, 2), 2))


def test_several_heads_are_cut_in_a_round():
    cuts = greedy_cuts(hidden, FULL, interval=2, update_num=4)
    assert set(cuts[:4]) == set(cuts[4:8]) == {Cut(0, layer, head) for layer in range(2) for head in range(2)}
    assert len(cuts) == 8 * 3


def test_a_rank_that_is_no_multiple_of_the_interval_stops_there():
    cuts = greedy_cuts(hidden, FULL, interval=3, update_num=8)
    assert ranks_after(cuts, FULL, 3, 24).tolist() == torch.full((2, 2, 2), 3).tolist()


def test_ranks_follow_the_cuts_and_have_exactly_the_total():
    cuts = greedy_cuts(hidden, FULL, interval=2, update_num=3)
    before = FULL
    for total in range(64, 15, -1):
        ranks = ranks_after(cuts, FULL, 2, total)
        assert ranks.sum() == total and (ranks <= before).all() and ranks.min() >= 2
        before = ranks
