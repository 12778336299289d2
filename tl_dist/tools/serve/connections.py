"""Connections to the server: how long one may be silent, how many a peer may have, and which of them makes room."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from tl_dist.files import limits
from tl_dist.rendezvous.peers import user_of

HEADER_S = 5.0
"""for the whole header of a request, from the connection or the answer before it on"""
ANSWER_S = 60.0
"""for a client to take what is sent to it"""


class Connection(H11Protocol):
    """One connection; a new one takes the place of the one of its peer that has waited longest for its client."""

    peer: Hashable = None
    _since = 0.0
    _timer: asyncio.TimerHandle | None = None
    _has_been_patient = False

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.peer = _peer(self.client, self.server)
        self._wait(HEADER_S)
        everyone: list[Any] = [each for each in self.connections if not each.transport.is_closing()]
        own = [each for each in everyone if each.peer == self.peer]
        for crowd, most in ((own, limits.SERVED_CONNECTIONS), (everyone, 4 * limits.SERVED_CONNECTIONS)):
            waiting = [each for each in crowd if each.waits_for_client and each is not self]
            if len(crowd) > most and waiting:
                min(waiting, key=lambda each: each._since).transport.abort()
                break

    @property
    def waits_for_client(self) -> bool:
        """Whether it is for the client to send: a request, or the rest of one."""
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait(None)
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        # Of what is too large the rest is on its way: closed now, its client would see no answer.
        self._wait(ANSWER_S if self.cycle.more_body else HEADER_S)
        super().on_response_complete()  # and perhaps the next request, which is there already

    def pause_writing(self) -> None:
        self._wait(ANSWER_S)
        super().pause_writing()

    def resume_writing(self) -> None:
        self._wait(HEADER_S if self.cycle is None or self.cycle.response_complete else None)
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        try:
            super().send_400_response(msg)
        except h11.LocalProtocolError:  # the answer to what came before it is on its way
            self.transport.abort()

    def _should_upgrade(self) -> bool:
        """No, and not with advice on what to install; asked once for each header that is there as a whole."""
        self._wait(None)
        return False

    def _wait(self, seconds: float | None) -> None:
        """Give the client so long from now on."""
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
    """The user of a process of this host, else the address."""
    try:
        user = user_of(client, server)
    except (OSError, TypeError):  # IPv6, a kernel that does not say, a connection that is gone
        user = None
    return client and client[0] if user is None else user
