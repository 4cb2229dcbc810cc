import io
import json

from offline_compress.run.progress import _Lines, shown_on

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
    shown = [json.loads(line) for line in show(io.StringIO()).splitlines()]
    assert shown.pop() == EVENTS[-1] | {"seconds_left": 0}
    assert shown == EVENTS[:-1]


def test_lines_say_how_long_the_rest_takes():
    stream, now = io.StringIO(), iter([10.0, 13.0, 16.0])
    lines = _Lines(stream, lambda: next(now))
    for number in (4, 5, 6):  # a run that goes on behind its fourth layer
        lines({"event": "layer", "number": number, "of": 10})
    left = [json.loads(line).get("seconds_left") for line in stream.getvalue().splitlines()]
    assert left == [None, 3.0 * 4, 3.0 * 3]


def test_bars_on_a_terminal():
    shown = show(Terminal())
    assert "group size 3" in shown
    assert "2/2" in shown
    assert "rank_k=80" in shown
    assert "relative_error_k=0.123" in shown
    assert "resident_bytes=1024MiB" in shown
