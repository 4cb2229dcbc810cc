"""The picture of the dashboard in the docs: ``python -m benchmarks.serving.dashboard_picture``.

Compresses the shipped model, serves it, streams to it and has Chromium draw the page meanwhile.
"""

import os
import tempfile
import threading
from pathlib import Path

from openai import OpenAI

from benchmarks.common.browser import open_page
from benchmarks.common.commands import compress
from benchmarks.common.output import IMAGES
from benchmarks.common.provenance import ROOT
from benchmarks.common.server import Server, serve
from benchmarks.common.shipped import CALIBRATION_SAMPLES, PROMPT

PICTURE = IMAGES / "dashboard.png"
STREAMS, TOKENS, BLOCKS, NAME = 8, 1500, 200, "shipped-model"
# the drawing of the load has a point every two seconds
DRAWN, DRAW_SECONDS = "(document.querySelector('path.speed')?.getAttribute('d') ?? '').split('L').length > 15", 90


def stream(server: Server) -> None:
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
    options = {"max_tokens": TOKENS, "stream": True, "extra_body": {"ignore_eos": True}}
    for _ in client.completions.create(model=NAME, prompt=PROMPT, **options):
        pass


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="palu-dashboard-") as scratch:
        out, profile = Path(scratch) / "out", Path(scratch) / "browser"
        compress(out, "--rank-ratio", 0.35, "--latent-bits", 4, "--calib-samples", CALIBRATION_SAMPLES)
        arguments = ["--attention-backend", "palu", "--enforce-eager", "--num-gpu-blocks-override", str(BLOCKS)]
        arguments += ["--served-model-name", NAME]
        with serve(out, arguments, environment=os.environ | {"VLLM_PLUGINS": "palu"}) as server:
            threads = [threading.Thread(target=stream, args=(server,)) for _ in range(STREAMS)]
            for thread in threads:
                thread.start()
            with open_page(f"{server.url}/v1/palu/dashboard", profile) as page:
                page.wait_until(DRAWN, DRAW_SECONDS)
                page.screenshot(PICTURE)
            for thread in threads:
                thread.join()
    print(f"{PICTURE.relative_to(ROOT)} drawn")


if __name__ == "__main__":
    main()
