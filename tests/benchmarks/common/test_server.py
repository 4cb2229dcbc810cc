"""A server is waited for as long as it makes progress; a stand-in takes the place of vLLM."""

import socketserver
import sys
import threading
import time

import pytest

from benchmarks.common import server
from benchmarks.common.server import Server, free_port, serve

ANSWERS = """#!{python}
import http.server, sys, time
for second in range(4):
    time.sleep(0.5)
    print("Loading", second, flush=True)
class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Healthy).serve_forever()
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """``stand_in(script)`` is what runs instead of vLLM; nothing for 1.5 s counts as no progress."""

    def install(script: str) -> None:
        path = tmp_path / "vllm"
        path.write_text(script.format(python=sys.executable))
        path.chmod(0o755)
        monkeypatch.setattr(server, "VLLM", path)

    monkeypatch.setattr(server, "QUIET_SECONDS", 1.5)
    return install


def test_server_that_makes_progress_is_waited_for(stand_in, tmp_path, monkeypatch, capsys):
    stand_in(ANSWERS)
    monkeypatch.setattr(server, "NOTICE_SECONDS", 1)
    began = time.monotonic()
    with serve(tmp_path, ["--flag"]) as running:
        assert running.is_healthy() and time.monotonic() - began > 2
        assert "Loading 3" in running.printed()
    assert f"Waiting for vllm serve {tmp_path} since 1 s: Loading" in capsys.readouterr().err
    assert running.process.returncode is not None and not running.log.exists()


def test_server_that_makes_none_is_given_up(stand_in, tmp_path):
    stand_in("#!/bin/sh\necho Stuck here\nsleep 500\n")
    with (
        pytest.raises(RuntimeError, match="(?s)neither wrote to its log nor used a second.*Stuck here"),
        serve(tmp_path),
    ):
        pass


def test_server_that_ends_is_quoted(stand_in, tmp_path):
    stand_in("#!/bin/sh\necho No such model\nexit 3\n")
    with pytest.raises(RuntimeError, match="(?s)ended with 3.*No such model"), serve(tmp_path, log=tmp_path / "log"):
        pass
    assert (tmp_path / "log").read_text() == "No such model\n"


def test_a_long_log_is_shown_in_whole_lines(tmp_path):
    log = tmp_path / "log"
    running = server.Server("http://127.0.0.1:1", "model", log, None)
    assert running.printed() == str(log)
    log.write_text("short\n")
    assert running.printed() == "short\n"
    log.write_text("WARNING: a line that is cut\n" + "x" * 80 + "\n" + "y" * (server.SHOWN - 90) + "\n")
    assert running.printed() == "x" * 80 + "\n" + "y" * (server.SHOWN - 90) + "\n"


def test_a_port_is_given_once(monkeypatch):
    """The system may offer one again that nobody listens on yet."""
    offered = iter([5001, 5001, 5001, 5002])

    class Listener:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def bind(self, _):
            self.port = next(offered)

        def getsockname(self):
            return "127.0.0.1", self.port

    monkeypatch.setattr(server.socket, "socket", Listener)
    monkeypatch.setattr(server, "_given", set())
    assert [free_port(), free_port()] == [5001, 5002]


def test_who_speaks_no_http_is_not_healthy(tmp_path):
    """A port that another program took."""

    class Greets(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.sendall(b"\xff\x00\x7f\n")

    with socketserver.TCPServer(("127.0.0.1", 0), Greets) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        assert not Server(f"http://127.0.0.1:{other.server_address[1]}", "model", tmp_path / "log", None).is_healthy()
        other.shutdown()
