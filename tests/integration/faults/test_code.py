"""A checkpoint full of code: whoever reads it runs none, though the user's keyboard says yes to every question."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import openai
import pytest

from offline_compress.commands import compress as cli
from offline_compress.commands import convert as convert_cli
from palu_vllm.format.checkpoint import read_json
from tests.support.reference_dumps import write_dump
from tests.support.serving import engine, greedy, outside, prompts, server

BIN = Path(sys.executable).parent
MODULES = ("configuration_evil", "modeling_evil", "tokenization_evil", "custom_generate/generate")
PICKLES = ("pytorch_model.bin", "optimizer.pt", "training_args.bin")
MODEL_MAP = {"AutoConfig": "configuration_evil.Evil", "AutoModel": "modeling_evil.Evil",
             "AutoModelForCausalLM": "modeling_evil.Evil"}  # fmt: skip
TOKENIZER = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["tokenization_evil.Evil"] * 2}}
LOAD = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
print(type(model).__name__, model.generate(model.dummy_inputs["input_ids"], max_new_tokens=2))
AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=False)
"""
ARMED = """
import sys, torch
from transformers import AutoConfig, AutoTokenizer
for what in (lambda: AutoConfig.from_pretrained(sys.argv[1], trust_remote_code=True),
             lambda: AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True),
             lambda: torch.load(sys.argv[1] + "/pytorch_model.bin", weights_only=False)):
    try:
        what()
    except Exception as error:
        print(error)
"""


class Pickled:
    """Makes a file when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.marker),)


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(read_json(path) | changes))


def trapped(model: Path, out: Path, markers: Path, tokenizer: bool = True) -> Path:
    """A copy with a trap wherever code could hide; each that is sprung makes a directory below ``markers``."""
    shutil.copytree(model, out)
    markers.mkdir()
    (out / "custom_generate").mkdir()
    for name in MODULES:
        code = f"import os\nos.makedirs({str(markers / name)!r})\nfrom transformers import LlamaConfig as Evil\n"
        (out / f"{name}.py").write_text(code)
    for name in PICKLES:
        (out / name).write_bytes(pickle.dumps(Pickled(markers / name)))
    edit(out / "config.json", auto_map=MODEL_MAP)
    if tokenizer:
        edit(out / "tokenizer_config.json", **TOKENIZER)
    command = f"mkdir {markers / 'template'}"
    (out / "chat_template.jinja").write_text("{{ cycler.__init__.__globals__.os.system('" + command + "') }}x")
    return out


def run(tmp_path: Path, *command: object) -> subprocess.CompletedProcess:
    """A command of a user who answers every question with yes."""
    environment = outside({"HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONWARNINGS": "ignore"})
    return subprocess.run(
        [*map(str, command)],
        input="y\n" * 20,
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
    )


def sprung(markers: Path) -> set[str]:
    return {path.name for path in markers.rglob("*")}


def test_the_traps_are_armed(dense, tmp_path):
    out = trapped(dense(), tmp_path / "model", tmp_path / "markers")
    run(tmp_path, sys.executable, "-c", ARMED, out)
    assert {"configuration_evil", "tokenization_evil", "pytorch_model.bin"} <= sprung(tmp_path / "markers")


@pytest.fixture
def yes(monkeypatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")


def test_the_compressor(dense, tmp_path, capsys, yes):
    out = trapped(dense(), tmp_path / "model", tmp_path / "markers")
    refused(cli.main([str(out), str(tmp_path / "out")]), tmp_path, capsys)


def test_the_converter(dense, tmp_path, capsys, yes):
    dump = write_dump(dense(), tmp_path / "dump", {"k_proj": [[8, 8]] * 2, "v_proj": [[8, 8]] * 2})
    out = trapped(dump, tmp_path / "model", tmp_path / "markers", tokenizer=False)
    refused(convert_cli.main([str(out), str(tmp_path / "out")]), tmp_path, capsys)


def refused(code: int, tmp_path: Path, capsys) -> None:
    assert code == 2 and "code of its own" in capsys.readouterr().err.splitlines()[-1]
    assert not sprung(tmp_path / "markers") and not (tmp_path / "out").exists()


def test_transformers(palu, tmp_path):
    """The model is this package's; the tokenizer, whose class only the checkpoint has, is refused or replaced."""
    out = trapped(palu(), tmp_path / "model", tmp_path / "markers")
    ended = run(tmp_path, sys.executable, "-c", LOAD, out)
    assert "PaluLlamaForCausalLM" in ended.stdout, ended.stderr
    assert not sprung(tmp_path / "markers")


@pytest.mark.serving
def test_vllm(palu, tmp_path, yes):
    requests = prompts(9, 40)
    with engine(palu()) as llm:
        expected = greedy(llm, requests)
    with engine(trapped(palu(), tmp_path / "model", tmp_path / "markers", tokenizer=False)) as llm:
        assert greedy(llm, requests) == expected
    assert not sprung(tmp_path / "markers")


@pytest.mark.serving
@pytest.mark.slow
def test_the_doctor(palu, tmp_path):
    out = trapped(palu(), tmp_path / "model", tmp_path / "markers", tokenizer=False)
    ended = run(tmp_path, BIN / "palu-doctor", out)
    assert ended.returncode == 0, ended.stdout + ended.stderr[-2000:]
    assert not sprung(tmp_path / "markers")


@pytest.mark.serving
@pytest.mark.slow
def test_a_server_goes_on_and_refuses_the_template(palu, tmp_path):
    model = trapped(palu(), tmp_path / "model", tmp_path / "markers", tokenizer=False)
    arguments = ("--attention-backend", "palu", "--dtype", "float32", "--max-model-len", "512", "--enforce-eager")
    with server(model, tmp_path / "log", *arguments, HF_MODULES_CACHE=str(tmp_path / "modules")) as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.APIStatusError):
            client.chat.completions.create(model=str(model), messages=[{"role": "user", "content": "a"}])
        answer = client.completions.create(model=str(model), prompt=prompts(9)[0], max_tokens=4)
        assert answer.usage.completion_tokens
    assert not sprung(tmp_path / "markers")
