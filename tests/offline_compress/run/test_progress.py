import io
import json

from offline_compress.run.progress import shown_on

EVENTS = [
    {"event": "note", "text": "group size 3"},
    {"event": "fisher", "number": 0, "of": 1, "resident_bytes": 2**30},
    {"event": "layer", "number": 0, "of": 2, "rank_k": 64, "relative_error_k": 0.123456, "resident_bytes": 2**30},
    {"event": "layer", "number": 1, "of": 2, "rank_k": 80, "relative_error_k": 0.2, "resident_bytes": 2**30},
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def show(stream: io.StringIO) -> str:
    with shown_on(stream) as on_event:
        for event in EVENTS:
            on_event(event)
    return stream.getvalue()


def test_json_lines():
    assert [json.loads(line) for line in show(io.StringIO()).splitlines()] == EVENTS


def test_bars_on_a_terminal():
    shown = show(Terminal())
    assert "group size 3" in shown
    assert "2/2" in shown
    assert "rank_k=80" in shown
    assert "relative_error_k=0.123" in shown
    assert "resident_bytes=1024MiB" in shown
