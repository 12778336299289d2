"""Groups of tests, what each group takes, and, at the end of a run, which promise is broken."""

import gc
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import forks
from tests.promises import GROUPS, TESTS, group_of, promise_of
from tl_dist.launcher.command import visible_gpus

ROOT = TESTS.parent

# Tests are of the CPU, on machines with GPUs too; only those of tests/gpu start processes that see them.
SHOWN = {name: os.environ[name] for name in ("CUDA_VISIBLE_DEVICES",) if name in os.environ}
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

# The first process of a test run makes the programs for all: test modules read where they are when they are imported.
if forks.VARIABLE not in os.environ:
    os.environ[forks.VARIABLE] = tempfile.mkdtemp(prefix="forks-")
    forks.install(Path(os.environ[forks.VARIABLE]))

# PyTorch's CUDA build, which PyPI has for x86-64, brings triton: its LLVM ends a process that has TensorFlow's.
sys.modules.setdefault("triton", None)  # type: ignore[arg-type]  # None: PyTorch goes without it


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full",
        action="store_true",
        help="also run tests marked full, and all of tests/hostile and tests/scale",
    )
    parser.addoption("--broken", metavar="FILE", help="write there which promises a failing run has broken")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What collecting imports stays: the garbage collector need not look at it, again and again, in the tests."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_itemcollected(item: pytest.Item) -> None:
    """Marks a test by its folder."""
    group = group_of(item.path)
    if group in ("end_to_end", "parallel"):
        item.add_marker("e2e")
    if group == "cluster":
        item.add_marker("cluster")
    if group == "gpu":
        item.add_marker("gpu")
        if not visible_gpus(SHOWN):
            item.add_marker(pytest.mark.skip(reason="no GPU on this machine"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave tests marked `full` to --full, and start first what takes longest."""
    if not config.option.full:
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("full")])
        items[:] = [item for item in items if not item.get_closest_marker("full")]
    places = list(GROUPS)
    first = "test_quickstart.py"  # keeps both cores busy, beside the cluster's waiting
    items.sort(key=lambda item: (item.path.name != first, places.index(group_of(item.path))))


def pytest_unconfigure(config: pytest.Config) -> None:
    forks.remove(Path(os.environ[forks.VARIABLE]))


def _failures(reporter: Any) -> Iterator[str]:
    """One line for each test that failed: the promise, and how to run the test alone."""
    for report in [*reporter.stats.get("failed", ()), *reporter.stats.get("error", ())]:
        path = ROOT / report.nodeid.partition("::")[0]
        promise = promise_of(path) if path.is_file() else "the tests can be collected"
        yield f"broken: {promise}\n  alone: .venv/bin/python -m pytest '{report.nodeid}'"


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    seconds: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds[report.nodeid.split("/")[1]] += report.duration
    if seconds:
        terminalreporter.section("seconds by group")
        for group, duration in seconds.most_common():
            terminalreporter.line(f"{duration:8.1f} {group}")
    broken = list(dict.fromkeys(_failures(terminalreporter)))
    if broken:
        terminalreporter.section("broken promises")
        for line in broken:
            terminalreporter.line(line)
    if config.option.broken:
        with Path(config.option.broken).open("a") as file:
            file.writelines(line + "\n" for line in broken)
