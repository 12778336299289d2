"""What a process is told and has: JSON on standard output. It ends with the code or by the signal of its last word."""

import json
import os
import resource
import signal
import sys
import time


def main() -> None:
    open_files = [fd for fd in range(3, 100) if os.path.exists(f"/proc/self/fd/{fd}") and os.get_inheritable(fd)]
    found = {
        "words": sys.argv[1:],
        "input": sys.stdin.read() if "read" in sys.argv else "",
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "files": {fd: os.read(fd, 100).decode() for fd in open_files},
        "limits": [resource.getrlimit(limit) for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_DATA)],
        "cores": sorted(os.sched_getaffinity(0)),
        "handlers": [str(signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)],
        "path": sys.path,
        "pid": os.getpid() if "sleep" in sys.argv else 0,
    }
    print(json.dumps(found), flush=True)
    print("an error", file=sys.stderr)
    if "sleep" in sys.argv:
        time.sleep(100)
    if "signal" in sys.argv:
        os.kill(os.getpid(), int(sys.argv[-1]))
    sys.exit(int(sys.argv[-1]))


if __name__ == "__main__":
    main()
