"""A guarded port admits this user's processes, and other hosts that have the token; nobody else's bytes arrive."""

import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import pytest

from tests import stranger
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.rendezvous import port_guard, port_guard_process
from tl_dist.rendezvous.port_guard import PortGuard

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
OWN, ELSEWHERE, UNKNOWN = "127.0.0.1", "127.0.0.3", "127.0.0.9"  # this host, and two that play others
TOKEN = "a job's"
PATIENCE_S = 30.0


class Server:
    """Listens to everyone, as gRPC does, answers with what it gets, and keeps that."""

    def __init__(self, guarded: PortGuard, *, reuse: bool = True) -> None:
        self.arrived: list[bytes] = []
        self._socket = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, reuse)
        self._socket.bind(("::", guarded.port if reuse else 0))
        self._socket.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self._answer, args=(self._socket.accept()[0],), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while piece := connection.recv(1 << 16):
                self.arrived.append(piece)
                connection.sendall(piece)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def guarded(closing: ExitStack) -> PortGuard:
    return new_guard(closing)


def new_guard(closing: ExitStack, own: str = OWN) -> PortGuard:
    made = PortGuard(own)
    closing.callback(made.close)
    return made


def server(closing: ExitStack, guarded: PortGuard) -> Server:
    made = Server(guarded)
    closing.callback(made.close)
    return made


def alone(guarded: PortGuard) -> tuple[str, int]:
    """Where the port is reached, of a run of this worker alone."""
    (reached,) = guarded.open_to([(OWN, guarded.port)], "")
    return address(reached)


def address(reached: str) -> tuple[str, int]:
    host, _, port = reached.rpartition(":")
    return host, int(port)


def connected(there: tuple[str, int], *, source: str = "", seconds: float = PATIENCE_S) -> socket.socket:
    """A connection as gRPC makes it, with SO_REUSEADDR: another user can bind the port beside it."""
    made = socket.socket()
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.settimeout(seconds)
        if source:
            made.bind((source, 0))
        made.connect(there)
    except OSError:
        made.close()
        raise
    return made


def calls(there: tuple[str, int], *, source: str = "", seconds: float = PATIENCE_S, says: bytes = b"hello") -> bytes:
    """What the server answers to this process; nothing where it does not in the time."""
    with suppress(OSError), connected(there, source=source, seconds=seconds) as made:
        made.sendall(says)
        return made.recv(100)
    return b""


def strangers(guarded: PortGuard, seconds: float) -> subprocess.Popen[str]:
    argv = [sys.executable, stranger.__file__, str(seconds), str(os.geteuid()), str(guarded.port)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_before_it_is_opened_not_even_its_own_user_gets_in(closing: ExitStack, guarded: PortGuard) -> None:
    listening = server(closing, guarded)
    assert not calls((OWN, guarded.port), seconds=1)
    assert not listening.arrived


def test_a_process_of_this_user_gets_in_from_any_address_and_none_that_is_not_here(
    closing: ExitStack, guarded: PortGuard
) -> None:
    listening = server(closing, guarded)
    there = alone(guarded)
    assert there == (OWN, guarded.port)
    guarded.check()
    assert calls(there) == calls(there, source="127.0.0.6") == b"hello"
    listening.arrived.clear()
    for where in ("127.0.0.2", "127.0.0.5", "::1"):
        assert not calls((where, guarded.port), seconds=1.5), "the server's own port does not even answer"
    assert not listening.arrived


def test_who_comes_before_the_server_listens_is_let_in_when_it_does(closing: ExitStack, guarded: PortGuard) -> None:
    answered: list[bytes] = []
    caller = threading.Thread(target=lambda: answered.append(calls(alone(guarded))))
    caller.start()
    time.sleep(0.5)
    server(closing, guarded)
    caller.join()
    assert answered == [b"hello"]


@as_root
@pytest.mark.parametrize("serves", [False, True], ids=["while the server is awaited", "while it serves"])
def test_a_stranger_does_not_get_in_by_the_port_of_one_who_does(
    closing: ExitStack, guarded: PortGuard, serves: bool
) -> None:
    """The rule stands open again and again until the server listens, to one port after another, and for each call."""
    there = alone(guarded)
    listening = server(closing, guarded) if serves else None
    trying = strangers(guarded, 4)
    callers = [threading.Thread(target=calls, args=(there,)) for _ in range(20)]
    for caller in callers:
        caller.start()
        time.sleep(0.15)
    said, _ = trying.communicate(timeout=PATIENCE_S)
    assert trying.returncode == 0 and not said.startswith("0 tries"), said
    listening = listening or server(closing, guarded)
    for caller in callers:
        caller.join()
    assert set(listening.arrived) == {b"hello"}


@as_root
@pytest.mark.parametrize("gives_up", ["closed", "reset", "before it was let in"])
def test_a_stranger_does_not_get_in_by_the_port_of_one_who_has_left(
    closing: ExitStack, guarded: PortGuard, gives_up: str
) -> None:
    there = alone(guarded)
    listening = None if gives_up == "before it was let in" else server(closing, guarded)
    for _ in range(20):
        own = connected(there)
        source = own.getsockname()
        if listening is not None:
            own.sendall(b"hello")
            assert own.recv(5) == b"hello"
        if gives_up != "closed":
            own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("@ii", 1, 0))
        own.close()
        for where in (OWN, "127.0.0.2", "127.0.0.5"):
            assert not stranger.answers(source, guarded.port, where, (socket.SO_REUSEADDR,), user=stranger.NOBODY)
    listening = listening or server(closing, guarded)
    assert calls(there) == b"hello"
    assert set(listening.arrived) == {b"hello"}


@as_root
@pytest.mark.parametrize("ends", ["reset", "closed"])
def test_what_a_stranger_left_behind_is_nobodys_else_who_has_its_port_since(
    closing: ExitStack, guarded: PortGuard, ends: str
) -> None:
    """It waits in the kernel's queue, as long as the guard is not open; the ports are then those of an own process."""
    listening = server(closing, guarded)
    with socket.socket() as left:
        os.fchown(left.fileno(), stranger.NOBODY, -1)
        left.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        left.connect((OWN, guarded.port))
        source = left.getsockname()
        left.sendall(b"stranger")
        if ends == "reset":
            left.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("@ii", 1, 0))
    with socket.socket() as own:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        own.settimeout(PATIENCE_S)
        own.bind(source)
        with suppress(OSError):  # where the old connection has not ended yet
            own.connect((OWN, guarded.port))
            own.sendall(b"hello")
        alone(guarded)
        assert calls((OWN, guarded.port)) == b"hello"
        if ends == "reset":
            assert own.recv(5) == b"hello"
    assert set(listening.arrived) == {b"hello"}


def others(closing: ExitStack, tokens: tuple[str, str]) -> tuple[PortGuard, PortGuard, Server, tuple[str, int]]:
    """Two workers on two hosts: their port guards, the second one's server, and where the first one reaches that."""
    guards = new_guard(closing), new_guard(closing, ELSEWHERE)
    listening = server(closing, guards[1])
    workers = [(OWN, guards[0].port), (ELSEWHERE, guards[1].port)]
    reached = [each.open_to(workers, token) for each, token in zip(guards, tokens, strict=True)]
    assert reached[0][0] == f"{OWN}:{guards[0].port}"
    return *guards, listening, address(reached[0][1])


def test_a_worker_on_another_host_gets_in_by_the_jobs_token(closing: ExitStack) -> None:
    *_, listening, there = others(closing, (TOKEN, TOKEN))
    assert calls(there) == b"hello"
    assert listening.arrived == [b"hello"]


@pytest.mark.parametrize("tokens", [("", ""), (TOKEN, ""), ("", TOKEN), (TOKEN, TOKEN[::-1])])
def test_without_the_same_token_no_other_host_gets_in(closing: ExitStack, tokens: tuple[str, str]) -> None:
    *_, listening, there = others(closing, tokens)
    assert not calls(there, seconds=2)
    assert not listening.arrived


def test_what_proved_one_connection_proves_no_other(closing: ExitStack) -> None:
    """A neighbour of a worker's on its host shows what it has listened to, and another worker's proof."""
    first, second, listening, _ = others(closing, (TOKEN, TOKEN))

    def shows(answer: Callable[[bytes, bytes], bytes]) -> bytes:
        """What comes of an answer made from the server's nonce and its proof."""
        with suppress(OSError), connected((ELSEWHERE, second.port), source=OWN, seconds=5) as made:
            made.sendall(bytes(32))
            theirs = b""
            while len(theirs) < 64:
                theirs += made.recv(64 - len(theirs))
            made.sendall(answer(theirs[:32] + bytes(32), theirs[32:]) + b"hello")
            return made.recv(5)
        return b""

    here, there = (OWN, first.port), (ELSEWHERE, second.port)
    right = lambda nonces, _: port_guard_process.proof(TOKEN, "client", there, nonces)  # noqa: E731
    assert shows(right) == b"hello"
    last = port_guard_process.proof(TOKEN, "client", there, bytes(64))
    assert not shows(lambda *_: last)
    assert not shows(lambda _, theirs: theirs)
    assert not shows(lambda nonces, _: port_guard_process.proof(TOKEN, "client", here, nonces))
    assert not shows(lambda nonces, _: port_guard_process.proof(TOKEN, "server", there, nonces))
    assert not shows(lambda nonces, _: port_guard_process.proof("", "client", there, nonces))
    assert not shows(lambda *_: b"")
    assert listening.arrived == [b"hello"]


@as_root
def test_a_host_that_is_not_of_the_run_is_not_even_asked(closing: ExitStack) -> None:
    """Played by another user, whose socket is none of this one's wherever it is."""
    _, second, listening, _ = others(closing, (TOKEN, TOKEN))
    assert not stranger.answers((UNKNOWN, 0), second.port, ELSEWHERE, (), user=stranger.NOBODY)
    assert not listening.arrived


def test_silent_hosts_keep_no_other_out_and_are_many(closing: ExitStack) -> None:
    _, second, _, there = others(closing, (TOKEN, TOKEN))
    with ExitStack() as held:
        for _ in range(40):
            held.enter_context(connected((ELSEWHERE, second.port), source=OWN))
        assert calls(there) == b"hello"


def test_seventy_thousand_hosts_fit(closing: ExitStack, guarded: PortGuard) -> None:
    workers = [(f"10.{k >> 16}.{k >> 8 & 255}.{k & 255}", 4711) for k in range(70_000)]
    second = new_guard(closing, ELSEWHERE)
    listening = server(closing, second)
    second.open_to([*workers, (OWN, guarded.port), (ELSEWHERE, second.port)], TOKEN)
    reached = guarded.open_to([*workers, (OWN, guarded.port), (ELSEWHERE, second.port)], TOKEN)
    assert calls(address(reached[-1])) == b"hello"
    assert listening.arrived == [b"hello"]


def test_everything_arrives_in_order_however_slow_the_reader(closing: ExitStack, guarded: PortGuard) -> None:
    server(closing, guarded)
    sent = os.urandom(1 << 24)
    with connected(alone(guarded)) as made:
        writer = threading.Thread(target=made.sendall, args=(sent,))
        writer.start()
        received = bytearray()
        while len(received) < len(sent):
            if len(received) < 1 << 20:
                time.sleep(0.001)
            received += made.recv(1 << 16)
        writer.join()
    assert received == sent


@as_root
def test_thousands_who_knock_keep_nobody_out(closing: ExitStack, guarded: PortGuard) -> None:
    listening = server(closing, guarded)
    there = alone(guarded)
    assert calls(there) == b"hello"
    knocks = (
        "import os, socket, sys, time\nos.setuid(65534)\nend = time.time() + 5\n"
        "while time.time() < end:\n"
        "    with socket.socket() as made:\n"
        "        made.setblocking(False)\n"
        "        made.connect_ex(eval(sys.argv[1]))\n"
    )
    knocking = subprocess.Popen([sys.executable, "-c", knocks, repr(there)])
    try:
        time.sleep(1)
        assert calls(there) == b"hello"
    finally:
        knocking.kill()
        knocking.wait()
    assert listening.arrived == [b"hello"] * 2


@as_root
def test_the_end_of_the_guard_process_ends_what_it_has_let_in_and_leaves_the_port_shut(
    closing: ExitStack, guarded: PortGuard
) -> None:
    listening = server(closing, guarded)
    there = alone(guarded)
    with connected(there) as made:
        made.sendall(b"hello")
        assert made.recv(5) == b"hello"
        guarded._process.send_signal(signal.SIGKILL)
        assert made.recv(5) == b""
    assert not calls(there, seconds=1.5)
    trying = strangers(guarded, 1.5)
    said, _ = trying.communicate(timeout=PATIENCE_S)
    assert trying.returncode == 0, said
    assert listening.arrived == [b"hello"]


FORGETS = """
import gc, socket, sys, time
from tl_dist.rendezvous.port_guard import PortGuard
guarded = PortGuard("127.0.0.1")
guarded.open_to([("127.0.0.1", guarded.port)], "")
server = socket.socket(socket.AF_INET6)
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
server.bind(("::", guarded.port))
server.listen()
server.settimeout(4)
port = guarded.port
del guarded
gc.collect()
print(port, flush=True)
try:
    server.accept()
except TimeoutError:
    print("nobody came")
"""


@as_root
def test_the_port_stays_shut_until_its_process_ends_even_if_the_guard_is_forgotten() -> None:
    """As at the end of a worker, when Python has closed what it knows of and TensorFlow's server still listens."""
    argv = [sys.executable, "-W", "ignore", "-c", FORGETS]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout
        port = int(worker.stdout.readline())
        end = time.monotonic() + 2
        while time.monotonic() < end:
            for where in (OWN, "127.0.0.2", "127.0.0.5"):
                assert not stranger.answers((OWN, 0), port, where, (), user=stranger.NOBODY)
        assert worker.communicate(timeout=PATIENCE_S)[0] == "nobody came\n"


def test_the_guard_process_ends_with_its_worker(closing: ExitStack, guarded: PortGuard) -> None:
    there = alone(guarded)
    process = guarded._process
    process.send_signal(signal.SIGTERM)  # is for the worker alone
    server(closing, guarded)
    assert calls(there) == b"hello"
    assert process.stdin
    process.stdin.close()
    assert process.wait(PATIENCE_S) == 0
    process.stdin = None


def test_a_server_that_does_not_share_the_port_is_refused(guarded: PortGuard) -> None:
    apart = Server(guarded, reuse=False)
    with pytest.raises(Refusal) as refused:
        guarded.check()
    apart.close()
    assert refused.value.code == ExitCode.UNSAFE


def test_a_kernel_without_such_a_guard_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port_guard_process, "_SO_ATTACH_REUSEPORT_CBPF", 9999)
    with pytest.raises(OSError, match="rotocol"):
        PortGuard(OWN)


def test_an_address_of_another_host_is_an_error() -> None:
    with pytest.raises(OSError, match="ssign"):
        PortGuard("192.0.2.77")


ASKED = {port_guard.OPEN_PORT_VARIABLE: "1"}


@pytest.mark.parametrize("host", ["8.8.8.8", "141.20.5.1"])
def test_public_addresses_are_refused_unless_that_was_asked_for(
    host: str,
) -> None:
    with pytest.raises(Refusal, match=f"{host}, a public address") as refused:
        port_guard.refuse_public(["10.0.0.1", host], {})
    assert refused.value.code == ExitCode.UNSAFE
    port_guard.refuse_public(["10.0.0.1", host], ASKED)


@pytest.mark.parametrize("host", ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.7.9", "169.254.1.1"])
def test_private_addresses_are_taken(host: str) -> None:
    port_guard.refuse_public([host], {})


def test_where_the_kernel_cannot_guard_the_port_it_is_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_guard(own: str) -> None:
        raise OSError(92, "Protocol not available")

    monkeypatch.setattr(port_guard, "PortGuard", no_guard)
    with pytest.raises(Refusal, match="cannot be guarded here") as refused:
        port_guard.open_port_guard({}, "127.0.0.1")
    assert refused.value.code == ExitCode.UNSAFE
    assert port_guard.open_port_guard(ASKED, "127.0.0.1") is None


@pytest.mark.parametrize("text", ["", "10.0.0.1", "10.0.0.1:0", "10.0.0.1:99999", "a b:1", "::1:80", "10.0.0.1:x"])
def test_what_is_no_address_is_no_worker(text: str) -> None:
    with pytest.raises(Refusal, match="is no address and port"):
        port_guard.parsed(text)
