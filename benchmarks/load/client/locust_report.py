"""Outcomes as locust's statistics, so that its tables, ``--csv`` and ``--html`` show them.

Only the request itself goes through locust's ``request`` event and so into the row Aggregated: end-to-end latency, the
failures, as content size the output tokens. TTFT, TPOT, tokens and the objectives are rows of their own, whose type
is their unit. locust rounds percentiles to two digits; the JSON result has exact ones.
"""

from locust.env import Environment

from benchmarks.load.client.outcome import Outcome
from benchmarks.load.objectives import Objectives, meets


def report_outcome(environment: Environment, path: str, objectives: Objectives, outcome: Outcome) -> None:
    """``path`` names the request's row. A client that hung up has a TTFT, but no latency, tokens or objectives."""
    stats = environment.runner.stats
    if outcome.ttft is not None:
        stats.get("time to first token", "ms").log(1000 * outcome.ttft, 0)
    if outcome.hung_up:
        stats.get("hung up by the client", "requests").log(None, 0)
        return
    if outcome.tpot is not None:
        stats.get("time per output token", "ms").log(1000 * outcome.tpot, 0)
    if outcome.finished:
        stats.get("prompt", "tokens").log(outcome.prompt_tokens, outcome.prompt_tokens)
        stats.get("output", "tokens").log(outcome.output_tokens, outcome.output_tokens)
    if objectives.limits:
        entry = stats.get("goodput: " + ", ".join(f"{n} {ms:g}" for n, ms in objectives.limits.items()), "requests")
        entry.log(None, 0)
        if not meets(outcome, objectives):
            entry.log_error(None)
    environment.events.request.fire(
        request_type="POST", name=path, response_time=None if outcome.e2e is None else 1000 * outcome.e2e,
        response_length=outcome.output_tokens, exception=RuntimeError(outcome.error) if outcome.error else None,
        context={},
    )  # fmt: skip
