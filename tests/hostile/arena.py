"""A place where `tl-dist` meets one hostile or broken input, and what must hold whatever the input is."""

from __future__ import annotations

import json
import os
import re
import resource
import stat
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from tests import forks
from tests.forks.server import OF_COMMANDS

TL_DIST = str(Path(sys.executable).parent / "tl-dist")
MEMORY = 2 << 30  # bytes of data of each process
SECONDS = 20
WORKER_SECONDS = 60  # a command that starts workers imports TensorFlow, on a machine that others use too

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""control characters, C1 and bidirectional controls, but for the line's end and the tab"""


class Warm:
    """A process of warm.py, which imports more modules, and the files that get the output of a command in it."""

    def __init__(self, directory: Path, *modules: str) -> None:
        self._output = [directory / "stdout", directory / "stderr"]
        argv = [sys.executable, "-P", str(Path(__file__).with_name("warm.py")), *OF_COMMANDS, *modules]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def play(
        self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str], seconds: float
    ) -> subprocess.CompletedProcess[bytes]:
        """The command's exit code and output."""
        assert self._process.stdin and self._process.stdout
        for file in self._output:
            file.write_bytes(b"")
        command = {
            "arguments": arguments, "folder": str(folder), "environment": environment, "seconds": seconds,
            "output": [str(file) for file in self._output], "memory": MEMORY,
            "python": forks.program("python"),
        }  # fmt: skip
        print(json.dumps(command), file=self._process.stdin, flush=True)
        code = int(self._process.stdout.readline())
        out, err = (file.read_bytes() for file in self._output)
        return subprocess.CompletedProcess(arguments, code, out, err)

    def close(self) -> None:
        self._process.communicate()


class Arena:
    """An empty working directory for an attack, beside a tree that no command may touch."""

    def __init__(self, root: Path, temporary: Path, warm: Warm | None) -> None:
        self.folder = root / "folder"
        """where the attack lies and the command runs"""
        self.outside = root / "outside"
        """a tree that must be as it was when the command has ended"""
        self.ran = root / "ran"
        """where hostile code leaves its mark: empty unless it ran"""
        self.home = root / "home"
        self.warm = warm
        """plays the commands; None: each is a process of its own from the start"""
        for directory in (self.folder, self.outside / "directory", self.ran, self.home):
            directory.mkdir(parents=True)
        (self.outside / "thesis.tex").write_text("years of work\n")
        (self.outside / "directory" / "data.json").write_text("{}\n")
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "HOROVOD_", "TL_"))},
            "HOME": str(self.home),
            "TMPDIR": str(temporary),
            "XDG_CACHE_HOME": str(self.home / "cache"),
            "RAN": str(self.ran),
            "COLUMNS": "100",
        }

    def file(self, name: str, content: bytes | str = b"") -> Path:
        """A file below the working directory."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def run(
        self, arguments: Sequence[str], *, seconds: float, environment: Mapping[str, str]
    ) -> subprocess.CompletedProcess[bytes]:
        """The command's exit code and output; its limit on memory holds for all that it starts."""
        environment = self.environment | environment
        if self.warm is not None:
            return self.warm.play(arguments, self.folder, environment, seconds)

        def limited() -> None:
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

        return subprocess.run(
            [TL_DIST, *arguments],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
            preexec_fn=limited,
            check=False,
        )

    def check(self, case: Case) -> None:
        """Play the case, and see that it did no harm and was told in one line."""
        arguments = case.make(self)
        before = _tree(self.outside)
        done = self.run(
            arguments,
            seconds=WORKER_SECONDS if case.worker else SECONDS,
            environment=case.environment,
        )
        out, err = (stream.decode("utf-8", "replace") for stream in (done.stdout, done.stderr))
        shown = f"exit code {done.returncode}\n{out[-3000:]}\n{err[-3000:]}"
        assert done.returncode == case.code, shown
        assert _tree(self.outside) == before, f"the command changed what is not its own\n{shown}"
        assert not os.listdir(self.ran), f"code of the input ran: {os.listdir(self.ran)}\n{shown}"
        for text in (out, err):
            raw = _RAW.search(_COLOUR.sub("", text))
            assert raw is None, f"{raw!r} reached the terminal\n{shown!r}"
        assert "Traceback" not in out + err, shown
        errors = [line for line in err.splitlines() if line.startswith(("error:", "refused:"))]
        if case.code:
            assert len(errors) == 1, shown
            assert "Fix: " in errors[0], shown
            assert len(errors[0]) < 2000, f"a line of {len(errors[0])} characters"
        else:
            assert not errors, shown
        assert re.search(case.says, out + err), f"nothing says {case.says!r}\n{shown}"
        if case.after is not None:
            case.after(self)


@dataclass(frozen=True)
class Case:
    """One input: what makes it, and what the command must answer."""

    name: str
    make: Callable[[Arena], Sequence[str]]
    """makes the input in `arena.folder`; returns the arguments of tl-dist"""
    code: int
    says: str
    """a regular expression that the output must match"""
    worker: bool = False
    """starts workers"""
    always: bool = True
    """part of the suite; the others run with --full alone"""
    environment: Mapping[str, str] = field(default_factory=dict)
    after: Callable[[Arena], None] | None = None
    """asserts what else must hold when the command has ended"""

    def __str__(self) -> str:
        return self.name


class Cases(list[Case]):
    """The cases of one module, in the order in which they are written."""

    def add(
        self,
        name: str,
        *,
        code: int,
        says: str,
        worker: bool = False,
        always: bool | None = None,
        environment: Mapping[str, str] | None = None,
        after: Callable[[Arena], None] | None = None,
    ) -> Callable[[Callable[[Arena], Sequence[str]]], Callable[[Arena], Sequence[str]]]:
        """Decorates the function that makes the input. Cases with workers run with --full alone unless `always`."""

        def added(make: Callable[[Arena], Sequence[str]]) -> Callable[[Arena], Sequence[str]]:
            part = not worker if always is None else always
            self.append(Case(name, make, code, says, worker, part, environment or {}, after))
            return make

        return added


def _tree(root: Path) -> dict[str, tuple[int, str]]:
    """Mode and content of everything below a directory."""
    found = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        held = os.readlink(path) if path.is_symlink() else ""
        if stat.S_ISREG(status.st_mode):
            held = sha256(path.read_bytes()).hexdigest()
        found[str(path.relative_to(root))] = (status.st_mode, held)
    return found
