"""What a request may ask of its tokens: their probabilities, a grammar, the best of several beams."""

import re

import pytest
import torch
from pydantic import BaseModel, ConfigDict, Field
from transformers import AutoModelForCausalLM
from vllm import SamplingParams
from vllm.sampling_params import BeamSearchParams, StructuredOutputsParams

from tests.integration.checkpoints.test_half_rank import RANKS
from tests.support.serving import attention_used, engine, greedy, prompts

pytestmark = pytest.mark.serving

TOKENS, TOP = 12, 5
REQUESTS = prompts(6, 45)
CLOSE = 1e-4  # of a logarithm; float32 on both sides


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str = Field(pattern="^[a-z]{1,8}$")
    count: int = Field(ge=0, le=999)


@pytest.fixture(scope="module")
def model(palu):
    return palu("llama", **RANKS)


@pytest.fixture(scope="module")
def llm(model):
    terse = {"backend": "xgrammar", "disable_any_whitespace": True}  # a random model would go on with spaces
    with engine(model, attention_backend="palu", structured_outputs_config=terse) as llm:
        assert attention_used(llm) == {("PALU", "TorchAttention")}
        yield llm


@pytest.fixture(scope="module")
def log_softmax(model):
    """``log_softmax(ids)``: transformers' ``[tokens, vocabulary]`` for the same checkpoint."""
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)

    def score(ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return reference(torch.tensor([ids])).logits[0].log_softmax(-1)

    return score


def generate(llm, requests=REQUESTS, **params):
    params = SamplingParams(**({"temperature": 0.0, "max_tokens": TOKENS, "ignore_eos": True} | params))
    return llm.generate([{"prompt_token_ids": ids} for ids in requests], params, use_tqdm=False)


def same(told, scores: torch.Tensor, token: int) -> None:
    """vLLM's answer for one place has the likeliest tokens and ``token``, all with the reference's numbers."""
    assert set(told) == {token, *scores.topk(TOP).indices.tolist()}
    for other, entry in told.items():
        assert entry.logprob == pytest.approx(scores[other].item(), abs=CLOSE)
    assert told[token].rank == 1 + int((scores > scores[token]).sum())


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "seed": 3}], ids=["greedy", "sampled"])
def test_logprobs_of_answers_and_prompts_are_those_of_transformers(llm, log_softmax, sampling):
    for output in generate(llm, logprobs=TOP, prompt_logprobs=TOP, **sampling):
        prompt, answer = output.prompt_token_ids, list(output.outputs[0].token_ids)
        scores = log_softmax(prompt + answer)
        told = [*output.prompt_logprobs[1:], *output.outputs[0].logprobs]
        for place, (token, entry) in enumerate(zip((prompt + answer)[1:], told, strict=True)):
            same(entry, scores[place], token)
        chosen = [entry[token].logprob for token, entry in zip(answer, output.outputs[0].logprobs, strict=True)]
        assert output.outputs[0].cumulative_logprob == pytest.approx(sum(chosen), abs=CLOSE)
        if not sampling:
            assert answer == scores[len(prompt) - 1 : -1].argmax(-1).tolist()


GRAMMARS = {
    "json": (StructuredOutputsParams(json=Answer.model_json_schema()), None),
    "regex": (StructuredOutputsParams(regex=r"[a-c]{3}-\d{2}"), r"[a-c]{3}-\d{2}"),
    "choice": (StructuredOutputsParams(choice=["red", "green"]), "red|green"),
    "grammar": (StructuredOutputsParams(grammar='root ::= "yes" | "no, " [0-9] [0-9]'), r"yes|no, \d\d"),
}


@pytest.mark.parametrize("kind", GRAMMARS)
def test_structured_outputs_validate_and_strangers_are_free(llm, kind):
    """Constrained and free requests in one batch."""
    grammar, pattern = GRAMMARS[kind]
    constrained = {"temperature": 0.0, "max_tokens": 100, "structured_outputs": grammar}
    free = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True)
    outputs = llm.generate(
        [{"prompt_token_ids": ids} for ids in REQUESTS + REQUESTS],
        [SamplingParams(**constrained)] * 2 + [free] * 2,
        use_tqdm=False,
    )
    for output in outputs[:2]:
        assert output.outputs[0].finish_reason == "stop"
        text = output.outputs[0].text
        assert re.fullmatch(pattern, text) if pattern else Answer.model_validate_json(text)
    assert [output.outputs[0].token_ids for output in outputs[2:]] == greedy(llm, REQUESTS, TOKENS)


def test_beams_have_the_probabilities_of_transformers(llm, log_softmax):
    request = REQUESTS[1]
    params = BeamSearchParams(beam_width=3, max_tokens=6, ignore_eos=True)
    (found,) = llm.beam_search([{"prompt_token_ids": request}], params)
    for beam in found.sequences:
        scores = log_softmax(beam.tokens)[len(request) - 1 : -1]
        chosen = scores.gather(1, torch.tensor(beam.tokens[len(request) :])[:, None])
        assert beam.cum_logprob == pytest.approx(chosen.sum().item(), abs=CLOSE)
    totals = [beam.cum_logprob for beam in found.sequences]
    assert totals == sorted(totals, reverse=True) and len(totals) == 3
