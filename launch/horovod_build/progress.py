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

    def run(
        self, what: str, command: Sequence[object], log: Path, env: dict[str, str], expect: str = ""
    ) -> None:
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


def telling_line(log_text: str) -> str:
    """The line of a build log that says what went wrong: a compiler's first error, else the last line."""
    noise = re.compile(
        r"subprocess-exited-with-error|Failed (to build|building)|returned non-zero|Traceback"
        r"|error: (legacy|metadata)"
    )
    telling = re.compile(
        r"(?<![\w-])(fatal error|error|undefined reference|No space left|Killed|cannot find"
        r"|No matching distribution)\b",
        re.I,
    )
    lines = [line.strip() for line in log_text.splitlines() if line.strip()]
    found = [line for line in lines if telling.search(line) and not noise.search(line)]
    line = found[0] if found else (lines[-1] if lines else "(the log is empty)")
    if line.startswith("CMake Error"):  # its message is on the next line
        line += " " + lines[min(lines.index(line) + 1, len(lines) - 1)]
    return line[:300]


def build_failure(what: str, log: Path, log_text: str) -> refusal.Refusal:
    line = telling_line(log_text)
    if re.search("No space left", line):
        fix = "free some space, or set TMPDIR to a larger disk"
    elif re.search(r"Killed|Cannot allocate", line):
        fix = "it ran out of memory: set TL_DIST_BUILD_JOBS=1 and run again"
    elif re.search(r"No matching distribution|Connection|Could not find a version", line):
        fix = "let pip reach it: PIP_INDEX_URL names a mirror, PIP_FIND_LINKS a folder with the files"
    else:
        fix = "read the log above that line"
    return refusal.Refusal(
        f"{what} failed: {line} (log: {log}). Fix: {fix}; {refusal.MEANWHILE}", refusal.INTERNAL
    )
