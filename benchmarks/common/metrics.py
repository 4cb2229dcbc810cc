"""What a running server says at ``/metrics``."""

import urllib.request
from collections import defaultdict

from prometheus_client.parser import text_string_to_metric_families


def metrics(url: str) -> dict[str, float]:
    """``/metrics`` of the server at ``url``: every sample's name and its sum over labels."""
    found: dict[str, float] = defaultdict(float)
    with urllib.request.urlopen(f"{url}/metrics", timeout=60) as answer:
        for family in text_string_to_metric_families(answer.read().decode()):
            for sample in family.samples:
                found[sample.name] += sample.value
    return dict(found)
