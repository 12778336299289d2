"""Run the server process of `tl-dist serve`, which has checked the command line and opened the socket."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tl_dist.refusal import ExitCode, Refusal, printable, shortened, telling_line
from tl_dist.runs.directory import RunDir
from tl_dist.terminal.console import Console

if TYPE_CHECKING:
    from tl_dist.tools.serve.served import Served


def main() -> int:
    """Serve until a signal to stop, and return the exit code; print a refusal as one line on standard error."""
    place, descriptor, at, hosts = sys.argv[1:]
    cores = len(os.sched_getaffinity(0))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stopped_early)
    try:
        with _stderr_held_back():
            from tl_dist.trainer.__main__ import import_keras

            import_keras()
            from tl_dist.tools.serve import served

            if Path(place, "export.json").is_file():
                model = served.of_export(Path(place), cores=cores)
            else:
                model = served.of_run(RunDir.open(Path(place)), at, cores=cores)
    except Refusal as refusal:
        Console(stderr=True).say(f"error: {refusal}")
        return refusal.code
    with socket.socket(fileno=int(descriptor)) as listening:
        return _answer(model, listening, hosts.split(), cores)


def _answer(model: Served, listening: socket.socket, hosts: list[str], cores: int) -> int:
    """Answer requests for these host names until a signal to stop."""
    import uvicorn

    from tl_dist.tools.serve.app import application
    from tl_dist.tools.serve.connections import Connection
    from tl_dist.tools.serve.requests import Answers

    console, answers = Console(), Answers(model, cores=cores)

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            host, port = listening.getsockname()[:2]
            address = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
            kind = ", calibrated" if model.calibrated else ""
            console.say(
                f"{model.name}, step {model.version:,}{kind}, on {address} (Ctrl-C stops it)", style="bold"
            )

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            await super().shutdown(sockets)
            requests = answers.metrics.registry.get_sample_value("tl_dist_request_seconds_count") or 0
            console.say(f"stopped after {requests:,.0f} request{'s' * (requests != 1)}")
            sys.stdout.flush()
            os._exit(ExitCode.DONE)  # a thread may be decoding an image, and cannot be interrupted

    logging.basicConfig(handlers=[_Lines()], force=True)
    config = uvicorn.Config(
        application(answers, hosts=hosts),
        http=Connection,
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        backlog=512,
        timeout_graceful_shutdown=5,
    )
    server = Server(config)
    for number in (signal.SIGINT, signal.SIGTERM):
        # For a signal while the server starts, and because uvicorn raises the signal again after it has stopped.
        signal.signal(number, server.handle_exit)
    gc.freeze()  # these objects stay: collecting among them takes half a second without an answer
    server.run([listening])
    return ExitCode.INTERNAL  # not reached: shutdown ends the process


class _Lines(logging.Handler):
    """Prints one line for each event, whatever text a request has put into it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the record, an exception as its type, its text and the last line of code."""
        text = " ".join(record.getMessage().split())
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, asyncio.CancelledError):
            return  # the shutdown ends requests, and uvicorn has logged how many
        if error is not None:
            frame = traceback.extract_tb(error.__traceback__)[-1:]
            place = "".join(f" ({Path(each.filename).name}:{each.lineno})" for each in frame)
            text = f"{text}: {type(error).__name__}: {telling_line(str(error))}{place}"
        Console(stderr=True).say(f"{record.levelname.lower()}: {shortened(printable(text), 1000)}")


@contextmanager
def _stderr_held_back() -> Iterator[None]:
    """Show what TensorFlow writes as it starts only after a failure; no setting of it is silent."""
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)
        try:
            yield
        except Exception as error:
            if not isinstance(error, Refusal):
                log.seek(0)
                os.write(stderr, log.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def _stopped_early(*_: Any) -> None:
    os.write(1, b"stopped before the model was loaded\n")
    os._exit(ExitCode.DONE)  # TensorFlow may be in the middle of its import


if __name__ == "__main__":
    sys.exit(main())
