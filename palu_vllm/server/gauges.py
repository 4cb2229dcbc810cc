"""Gauges of Prometheus as a palu server publishes them: one of a name per process, with labels of model and engine."""

from functools import cache

from prometheus_client import Gauge

LABELS = ("model_name", "engine")


@cache
def gauge(name: str, about: str, labels: tuple[str, ...] = ()) -> Gauge:
    """One of this name per process, because several engines share it."""
    return Gauge(name, about, LABELS + labels, multiprocess_mode="mostrecent")


class Gauges:
    """Those of one engine."""

    def __init__(self, model_name: str, engine: int) -> None:
        self._own = (model_name, str(engine))

    def set(self, name: str, about: str, value: float, **labels: str) -> None:
        gauge(name, about, tuple(labels)).labels(*self._own, *labels.values()).set(value)
