"""Run a command that dies with its parent, and leaves no core file: `python die_with_parent.py PARENT_PID COMMAND...`.

A program of its own, since its work belongs between fork and exec, where a process with threads must not run Python.
It imports nothing of the package, and costs some 20 ms.
"""

import ctypes
import os
import resource
import signal
import sys

_PR_SET_PDEATHSIG = 1  # prctl(2); kept over exec, and Linux only


def main() -> None:
    """Set the parent-death signal, then replace this process by the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The supervisor aborts a hung worker to get its stacks; a core file of gigabytes would help nobody.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if os.getppid() == parent:  # else the parent died before prctl took effect
        os.execvp(command[0], command)


if __name__ == "__main__":
    main()
