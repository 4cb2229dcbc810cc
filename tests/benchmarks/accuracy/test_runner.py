"""Every task on small local data, through the vLLM that serves the shipped model, started once for all of them."""

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.accuracy import runner
from benchmarks.accuracy.options import BUILDERS, task_parser, tasks_of
from benchmarks.accuracy.report.scores import Score, key_of, read_scores
from benchmarks.accuracy.tasks.engine import Engine
from benchmarks.accuracy.tasks.longbench import LONGBENCH_TASKS
from benchmarks.common.provenance import ROOT
from benchmarks.common.shipped import HELD_OUT, MODEL
from benchmarks.perplexity import rows_of
from tests.support.codecs.models import write_exact_codec

CONTEXT = 256
SMALL = ["--limit", "2", "--samples", "2", "--contexts", str(CONTEXT), "--lengths", "384", "--depths", "0,100"]
ONE_OF_EACH = ("triviaqa", "trec", "samsum", "passage_count", "passage_retrieval_en", "lcc")  # of each metric
OTHERS = tuple(task for task in LONGBENCH_TASKS if task not in ONE_OF_EACH)
DEMO = ["--needle-style", "demo", "--ruler-style", "demo", "--ruler-tasks", "niah_single_2,niah_multikey_1"]

pytestmark = pytest.mark.serving


@pytest.fixture(scope="module")
def flags(tmp_path_factory) -> list[str]:
    """Options of a run of all tasks on generated files."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "text.txt").write_text(HELD_OUT.read_text(encoding="utf-8")[:20_000], encoding="utf-8")
    fact = {"context": "The token of silver river is golden stone.\n" * 3, "input": "The token of silver river is",
            "answers": ["golden stone"], "all_classes": ["golden stone", "river"]}  # fmt: skip
    for task in LONGBENCH_TASKS:
        answers = ["Paragraph 3"] if task == "passage_retrieval_en" else fact["answers"]
        (folder / f"{task}.jsonl").write_text(json.dumps(fact | {"answers": answers}) + "\n")
    arc = {"question": "The king of Israel", "choices": {"text": ["went up", "qqq zzz"], "label": ["A", "B"]}}
    rows = [arc | {"answerKey": "A", "id": str(i)} for i in range(3)]
    (folder / "arc.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "wiki.jsonl").write_text(json.dumps({"page": "And it came to pass in those days."}) + "\n")
    data = ["--text", str(folder / "text.txt"), "--haystack", str(folder / "text.txt")]
    data += ["--longbench-data", str(folder), "--dtype", "float32", "--max-length", "1024"]
    local = ["--lm-eval-data", f"arc_easy={folder / 'arc.jsonl'}", f"wikitext={folder / 'wiki.jsonl'}"]
    data += ["--longbench-tasks", ",".join(ONE_OF_EACH)]
    return ["--tasks", ",".join(BUILDERS), *SMALL, *DEMO, *data, *local]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    started = Engine(MODEL, 1024, "float32", "auto")
    yield started
    started.close()


@pytest.fixture(scope="module")
def scores(engine: Engine, flags) -> dict[str, list[Score]]:
    """All scores of every task, by its name."""
    tasks = tasks_of(task_parser().parse_args(flags), "the shipped model", 4096)
    return {task.name: task.run(engine, key_of(task.settings())) for task in tasks}


def test_every_task_gives_scores(scores):
    assert len(scores) == 1 + 1 + 2 + len(ONE_OF_EACH) + 2
    for name, own in scores.items():
        assert own and all(score.count >= 1 and math.isfinite(score.value) for score in own), name
        assert all(0 <= score.value <= 1 for score in own if score.higher_is_better)


def test_perplexity_is_that_of_transformers(scores, flags):
    (score,) = scores["perplexity"]
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    text = HELD_OUT.read_text(encoding="utf-8")[:20_000]
    ids = tokenizer.encode(text, add_special_tokens=False)
    rows = [row for row in rows_of(ids, CONTEXT, tokenizer.encode("")) if len(row) == CONTEXT]
    chosen = torch.tensor([rows[0], rows[len(rows) // 2]])
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = [model(row[None], labels=row[None]).loss.item() * (CONTEXT - 1) for row in chosen]
    assert score.rows == pytest.approx(expected, rel=1e-4)
    assert score.weights == [CONTEXT - 1] * 2


@pytest.mark.parametrize("task", ["needle", "ruler/niah_single_2"])
def test_the_shipped_model_finds_its_needles(scores, task):
    whole = scores[task][0]
    assert whole.metric == "found" and whole.subset == {} and whole.value >= 0.5
    parts = [score for score in scores[task] if score.metric == "found" and score.subset]
    assert sum(part.count * part.value for part in parts) == pytest.approx(whole.count * whole.value)


def test_longbench_reads_the_answer_from_the_context(scores):
    (score,) = scores["longbench/triviaqa"]
    assert score.metric == "f1" and score.value > 0.5


@pytest.mark.slow
def test_the_other_longbench_tasks_are_served(engine, flags):
    options = task_parser().parse_args([*flags, "--tasks", "longbench", "--longbench-tasks", ",".join(OTHERS)])
    for task in tasks_of(options, "the shipped model", 4096):
        (score,) = task.run(engine, "k")
        assert score.count == 1 and 0 <= score.value <= 1


def test_unknown_tasks_of_lm_eval_are_said(engine, flags):
    for given, sentence in (("arc_eazy", "has no task"), ("mmlu", "is a group")):
        options = task_parser().parse_args([*flags, "--tasks", "lm-eval"])
        options.lm_eval_data = [entry.replace("arc_easy", given) for entry in options.lm_eval_data]
        with pytest.raises(ValueError, match=sentence):
            tasks_of(options, "the shipped model", 4096)[0].run(engine, "k")


def test_lm_eval_scores_local_rows(scores):
    by_metric = {score.metric: score for score in scores["lm-eval/arc_easy"]}
    assert by_metric["acc"].count == 2 and by_metric["acc"].value == 1 and by_metric["acc"].rows == [1, 1]
    wiki = {score.metric: score for score in scores["lm-eval/wikitext"]}
    assert wiki["word_perplexity"].value > 1 and not wiki["word_perplexity"].higher_is_better


def test_chat_prompts_are_served(engine, flags):
    chat = task_parser().parse_args([*flags, "--chat", "--tasks", "needle,ruler"])
    for task in tasks_of(chat, "the shipped model", 4096):
        assert task.run(engine, "k")[0].count >= 2


def test_what_is_stored_is_not_measured_again(scores, flags, tmp_path, monkeypatch, engine):
    options = task_parser().parse_args(flags)
    monkeypatch.setattr(runner, "Engine", lambda *_: engine)
    monkeypatch.setattr(engine, "close", lambda: None)
    options.tasks = ("perplexity",)
    first = runner.run(str(MODEL), options, tmp_path / "out.json")
    monkeypatch.setattr(runner, "Engine", None)  # would fail if it were started
    assert runner.run(str(MODEL), options, tmp_path / "out.json") == first == scores["perplexity"]
    assert read_scores(tmp_path / "out.json")[0]["dtype"] == "float32"


@pytest.mark.slow
def test_a_codec_is_served_and_compared(flags, tmp_path):
    """One that loses next to nothing scores as the dense model, and is another model to a result file."""
    codec = write_exact_codec(tmp_path / "codec", MODEL)
    command = [sys.executable, "-m", "benchmarks.accuracy"]
    asked = [*flags, "--tasks", "perplexity,ruler"]
    for name, more in (("dense", []), ("coded", ["--codec", str(codec)])):
        out = ["--out", str(tmp_path / f"{name}.json")]
        subprocess.run([*command, "run", str(MODEL), *asked, *out, *more], check=True, cwd=ROOT)
    files = [str(tmp_path / f"{name}.json") for name in ("dense", "coded")]
    models, scores = zip(*(read_scores(Path(file)) for file in files), strict=True)
    assert models[1]["fingerprint"].startswith(models[0]["fingerprint"]) and models[1]["name"] == "model with codec"
    assert [score.value for score in scores[1]] == pytest.approx([score.value for score in scores[0]], rel=1e-3)
    compare = [*command, "compare", *files, "--report", str(tmp_path / "r.html")]
    printed = subprocess.run(compare, check=True, cwd=ROOT, capture_output=True, text=True).stdout
    assert "recovery 100.0%" in printed
    other = subprocess.run(
        [*command, "run", str(MODEL), *asked, "--out", files[0], "--codec", str(codec)], cwd=ROOT, capture_output=True
    )
    assert other.returncode == 1 and b"is of another model or dtype" in other.stderr


def test_a_codec_that_is_none(flags, tmp_path):
    with pytest.raises(ValueError, match=r"has no palu_codec.json; make one with `palu-calibrate"):
        runner.run(str(MODEL), task_parser().parse_args(flags), tmp_path / "out.json", tmp_path)


@pytest.mark.slow
def test_compare_measures_models_and_reports(flags, tmp_path):
    """Dense and compressed, each in a process of its own; the second time from the cache."""
    out = tmp_path / "palu"
    compress = [sys.executable, "-m", "offline_compress", str(MODEL), str(out), "--rank-ratio", "0.75"]
    compress += ["--objective", "svd", "--calib-data", str(HELD_OUT), "--calib-samples", "2", "--calib-seqlen", "128"]
    subprocess.run(compress, check=True, cwd=ROOT, capture_output=True)
    command = [sys.executable, "-m", "benchmarks.accuracy", "compare", str(MODEL), str(out)]
    command += [*flags, "--tasks", "perplexity,needle", "--report", str(tmp_path / "r.html"), "--cache", str(tmp_path)]
    printed = [subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout for _ in range(2)]
    assert printed[0] == printed[1] and "recovery" in printed[0]
    content = json.loads((tmp_path / "r.json").read_text())
    recovery = content["lines"][0]["others"][0]["recovery"]
    assert 0.8 < recovery["value"] < 1.01 and recovery["stderr"] > 0
    assert (tmp_path / "r_needle.png").exists() and (tmp_path / "r_recovery.png").exists()
