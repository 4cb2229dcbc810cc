"""Service-level objectives: which requests meet them, and whether the run did."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.load.client.outcome import Outcome


@dataclass(frozen=True)
class Objectives:
    """Limits in milliseconds, None for no limit; ``goodput`` is the share of requests that must meet all of them."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2e_ms: float | None = None
    goodput: float = 0.95
    max_error_rate: float = 0.0

    @property
    def limits(self) -> dict[str, float]:
        named = {"ttft": self.ttft_ms, "tpot": self.tpot_ms, "e2e": self.e2e_ms}
        return {name: limit for name, limit in named.items() if limit is not None}


def meets(outcome: Outcome, objectives: Objectives) -> bool:
    """A failed request meets nothing; one of a single token has no TPOT and meets that limit, as in vLLM."""
    if not outcome.finished:
        return False
    seconds = {name: getattr(outcome, name) for name in objectives.limits}
    return all(value is None or 1000 * value <= objectives.limits[name] for name, value in seconds.items())


def goodput(outcomes: Sequence[Outcome], objectives: Objectives) -> float | None:
    """Share that meets all limits, of the requests whose client stayed; None without limits or requests."""
    stayed = [outcome for outcome in outcomes if not outcome.hung_up]
    if not objectives.limits or not stayed:
        return None
    return sum(meets(outcome, objectives) for outcome in stayed) / len(stayed)


def error_rate(outcomes: Sequence[Outcome]) -> float:
    return sum(outcome.error is not None for outcome in outcomes) / len(outcomes) if outcomes else 0.0


def missed(outcomes: Sequence[Outcome], objectives: Objectives) -> list[str]:
    """One sentence for every objective that the run missed."""
    sentences = []
    if not any(outcome.error is None for outcome in outcomes):
        sentences.append(f"No request was answered, of {len(outcomes)}.")
    failed, allowed = error_rate(outcomes), objectives.max_error_rate
    if failed > allowed:
        sentences.append(
            f"{failed:.2%} of {len(outcomes)} requests failed; allowed are {allowed:.2%} (--max-error-rate)."
        )
    good = goodput(outcomes, objectives)
    if good is not None and good < objectives.goodput:
        limits = ", ".join(f"{name.upper()} {limit:g} ms" for name, limit in objectives.limits.items())
        sentences.append(
            f"{good:.2%} of the requests met {limits}; asked for are {objectives.goodput:.2%} (--goodput)."
        )
    return sentences
