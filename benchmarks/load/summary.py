"""The result of a run: exact percentiles over its requests, tokens, throughput, goodput."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from benchmarks.load.client.outcome import Outcome
from benchmarks.load.objectives import Objectives, goodput, meets

PERCENTILES = (50, 90, 95, 99)


def spread(seconds: Sequence[float | None]) -> dict[str, float] | None:
    """Mean, percentiles and maximum in milliseconds of what is not None."""
    known = 1000 * np.array([value for value in seconds if value is not None])
    if not known.size:
        return None
    named = {f"p{p}": float(np.percentile(known, p)) for p in PERCENTILES}
    values = {"mean": float(known.mean())} | named | {"max": float(known.max())}
    return {name: round(value, 3) for name, value in values.items()}


def duration(outcomes: Sequence[Outcome]) -> float:
    """Seconds from the first request that was due to the last token."""
    ends = [outcome.last if outcome.last is not None else outcome.sent for outcome in outcomes]
    return max(ends) - min(outcome.scheduled for outcome in outcomes) if outcomes else 0.0


def summarize(outcomes: Sequence[Outcome], objectives: Objectives) -> dict:
    """Ready for JSON. Times of open loops count from the scheduled start; ``ttft_from_send_ms`` does not.

    Tokens are those that the server reported, so of requests that hung up or failed none are counted.
    """
    finished = [outcome for outcome in outcomes if outcome.finished]
    seconds = duration(outcomes)
    output = sum(outcome.output_tokens for outcome in finished)
    share = goodput(outcomes, objectives)
    good = sum(meets(outcome, objectives) for outcome in outcomes)

    def per_second(count: int) -> float | None:
        return round(count / seconds, 4) if seconds else None

    return {
        "seconds": round(seconds, 3),
        "requests": {
            "sent": len(outcomes),
            "finished": len(finished),
            "hung_up": sum(outcome.hung_up for outcome in outcomes),
            "failed": sum(outcome.error is not None for outcome in outcomes),
        },
        "errors": dict(Counter(outcome.error for outcome in outcomes if outcome.error)),
        "prompt_tokens": sum(outcome.prompt_tokens for outcome in finished),
        "output_tokens": output,
        "requests_per_second": per_second(len(finished)),
        "output_tokens_per_second": per_second(output),
        "ttft_ms": spread([outcome.ttft for outcome in outcomes]),
        "tpot_ms": spread([outcome.tpot for outcome in outcomes]),
        "e2e_ms": spread([outcome.e2e for outcome in outcomes]),
        "ttft_from_send_ms": spread([o.first - o.sent if o.first else None for o in outcomes]),
        "send_delay_ms": spread([outcome.send_delay for outcome in outcomes]),
        "goodput": None
        if share is None
        else {"limits_ms": objectives.limits, "share": round(share, 4), "requests_per_second": per_second(good)},
    }
