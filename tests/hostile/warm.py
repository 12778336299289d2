"""Plays commands of `tl-dist`, each in a fork of this process, which has imported what they need.

Its arguments are the modules to import. On standard input a line of JSON for each: arguments, folder, environment, the
files that get its output, seconds, bytes of memory, and the Python for its workers. Answers with the exit code; -9 is
that of a command that was ended because its time was over.
"""

import gc
import json
import os
import resource
import select
import signal
import sys
from importlib import import_module
from typing import Any

from tl_dist import cli


def become(command: dict[str, Any]) -> None:
    """Make this process what the shell would have started."""
    for number, path in enumerate((os.devnull, *command["output"])):
        file = os.open(path, os.O_RDWR)
        os.dup2(file, number)
        os.close(file)
    os.chdir(command["folder"])
    os.environ.clear()
    os.environ.update(command["environment"])
    resource.setrlimit(resource.RLIMIT_DATA, (command["memory"],) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.argv = ["tl-dist", *command["arguments"]]
    sys.executable = command["python"]


def end_of(pid: int, seconds: float) -> int:
    """The exit code of a child, which is killed after so long."""
    process = os.pidfd_open(pid)
    if not select.select([process], [], [], seconds)[0]:
        os.kill(pid, signal.SIGKILL)
    os.close(process)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def serve() -> None:
    for name in sys.argv[1:]:
        import_module(name)
    gc.freeze()
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        command = json.loads(line)
        pid = os.fork()
        if not pid:
            become(command)
            sys.exit(cli.main.main())
        print(end_of(pid, command["seconds"]), file=answers, flush=True)


if __name__ == "__main__":
    serve()
