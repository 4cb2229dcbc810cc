"""The options that the locustfile adds to locust's own, and what they mean together."""

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.load.client.arrivals import SHAPES
from benchmarks.load.client.lengths import FORMS, parse_lengths
from benchmarks.load.client.prompts import FIRST_ID, Mix, Request, from_file, generated, read_prompts
from benchmarks.load.objectives import Objectives

DISCONNECT_SHARE = 0.5


@dataclass(frozen=True)
class Load:
    """One run: what is asked, when, and what is expected. ``rate`` None is a closed loop of ``users``."""

    shape: str
    rate: float | None
    arrival: str
    users: int
    seconds: float | None
    requests: int | None
    seed: int
    request_at: Callable[[int], Request]
    objectives: Objectives

    def describe(self) -> str:
        """Closed or open loop, and from when times count."""
        if self.rate is None:
            return (
                f"closed loop: up to {self.users} users, each asks when its last answer is complete; times count from "
                "sending, so a slow server is asked less often"
            )
        return (
            f"open loop: {self.arrival} arrivals, up to {self.rate:g} per second whatever the server does; times count "
            "from the scheduled start"
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("palu-vllm: what is asked")
    add = what.add_argument
    add("--model-name", default="", help="model of the requests (default: the first that the server lists)")
    add("--endpoint", choices=("completions", "chat"), default="completions")
    add("--prompt-tokens", default="lognormal:128:0.6:512",
        help=f"lengths of prompts: {FORMS}; tokens, with --endpoint chat words")  # fmt: skip
    add("--output-tokens", default="lognormal:64:0.5:256", help="lengths of answers, in the same forms")
    add(
        "--prompts",
        default="",
        help="file with a JSON string or {prompt, max_tokens} per line instead of the generator",
    )
    add("--vocabulary", type=int, default=256, help=f"generated token ids are {FIRST_ID} up to this, exclusive")
    add("--prefix-share", type=float, default=0.0, help="share of prompts that begin with the same --prefix-tokens")
    add("--prefix-tokens", type=int, default=0)
    add("--stop-at-eos", action="store_true", help="answers may end before their length (default: vLLM's ignore_eos)")
    add("--request-timeout", type=float, default=300.0, help="seconds after which a request is an error")
    when = parser.add_argument_group("palu-vllm: when", "Ends after locust's --run-time or after --requests.")
    add = when.add_argument
    add("--load-shape", choices=tuple(SHAPES), default="steady", help="of --users, or of --rate, over the run")
    add("--rate", type=float, default=None,
        help="requests per second of an open loop (default: a closed loop of --users)")  # fmt: skip
    add("--arrival", choices=("poisson", "constant"), default="poisson", help="of an open loop")
    add("--requests", type=int, default=None, help="end after so many")
    add("--disconnect-share", type=float, default=None,
        help=f"share of clients that hang up in mid-stream (default: {DISCONNECT_SHARE} with that shape)")  # fmt: skip
    add("--seed", type=int, default=0, help="of prompts, lengths, arrivals and disconnects")
    expected = parser.add_argument_group("palu-vllm: what is expected", "The exit code is 1 if something is missed.")
    add = expected.add_argument
    for name in ("ttft", "tpot", "e2e"):
        add(f"--slo-{name}-ms", type=float, default=None, help=f"limit of the {name.upper()} of a request")
    add("--goodput", type=float, default=0.95, help="share of requests that must meet every --slo")
    add("--max-error-rate", type=float, default=0.0)
    add("--json-result", default="", help="file for the result, with provenance")
    add("--json-rows", action="store_true", help="with a row for every request")


def own_options(options: argparse.Namespace) -> dict:
    """The values of the options above, of files the names alone."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    values = {name: getattr(options, name) for name in vars(parser.parse_args([]))}
    return values | {name: Path(values[name]).name for name in ("prompts", "json_result")}


def _check(options: argparse.Namespace) -> None:
    shares = ("prefix_share", "disconnect_share", "goodput", "max_error_rate")
    for name in shares:
        value = getattr(options, name)
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"--{name.replace('_', '-')} is a share between 0 and 1, got {value}.")
    for name in ("rate", "requests", "request_timeout"):
        value = getattr(options, name)
        if value is not None and value <= 0:
            raise ValueError(f"--{name.replace('_', '-')} must be more than 0, got {value}.")
    if options.vocabulary <= FIRST_ID + 16:
        raise ValueError(f"--vocabulary must be more than {FIRST_ID + 16}, got {options.vocabulary}.")
    if options.run_time is None and options.requests is None:
        raise ValueError("say when to end: --run-time or --requests.")
    if options.load_shape in ("ramp", "spike", "soak") and options.run_time is None:
        raise ValueError(f"--load-shape {options.load_shape} changes over the run: it needs --run-time.")


def load_of(options: argparse.Namespace) -> Load:
    """Raises ValueError, in one sentence, for options that make no load."""
    _check(options)
    disconnects = options.disconnect_share
    if disconnects is None:
        disconnects = DISCONNECT_SHARE if options.load_shape == "disconnect" else 0.0
    mix = Mix(options.seed, parse_lengths(options.prompt_tokens), parse_lengths(options.output_tokens),
              options.vocabulary, options.prefix_share, options.prefix_tokens, disconnects)  # fmt: skip
    source = (
        partial(from_file, read_prompts(Path(options.prompts)), mix) if options.prompts else partial(generated, mix)
    )
    expected = Objectives(options.slo_ttft_ms, options.slo_tpot_ms, options.slo_e2e_ms, options.goodput,
                          options.max_error_rate)  # fmt: skip
    return Load(options.load_shape, options.rate, options.arrival, options.num_users or 1, options.run_time,
                options.requests, options.seed, source, expected)  # fmt: skip


def api_key() -> str:
    """From the environment, as the openai client takes it, so that no key stands in a command."""
    return os.environ.get("OPENAI_API_KEY", "none")
