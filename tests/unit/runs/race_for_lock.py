"""Many processes want one run's lock at the same moment, again and again.

    python race_for_lock.py RUN_DIR rounds NUM SEED     2 to 8 at once: exactly one may win each round
    python race_for_lock.py RUN_DIR storm NUM SEED      always 6 at work, some held up at the worst moment

Every owner makes a file that must not exist yet, which shows two owners at once whatever the lock says, and
then releases the lock or dies owning it. Prints one JSON object: how many processes ended in which way.
"""

import collections
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple

from tl_dist.refusal import Refusal
from tl_dist.runs import lock as locking
from tl_dist.runs.lock import Lock

ENDS = {10: "released", 11: "refused", 12: "two owners", 13: "not owned"}


class Run(NamedTuple):
    """All of a run directory that a lock needs; a small process forks fast."""

    name: str
    path: Path
    lock_dir: Path


def want_lock(run: Run, *, hold_s: float, dies: bool, delay_s: float = 0.0, wait_for: int | None = None) -> int:
    """Try once; as owner, hold it until `wait_for` is closed or for `hold_s`. Returns the exit code."""
    if delay_s:  # between the judgement that the lock is free and the attempt to take it
        locking.failpoint = lambda name, path=None: time.sleep(delay_s if name == "lock.judged" else 0)
    try:
        lock = Lock.acquire(run)
    except Refusal:
        return 11
    canary = run.path / "canary"
    try:
        os.close(os.open(canary, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return 12
    if wait_for is not None:
        os.read(wait_for, 1)
    time.sleep(hold_s)
    owned = lock.owned()
    canary.unlink()
    if not owned:
        return 13
    if dies:
        os.kill(os.getpid(), signal.SIGKILL)
    lock.release()
    return 10


def start(work) -> int:
    """Fork a process that ends with the code that `work` returns."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = work()
        finally:
            os._exit(code)
    return pid


def how_ended(status: int) -> str:
    return "died as owner" if os.WIFSIGNALED(status) else ENDS.get(os.WEXITSTATUS(status), "failed")


def rounds(run: Run, num: int, chance: random.Random) -> None:
    """Processes that wait for one signal to start; the winner holds the lock until all others have ended."""
    counts: collections.Counter[str] = collections.Counter()
    for _ in range(num):
        start_read, start_write = os.pipe()
        end_read, end_write = os.pipe()
        dies = chance.random() < 0.8

        def racer(pipes=(start_read, start_write, end_read, end_write), dies=dies) -> int:
            os.close(pipes[1])
            os.close(pipes[3])
            os.read(pipes[0], 1)
            return want_lock(run, hold_s=0.0, dies=dies, wait_for=pipes[2])

        racers = {start(racer) for _ in range(chance.randint(2, 8))}
        os.close(start_write)
        ended = []
        while len(racers) > 1 and "two owners" not in ended:
            pid, status = os.wait()
            racers.remove(pid)
            ended.append(how_ended(status))
        os.close(end_write)
        ended += [how_ended(os.waitpid(pid, 0)[1]) for pid in racers]
        counts.update(ended)
        counts["rounds with one winner"] += ended[-1] in ("released", "died as owner")
        os.close(start_read)
        os.close(end_read)
    print(json.dumps(counts))


def storm(run: Run, num: int, chance: random.Random) -> None:
    """Processes without any order; each that ends is replaced by the next."""
    counts: collections.Counter[str] = collections.Counter()
    alive = 0
    for _ in range(num):
        options = {
            "hold_s": chance.choice([0.0, 0.001, 0.003]),
            "dies": chance.random() < 0.6,
            "delay_s": chance.choice([0.0, 0.0, 0.002, 0.01, 0.05]),
        }
        start(lambda options=options: want_lock(run, **options))
        alive += 1
        if alive == 6:
            counts[how_ended(os.wait()[1])] += 1
            alive -= 1
    for _ in range(alive):
        counts[how_ended(os.wait()[1])] += 1
    print(json.dumps(counts))


if __name__ == "__main__":
    path = Path(sys.argv[1])
    mode = {"rounds": rounds, "storm": storm}[sys.argv[2]]
    mode(Run(path.name, path, path / "lock"), int(sys.argv[3]), random.Random(sys.argv[4]))
