"""A guarded port lets in the hosts of the run and this user's processes, and answers nobody else; from the start."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tl_dist.parallel import doorkeeper
from tl_dist.parallel.door import Door
from tl_dist.refusal import ExitCode, Refusal

NOBODY = 65534
CONNECTS = """
import os, socket, sys
os.setuid(int(sys.argv[3]))
with socket.socket() as knocking:
    knocking.settimeout(2.5)
    knocking.bind((sys.argv[1], 0))
    knocking.connect(("127.0.0.1", int(sys.argv[2])))
"""


@pytest.fixture
def guarded() -> Iterator[Door]:
    made = Door()
    yield made
    made.close()


def serving(guarded: Door, *, reuse: bool = True) -> socket.socket:
    """A server that listens to everyone, as gRPC does."""
    made = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, reuse)
    made.bind(("::", guarded.port if reuse else 0))
    made.listen(8)
    return made


def knock(guarded: Door, source: str, user: int | None = None) -> bool:
    """Whether a process of `user` gets a connection from `source`, in the time of one or two of the kernel's tries."""
    argv = [
        sys.executable,
        "-c",
        CONNECTS,
        source,
        str(guarded.port),
        str(os.geteuid() if user is None else user),
    ]
    return subprocess.run(argv, stderr=subprocess.DEVNULL).returncode == 0


def test_before_it_is_opened_not_even_its_own_user_gets_in(guarded: Door) -> None:
    with serving(guarded):
        assert not knock(guarded, "127.0.0.1")


def test_this_users_processes_and_the_other_hosts_get_in_and_no_one_else(guarded: Door) -> None:
    """127.0.0.2 plays another host of the run, 127.0.0.3 a stranger's."""
    guarded.open_to("127.0.0.1", ["127.0.0.1", "127.0.0.2"])
    with serving(guarded):
        guarded.check()
        assert knock(guarded, "127.0.0.1")
        assert knock(guarded, "127.0.0.2")
        assert not knock(guarded, "127.0.0.3")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_another_user_of_this_host_does_not_get_in(guarded: Door) -> None:
    guarded.open_to("127.0.0.1", ["127.0.0.1"])
    with serving(guarded):
        assert not knock(guarded, "127.0.0.1", NOBODY)
        assert knock(guarded, "127.0.0.1")


def test_a_thousand_hosts_fit(guarded: Door) -> None:
    hosts = [f"10.0.{k // 256}.{k % 256}" for k in range(1024)]
    guarded.open_to("127.0.0.1", [*hosts, "127.0.0.2"])
    with serving(guarded):
        assert knock(guarded, "127.0.0.2")


def test_a_server_that_does_not_share_the_port_is_refused(guarded: Door) -> None:
    with pytest.raises(Refusal) as refused, serving(guarded, reuse=False):
        guarded.check()
    assert refused.value.code == ExitCode.UNSAFE


def test_a_kernel_without_such_a_guard_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doorkeeper, "_SO_ATTACH_REUSEPORT_CBPF", 9999)
    with pytest.raises(OSError, match="rotocol"):
        Door()
