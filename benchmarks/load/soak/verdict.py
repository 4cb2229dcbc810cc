"""What a soak must show: no error, no block leaked, memory that does not grow."""

from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.load.soak.server_state import Sample, idle

# of the resident memory, per minute: of the 3 GB of a CPU server's processes 15 MB
GROWTH_LIMIT = 0.005
LEAST_SAMPLES = 4


def second_half(samples: Sequence[Sample]) -> list[Sample]:
    """Those from the middle of the time in which requests ran to its end."""
    busy = [sample.second for sample in samples if sample.running or sample.waiting]
    return [s for s in samples if busy and (busy[0] + busy[-1]) / 2 <= s.second <= busy[-1]]


def growth(samples: Sequence[Sample]) -> float | None:
    """Share of the memory per minute, in the second half of the load: Theil and Sen's slope, unmoved by single steps.

    Samples before the first and after the last request are left out: an idle server's memory is flat.
    None for fewer than ``LEAST_SAMPLES`` samples in that half.
    """
    half = second_half(samples)
    if len(half) < LEAST_SAMPLES:
        return None
    times = np.array([sample.second for sample in half])
    sizes = np.array([sample.rss_bytes for sample in half], dtype=float)
    first, second = np.triu_indices(len(half), 1)
    return float(60 * np.median((sizes[second] - sizes[first]) / (times[second] - times[first])) / sizes[-1])


def violations(result: Mapping, samples: Sequence[Sample], final: Sample, log: str) -> list[str]:
    """One sentence for everything that was not as it must be, of the load's ``result`` and the server's samples."""
    found = [f"The load missed: {sentence}" for sentence in result["missed"]]
    failed = result["requests"]["failed"]
    if failed:
        found.append(f"{failed} requests failed: {result['errors']}.")
    if not idle(final):
        found.append(
            f"After the load {final.running:g} requests run, {final.waiting:g} wait and {final.cache_usage:.4%} of the "
            "blocks are in use; expected 0."
        )
    grown = growth(samples)
    if grown is None:
        found.append("Requests ran too shortly to say whether memory grows.")
    elif grown > GROWTH_LIMIT:
        found.append(f"Memory grows by {grown:.3%} per minute in the second half; allowed are {GROWTH_LIMIT:.3%}.")
    if "Traceback" in log:
        found.append("The server's log has a traceback.")
    return found
