"""Processes that share out work, and end with it or at once."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any


class Pool(ProcessPoolExecutor):
    """Processes that leave Ctrl-C to the one that started them, though a terminal sends it to all.

    Give it work by `submit`: `map` cancels its futures on the way out, and those the pool of Python 3.11 cannot end
    (InvalidStateError, in a traceback of its thread).
    """

    def submit(self, *work: Any, **more: Any) -> Future[Any]:
        with _interrupts_later():
            return super().submit(*work, **more)


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """Ctrl-C waits until the end; a process that is started here keeps it blocked.

    One that is half started is in no list of those that are to be ended. Blocking alone is not enough: another thread
    would take the signal.
    """
    heard: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: heard.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
        for number in heard:
            signal.raise_signal(number)


@contextmanager
def process_pool(
    number: int, method: str, prepare: Callable[..., None] | None = None, *arguments: Any
) -> Iterator[Pool]:
    """A pool that Ctrl-C ends at once, in the middle of what its processes do; each calls `prepare(*arguments)` first.

    `method` is how multiprocessing starts them. For the main thread.
    """
    resource_tracker.ensure_running()  # which would unblock the signal
    with Pool(number, multiprocessing.get_context(method), prepare, arguments) as pool:
        try:
            yield pool
        except KeyboardInterrupt:
            for process in multiprocessing.active_children():
                process.terminate()
            raise
