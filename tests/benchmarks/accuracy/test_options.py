"""The command line: tasks by name, and one sentence for what cannot be done."""

import json

import pytest

from benchmarks.accuracy.__main__ import main
from benchmarks.accuracy.options import BUILDERS, flags_of, task_parser, tasks_of
from benchmarks.accuracy.report.scores import key_of
from benchmarks.accuracy.tasks.lm_eval import scores_of
from benchmarks.accuracy.tasks.ruler import RULER_TASKS
from benchmarks.common.shipped import HELD_OUT, MODEL

LOCAL = ["--text", str(HELD_OUT), "--haystack", str(HELD_OUT)]


def parsed(*arguments: str):
    return task_parser().parse_args([*LOCAL, *arguments])


def test_every_task_has_settings_of_its_own():
    everything = parsed("--tasks", ",".join(BUILDERS), "--lm-eval-tasks", "arc_easy,piqa")
    tasks = tasks_of(everything, "m", 4096)
    assert len(tasks) == 2 + 1 + len(RULER_TASKS) + 16 + 2
    assert len({key_of(task.settings()) for task in tasks}) == len({task.name for task in tasks}) + 1
    assert json.dumps([task.settings() for task in tasks]).count(str(HELD_OUT.parent)) == 0


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--contexts", "128,256", "--limit", "3", "--chat"],
        ["--tasks", "lm-eval", "--lm-eval-data", "a=x.jsonl", "b=y.jsonl", "--num-fewshot", "2"],
    ],
)
def test_options_become_the_same_command_line(flags):
    options = parsed(*flags)
    assert task_parser().parse_args(flags_of(options)) == options


def test_settings_change_with_what_matters():
    def keys(*flags: str):
        return [key_of(task.settings()) for task in tasks_of(parsed(*flags), "m", 4096)]

    assert keys() == keys() == keys("--dtype", "float32", "--kv-cache-dtype", "fp8")
    assert keys("--limit", "2")[0] != keys()[0]
    for changed in (["--seed", "1"], ["--samples", "3"], ["--needle-style", "demo"], ["--chat"]):
        assert keys(*changed)[-1] != keys()[-1]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--tasks", "needles"], "--tasks: needles is unknown; expected perplexity, needle"),
        (["--tasks", ""], "--tasks: nothing is unknown"),
        (["--contexts", "4096"], "perplexity needs a context of 4097 tokens"),
        (["--tasks", "needle", "--lengths", "1024,8192"], "needle needs a context of 8192 tokens"),
        (["--tasks", "needle", "--lengths", "1024", "--max-length", "512"], "is served with 512"),
        (["--max-length", "9999"], "is beyond the context of"),
        (["--tasks", "ruler", "--ruler-tasks", "niah"], "--ruler-tasks: niah is unknown"),
        (["--tasks", "ruler", "--ruler-style", "odd"], "--ruler-style: odd is unknown"),
        (["--tasks", "longbench", "--longbench-tasks", "x"], "--longbench-tasks: x is unknown"),
        (["--tasks", "lm-eval"], "needs --lm-eval-tasks"),
        (["--text", "missing.txt"], "missing.txt does not exist"),
        (["--tasks", "ruler", "--haystack", "/missing"], "/missing does not exist"),
        (["--tasks", "longbench", "--longbench-data", "missing.jsonl"], "missing.jsonl does not exist"),
        (["--tasks", "lm-eval", "--lm-eval-data", "arc_easy=missing.jsonl"], "missing.jsonl does not exist"),
        (["--needle-style", "odd"], "--needle-style odd is unknown"),
        (["--depths", "0,150"], "--depths are per cent"),
        (["--samples", "0"], "are at least 1"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(tmp_path, flags, sentence):
    with pytest.raises(SystemExit) as caught:
        main(["run", str(MODEL), "--out", str(tmp_path / "out.json"), *LOCAL, *flags])
    assert sentence in caught.value.code and "\n" not in caught.value.code
    assert not (tmp_path / "out.json").exists()


def test_missing_models_and_results_are_said(tmp_path):
    for command in (["run", "missing", "--out", "x.json"], ["compare", str(tmp_path / "a.json"), "b.json"]):
        with pytest.raises(SystemExit) as caught:
            main(command)
        assert "is not a" in caught.value.code


def test_numbers_are_numbers(capsys):
    with pytest.raises(SystemExit):
        parsed("--lengths", "1k")
    assert "not a list of numbers" in capsys.readouterr().err


def test_scores_of_lm_eval_keep_rows_of_means_only():
    samples = [{"doc_id": i, "filter": "none", "acc": float(i < 3), "word_perplexity": [1.0, 2]} for i in (2, 0, 3, 1)]
    results = {
        "results": {"t": {"alias": "t", "acc,none": 0.75, "acc_stderr,none": 0.25, "word_perplexity,none": 9.5,
                          "word_perplexity_stderr,none": "N/A"}},
        "higher_is_better": {"t": {"acc": True, "word_perplexity": False}},
        "samples": {"t": samples},
        "n-samples": {"t": {"original": 10, "effective": 4}},
    }  # fmt: skip
    accuracy, perplexity = scores_of("k", "t", results)
    assert accuracy.rows == [1, 1, 1, 0] and accuracy.stderr == pytest.approx(0.25)
    assert (perplexity.value, perplexity.stderr, perplexity.rows) == (9.5, None, [])
    assert perplexity.count == 4 and not perplexity.higher_is_better
