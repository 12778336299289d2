"""Plays many workers to a rendezvous, from one thread: how long they take to meet.

    python -m tests.scale.peers PORT NUM [--mesh]

Each asks as `rendezvous.barrier` does; with --mesh also as Horovod's Gloo does then: every worker gets the addresses of
every other, twice. A connection for each request, as theirs. Prints {"meet_s", "mesh_s", "requests"}.
"""

import json
import select
import socket
import sys
import time
from collections.abc import Iterator

from tl_dist.files.process import allow_many_open_files

ADDRESS_BYTES = 136  # of one pair


class Play:
    """The requests of all workers, and how far each is."""

    def __init__(self, port: int, num: int, mesh: bool) -> None:
        self.port, self.num, self.mesh = port, num, mesh
        self.began = time.monotonic()
        self.met_s = [0.0] * num
        self.requests = 0
        self._poll = select.epoll()
        self._open: dict[int, tuple[socket.socket, int, bytearray]] = {}
        self._lives = [self._life(rank) for rank in range(num)]

    def _life(self, rank: int) -> Iterator[bytes]:
        """Its requests, one after another; each `yield` gives the answer."""
        yield b"PUT /ready/%d HTTP/1.1\r\nContent-Length: 4\r\n\r\nhost" % rank
        answer = b""
        while b'"num": 0,' not in answer:
            answer = yield b"GET /ready/absent HTTP/1.1\r\nWait: 20\r\n\r\n"
        self.met_s[rank] = time.monotonic() - self.began
        if not self.mesh:
            return
        value = b"a" * (ADDRESS_BYTES * self.num)
        yield b"PUT /global/%d HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (rank, len(value)) + value
        for other in (k for k in range(self.num) if k != rank):
            for _ in range(2):
                answer = b""
                while not answer.startswith(b"HTTP/1.0 200"):
                    answer = yield b"GET /global/%d HTTP/1.1\r\n\r\n" % other
                assert answer.endswith(value), answer[:100]
        yield b"DELETE /global/%d HTTP/1.1\r\n\r\n" % rank

    def run(self) -> dict[str, float]:
        for rank in range(self.num):
            self._go_on(rank, None)
        while self._open:
            for fd, _ in self._poll.poll():
                made, rank, received = self._open[fd]
                if part := made.recv(1 << 20):
                    received += part
                    continue
                del self._open[fd]
                made.close()
                self._go_on(rank, bytes(received))
        whole_s = time.monotonic() - self.began
        return {"meet_s": max(self.met_s), "mesh_s": whole_s if self.mesh else 0, "requests": self.requests}

    def _go_on(self, rank: int, answer: bytes | None) -> None:
        try:
            request = self._lives[rank].send(answer)
        except StopIteration:
            return
        made = socket.create_connection(("127.0.0.1", self.port))
        made.sendall(request)
        self.requests += 1
        self._open[made.fileno()] = (made, rank, bytearray())
        self._poll.register(made, select.EPOLLIN)


if __name__ == "__main__":
    allow_many_open_files()
    print(json.dumps(Play(int(sys.argv[1]), int(sys.argv[2]), "--mesh" in sys.argv).run()))
