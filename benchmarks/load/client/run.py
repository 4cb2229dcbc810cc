"""The state of one run, shared by all users: which request is next, what became of those before."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import takewhile

from benchmarks.load.client.arrivals import schedule
from benchmarks.load.client.outcome import Outcome
from benchmarks.load.client.prompts import Request
from benchmarks.load.options import Load


@dataclass
class Run:
    """``send(request, scheduled)`` asks the server; ``report`` is told every outcome."""

    load: Load
    send: Callable[[Request, float], Outcome]
    report: Callable[[Outcome], None]
    start: float = field(default_factory=time.perf_counter)
    issued: int = 0
    in_flight: int = 0
    stopping: bool = False
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Of the run's time that has passed; 0 where only the number of requests ends it."""
        return (time.perf_counter() - self.start) / self.load.seconds if self.load.seconds else 0.0

    @property
    def issuing(self) -> bool:
        """There will be more requests."""
        used_up = self.load.requests is not None and self.issued >= self.load.requests
        return not (self.stopping or used_up or self.share >= 1)

    @property
    def over(self) -> bool:
        return not self.issuing and not self.in_flight

    def perform(self, scheduled: float) -> Outcome:
        """The next request, from its scheduled start to its end."""
        request = self.load.request_at(self.issued)
        self.issued += 1
        self.in_flight += 1
        try:
            outcome = self.send(request, scheduled)
            self.outcomes.append(outcome)
            self.report(outcome)
            return outcome
        finally:
            self.in_flight -= 1

    def arrivals(self) -> Iterator[float]:
        """Moments at which requests of an open loop are due, each yielded when it has come; none in a closed loop."""
        load = self.load
        if load.rate is None:
            return
        planned = schedule(load.arrival, load.rate, load.shape, load.seconds, load.requests, load.seed)
        for due in takewhile(lambda _: not self.stopping, (self.start + at for at in planned.tolist())):
            time.sleep(max(0.0, due - time.perf_counter()))
            yield due
        self.stopping = True
