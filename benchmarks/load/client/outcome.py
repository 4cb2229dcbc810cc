"""What became of one request, in seconds of one clock.

Times count from ``scheduled``, when the request was due: in an open loop a client or server that falls behind cannot
hide that (coordinated omission). In a closed loop a request is due when its user is free, so both are the same.
Definitions are those of ``vllm bench serve``: the end is the last chunk with a choice, and
TPOT = (latency - TTFT) / (output tokens - 1).
"""

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Outcome:
    """``first`` and ``last`` are moments of chunks with a choice; tokens are the server's ``usage``, 0 without it."""

    index: int
    scheduled: float
    sent: float
    first: float | None = None
    last: float | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0
    hung_up: bool = False
    error: str | None = None

    @property
    def finished(self) -> bool:
        """Answered to the end."""
        return self.error is None and not self.hung_up

    @property
    def ttft(self) -> float | None:
        """Seconds from the scheduled start to the first token; None if there was none."""
        return None if self.first is None else self.first - self.scheduled

    @property
    def e2e(self) -> float | None:
        """Seconds from the scheduled start to the last token of a finished request."""
        return self.last - self.scheduled if self.finished and self.last is not None else None

    @property
    def tpot(self) -> float | None:
        """Seconds per token after the first; None unless finished with more than one token."""
        if self.e2e is None or self.first is None or self.last is None or self.output_tokens < 2:
            return None
        return (self.last - self.first) / (self.output_tokens - 1)

    @property
    def send_delay(self) -> float:
        """Seconds between due and sent."""
        return self.sent - self.scheduled

    def row(self, start: float) -> dict:
        """For JSON: moments in seconds after ``start``."""
        moments = {name: getattr(self, name) for name in ("scheduled", "sent", "first", "last")}
        return asdict(self) | {name: round(at - start, 6) for name, at in moments.items() if at is not None}
