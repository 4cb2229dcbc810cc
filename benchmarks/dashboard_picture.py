"""The picture of the dashboard in the docs: ``python -m benchmarks.dashboard_picture``.

Compresses the shipped model, serves it, streams to it and has Chromium draw the page meanwhile.
"""

import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from openai import OpenAI

from benchmarks.demo import CALIBRATION, MODEL, PROMPT
from benchmarks.provenance import ROOT
from benchmarks.server import Server, serve

PICTURE = ROOT / "docs" / "images" / "dashboard.png"
STREAMS, TOKENS, BLOCKS, NAME = 8, 1500, 200, "shipped-model"
# a browser without a screen and without a way out
CHROMIUM = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
            "--window-size=1040,1000", "--timeout=25000"]  # fmt: skip


def stream(server: Server) -> None:
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
    options = {"max_tokens": TOKENS, "stream": True, "extra_body": {"ignore_eos": True}}
    for _ in client.completions.create(model=NAME, prompt=PROMPT, **options):
        pass


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="palu-dashboard-") as scratch:
        out, profile = Path(scratch) / "out", Path(scratch) / "browser"
        compress = [sys.executable, "-m", "offline_compress", MODEL, out, "--calib-data", CALIBRATION]
        options = ["--rank-ratio", "0.35", "--latent-bits", "4", "--calib-samples", "16"]
        subprocess.run([*compress, *options], check=True, cwd=ROOT)
        arguments = ["--attention-backend", "palu", "--enforce-eager", "--num-gpu-blocks-override", str(BLOCKS)]
        arguments += ["--served-model-name", NAME]
        with serve(out, arguments, environment={"VLLM_PLUGINS": "palu"}) as server:
            threads = [threading.Thread(target=stream, args=(server,)) for _ in range(STREAMS)]
            for thread in threads:
                thread.start()
            page = f"{server.url}/v1/palu/dashboard"
            subprocess.run([*CHROMIUM, f"--user-data-dir={profile}", f"--screenshot={PICTURE}", page], check=True)
            for thread in threads:
                thread.join()
    print(f"{PICTURE.relative_to(ROOT)} drawn")


if __name__ == "__main__":
    main()
