"""What the user sees of a long command: a line at each end, its output in a log, and of a failure the telling line."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from horovod_build import refusal


class Progress:
    """One line when a phase starts and one when it ends; on a terminal one live line in between."""

    def __init__(self, verbose: bool = False) -> None:
        self.verbose = verbose
        self.live = sys.stdout.isatty() and not verbose

    def say(self, text: str) -> None:
        print(f"horovod: {text}", flush=True)

    def run(self, what: str, command: Sequence[object], log: Path, env: dict[str, str], expect: str = "") -> None:
        """Run the command with its output in `log`; raise CalledProcessError if it fails."""
        started = time.monotonic()
        if not self.live:
            self.say(f"{what} ...{f' ({expect})' if expect else ''}")
        with log.open("ab") as sink:
            sink.write(f"\n$ {' '.join(map(str, command))}\n".encode())
            sink.flush()
            start = sink.tell()
            process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=env,
                start_new_session=True,
            )
            try:
                self._watch(process, what, log, start)
            except BaseException:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, list(map(str, command)))
        self.say(f"{what}: done in {time.monotonic() - started:.0f} s")

    def _watch(self, process: subprocess.Popen[bytes], what: str, log: Path, shown: int) -> None:
        started = time.monotonic()
        ended = False
        while not ended:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.25 if self.live or self.verbose else None)
                ended = True
            if self.verbose:
                with log.open("rb") as stream:
                    stream.seek(shown)
                    text = stream.read()
                shown += len(text)
                print(text.decode(errors="replace"), end="", flush=True)
            elif self.live:
                elapsed = time.monotonic() - started
                percent = re.findall(r"^ *\[ *(\d+%)\]", last_bytes(log, 20_000), re.MULTILINE)
                line = f"{'|/-'[int(elapsed * 4) % 3]} {what}  {(percent or [''])[-1]}  {elapsed:.0f} s"
                print("\r\033[K" + ("" if ended else f"horovod: {line}"), end="", flush=True)


def last_bytes(file: Path, count: int) -> str:
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - count))
        return stream.read().decode(errors="replace")


# What compilers, linkers and CMake write before what went wrong. Not the word "error" alone: files have it as a name.
BUILD_ERROR = re.compile(
    r": (fatal |internal compiler )?error: |: undefined reference to |\bld: |^CMake Error|^nvcc fatal"
    r"|\bKilled\b|Cannot allocate memory|No space left on device"
)
# A linker names the place in one line, and what is wrong there in the next.
NOT_YET = re.compile(r"\bld: (warning: |.*: in function )")
# What pip and Python write, apart from the lines that only say that the command before failed.
OTHER_ERROR = re.compile(
    r"^ERROR: (?!Failed |.*Failed to build)|^(?!\S*CalledProcessError)[\w.]*(Error|Exception|Exit)(: |$)"
)
FIXES = (
    (r"No space left", "free some space, or set TMPDIR to a folder on a larger disk"),
    (
        r"Killed|internal compiler error|Cannot allocate",
        "set TL_DIST_BUILD_JOBS=1 and run it again: memory ran out",
    ),
    (
        r"No matching distribution|Connection|Could not find a version",
        "let pip reach it: PIP_INDEX_URL names a mirror, PIP_FIND_LINKS a folder with the files",
    ),
    (
        r"\.h(pp)?: No such file|cannot find -l|undefined reference|Could NOT find|Could not find",
        "install the development package that has what that line misses (the log says who asks for it)",
    ),
    ("", "correct what that line names (the log has its context), then run it again"),
)


def telling_line(log_text: str) -> str:
    """The line of a build log that says what went wrong: the first error of a compiler, a linker or CMake; where
    there is none, the first of pip or Python; else the last line."""
    lines = [line.strip() for line in log_text.splitlines() if line.strip()]
    errors = [line for line in lines if BUILD_ERROR.search(line) and not NOT_YET.search(line)]
    errors = errors or [line for line in lines if OTHER_ERROR.search(line)]
    line = (errors or lines[-1:] or ["(the log is empty)"])[0]
    if line.startswith("CMake Error") and line.endswith(":"):  # its message is on the next line
        line = " ".join(lines[lines.index(line) :][:2])
    return line[:300]


def build_failure(what: str, log: Path, log_text: str) -> refusal.Refusal:
    line = telling_line(log_text)
    fix = next(fix for pattern, fix in FIXES if re.search(pattern, line))
    return refusal.Refusal(f"{what} failed: {line} (log: {log}). Fix: {fix}; {refusal.MEANWHILE}", refusal.INTERNAL)
