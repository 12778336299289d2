"""What the tests have played by forks is what a process of its own would be: told, given, ended and killed alike."""

import json
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests import forks
from tests.end_to_end.harness import INSTALLED, STARTED, TL_DIST, alive, wait_for

PYTHONS = (sys.executable, forks.program("python"))
MODULE = ("-P", "-m", "tests.forks.surroundings")


@pytest.fixture
def environment() -> dict[str, str]:
    """As a worker has it, so that the server of other tests is the one of these."""
    environment: dict[str, str] = forks.of_module("tests")["env"]
    return environment


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def test_it_is_told_and_given_the_same(tmp_path: Path, environment: dict[str, str]) -> None:
    def played(python: str) -> tuple[Any, ...]:
        reading, writing = os.pipe()
        os.write(writing, b"passed on")
        os.close(writing)
        done = subprocess.run(
            [python, *MODULE, "read", "a b", "7"], input="typed", cwd=tmp_path, pass_fds=(reading,),
            env=environment | {"HOROVOD_RANK": "3"}, preexec_fn=limited, capture_output=True, text=True,
        )  # fmt: skip
        os.close(reading)
        found = json.loads(done.stdout)
        assert "passed on" in found["files"].values()
        return found, done.stderr, done.returncode

    # The server begins without these limits.
    subprocess.run([PYTHONS[1], *MODULE, "0"], env=environment, capture_output=True, check=True)
    alone, forked = map(played, PYTHONS)
    assert forked == alone
    assert forked[0]["input"] == "typed" and forked[1:] == ("an error\n", 7)


def test_it_ends_by_the_same_signal(environment: dict[str, str]) -> None:
    for number in (signal.SIGKILL, signal.SIGTERM):
        for python in PYTHONS:
            argv = [python, *MODULE, "signal", str(int(number))]
            assert subprocess.run(argv, env=environment, capture_output=True).returncode == -number


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_who_asked_for_it_ends_it(environment: dict[str, str], number: signal.Signals) -> None:
    argv = [PYTHONS[1], *MODULE, "sleep", "0"]
    process = subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True)
    STARTED.append(process)
    assert process.stdout is not None
    pid = json.loads(process.stdout.readline())["pid"]
    assert pid != process.pid and alive(pid)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == -number
    wait_for(lambda: not alive(pid), "its end", timeout_s=10)


def server_of(path: Path, said: bytes) -> int:
    """Its pid, told by a client that is then killed."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(said)
        pid, *_ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(pid)


def test_who_is_killed_while_asking_ends_no_server(environment: dict[str, str]) -> None:
    subprocess.run([PYTHONS[1], *MODULE, "0"], env=environment, capture_output=True, check=True)
    paths = [path for path in Path(PYTHONS[1]).parent.iterdir() if path.is_socket()]
    asked = json.dumps({"words": ["no.module"], "files": [], "environment": {}, "limits": [], "cores": [0]})
    for path in paths:
        begun = [server_of(path, said) for said in (b"\n", b'\n{"words"', b"\n" + asked.encode() + b"\n", b"")]
        time.sleep(0.2)
        assert {*begun} == {server_of(path, b"")} and alive(begun[0])
    assert paths


def test_the_command_says_the_same_in_both_ways(tmp_path: Path) -> None:
    for words in (["--help"], ["nonsense"], ["runs"], ["config", "show", "no.yaml"]):
        alone, forked = (
            subprocess.run([program, *words], cwd=tmp_path, capture_output=True, text=True)
            for program in (INSTALLED, TL_DIST)
        )
        assert (forked.returncode, forked.stdout, forked.stderr) == (
            alone.returncode,
            alone.stdout,
            alone.stderr,
        )
