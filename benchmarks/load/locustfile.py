"""Streaming OpenAI users for locust: ``python -m benchmarks.load --headless --host URL`` (docs/guide/load-testing.md).

A closed loop (``--users``) is locust's own: a user asks, reads its stream to the end, asks again. An open loop
(``--rate``) is one user that starts a greenlet for every arrival of a seeded schedule, whatever the server does.
"""

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import gevent
import openai
from gevent.pool import Group
from locust import LoadTestShape, User, events, task
from locust.env import Environment
from locust.exception import StopUser

from benchmarks.common.provenance import provenance
from benchmarks.load.client.arrivals import users_at
from benchmarks.load.client.client_health import ClientHealth, judge_client
from benchmarks.load.client.locust_report import report_outcome
from benchmarks.load.client.run import Run
from benchmarks.load.client.stream import ask, make_client
from benchmarks.load.objectives import missed
from benchmarks.load.options import add_arguments, api_key, load_of, own_options
from benchmarks.load.summary import summarize

PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
logging.getLogger("httpx").setLevel(logging.WARNING)  # a line per request at INFO
AFTER_ERROR_SECONDS = 1.0  # a closed loop would ask a broken server as fast as it can
SINCE = {True: "from sending", False: "from the scheduled start"}


@events.init_command_line_parser.add_listener
def _arguments(parser: Any) -> None:
    add_arguments(parser)


@events.init.add_listener
def _check(environment: Environment, **_: Any) -> None:
    """Ends with one sentence instead of a load that was not meant."""
    options = environment.parsed_options
    try:
        if options.master or options.worker or options.processes:
            raise ValueError("this load runs in one process of locust; without --processes, --master, --worker.")
        if not environment.host:
            raise ValueError("say which server: --host http://127.0.0.1:8000.")
        environment.load = load_of(options)
        environment.client = make_client(environment.host, api_key(), options.request_timeout)
        environment.model = options.model_name or environment.client.models.list().data[0].id
    except (ValueError, OSError, openai.OpenAIError) as error:
        print(f"locust: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    # users that locust stops finish their stream, and all start at once unless it is said otherwise
    environment.stop_timeout = environment.stop_timeout or options.request_timeout
    options.spawn_rate = options.spawn_rate or environment.load.users
    environment.run = None


@events.test_start.add_listener
def _start(environment: Environment, **_: Any) -> None:
    options = environment.parsed_options

    def send(request, scheduled):
        return ask(environment.client, environment.model, options.endpoint, request, scheduled,
                   options.request_timeout, not options.stop_at_eos)  # fmt: skip

    row = f"{PATHS[options.endpoint]} {SINCE[environment.load.rate is None]}"

    def report(outcome):
        report_outcome(environment, row, environment.load.objectives, outcome)

    environment.run, environment.health = Run(environment.load, send, report), ClientHealth()
    gevent.spawn(environment.health.watch, lambda: environment.run.over)


@events.test_stopping.add_listener
def _stop(environment: Environment, **_: Any) -> None:
    if environment.run is not None:
        environment.run.stopping = True


class ClosedLoopUser(User):
    """Asks, reads the whole stream, asks again."""

    @task
    def ask_once(self) -> None:
        run = self.environment.run
        if not run.issuing:
            raise StopUser()
        if run.perform(time.perf_counter()).error:
            time.sleep(AFTER_ERROR_SECONDS)


class OpenLoopUser(User):
    """One is enough: it starts every arrival when it is due and waits for all of them at the end."""

    @task
    def ask_as_scheduled(self) -> None:
        run, streams = self.environment.run, Group()
        for due in run.arrivals():
            streams.spawn(run.perform, due)
        streams.join()
        raise StopUser()


class Shape(LoadTestShape):
    """--load-shape: of a closed loop the number of users; that of an open loop is in its schedule."""

    use_common_options = True

    def tick(self) -> tuple | None:
        environment = self.runner.environment
        load, run = environment.load, environment.run
        if run is not None and run.over:
            return None
        if load.rate is not None:
            return 1, 1, [OpenLoopUser]
        users = users_at(load.shape, run.share if run else 0.0, load.users)
        return users, environment.parsed_options.spawn_rate, [ClosedLoopUser]


def _result(environment: Environment) -> dict:
    load, run, health = environment.load, environment.run, environment.health
    options = environment.parsed_options
    reasons = missed(run.outcomes, load.objectives)
    return {
        "passed": not reasons,
        "missed": reasons,
        "load": load.describe(),
        "options": own_options(options) | {"users": options.num_users, "run_time": options.run_time},
        "client": judge_client(health.cpu_percent, health.lag_ms),
        **summarize(run.outcomes, load.objectives),
        "provenance": provenance(),
    } | ({"rows": [outcome.row(run.start) for outcome in run.outcomes]} if options.json_rows else {})


@events.quitting.add_listener
def _judge(environment: Environment, **_: Any) -> None:
    """Prints the verdict, writes the JSON and sets the exit code."""
    if environment.run is None:
        return
    result = _result(environment)
    print(f"\nLoad: {result['load']}.")
    for sentence in result["client"]["reasons"]:
        print(f"CLIENT SATURATED: {sentence} The times are the client's.")
    for sentence in result["missed"]:
        print(f"MISSED: {sentence}")
    if environment.parsed_options.json_result:
        Path(environment.parsed_options.json_result).write_text(json.dumps(result, indent=1) + "\n")
    environment.process_exit_code = 0 if result["passed"] else 1
