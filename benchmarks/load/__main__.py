"""``python -m benchmarks.load``: locust with this locustfile, from any directory; ``--help`` shows what it adds."""

import argparse
import os
import sys

from benchmarks.load.command import locust_command, locust_environment
from benchmarks.load.options import add_arguments


def main() -> None:
    """locust prints its help before it has read a locustfile, so the options of this one are printed here."""
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        parser = argparse.ArgumentParser(
            prog="python -m benchmarks.load",
            usage="%(prog)s --headless --host URL [--users N | --rate R] [--run-time 60s] [--csv PREFIX] [--html FILE]",
            description="Locust with streaming OpenAI users. What it adds to locust's options (`locust --help`):",
        )
        add_arguments(parser)
        parser.parse_args(["--help"])
    os.execve(sys.executable, locust_command(arguments), locust_environment())


if __name__ == "__main__":
    main()
