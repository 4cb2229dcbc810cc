"""When load arrives: the shape of a run over its time, and the seeded schedule of an open loop."""

import numpy as np

# shape: (share of the run's time, level), level 1 being --users or --rate; straight lines between
SHAPES = {
    "steady": ((0.0, 1.0), (1.0, 1.0)),
    "ramp": ((0.0, 0.1), (1.0, 1.0)),
    "spike": ((0.0, 0.2), (0.4, 0.2), (0.45, 1.0), (0.55, 1.0), (0.6, 0.2), (1.0, 0.2)),
    "soak": ((0.0, 0.1), (0.05, 1.0), (1.0, 1.0)),
    "disconnect": ((0.0, 1.0), (1.0, 1.0)),
}
GRID = 10_001


def level(shape: str, share: float | np.ndarray) -> np.ndarray:
    """The level of ``shape`` after ``share`` of the run's time."""
    times, levels = zip(*SHAPES[shape], strict=True)
    return np.asarray(np.interp(share, times, levels))


def users_at(shape: str, share: float, most: int) -> int:
    """Users of a closed loop, at least one."""
    return max(1, round(most * float(level(shape, share))))


def _operational_times(process: str, count: int, seed: int) -> np.ndarray:
    """Arrivals at rate 1: [count], the first at 0 for ``constant``."""
    if process == "constant":
        return np.arange(count, dtype=float)
    own = np.random.SeedSequence(seed, spawn_key=(1,))  # apart from the draws of the prompts
    return np.random.default_rng(own).exponential(size=count).cumsum()


def schedule(
    process: str, rate: float, shape: str, seconds: float | None, requests: int | None, seed: int
) -> np.ndarray:
    """Seconds after the start at which requests are due: [n], rising.

    ``process`` is ``poisson`` or ``constant``; ``rate`` is that of level 1, per second. The run ends after ``seconds``
    or ``requests``, whichever is given or comes first. A shape that changes is a Poisson process whose rate changes:
    arrivals of rate 1 go through the inverse of the expected number of arrivals until t (time-change theorem).
    Raises ValueError where the end is missing, or a shape that changes has no ``seconds``.
    """
    if seconds is None:
        if requests is None:
            raise ValueError("an open loop needs --run-time or --requests.")
        if len(set(dict(SHAPES[shape]).values())) > 1:
            raise ValueError(f"the shape {shape} changes over the run: it needs --run-time.")
        return _operational_times(process, requests, seed) / rate
    grid = np.linspace(0, 1, GRID)
    rates = rate * level(shape, grid)
    # [GRID], arrivals expected until each time
    expected = np.concatenate([[0.0], np.cumsum((rates[1:] + rates[:-1]) / 2)]) * seconds / (GRID - 1)
    enough = int(expected[-1] + 10 * np.sqrt(expected[-1]) + 20)
    units = _operational_times(process, enough, seed)
    return np.interp(units[units < expected[-1]], expected, grid * seconds)[:requests]
