"""A pool of processes that Ctrl-C ends at once."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any


class Pool(ProcessPoolExecutor):
    """Run processes that leave Ctrl-C to their parent, though a terminal sends it to all.

    Use `submit`: `map` cancels its futures when it is interrupted, and the pool of Python 3.11 cannot end those
    (InvalidStateError, in a traceback of its thread).
    """

    def submit(self, *work: Any, **options: Any) -> Future[Any]:
        """Submit as ProcessPoolExecutor does; defers Ctrl-C while a process starts, which keeps it blocked.

        A process that is half started is in no list of processes to end. Blocking alone is not enough, since another
        thread would take the signal.
        """
        signals: list[int] = []
        handler = signal.signal(signal.SIGINT, lambda number, _: signals.append(number))
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            return super().submit(*work, **options)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            signal.signal(signal.SIGINT, handler)
            for number in signals:
                signal.raise_signal(number)


@contextmanager
def process_pool(
    number: int, method: str, prepare: Callable[..., None] | None = None, *arguments: Any
) -> Iterator[Pool]:
    """Open a pool that Ctrl-C ends at once, whatever its processes do; each calls `prepare(*arguments)` first.

    `method` is the start method of multiprocessing. Call it in the main thread.
    """
    resource_tracker.ensure_running()  # which would unblock the signal
    with Pool(number, multiprocessing.get_context(method), prepare, arguments) as pool:
        try:
            yield pool
        except KeyboardInterrupt:
            for process in multiprocessing.active_children():
                process.terminate()
            raise
