"""``kill -9`` at any point, and the same command again with ``--resume``: the bytes of a run that nobody disturbed."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from offline_compress import CompressionError, compress
from offline_compress.calibration.activations import INPUTS
from offline_compress.commands.compress import main
from offline_compress.factors import layer_views
from offline_compress.factors.layer_views import VIEWS
from offline_compress.run.staging import CHECKPOINT, STATE, work_directory
from palu_vllm.format.checkpoint import SINGLE
from tests.support.tiny_models import build_even

WAYS = {
    "svd": {"objective": "svd", "search": "uniform"},
    "whiten": {"objective": "whiten", "search": "uniform"},
    "energy": {"objective": "weighted", "search": "energy"},
    "sensitivity": {"objective": "weighted", "search": "sensitivity"},
    "fisher": {"objective": "whiten", "search": "fisher"},
    "lorc": {"objective": "svd", "search": "lorc"},
    "matryoshka": {"objective": "whiten", "search": "matryoshka"},
    "budget": {"objective": "weighted", "target_compression": 5, "latent_bits": 4},
    "clip": {"objective": "whiten", "search": "uniform", "latent_bits": 4},
    "share": {"objective": "whiten", "search": "uniform", "share_layers": 1, "share_threshold": -1.0},
    "reorder": {"objective": "weighted", "search": "energy", "reorder_heads": True, "group_size": 2},
}
QUICK = {"calib_samples": 4, "calib_seqlen": 40}
COMPARED = (SINGLE, "config.json", "README.md", "tokenizer.json")
# what is interrupted: the n-th call of a function, before or after it; every way and every function once
MOMENTS = [
    ("whiten", "calibration.activations:ActivationFile.write", 3, "before"),
    ("whiten", "checkpoint.writer:CheckpointWriter._reserve", 1, "before"),
    ("whiten", "checkpoint.writer:CheckpointWriter.write", 8, "before"),
    ("whiten", "checkpoint.writer:CheckpointWriter.flush", 2, "after"),
    ("whiten", "run.journal:write_at_once", 4, "after"),
    ("whiten", "pipeline:copy_companions", 1, "after"),
    ("whiten", "run.staging:_replace", 1, "before"),
    ("whiten", "run.staging:_replace", 1, "after"),
    ("energy", "run.journal:write_at_once", 4, "after"),
    ("energy", "factors.layer_views:remove_inputs", 1, "before"),
    ("sensitivity", "ranks.rules.sensitivity:TruncatedStreams.add", 2, "after"),
    ("fisher", "checkpoint.writer:CheckpointWriter.write", 6, "before"),
    ("lorc", "run.journal:write_at_once", 4, "after"),
    ("matryoshka", "run.journal:write_at_once", 5, "after"),
    ("budget", "run.journal:write_at_once", 4, "after"),
    ("clip", "checkpoint.writer:CheckpointWriter.write", 11, "before"),
    ("share", "run.journal:write_at_once", 4, "after"),
    ("reorder", "checkpoint.writer:CheckpointWriter.write", 9, "before"),
]
MORE_MOMENTS = [
    ("whiten", "calibration.activations:ActivationFile.write", 6, "after"),
    ("whiten", "run.journal:write_at_once", 1, "before"),
    ("whiten", "run.journal:write_at_once", 3, "before"),
    ("svd", "checkpoint.writer:CheckpointWriter.write", 7, "after"),
    ("energy", "calibration.activations:ActivationFile.write", 9, "before"),
    ("energy", "checkpoint.writer:CheckpointWriter.write", 6, "before"),
    ("sensitivity", "checkpoint.writer:CheckpointWriter.write", 9, "before"),
    ("fisher", "run.journal:write_at_once", 3, "after"),
    ("matryoshka", "checkpoint.writer:CheckpointWriter.write", 9, "before"),
    ("budget", "checkpoint.writer:CheckpointWriter.write", 9, "before"),
    ("share", "checkpoint.writer:CheckpointWriter.write", 9, "before"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return build_even(tmp_path_factory.mktemp("dense") / "model", num_hidden_layers=3)


@pytest.fixture(scope="module")
def undisturbed(model, text, tmp_path_factory) -> Callable[[str], Path]:
    """``undisturbed(way)``: the output of a run that ends by itself."""
    made: dict[str, Path] = {}

    def of(way: str) -> Path:
        if way not in made:
            made[way] = tmp_path_factory.mktemp(way) / "out"
            compress(model, made[way], calib_data=text, **WAYS[way], **QUICK)
        return made[way]

    return of


def killing(function: str, call: int, when: str) -> None:
    """From now on the ``call``-th call of a function of the compressor kills this process."""
    import importlib

    module, name = function.split(":")
    names = name.split(".")
    owner = importlib.import_module(f"offline_compress.{module}")
    for name in names[:-1]:
        owner = getattr(owner, name)
    original, calls = getattr(owner, names[-1]), []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == call and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, names[-1], interrupted)


def in_a_process_of_its_own(work: Callable[[], object]) -> int:
    """The signal that ended it, 0 for none."""
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(0)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


def kill_a_run(model: Path, out: Path, function: str, call: int, when: str, **options: object) -> None:
    def killed() -> None:
        killing(function, call, when)
        compress(model, out, **options)

    assert in_a_process_of_its_own(killed) == signal.SIGKILL


def assert_same_bytes(one: Path, other: Path) -> None:
    names = {path.name for path in one.iterdir()}
    assert {path.name for path in other.iterdir()} == names >= set(COMPARED)
    assert all((one / name).read_bytes() == (other / name).read_bytes() for name in COMPARED)


@pytest.mark.parametrize(
    ("way", "function", "call", "when"),
    [*MOMENTS, *(pytest.param(*moment, marks=pytest.mark.slow) for moment in MORE_MOMENTS)],
)
def test_the_same_bytes_after_a_kill(tmp_path, model, text, undisturbed, way, function, call, when):
    out, options = tmp_path / "out", {"calib_data": text, **WAYS[way], **QUICK}
    kill_a_run(model, out, function, call, when, **options)
    compress(model, out, resume=True, **options)
    assert_same_bytes(undisturbed(way), out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_killed_again_and_again(tmp_path, model, text, undisturbed):
    out, options = tmp_path / "out", {"calib_data": text, **WAYS["energy"], **QUICK}
    layers = []
    for _ in range(3):
        kill_a_run(model, out, "run.journal:write_at_once", 3, "before", resume=True, **options)
        layers.append(len(list(work_directory(out).rglob("layer-*.json"))))
    assert layers == sorted(layers) and layers[-1] > layers[0]
    report = compress(model, out, resume=True, **options)
    assert report["resumed_behind_layers"] == {"search": 3, "write": layers[-1] - 3}
    assert len(report["layer_seconds"]) == len(report["search_layer_seconds"]) == 3
    assert_same_bytes(undisturbed("energy"), out)


def test_a_finished_output_is_left_as_it_is(tmp_path, model, text):
    out, options = tmp_path / "out", {"calib_data": text, **WAYS["whiten"], **QUICK}
    first = compress(model, out, **options)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert compress(model, out, resume=True, **options) == first
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    with pytest.raises(CompressionError, match="is not empty"):
        compress(model, out, resume=True, **options | {"rank_ratio": 0.25})


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_output_that_is_replaced(tmp_path, model, text, undisturbed, when):
    out, options = tmp_path / "out", {"calib_data": text, **WAYS["whiten"], **QUICK, "overwrite": True}
    out.mkdir()
    (out / "old").write_text("old")
    kill_a_run(model, out, "run.staging:_replace", 1, when, **options)
    assert (out / "old").exists() == (when == "before")
    compress(model, out, resume=True, **options)
    assert_same_bytes(undisturbed("whiten"), out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.fixture
def killed(tmp_path, own_dense, text) -> tuple[Path, Path, dict]:
    """Model, output and options of a run that was killed behind its first layer."""
    out, options = tmp_path / "out", {"calib_data": text, **WAYS["whiten"], **QUICK}
    kill_a_run(own_dense, out, "run.journal:write_at_once", 3, "after", **options)
    return own_dense, out, options


def test_work_that_is_left_is_not_thrown_away(killed):
    model, out, options = killed
    before = sorted(work_directory(out).rglob("*"))
    with pytest.raises(CompressionError, match="add --resume to go on with it, or delete it"):
        compress(model, out, **options)
    assert sorted(work_directory(out).rglob("*")) == before


@pytest.mark.parametrize(("changes", "words"), [
    ({"rank_ratio": 0.25}, "rank_ratio 0.5, now 0.25"),
    ({"seed": 7}, "seed 42, now 7"),
    ({"calib_samples": 3}, "whiten_samples 4, now 3"),
    ({"value_path": "factored"}, "value_path fused, now factored"),
])  # fmt: skip
def test_other_options_are_refused(killed, changes, words):
    model, out, options = killed
    with pytest.raises(CompressionError, match=words) as refused:
        compress(model, out, resume=True, **options | changes)
    assert "\n" not in str(refused.value)
    compress(model, out, resume=True, **options)


@pytest.mark.parametrize("changed", ["config.json", SINGLE, "data"])
def test_other_inputs_are_refused(killed, tmp_path, changed):
    model, out, options = killed
    if changed == "config.json":
        config = json.loads((model / changed).read_text()) | {"rms_norm_eps": 1e-4}
        (model / changed).write_text(json.dumps(config))
    elif changed == SINGLE:
        os.utime(model / SINGLE)
    else:
        (tmp_path / "calibration.txt").write_text("other words " * 300)
        options = options | {"calib_data": str(tmp_path / "calibration.txt")}
    with pytest.raises(CompressionError, match="resume with the options, model and data that it began with"):
        compress(model, out, resume=True, **options)


@pytest.mark.parametrize("content", [None, b"short"])
def test_a_shard_that_somebody_changed_is_refused(killed, content):
    model, out, options = killed
    shard = work_directory(out) / CHECKPOINT / SINGLE
    shard.unlink()
    if content:
        shard.write_bytes(content)
    with pytest.raises(CompressionError, match="is not as it was left"):
        compress(model, out, resume=True, **options)


def test_an_interrupted_run_keeps_its_work_only_with_resume(tmp_path, model, text):
    out, options = tmp_path / "out", {"calib_data": text, **WAYS["whiten"], **QUICK}

    def stop(event: dict) -> None:
        if event["event"] == "layer":
            raise KeyboardInterrupt

    for resume in (False, True):
        with pytest.raises(KeyboardInterrupt):
            compress(model, out, resume=resume, on_event=stop, **options)
        assert (work_directory(out) / STATE).exists() == resume


def test_two_runs_into_one_output(tmp_path, model, text):
    out, options = tmp_path / "out", {"calib_data": text, **WAYS["whiten"], **QUICK}

    def again(event: dict) -> None:
        if event["event"] == "layer":
            with pytest.raises(CompressionError, match="another palu-compress is writing"):
                compress(model, out, resume=True, **options)

    compress(model, out, on_event=again, **options)
    assert (out / SINGLE).exists()


@pytest.mark.parametrize(("way", "overhead"), [("whiten", 0), ("energy", 0.1)])
def test_the_dry_run_says_how_much_disk_is_needed_for_a_while(tmp_path, monkeypatch, model, text, way, overhead):
    """To the byte what lies between layers; views that are kept have headers beside their numbers."""
    out, options = tmp_path / "out", {"calib_data": text, **WAYS[way], **QUICK}
    needed, remove = [], layer_views.remove_inputs

    def weigh(*_: object) -> None:
        files = [path for kept in (INPUTS, VIEWS) for path in work_directory(out).rglob(f"{kept}*")]
        needed.append(sum(path.stat().st_size for path in files))

    monkeypatch.setattr(layer_views, "remove_inputs", lambda *scratch: (weigh(), remove(*scratch)))
    compress(model, out, on_event=weigh, **options)
    predicted = compress(model, out, dry_run=True, overwrite=True, **options)["temporary_disk_bytes"]
    assert predicted <= max(needed) <= (1 + overhead) * predicted


def test_the_command(tmp_path, model, text, undisturbed, capsys):
    argv = [str(model), str(tmp_path / "out"), "--objective=weighted", f"--calib-data={text}"]
    argv += ["--calib-samples=4", "--calib-seqlen=40"]
    command = [sys.executable, "-m", "offline_compress", *argv]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        for line in process.stderr:
            if '"layer"' in line:
                process.kill()
        assert process.wait() == -signal.SIGKILL
    assert main(argv) == 2
    assert "add --resume" in capsys.readouterr().err
    assert main([*argv, "--resume"]) == 0
    assert "going on behind 3 searched and 1 written layers" in capsys.readouterr().err
    assert_same_bytes(undisturbed("energy"), tmp_path / "out")
