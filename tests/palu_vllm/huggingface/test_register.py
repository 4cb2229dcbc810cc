"""The hook waits for transformers, costs nothing until then, and never stands in the way of anything else.

Every test runs a fresh interpreter. Most use a stand-in for transformers, so that they are quick.
"""

import os
import pickle
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from palu_vllm import huggingface
from palu_vllm.families import CAUSAL_LM, CONFIG, FAMILIES, MODEL, palu_class, palu_type
from tests.support.plain_svd import build_palu
from tests.support.tiny_models import build_small

ROOT = Path(__file__).parents[3]
LINE = ROOT / "palu_vllm_autoload.pth"
AUTO = {
    "transformers/__init__.py": "",
    "transformers/models/__init__.py": "",
    "transformers/models/auto/__init__.py": "",
    "transformers/models/auto/configuration_auto.py": "CONFIG_MAPPING_NAMES = {}",
    "transformers/models/auto/modeling_auto.py": """
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
assert CONFIG_MAPPING_NAMES
MODEL_MAPPING_NAMES, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES = {}, {}
""",
}
AUTO_MODELS = "transformers/models/auto/modeling_auto.py"
CHECK = """
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES as configs
assert configs["palu_llama"] == "PaluLlamaConfig", configs
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as models
assert models["palu_llama"] == "PaluLlamaForCausalLM", models
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES as decoders
assert decoders["palu_llama"] == "PaluLlamaModel", decoders
"""


def run(code: str, *path: Path, **options) -> subprocess.CompletedProcess:
    """Runs ``code`` in an isolated working directory with ``path`` in front of everything."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *options.pop("flags", ()), "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/", **options)


def succeeds(code: str, *path: Path, **options) -> str:
    result = run(code, *path, **options)
    assert result.returncode == 0 and not result.stderr, result.stderr
    return result.stdout


@pytest.fixture
def standin(tmp_path) -> Path:
    for name, text in AUTO.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.fixture
def site(tmp_path) -> str:
    """Code that handles the ``.pth`` file as the start of an interpreter does."""
    directory = tmp_path / "site"
    directory.mkdir()
    shutil.copy(LINE, directory)
    return f"import site; site.addsitedir({str(directory)!r})\n"


@pytest.mark.parametrize("family", FAMILIES)
def test_classes_are_made_of_the_line_of_the_family(family):
    """And travel to another process as any other class and its objects do."""
    names = [palu_class(family, suffix) for suffix in (CONFIG, MODEL, CAUSAL_LM)]
    config, decoder, model = found = [huggingface.find(name) for name in names]
    assert [each.__name__ for each in found] == names
    assert config.model_type == palu_type(family)
    assert config.__mro__[1].model_type == family
    assert decoder.config_class is model.config_class is config
    assert pickle.loads(pickle.dumps(found)) == found
    told = pickle.loads(pickle.dumps(config(hidden_size=64, palu_config={"rank_k": [1]})))
    assert (told.hidden_size, told.palu_config, type(told)) == (64, {"rank_k": [1]}, config)


@pytest.mark.parametrize("module", ["configuration_auto", "modeling_auto"])
def test_registers_behind_the_import(standin, module):
    code = f"""
import sys, palu_vllm
assert "transformers" not in sys.modules
import transformers.models.auto.{module} as module
assert type(module.__spec__.loader).__name__ == type(module.__loader__).__name__ == "SourceFileLoader"
{CHECK}"""
    succeeds(code, standin, ROOT)


@pytest.mark.parametrize("module", ["configuration_auto", "modeling_auto"])
def test_registers_at_once_where_transformers_is_loaded(standin, module):
    loaded = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if type(f).__module__ != "palu_vllm.huggingface.register"]
import transformers.models.auto.configuration_auto
"""
    late = "import transformers.models.auto.modeling_auto" if module == "modeling_auto" else ""
    (standin / AUTO_MODELS).write_text("MODEL_MAPPING_NAMES, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES = {}, {}")
    succeeds(f"{loaded}{late}\nimport palu_vllm.huggingface.register as hook\nhook.install()\n{CHECK}", standin, ROOT)


def test_is_installed_once(standin):
    code = """
import sys, palu_vllm.huggingface.register as hook
hook.install(); hook.install()
assert [type(f) for f in sys.meta_path].count(hook._Finder) == 1
"""
    succeeds(code, standin, ROOT)


def test_another_transformers_is_a_warning(standin):
    (standin / AUTO_MODELS).write_text("")
    code = """
import warnings, palu_vllm
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import transformers.models.auto.modeling_auto
print(*(w.message for w in caught), sep="|")
"""
    out = succeeds(code, standin, ROOT)
    assert out.startswith("transformers will not load palu checkpoints: ")
    assert out.endswith("needs transformers 5.16 to 5.19.\n") and "|" not in out


def test_threads_import_what_they_ask_for(standin):
    code = f"""
import importlib, threading, palu_vllm
names = ["configuration_auto", "modeling_auto"] * 8
errors = []
barrier = threading.Barrier(len(names))
def load(name):
    barrier.wait()
    try:
        importlib.import_module("transformers.models.auto." + name)
        importlib.import_module("colorsys")
    except Exception as error:
        errors.append(error)
threads = [threading.Thread(target=load, args=(name,)) for name in names]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert not errors, errors
{CHECK}"""
    for _ in range(5):
        succeeds(code, standin, ROOT)


def test_without_transformers_the_error_is_the_usual_one(tmp_path):
    (tmp_path / "transformers").mkdir()
    (tmp_path / "transformers" / "__init__.py").write_text("")
    result = run("import palu_vllm, transformers.models.auto.modeling_auto", tmp_path, ROOT)
    assert result.stderr.strip().endswith("ModuleNotFoundError: No module named 'transformers.models'")


def test_the_line_is_one_import_line():
    lines = LINE.read_text().splitlines()
    assert len(lines) == 1 and lines[0].startswith("import ")


def test_the_line_loads_what_knows_the_names_and_nothing_else(site):
    code = f"""
import sys
before = set(sys.modules)
{site}
print(*sorted(set(sys.modules) - before), any(type(f).__module__.startswith("palu") for f in sys.meta_path))
"""
    out = succeeds(code, ROOT, flags=("-S",)).split()
    assert out[-1] == "True"
    heavy = {"torch", "transformers", "pydantic", "warnings", "typing", "logging", "pathlib", "inspect"}
    assert not heavy & set(out), out
    loaded = {name for name in out if name.startswith("palu_vllm")}
    assert loaded == {"palu_vllm", "palu_vllm.families", "palu_vllm.huggingface", "palu_vllm.huggingface.register"}


@pytest.mark.parametrize("state", ["gone", "empty", "without the hook"])
def test_the_line_is_silent_where_the_package_is_not_whole(site, tmp_path, state):
    if state != "gone":
        (tmp_path / "lib" / "palu_vllm").mkdir(parents=True)
    if state == "without the hook":
        (tmp_path / "lib" / "palu_vllm" / "__init__.py").write_text("from palu_vllm import transformers_hook")
    assert succeeds(site + "print('started')", tmp_path / "lib", flags=("-S",)) == "started\n"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    base = tmp_path_factory.mktemp("hook")
    return build_palu(build_small(base / "dense", "llama"), base / "palu", 8, 8)


LOAD = """
from transformers import AutoConfig
print(type(AutoConfig.from_pretrained({directory!r})).__name__)
from transformers import AutoModelForCausalLM
print(type(AutoModelForCausalLM.from_pretrained({directory!r})).__name__)
"""
LOADED = ["PaluLlamaConfig", "PaluLlamaForCausalLM"]


def test_transformers_alone_loads_a_compressed_checkpoint_and_others_as_before(site, checkpoint):
    dense = str(checkpoint.parent / "dense")
    code = f"""{site}{LOAD.format(directory=str(checkpoint))}
print(type(AutoModelForCausalLM.from_pretrained({dense!r})).__name__)
"""
    result = run(code, ROOT, flags=("-W", "error::RuntimeWarning"))
    assert result.stdout.split() == [*LOADED, "LlamaForCausalLM"], result.stderr


@pytest.mark.parametrize(
    "first",
    [
        "PreTrainedModel",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("AutoTokenizer", "PreTrainedTokenizerFast", "LlamaForCausalLM")
        ),
    ],
)
def test_any_import_may_come_first(site, first):
    code = f"""{site}
from transformers import {first}
from transformers import AutoConfig, AutoModelForCausalLM
print(type(AutoConfig.for_model("palu_llama")).__name__)
"""
    result = run(code, ROOT, flags=("-W", "error::RuntimeWarning"))
    assert result.stdout.split() == ["PaluLlamaConfig"], result.stderr


@pytest.mark.slow
def test_a_dense_model_alone_is_loaded_as_before(site, checkpoint):
    code = f"""{site}
from transformers import AutoModelForCausalLM
print(type(AutoModelForCausalLM.from_pretrained({str(checkpoint.parent / "dense")!r})).__name__)
"""
    result = run(code, ROOT)
    assert result.stdout.split() == ["LlamaForCausalLM"], result.stderr


@pytest.mark.slow
def test_the_wheel_brings_the_line(tmp_path, checkpoint):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", LINE.name):
        shutil.copy(ROOT / name, source)
    for package in ("palu_vllm", "offline_compress"):
        shutil.copytree(ROOT / package, source / package)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(tmp_path), str(source)]
    subprocess.run([*pip, *build], check=True, capture_output=True)
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    wheel = next(tmp_path.glob("*.whl"))
    install = ["--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([*pip, *install], check=True, capture_output=True)
    packages = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    assert (packages / LINE.name).read_text() == LINE.read_text()
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))  # a path; its own .pth files stay unread
    code = LOAD.format(directory=str(checkpoint)) + "import palu_vllm; print(palu_vllm.__file__)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run([python, "-c", code], capture_output=True, text=True, cwd="/", env=environment)
    assert result.stdout.split() == [*LOADED, str(packages / "palu_vllm" / "__init__.py")], result.stderr
