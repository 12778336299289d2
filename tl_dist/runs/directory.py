"""Define the run directory: its layout, the identity of a run, and the files by which processes communicate."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from tl_dist.config import Config, code, extensions
from tl_dist.config import file as config_file
from tl_dist.config.file import differences
from tl_dist.config.registry import nearest
from tl_dist.files import limits
from tl_dist.files.atomic import children, open_directory, reason, sweep, write_atomically
from tl_dist.files.foreign import read_file
from tl_dist.files.private import refuse_unsafe, refuse_unsafe_below, unsafe
from tl_dist.refusal import ExitCode, Refusal, shortened
from tl_dist.runs import shape
from tl_dist.runs.heartbeats import Heartbeats
from tl_dist.runs.lock import Lock, holder
from tl_dist.runs.lock.owner import HEARTBEAT_S, OwningJob, claimant, encoded, this_process

_STEP_NAME = re.compile(r"step-(\d{8,18})")
_ATTEMPT = re.compile(r"([0-9]{4,18})\.json")
_SETTLE_S = 10.0  # another command holds the lock only while it writes two small files
_NEW_RUN = "start a new run with another name=NAME"
_OTHER_NAME = "use another name=NAME"


class RunDir:
    """One run on disk. The constructor touches no file; `create` and `open` check what exists."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.name = self.path.name
        self.config_file = self.path / "config.yaml"
        self.identity_file = self.path / "run.json"
        self.claim_file = self.path / "starting.json"
        self.lock_dir = self.path / "lock"
        self.attempts = self.path / "attempts"
        self.checkpoints = self.path / "checkpoints"
        self.metrics_file = self.path / "metrics.jsonl"
        self.quarantine_file = self.path / "quarantine.jsonl"
        self.features_file = self.path / "features.txt"
        self.tensorboard = self.path / "tb"
        self.code = self.path / "code"
        self.logs = self.path / "logs"
        self.evaluations = self.path / "evaluations"
        self.predictions = self.path / "predictions"
        self.heartbeats = self.path / "heartbeats"
        self.stop_file = self.path / "stop"
        self.done_file = self.path / "DONE"
        self.beats = Heartbeats(self.heartbeats)

    def __repr__(self) -> str:
        return f"RunDir({str(self.path)!r})"

    @classmethod
    def create(cls, root: str | Path, config: Config) -> RunDir:
        """Create or reuse the directory `root`/NAME, with all values of `config`, and the Python file of its network.

        Refuses (78) to change the trajectory of a run that has begun or is about to start; replaces other keys.
        """
        run = cls(Path(root) / config.name)
        try:
            run.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            refuse_unsafe(run.path.parent, links=True, shared=True)
            for directory in run._directories():
                with suppress(FileExistsError):
                    directory.mkdir(mode=0o700)
                refuse_unsafe(directory, instead=_OTHER_NAME)
            refuse_unsafe_below(run.path)
            run._settle(config, config_file.in_run(config, run.code.name).encode())
        except OSError as error:
            raise _cannot_create(run.path, error) from error
        return run

    @classmethod
    def open(cls, path: str | Path) -> RunDir:
        """Open the run in an existing directory; refuse any other directory, or one that other users could change."""
        run = cls(path)
        if not run.config_file.is_file():
            names = [entry.name for entry in children(run.path.parent) if (entry / "config.yaml").is_file()]
            guess = nearest(run.name, names)
            fix = f"use '{run.path.parent / guess}'." if guess else "name a directory that training made."
            raise Refusal(f"{run.path} is not a run: it has no config.yaml.", fix=fix, code=ExitCode.USAGE)
        for directory in run._directories():
            refuse_unsafe(directory, instead=_OTHER_NAME)
        refuse_unsafe_below(run.path)
        return run

    def rank_log(self, rank: int) -> Path:
        """Return the file for one worker's output."""
        return self.logs / f"rank_{rank:04d}.out"

    def next_attempt(self) -> int:
        """Return the number of an attempt that begins now: one more than the highest that has a file."""
        matches = (_ATTEMPT.fullmatch(path.name) for path in children(self.attempts))
        return 1 + max((int(match[1]) for match in matches if match), default=0)

    def request_stop(self) -> None:
        """Ask the run to save and stop. Safe in a signal handler: two system calls, and no wait for a disk."""
        os.close(os.open(self.stop_file, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))

    def stop_requested(self) -> bool:
        """Return True if the stop file exists, as the file server sees it now."""
        with open_directory(self.path) as fd:
            try:
                os.stat(self.stop_file.name, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                return False
        return True

    def clear_stop(self) -> None:
        """Withdraw a request to stop."""
        self.stop_file.unlink(missing_ok=True)

    def mark_done(self, summary: Mapping[str, Any]) -> None:
        """Record that the run has ended as planned; `done` returns the summary."""
        write_atomically(self.done_file, _json(summary))

    @property
    def done(self) -> dict[str, Any] | None:
        """Return the summary of a run that has ended as planned; None before."""
        return _shaped(self.done_file, shape.Done)

    def refer_to_features(self, key: str) -> None:
        """Record that this run reads a feature set, so that pruning keeps it."""
        known = self.features_referred_to()
        if key not in known:
            write_atomically(self.features_file, "".join(f"{k}\n" for k in [*known, key]).encode())

    def features_referred_to(self) -> list[str]:
        """Return the keys of the feature sets that this run has read, in the order of first use."""
        try:
            return read_file(self.features_file, max_bytes=limits.RUN_JSON).decode().split()
        except (FileNotFoundError, NotADirectoryError):
            return []
        except (OSError, ValueError) as error:
            raise unsafe(self.features_file, f"cannot be read ({reason(error)})", "remove it.") from error

    @property
    def begun(self) -> bool:
        """Return True if the run has an identity, a record, a checkpoint or predictions."""
        files = (self.identity_file, self.metrics_file, self.done_file, self.predictions)
        return any(path.exists() for path in files) or bool(steps_in(self.checkpoints))

    def claim(self, job: OwningJob | None = None) -> None:
        """Record that this process, or `job`, is about to start the run: no other may change its trajectory."""
        owner = this_process("tl-dist", job, HEARTBEAT_S)
        write_atomically(self.claim_file, encoded(owner))

    def read_identity(self) -> dict[str, Any] | None:
        """Return what `freeze_identity` has recorded; None before."""
        return _shaped(self.identity_file, shape.Identity)

    def freeze_identity(self, identity: Mapping[str, Any]) -> None:
        """Record what the run is started with, or refuse (78) if it was started with something else."""
        if not os.path.lexists(self.identity_file):
            with suppress(FileExistsError):  # of two processes that try at once, one succeeds
                write_atomically(self.identity_file, _json(identity), exclusive=True)
                return
        old, new = self.read_identity() or {}, json.loads(_json(identity))
        if old.get("order") != new.get("order"):
            what = (
                f"{self.identity_file}: the run was started with version {old.get('order')} of the order of its "
                f"training examples, and this is version {new.get('order')}."
            )
            fix = f"{_NEW_RUN}, or finish it with the tl_dist that started it."
            raise Refusal(what, fix=fix, code=ExitCode.UNSAFE)
        if "trajectory" in old and "trajectory" in new:
            old |= {"trajectory": config_file.completed(old["trajectory"], new["trajectory"])}
        changes = differences(old, new, sorted(old.keys() | new.keys()))
        if changes:
            what = f"{self.identity_file}: the run was started with something else: {'; '.join(changes)}."
            fix = f"bring back what it was started with, or {_NEW_RUN}."
            if changes == differences(old, new, ["precision"]):  # the same config on other hardware
                what += " Its 'precision: auto' means that on this machine."
                fix = f"resume on a GPU or processor like that of its start, or {_NEW_RUN} in a precision of both."
            raise Refusal(what, fix=fix, code=ExitCode.UNSAFE)

    def refuse_other_config(self, config: Config) -> None:
        """Refuse (73) if another command has replaced the config since `config` was read; call it as the owner."""
        if config_file.load(self.config_file, imports=False) != config:
            what = f"{self.config_file} has been changed while this worker started."
            fix = "run one command at a time, or give each another name=NAME."
            raise Refusal(what, fix=fix, code=ExitCode.CANNOT_CREATE)

    def probe_storage(self) -> None:
        """Refuse (73) now, not at the first save, if files here cannot be written, made durable and renamed."""
        for directory in self._directories():
            probe = directory / f".probe-{uuid4().hex}"
            try:
                write_atomically(probe, b"probe")
                probe.unlink()
                sweep(directory)
            except OSError as error:
                raise _cannot_create(directory, error) from error

    def _directories(self) -> list[Path]:
        below = [self.lock_dir, self.attempts, self.checkpoints, self.tensorboard, self.logs, self.heartbeats]
        return [self.path, *below]

    def _settle(self, config: Config, resolved: bytes) -> None:
        """Make `resolved` the config of this run, unless it is bound to another trajectory."""
        with suppress(FileNotFoundError):
            if read_file(self.config_file, max_bytes=limits.RUN_JSON) == resolved and not self._new_code(config):
                if not self.begun and not claimant(self.claim_file, self.attempts) and not holder(self):
                    self.claim()
                return
        if os.path.lexists(self.config_file):
            self._refuse_bound(config)
        owner = holder(self)
        wait_s = 0.0 if owner and owner.who == "worker" else _SETTLE_S
        # While this holds the lock, no worker starts, and no other command does the same.
        with Lock.acquire(self, who="tl-dist", wait_s=wait_s):
            if os.path.lexists(self.config_file):
                self._refuse_bound(config)
            self.claim()
            for file in self._new_code(config):
                self.code.mkdir(mode=0o700, exist_ok=True)
                write_atomically(self.code / file.name, file.read_bytes())
            write_atomically(self.config_file, resolved)

    def _new_code(self, config: Config) -> list[Path]:
        """Return the files of the functions that the config names of which the run has no copy that is the same."""

        def is_there(file: Path) -> bool:
            with suppress(OSError, ValueError):
                return extensions.code_bytes(self.code / file.name) == extensions.code_bytes(file)
            return False

        return [file for file in code.files(config.model_dump(mode="json")) if not is_there(file)]

    def _changed_code(self, file: Path) -> str:
        """Return in a clause how a file of code differs from the copy in the run."""
        copy = self.code / file.name
        if not copy.exists():
            return f"{copy} is missing"
        before, after = (extensions.source_of(path).splitlines() for path in (copy, file))
        lines = [*difflib.ndiff(before, after)]
        changed = [line.strip() for line in lines if line[:2] in ("- ", "+ ")]
        return f"{file.name} differs from {copy}{': ' if changed else ''}{shortened(' | '.join(changed), 160)}"

    def _refuse_bound(self, config: Config) -> None:
        """Refuse (78) to change the trajectory of a run that has begun, or that a process is about to start."""
        before = config_file.load(self.config_file, imports=False)
        old, new = config_file.trajectory(before), config_file.trajectory(config)
        changes = differences(old, new, (*config_file.TRAJECTORY, *config_file.DECIDING, "runtime"))
        changes += [self._changed_code(file) for file in self._new_code(config)]
        starting = None if self.begun else claimant(self.claim_file, self.attempts)
        if changes and (self.begun or starting):
            by = f" by {starting}" if starting else ""
            what = f"{self.path} was started with other values{by}: {'; '.join(changes)}."
            fix = "use another name=NAME, or go back to the old values."
            raise Refusal(what, fix=fix, code=ExitCode.UNSAFE)


def step_name(step: int) -> str:
    """Return the directory name of a step's checkpoint."""
    return f"step-{step:08d}"


def steps_in(checkpoints: Path) -> list[tuple[int, Path]]:
    """Return every entry that is named as a checkpoint, the highest step first, whatever it holds."""
    steps = []
    for path in children(checkpoints):
        match = _STEP_NAME.fullmatch(path.name)
        if match and step_name(int(match[1])) == path.name:
            steps.append((int(match[1]), path))
    return sorted(steps, reverse=True)


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode() + b"\n"


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object from a file of the run; None if there is no file; refuse (78) any other content."""
    try:
        value = json.loads(read_file(path, max_bytes=limits.RUN_JSON))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise unsafe(path, f"cannot be read ({reason(error)})", "restore the file from a copy.") from error
    if not isinstance(value, dict):
        raise unsafe(path, "is not a JSON object", "restore the file from a copy.")
    return value


def _shaped(path: Path, kind: type[Any]) -> dict[str, Any] | None:
    """Read a JSON object as `read_json` does, and refuse (78) a value that does not fit `kind` of `shape`."""
    value = read_json(path)
    if value is not None and (wrong := shape.fault(value, kind)) is not None:
        raise unsafe(path, f"is damaged ({wrong})", "restore the file from a copy.")
    return value


def _cannot_create(path: Path, error: OSError) -> Refusal:
    what = f"{path} cannot be used as a run directory ({reason(error)})."
    fix = "choose a directory that can be written, on a disk with free space."
    return Refusal(what, fix=fix, code=ExitCode.CANNOT_CREATE)
