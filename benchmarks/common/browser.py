"""A page in a real Chromium without a screen, over the DevTools protocol: what it shows, and a picture of it."""

import base64
import itertools
import json
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

# no screen, no way out
CHROMIUM = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
            "--remote-debugging-port=0"]  # fmt: skip
START_SECONDS = 60


class Page:
    """An open page. Time passes in it as it does outside."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection, self._numbers = connection, itertools.count(1)

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while (answer := json.loads(self._connection.recv(timeout=START_SECONDS))).get("id") != number:
            pass  # events
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def visit(self, url: str, headers: Mapping[str, str]) -> None:
        self._ask("Network.enable")
        self._ask("Network.setExtraHTTPHeaders", headers=dict(headers))
        self._ask("Page.navigate", url=url)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        return self._ask("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def wait_until(self, expression: str, seconds: float) -> None:
        """Raises TimeoutError with what the page shows if the expression does not become true in time."""
        deadline = time.monotonic() + seconds
        while not self.evaluate(expression):
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"not so after {seconds} s: {expression}\n{self.evaluate('document.body.innerText')}"
                )
            time.sleep(0.2)

    def screenshot(self, png: Path) -> None:
        png.write_bytes(base64.b64decode(self._ask("Page.captureScreenshot")["data"]))


def _port(profile: Path, process: subprocess.Popen) -> int:
    """Chromium writes the port that it took into its profile."""
    written, deadline = profile / "DevToolsActivePort", time.monotonic() + START_SECONDS
    while not written.exists() or "\n" not in written.read_text():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("chromium did not start.")
        time.sleep(0.1)
    return int(written.read_text().split()[0])


@contextmanager
def open_page(
    url: str, profile: Path, headers: Mapping[str, str] | None = None, width: int = 1040, height: int = 1000
) -> Iterator[Page]:
    """Opens ``url`` in a Chromium of its own, its files in ``profile``. RuntimeError if it does not start.

    ``headers`` go with every request of the page.
    """
    command = [*CHROMIUM, f"--user-data-dir={profile}", f"--window-size={width},{height}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        new = urllib.request.Request(f"http://127.0.0.1:{_port(profile, process)}/json/new", method="PUT")
        with urllib.request.urlopen(new, timeout=START_SECONDS) as answer:
            address = json.load(answer)["webSocketDebuggerUrl"]
        with connect(address, max_size=None, open_timeout=START_SECONDS) as connection:
            page = Page(connection)
            page.visit(url, headers or {})
            yield page
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
