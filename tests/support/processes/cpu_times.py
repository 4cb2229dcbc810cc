"""CPU seconds of tests, which say on a busy machine too what a suite costs; hooks for ``tests/conftest.py``.

Child processes count once they have ended and been waited for: a server at the end of the last test that uses it.
"""

import resource
from collections import Counter
from collections.abc import Generator, Iterable
from typing import Any

import pytest

SHOWN = 25  # files
SPENT = "cpu_seconds"


def spent() -> float:
    """CPU seconds of this process and of the children that it has waited for."""
    usages = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


class Meter:
    """Counts from one reading to the next."""

    def __init__(self) -> None:
        self._last = spent()

    def read(self) -> float:
        before, self._last = self._last, spent()
        return self._last - before


METER = Meter()


def pytest_runtest_logstart() -> None:
    """Leaves out what was between two tests, such as the collection before the first."""
    METER.read()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    """Writes into each report, which other workers send, what set-up, test or teardown took."""
    report = yield
    setattr(report, SPENT, METER.read())
    return report


def by_file(reports: Iterable[Any]) -> Counter[str]:
    """CPU seconds of each file, from reports of its tests."""
    files: Counter[str] = Counter()
    for report in reports:
        files[report.nodeid.split("::")[0]] += getattr(report, SPENT, 0.0)
    return files


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Prints the dearest files and the sum of all."""
    files = by_file(
        report for reports in terminalreporter.stats.values() for report in reports if hasattr(report, SPENT)
    )
    if files:
        terminalreporter.section(f"CPU seconds by file, {files.total():.0f} in all")
    for file, seconds in files.most_common(SHOWN):
        terminalreporter.write_line(f"{seconds:7.1f}  {file}")
