"""One streamed request by the openai client, timed. No tokenizer: tokens are what the server's ``usage`` says."""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TypeAlias

import httpx
import openai
from openai.types import Completion
from openai.types.chat import ChatCompletionChunk

from benchmarks.load.client.outcome import Outcome
from benchmarks.load.client.prompts import Request, as_words

Chunk: TypeAlias = Completion | ChatCompletionChunk
# the server closes connections that were idle for 5 s; a client that still used one would count an error
IDLE_SECONDS = 2.0


def make_client(url: str, api_key: str, timeout: float) -> openai.OpenAI:
    """A client for all users, with as many connections as there are streams; it never tries twice."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=IDLE_SECONDS)
    http = httpx.Client(limits=limits, timeout=timeout, trust_env=False)
    return openai.OpenAI(base_url=f"{url.rstrip('/')}/v1", api_key=api_key, max_retries=0, http_client=http)


def _open(client: openai.OpenAI, model: str, endpoint: str, request: Request, ignore_eos: bool) -> openai.Stream:
    common = {"model": model, "temperature": 0, "stream": True, "stream_options": {"include_usage": True},
              "extra_body": {"ignore_eos": ignore_eos}}  # fmt: skip
    if endpoint == "completions":
        return client.completions.create(prompt=request.prompt, max_tokens=request.max_tokens, **common)
    messages = [{"role": "user", "content": as_words(request.prompt)}]
    return client.chat.completions.create(messages=messages, max_completion_tokens=request.max_tokens, **common)


def _within(chunks: Iterator[Chunk], deadline: float) -> Iterator[tuple[float, Chunk]]:
    """Every chunk and its moment. Raises TimeoutError past ``deadline``."""
    for chunk in chunks:
        now = time.perf_counter()
        if now > deadline:
            raise TimeoutError("the answer took longer than --timeout")
        yield now, chunk


def _read(outcome: Outcome, stream: openai.Stream, request: Request, deadline: float) -> Outcome:
    chunks = 0
    for now, chunk in _within(stream, deadline):
        if chunk.choices:
            outcome = replace(outcome, first=outcome.first or now, last=now)
            chunks += 1
        if chunk.usage:
            used = chunk.usage
            outcome = replace(outcome, prompt_tokens=used.prompt_tokens, output_tokens=used.completion_tokens)
        if chunks == request.hang_up_after:
            return replace(outcome, hung_up=True)
    if not outcome.first or not outcome.output_tokens:
        return replace(outcome, error="the stream ended without a token or without usage")
    return outcome


def ask(
    client: openai.OpenAI, model: str, endpoint: str, request: Request, scheduled: float, timeout: float,
    ignore_eos: bool,
) -> Outcome:  # fmt: skip
    """Sends ``request`` and reads its stream, to the end or until it hangs up. Errors become part of the outcome."""
    outcome = Outcome(request.index, scheduled, time.perf_counter())
    try:
        with _open(client, model, endpoint, request, ignore_eos) as stream:
            return _read(outcome, stream, request, outcome.sent + timeout)
    except (openai.OpenAIError, httpx.HTTPError, TimeoutError) as error:
        return replace(outcome, error=f"{type(error).__name__}: {error}"[:300])
