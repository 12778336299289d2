"""The rendezvous serves only the workers of its own run: no other user of the host, no stranger on the network."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tl_dist.refusal import ExitCode, Refusal
from tl_dist.rendezvous import peers
from tl_dist.rendezvous.barrier import await_peers
from tl_dist.rendezvous.peers import user_of
from tl_dist.rendezvous.server import Rendezvous

CHECKOUT = Path(__file__).parents[2]
NOBODY = 65534
TOKEN = "TL_DIST_RENDEZVOUS_TOKEN"
IPV4 = (socket.AF_INET, "127.0.0.1")
MAPPED = (socket.AF_INET6, "::ffff:127.0.0.1")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a socket away")


@pytest.fixture(params=["netlink", "table"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each of the two ways to ask it."""

    def absent(*ends: object) -> int:
        raise OSError("Protocol not supported")

    if request.param == "table":
        monkeypatch.setattr(peers, "_by_netlink", absent)
    return str(request.param)


@pytest.fixture
def rendezvous() -> Iterator[Rendezvous]:
    with Rendezvous([("localhost", 2)], "127.0.0.1") as opened:
        yield opened


def connect(port: int, *, user: int | None = None, how: tuple[int, str] = IPV4) -> socket.socket:
    """A connection whose socket belongs to a user, as if that user had made it."""
    made = socket.socket(how[0])
    if user is not None:
        os.fchown(made.fileno(), user, -1)
    made.settimeout(5)
    made.connect((how[1], port))
    return made


def status(connection: socket.socket, method: str, path: str, body: bytes = b"", headers: str = "") -> int:
    """The status of the answer; 0 where there is none."""
    request = f"{method} {path} HTTP/1.1\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    with connection, suppress(ConnectionError):
        connection.sendall(request.encode() + body)
        return int((connection.recv(100).split() or [b"", b"0"])[1])
    return 0


def port_of(rendezvous: Rendezvous) -> int:
    return int(rendezvous.endpoint.rpartition(":")[2])


@as_root
@pytest.mark.parametrize("how", [IPV4, MAPPED], ids=["ipv4", "ipv4 through ipv6"])
def test_another_user_of_the_host_is_not_answered(kernel: str, rendezvous: Rendezvous, how: tuple[int, str]) -> None:
    """Garbage instead of the workers' addresses aborted both, and a member that never was forgot the scope."""
    port = port_of(rendezvous)
    assert status(connect(port, how=how), "PUT", "/global/0", b"address") == 200
    for method in ("PUT", "GET", "DELETE"):
        assert status(connect(port, user=NOBODY, how=how), method, "/global/0", b"x") == 0
        assert status(connect(port, user=NOBODY, how=how), method, "/global/1", b"x") == 0
    with connect(port) as own:
        own.sendall(b"GET /global/0 HTTP/1.1\r\n\r\n")
        assert own.makefile("rb").read().endswith(b"address")
    assert status(connect(port), "GET", "/global/1") == 404


@pytest.mark.parametrize("how", [IPV4, MAPPED], ids=["ipv4", "ipv4 through ipv6"])
def test_the_user_at_the_other_end_is_known_until_it_closes(kernel: str, how: tuple[int, str]) -> None:
    """The kernel says 0, the number of root, for what nobody holds any more."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        owner = os.geteuid() or NOBODY  # root can give sockets away
        client = connect(server.getsockname()[1], user=owner, how=how)
        connection, peer = server.accept()
        with connection:
            assert user_of(peer, server.getsockname()) == owner
            client.sendall(b"x")
            client.close()
            assert user_of(peer, server.getsockname()) is None
        assert user_of(("192.0.2.7", 4711), server.getsockname()) is None


def test_who_listens_at_the_port_of_a_peer_that_is_gone_is_not_that_peer(kernel: str) -> None:
    """What the peer has sent is still there to be read, as if from a process of this user."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = connect(server.getsockname()[1])
        connection, peer = server.accept()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("@ii", 1, 0))
        client.close()
        with connection, socket.create_server(peer):
            assert user_of(peer, server.getsockname()) is None


@as_root
def test_a_kernel_that_does_not_say_who_it_is_stops_no_run(
    rendezvous: Rendezvous, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(*ends: object) -> int:
        raise OSError("not here")

    monkeypatch.setattr("tl_dist.rendezvous.server.user_of", silent)
    assert status(connect(port_of(rendezvous)), "PUT", "/global/0", b"x") == 200


class Neighbour:
    """Another host: a network namespace with two addresses on a cable to this one."""

    here, there, alias = "10.203.77.1", "10.203.77.2", "10.203.77.3"

    def __init__(self) -> None:
        self.name = f"tl-{uuid.uuid4().hex[:8]}"

    def __enter__(self) -> Neighbour:
        ours, theirs = f"{self.name}a", f"{self.name}b"
        try:
            for command in (
                f"netns add {self.name}",
                f"link add {ours} type veth peer name {theirs} netns {self.name}",
                f"addr add {self.here}/24 dev {ours}",
                f"link set {ours} up",
                f"-n {self.name} addr add {self.there}/24 dev {theirs}",
                f"-n {self.name} addr add {self.alias}/24 dev {theirs}",
                f"-n {self.name} link set {theirs} up",
            ):
                subprocess.run(["ip", *command.split()], check=True, capture_output=True)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        subprocess.run(["ip", "netns", "delete", self.name], check=False, capture_output=True)

    def status(self, port: int, method: str, path: str, *, token: str = "", source: str = "") -> int:
        """What this host answers to a request from the other one."""
        code = (
            "import http.client, sys\n"
            "here, port, method, path, token, source = sys.argv[1:]\n"
            "asked = http.client.HTTPConnection(here, int(port), 5, source_address=(source, 0))\n"
            "asked.request(method, path, b'x', {'Authorization': f'Bearer {token}'} if token else {})\n"
            "print(asked.getresponse().status)\n"
        )
        argv = ["ip", "netns", "exec", self.name, sys.executable, "-c", code]
        argv += [self.here, str(port), method, path, token, source or self.there]
        done = subprocess.run(argv, check=True, capture_output=True, text=True)
        return int(done.stdout)


@pytest.mark.cluster
def test_another_host_is_known_by_the_jobs_token_and_then_by_its_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Through any of its interfaces: which one a worker takes is not in the plan."""
    plan = [("node1", 1), ("node2", 1)]
    with Neighbour() as other, Rendezvous(plan, other.here) as rendezvous:
        port, token = port_of(rendezvous), rendezvous.job_environment()[TOKEN]
        for method in ("PUT", "GET", "DELETE"):
            assert other.status(port, method, "/global/1") == 403
        assert other.status(port, "PUT", "/ready/1", token=token[::-1]) == 403
        assert other.status(port, "PUT", "/ready/1", token=token) == 200
        assert other.status(port, "PUT", "/global/1") == 200  # Horovod's client has no token
        assert other.status(port, "PUT", "/global/0", source=other.alias) == 403
        assert other.status(port, "GET", "/global/0") == 404
        # A worker beside the rendezvous needs no token, and nobody else there gets in by another address.
        assert status(connect(port, how=(socket.AF_INET, other.here)), "PUT", "/global/0", b"x") == 200
        stranger = connect(port, user=NOBODY, how=(socket.AF_INET, other.here))
        assert status(stranger, "GET", "/global/0") == 0


def test_a_worker_that_is_not_known_is_told_so(rendezvous: Rendezvous, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tl_dist.rendezvous.server.Rendezvous.trusts", lambda server, peer: None)
    env = rendezvous.worker_environment(0)
    with pytest.raises(Refusal, match=r"does not know this worker.*Fix: ") as refusal:
        await_peers(env | {TOKEN: "0" * 32}, timeout_s=5)
    assert refusal.value.code == ExitCode.UNSAFE
    right = rendezvous.job_environment()[TOKEN]
    with pytest.raises(Refusal, match="had not come"):
        await_peers(env | {TOKEN: right}, timeout_s=0.3)
