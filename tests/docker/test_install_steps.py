"""The CPU image's own RUN lines in a bare Debian, then its own command, health check and user.

No Docker is needed: debootstrap makes the root, chroot runs the lines. Where neither can run the test is skipped, and
hadolint (test_dockerfiles.py) is what remains.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docker.bare_root import LENT, BareRoot, debootstrap, obstacle
from tests.docker.dockerfile import DIRECTORY, of

DOCKERFILE = DIRECTORY / "Dockerfile.cpu"
SMALL = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1"}
LOCAL = re.compile(r"(\s(?:file://)?)(/[^\s/]\S*)")  # a path, or a URL of one
pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]


def pip_configuration() -> tuple[str, list[Path]]:
    """This machine's configuration of pip, as a file for the bare root, and the local places that it names."""
    listed = subprocess.check_output([sys.executable, "-m", "pip", "config", "list"], text=True)
    values = dict(re.findall(r"^(?:global|:env:)\.([\w-]+)='(.*)'$", listed, re.MULTILINE))
    lines = "\n".join(["[global]", *(f"{name} = {value}" for name, value in values.items())])
    places = {Path(path) for _, path in LOCAL.findall(lines)}
    # the files of an index lie beside its pages
    lent = {place.parent if place.name == "simple" else place for place in places}
    return LOCAL.sub(rf"\g<1>{LENT}\g<2>", lines), sorted(lent)


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    if reason := obstacle():
        pytest.skip(f"no bare root here: {reason}; hadolint is what remains")
    suite = re.search(r"debian:(\w+)-slim", of(DOCKERFILE, "ARG")[0].text)[1]
    root = tmp_path_factory.mktemp("debian") / "root"
    debootstrap(root, suite)
    configuration, places = pip_configuration()
    image = BareRoot(root, places)
    image.build(DOCKERFILE, {"pip": configuration})
    yield image
    shutil.rmtree(root)  # gigabytes; mounts are gone with the commands that made them


def last(keyword: str):
    return of(DOCKERFILE, keyword)[-1]


def test_everything_is_installed_and_nothing_else_is_left(image):
    ended = image.run(["python3", "-m", "pip", "list", "--format", "json"])
    installed = {package["name"]: package["version"] for package in json.loads(ended.stdout)}
    assert installed["vllm"] == "0.32.0+cpu" and {"palu-vllm", "torch", "triton"} <= installed.keys()
    assert not {"pytest", "locust", "kvpress"} & installed.keys()
    left = [name for name in ("source", "requirements", "etc/pip.conf") if (image.root / name).exists()]
    assert not left


def test_the_commands_are_there(image):
    for command in ("palu-calibrate", "palu-compress", "palu-convert", "palu-finetune", "palu-doctor"):
        assert image.run([command, "--version"]).returncode == 0


def test_the_user_can_write_to_tmp_only(image):
    user = int(last("USER").text)
    script = "find / -xdev -writable -type d 2>/dev/null | grep -vE '^/(tmp|var/tmp|proc|sys|dev|run/lock)(/|$)'"
    assert image.run(["/bin/sh", "-c", script], user).stdout == ""


SERVE = """
"$@" &
server=$!
for _ in $(seq 300); do
  if {health} 2> /dev/null || ! kill -0 $server; then break; fi
  sleep 2
done
{health} && python3 -c {client} && kill -TERM $server && wait $server
"""
CLIENT = """
import json
from urllib.request import Request, urlopen
asked = {"model": "palu", "prompt": [1, 2, 3], "max_tokens": 8, "ignore_eos": True}
made = Request("http://127.0.0.1:8000/v1/completions", json.dumps(asked).encode(), {"Content-Type": "application/json"})
print(json.loads(urlopen(made, timeout=300).read())["usage"])
print(json.loads(urlopen("http://127.0.0.1:8000/v1/palu/info", timeout=20).read())["rank_k"])
"""


def test_serves_with_its_own_command_and_health_check(image, palu):
    """As the image's user, without a network, compiled as by default, float32 because the model is tiny."""
    model = shutil.copytree(palu("llama", 16, 16), image.root / "models" / "model")
    for file in model.iterdir():
        file.chmod(0o644)  # save_file of safetensors writes for the owner only
    health, client = shlex.join(last("HEALTHCHECK").arguments), shlex.quote(CLIENT)
    script = ["/bin/bash", "-c", SERVE.format(health=health, client=client), "server"]
    command = [*last("ENTRYPOINT").arguments, *last("CMD").arguments, "--dtype", "float32", "--max-model-len", "256"]
    image.variables |= SMALL
    ended = image.run([*script, *command], user=int(last("USER").text), network=False)
    assert "'completion_tokens': 8" in ended.stdout and "[16, 16" in ended.stdout
    assert ended.returncode == 0
