"""Shapes and schedules: rates, counts, and where the arrivals lie."""

import numpy as np
import pytest

from benchmarks.load.client.arrivals import SHAPES, level, schedule, users_at


def planned(process="poisson", rate=5.0, shape="steady", seconds=200.0, requests=None, seed=0):
    return schedule(process, rate, shape, seconds, requests, seed)


def test_constant_arrivals_are_evenly_spaced():
    np.testing.assert_allclose(planned("constant", rate=4, seconds=2), np.arange(8) / 4, atol=1e-6)
    np.testing.assert_allclose(planned("constant", rate=4, seconds=None, requests=5), np.arange(5) / 4)


def test_schedules_are_seeded():
    assert np.array_equal(planned(), planned())
    assert not np.array_equal(planned()[:100], planned(seed=1)[:100])


def test_gaps_of_poisson_arrivals_are_exponential():
    gaps = np.diff(planned(seconds=2000.0))
    assert gaps.mean() == pytest.approx(1 / 5, rel=0.05)
    assert gaps.std() == pytest.approx(1 / 5, rel=0.05)


@pytest.mark.parametrize("shape", SHAPES)
def test_arrivals_follow_the_shape(shape):
    """Counts of twenty parts of the run beside the integral of the rate; constant arrivals are exact to one."""
    seconds, rate, parts = 400.0, 8.0, 20
    edges = np.linspace(0, seconds, parts + 1)
    fine = np.linspace(0, 1, 20_001)
    expected = [rate * seconds / parts * np.mean(level(shape, fine[(fine >= a) & (fine <= b)]))
                for a, b in zip(edges[:-1] / seconds, edges[1:] / seconds, strict=True)]  # fmt: skip
    for process, spread in (("constant", 0.0), ("poisson", 4.0)):
        times = planned(process, rate, shape, seconds)
        assert (np.diff(times) >= 0).all() and times[0] >= 0 and times[-1] <= seconds
        counts, _ = np.histogram(times, edges)
        assert (np.abs(counts - expected) <= 1.1 + spread * np.sqrt(expected)).all()


def test_requests_end_a_schedule_too():
    np.testing.assert_array_equal(planned(requests=7), planned()[:7])


@pytest.mark.parametrize(("shape", "words"), [("steady", "--run-time or --requests"), ("spike", "needs --run-time")])
def test_a_schedule_without_an_end_is_refused(shape, words):
    requests = None if shape == "steady" else 10
    with pytest.raises(ValueError, match=words):
        planned(shape=shape, seconds=None, requests=requests)


def test_users_of_a_closed_loop():
    assert [users_at("steady", share, 8) for share in (0, 0.5, 1)] == [8, 8, 8]
    assert [users_at("ramp", share, 10) for share in (0, 0.5, 1)] == [1, 6, 10]
    assert [users_at("spike", share, 10) for share in (0, 0.5, 1)] == [2, 10, 2]
    assert [users_at("soak", share, 10) for share in (0, 0.05, 1)] == [1, 10, 10]
    assert users_at("ramp", 0, 1) == 1
