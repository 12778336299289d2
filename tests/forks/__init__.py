"""`tl-dist`, played by a fork of a process that has imported it, with workers that are forks of one with TensorFlow.

Of a short run's time most is imports. Whatever a command is told and leaves is as if it had been started: arguments,
directory, environment, limits, open files, signals, exit code. No fork is a child of who asked for it, though, so tests
of how processes start, hang and die take the program as it is installed.
"""

import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tl_dist.launcher.command import SAFE_PATH, THREAD_VARIABLES

ROOT = Path(__file__).parents[2]
VARIABLE = "FORKS_OF_THE_TESTS"
"""the directory of the programs `tl-dist` and `python`; the environment takes it to every process of a test run"""

_PROGRAM = """\
{first_line}
import sys
sys.path.insert(0, {here!r})
import client
client.{main}({executable!r}, {directory!r})
"""


def install(directory: Path) -> None:
    """Write the two programs."""
    for name, main in (("python", "as_python"), ("tl-dist", "as_tl_dist")):
        words = {
            "first_line": first_line(sys.executable),
            "executable": sys.executable,
            "here": str(Path(__file__).parent),
            "directory": str(directory),
        }
        (directory / name).write_text(_PROGRAM.format(main=main, **words))
        (directory / name).chmod(0o700)
    (directory / "owner").write_text(str(os.getpid()))
    (directory / "path").write_text(os.environ.get("PYTHONPATH", ""))  # servers begin with this one


def first_line(executable: str) -> str:
    """What has a script run by a Python; the kernel cuts a path off at a blank, and after 127 bytes."""
    if " " not in executable and len(executable) < 120:
        return f"#!{executable} -IS"
    # Of a shell a command, and of Python a string.
    return f"#!/bin/sh\n'''exec' {shlex.quote(executable)} -IS \"$0\" \"$@\"\n' '''"


def remove(directory: Path) -> None:
    """What `install` has made, if this process did; the servers end with it."""
    if (directory / "owner").read_text() == str(os.getpid()):
        shutil.rmtree(directory)


def program(name: str = "tl-dist") -> str:
    """Where that is, or `python`; the installed one outside of a test run."""
    return str(Path(os.environ.get(VARIABLE, Path(sys.executable).parent)) / name)


@contextmanager
def children() -> Iterator[None]:
    """What this process starts by its own Python meanwhile is a fork, as of a command, where it needs TensorFlow."""
    before, sys.executable = sys.executable, program("python")
    try:
        yield
    finally:
        sys.executable = before


def of_module(name: str, *arguments: str, **more: str) -> dict[str, Any]:
    """`args` and `env` for subprocess: a module of the tests, by the server that forks workers of one thread."""
    environment = {
        **dict.fromkeys(THREAD_VARIABLES, "1"),
        **dict.fromkeys(("TF_CPP_MIN_LOG_LEVEL", "PYTHONUNBUFFERED", "PYTHONFAULTHANDLER", SAFE_PATH), "1"),
        "PYTHONPATH": str(ROOT),
    }
    return {"args": [program("python"), "-P", "-m", name, *arguments], "env": os.environ | environment | more}
