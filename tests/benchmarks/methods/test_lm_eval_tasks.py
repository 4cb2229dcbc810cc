"""Tasks of lm-eval on a method's cache, with a task and data of our own."""

import json
from argparse import Namespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.accuracy.tasks.tokens import Tokens
from benchmarks.common.shipped import HELD_OUT
from benchmarks.methods import __main__ as command
from benchmarks.methods.coded.kivi import KIVI
from benchmarks.methods.harness.dense import Dense
from benchmarks.methods.harness.prompts import Prompt, method_arm
from benchmarks.methods.lm_eval_tasks import CompressedLM, manager_of
from tests.support.tiny_models import build_dense

CONTEXT = "And it came to pass in those days, that he went up to the city of"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = build_dense(tmp_path_factory.mktemp("lm_eval") / "dense")
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokens(model):
    return Tokens(AutoTokenizer.from_pretrained(model.config._name_or_path))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two tasks: choose an answer, and go on."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [{"text": CONTEXT, "choices": [" David", " Rome", " x"], "answer": 0}] * 3
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}}}
    shared = data | {"test_split": "test", "doc_to_text": "{{text}}", "doc_to_target": "{{answer}}"}
    choice = {"output_type": "multiple_choice", "doc_to_choice": "{{choices}}", "metric_list": [{"metric": "acc"}]}
    until = {"output_type": "generate_until", "generation_kwargs": {"until": ["."], "max_gen_toks": 4}}
    until |= {"metric_list": [{"metric": "exact_match"}]}
    for name, own in (("own_choice", choice), ("own_answer", until)):
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name} | shared | own))  # JSON is YAML
    return folder


@pytest.fixture(scope="module")
def lm_of(model, tokens):
    def lm(method):
        arm = method_arm(model, method, torch.float32)
        return CompressedLM(arm, tokens, lambda ids: Prompt(model, torch.tensor(ids), torch.float32))

    return lm


def requests(tokens, *answers):
    return [(("", ""), tokens.encode(CONTEXT), tokens.encode(answer)) for answer in answers]


def test_scores_of_the_dense_cache_are_those_of_the_model(model, tokens, lm_of):
    found = lm_of(Dense())._loglikelihood_tokens(requests(tokens, " David", " Rome"))
    context = tokens.encode(CONTEXT)
    for (score, _), answer in zip(found, (" David", " Rome"), strict=True):
        ids = torch.tensor([*context, *tokens.encode(answer)])
        with torch.inference_mode():
            logits = model(ids[None]).logits[0].log_softmax(-1)
        expected = logits[len(context) - 1 : -1].gather(-1, ids[len(context) :, None]).sum().item()
        assert score == pytest.approx(expected, abs=1e-4)


def test_scores_come_from_the_compressed_context(tokens, lm_of):
    dense = lm_of(Dense())._loglikelihood_tokens(requests(tokens, " David"))
    rough = KIVI(k_bits=2, v_bits=2, group_size=32, residual_length=32)
    assert abs(lm_of(rough)._loglikelihood_tokens(requests(tokens, " David"))[0][0] - dense[0][0]) > 1e-3


def test_what_greedy_decoding_gives_is_said_to_be_greedy(model, tokens, lm_of):
    lm, context = lm_of(Dense()), tokens.encode(CONTEXT)
    with torch.inference_mode():
        best = int(model(torch.tensor([context])).logits[0, -1].argmax())
    found = lm._loglikelihood_tokens([(("", ""), context, [answer]) for answer in (best, (best + 1) % 256)])
    assert [greedy for _, greedy in found] == [True, False]
    (text,) = lm.generate_until([Namespace(args=(CONTEXT, {"until": [], "max_gen_toks": 1}))])
    assert text == tokens.decode([best])


def test_compare_has_a_column_per_task(model, folder, tmp_path, monkeypatch, capsys):
    text = tmp_path / "text.txt"
    text.write_text(HELD_OUT.read_text(encoding="utf-8")[:20_000], encoding="utf-8")
    flags = ["--model", model.config._name_or_path, "--text", text, "--calib-data", text, "--calib-samples", 1]
    flags += ["--rows", 1, "--prompt-tokens", 100, "--new-tokens", 4, "--needles", 0, "--methods", "snapkv"]
    flags += ["--budgets", 2, "--lm-eval", "own_choice,own_answer", "--lm-eval-include", folder, "--lm-eval-limit", 2]
    monkeypatch.setattr("sys.argv", ["methods", "compare", *map(str, flags), "--out", str(tmp_path / "methods")])
    command.main()
    written = json.loads((tmp_path / "methods.json").read_text())
    assert written["settings"]["lm_eval"] == ["own_choice", "own_answer"] and len(written["rows"]) == 2
    for row in written["rows"]:
        assert row["lm_eval"]["own_choice"]["acc"] in (0, 1) and row["lm_eval"]["own_answer"]["exact_match"] == 0
    assert "| own_choice, acc | own_answer, exact_match |" in capsys.readouterr().out
    assert "<th>own_choice, acc</th>" in (tmp_path / "methods.html").read_text()


@pytest.mark.slow
def test_lm_evals_own_tasks_are_known_and_others_refused(folder):
    """Reads lm-eval's index."""
    assert {"own_choice", "arc_easy"} <= set(manager_of(("own_choice", "arc_easy"), folder).all_tasks)
    with pytest.raises(ValueError, match="no task own_choices"):
        manager_of(("own_choice", "own_choices"), folder)


def test_what_cannot_be_is_refused(tokens, lm_of):
    with pytest.raises(ValueError, match="has no context"):
        lm_of(Dense())._loglikelihood_tokens([(("", ""), [256], tokens.encode("x"))])
    with pytest.raises(ValueError, match="no context to compress"):
        lm_of(Dense()).loglikelihood_rolling([])
