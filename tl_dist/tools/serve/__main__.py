"""Run the server process of `tl-dist serve`, which has checked the command line and opened the socket."""

import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs.directory import RunDir
from tl_dist.terminal.console import Console


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
            from tl_dist.tools.serve import app, served

            if Path(place, "export.json").is_file():
                model = served.of_export(Path(place), cores=cores)
            else:
                model = served.of_run(RunDir.open(Path(place)), at, cores=cores)
    except Refusal as refusal:
        Console(stderr=True).say(f"error: {refusal}")
        return refusal.code
    with socket.socket(fileno=int(descriptor)) as listening:
        return app.answer(model, listening, hosts.split(), cores)


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
