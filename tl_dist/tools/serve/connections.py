"""Limit connections to the server: how long one may be silent, how many a peer may have, and which makes room."""

import asyncio
from collections.abc import Hashable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from tl_dist.files import limits
from tl_dist.rendezvous.peers import user_of

HEADER_S = 5.0
"""for the whole header of a request, counted from the connection or from the previous answer"""
ANSWER_S = 60.0  # for a client to read what is sent to it


class Connection(H11Protocol):
    """One connection. Past the limit of its peer, a new one ends the one that has waited longest for its client."""

    peer: Hashable = None
    _since = 0.0
    _timer: asyncio.TimerHandle | None = None
    _has_been_patient = False

    def connection_made(self, transport: Any) -> None:
        """Start the timer for the header, and end another connection if there are too many."""
        super().connection_made(transport)
        self.peer = _peer(self.client, self.server)
        self._wait(HEADER_S)
        all_open: list[Any] = [other for other in self.connections if not other.transport.is_closing()]
        of_peer = [other for other in all_open if other.peer == self.peer]
        for group, limit in ((of_peer, limits.SERVED_CONNECTIONS), (all_open, 4 * limits.SERVED_CONNECTIONS)):
            waiting = [other for other in group if other.waits_for_client and other is not self]
            if len(group) > limit and waiting:
                min(waiting, key=lambda other: other._since).transport.abort()
                break

    @property
    def waits_for_client(self) -> bool:
        """Whether the client has to send a request, or the rest of one."""
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._wait(None)
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Start the timer for the next request, or for the rest of one that was refused."""
        # The rest of a body that is too large is still coming: closed now, its client would see no answer.
        self._wait(ANSWER_S if self.cycle.more_body else HEADER_S)
        super().on_response_complete()  # which may handle the next request, if it has arrived

    def pause_writing(self) -> None:
        """Start the timer for a client that does not read."""
        self._wait(ANSWER_S)
        super().pause_writing()

    def resume_writing(self) -> None:
        """Stop the timer while an answer is being sent."""
        self._wait(HEADER_S if self.cycle is None or self.cycle.response_complete else None)
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Refuse bytes that are no request; end the connection if another answer is being sent."""
        try:
            super().send_400_response(msg)
        except h11.LocalProtocolError:  # an earlier answer is being sent
            self.transport.abort()

    def _should_upgrade(self) -> bool:
        """Return False, without uvicorn's advice on what to install; called once for each complete header."""
        self._wait(None)
        return False

    def _wait(self, seconds: float | None) -> None:
        """Give the client this long from now on; None: no limit."""
        if self._timer is not None:
            self._timer.cancel()
        self._since, self._has_been_patient = self.loop.time(), seconds == ANSWER_S
        self._timer = None if seconds is None else self.loop.call_later(seconds, self._give_up)

    def _give_up(self) -> None:
        if self.transport.get_write_buffer_size() and not self._has_been_patient:
            self._wait(ANSWER_S)
        else:
            self.transport.abort()


def _peer(client: Any, server: Any) -> Hashable:
    """Return the user of a client process on this host, or else the address of the client."""
    try:
        user = user_of(client, server)
    except (OSError, TypeError):  # IPv6, a kernel that does not tell, a connection that has ended
        user = None
    return client and client[0] if user is None else user
