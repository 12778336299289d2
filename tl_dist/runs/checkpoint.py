"""Write snapshots as checkpoints in the background; `checkpoint_reader` reads them. Imports no TensorFlow.

A checkpoint is written to a temporary directory, made durable, and renamed. The rename is fenced: a new owner of
the run's lock moves every temporary directory away before it reads anything, and this process checks that it is
still the owner after its own directory exists. So either it learns that it has lost the lock, or its rename finds
nothing to rename.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from tl_dist.files.atomic import children, fsync_directory, reason
from tl_dist.files.failpoint import failpoint
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.runs import checkpoint_format
from tl_dist.runs.checkpoint_format import BEST, Checkpoint, Content
from tl_dist.runs.checkpoint_reader import find, read, restore
from tl_dist.runs.directory import RunDir, step_name, steps_in

__all__ = ["Checkpoint", "Checkpointer", "find", "read", "restore"]

_TEMPORARY, _TRASH = ".tmp-", ".trash-"


class _LostLock(Exception):
    pass


class Checkpointer:
    """The writer of a run's checkpoints, for the owner of the lock; a context manager. Construct it before `restore`.

    Keeps `keep` checkpoints and the ones that they need; always the newest valid one.
    """

    def __init__(self, run: RunDir, *, keep: int, owned: Callable[[], bool], max_failed: int = 3) -> None:
        self.last_checkpoint: int | None = None
        """the newest step that is known to be on disk"""
        self._name = run.name
        self._directory = run.checkpoints
        self._keep = keep
        self._owned = owned
        self._max_failed = max_failed
        self._num_failed = 0
        self._last_failure = ""
        self._lost = False
        self._diverged = ""
        # A step that later checkpoints need, and that could not be saved.
        self._missing: int | None = None
        self._messages: deque[str] = deque()
        self._thread: threading.Thread | None = None
        self._distrusted: set[int] = set()  # steps after the one from which this process resumed
        self._sweep()

    def resume_from(self, step: int) -> None:
        """Note that the run resumes from this checkpoint, which `restore` has found on disk."""
        self.last_checkpoint = step

    def save(self, step: int, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any], *, wait: bool = False) -> None:
        """Save `arrays`, a private host copy that must not change until the end of the save, in the background.

        Waits for the previous save, and with `wait` for this one; then `last_checkpoint` tells if it succeeded, and
        `poll` why not. Raises ValueError for values that cannot be stored.
        """
        failpoint("checkpoint.snapshot")
        content = Content.of(step, arrays, meta)
        self.wait()
        self._thread = threading.Thread(target=self._save, args=(content,), name="checkpoint-writer", daemon=True)
        self._thread.start()
        if wait:
            self.wait()

    def poll(self) -> list[str]:
        """Return messages on the saves that finished or failed since the last call.

        Raises Refusal if another process owns the run now, a state was not finite, or `max_failed` saves failed.
        """
        if self._lost:
            what = f"run '{self._name}' was taken over by another process; this one saves nothing more."
            fix = "leave the run to its new owner, or stop that one first (lock/ names it)."
            raise Refusal(what, fix=fix, code=ExitCode.CANNOT_CREATE)
        if self._diverged:
            raise Refusal(
                f"{self._diverged}; {self._newest()}.",
                fix="start a run with another name=NAME and a lower optimizer.learning_rate or optimizer.clip_norm.",
                code=ExitCode.NO_REQUEUE,
            )
        if self._num_failed >= self._max_failed or self._missing is not None:
            what = f"{self._num_failed} saves in a row failed, the last one with"
            if self._missing is not None:
                what = f"step {self._missing}, which is among the best, could not be saved"
            what = f"{what}: {self._last_failure} ({self._directory}; {self._newest()})."
            fix = "free space or repair the storage, then start the run again."
            raise Refusal(what, fix=fix, code=ExitCode.STORAGE)
        return [self._messages.popleft() for _ in range(len(self._messages))]

    def save_best(self, step: int, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
        """Save the checkpoint that the run ends with, and wait for it; refuse (74) if that fails."""
        self.wait()
        try:
            self._write(Content.of(step, arrays, meta), BEST)
        except _LostLock:
            self._lost = True
            self.poll()
        except OSError as error:
            what = f"{self._directory / BEST} could not be saved: {reason(error)}."
            fix = "free space or repair the storage, then start the run again."
            raise Refusal(what, fix=fix, code=ExitCode.STORAGE) from error

    def wait(self) -> None:
        """Wait for the save in flight."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.wait()

    def _newest(self) -> str:
        last = self.last_checkpoint
        return "no checkpoint yet" if last is None else f"the last checkpoint is step {last}"

    def _save(self, content: Content) -> None:
        start = time.monotonic()
        if self._missing is not None:
            return
        try:
            for path, array in content.arrays.items():
                checkpoint_format.require_finite(path, array)
            num_bytes = self._write(content)
        except _LostLock:
            self._lost = True
        except checkpoint_format.Invalid as problem:
            self._diverged = f"step {content.step} was not saved: {problem}"
        except Exception as error:  # the writer's thread must not die of anything in silence
            self._num_failed += 1
            self._last_failure = reason(error)
            if content.step in content.needs:
                self._missing = content.step
            consequence = f"training continues; {self._newest()}"
            self._messages.append(f"saving step {content.step} failed ({self._last_failure}): {consequence}.")
        else:
            self._num_failed = 0
            self.last_checkpoint = content.step
            cost = f"{num_bytes / 1e6:.1f} MB in {time.monotonic() - start:.1f} s" if num_bytes else "it was there"
            self._messages.append(f"step {content.step} saved: {cost}.")
            self._retire(content.step)

    def _write(self, content: Content, name: str = "") -> int:
        """Write the checkpoint durably; return its bytes.

        With `name` it replaces an existing one. Without, it is named by its step, and a valid one stays: 0 bytes.
        """
        if not self._owned():
            raise _LostLock
        final = self._directory / (name or step_name(content.step))
        replaced = None
        if os.path.lexists(final):
            with suppress(checkpoint_format.Invalid):
                checkpoint_format.check(final, content.step)
                if not name:
                    fsync_directory(self._directory)  # its writer may have died before doing so
                    return 0
            replaced = os.lstat(final)
        temporary = self._unique(_TEMPORARY, final.name)
        try:
            num_bytes = checkpoint_format.write(temporary, content)
            if not self._owned():
                raise _LostLock
            failpoint("checkpoint.before_rename", temporary)
            # Not if a new owner has put another one there since.
            if replaced and os.path.samestat(replaced, os.lstat(final)):
                with suppress(OSError):  # files in it that are not a checkpoint's stay in the trash
                    self._discard(final)
            os.rename(temporary, final)
            failpoint("checkpoint.after_rename", final)
            fsync_directory(self._directory)
        except BaseException as error:
            with suppress(OSError):
                _remove(temporary)
            if isinstance(error, OSError) and not self._owned():
                raise _LostLock from error  # a new owner has swept the directory away
            raise
        return num_bytes

    def _retire(self, newest: int) -> None:
        """Remove old checkpoints that no kept one needs. Ignore steps after `newest`, which `restore` skipped."""
        try:
            if not self._owned():
                return
            checkpoints = steps_in(self._directory)
            self._distrusted.update(step for step, _ in checkpoints if step > newest)
            self._distrusted.discard(newest)
            older = [(step, path) for step, path in checkpoints if step < newest]
            plausible = (
                (step, path)
                for step, path in older
                if step not in self._distrusted and checkpoint_format.is_plausible(path, step)
            )
            latest = dict([(newest, self._directory / step_name(newest)), *islice(plausible, self._keep - 1)])
            needed = {step for path in latest.values() for step in checkpoint_format.needed_by(path)}
            for step, path in older:
                if step not in latest and step not in needed:
                    self._discard(path)
        except Exception as error:
            self._messages.append(f"old checkpoints could not be removed: {reason(error)}.")

    def _discard(self, path: Path) -> None:
        """Remove a checkpoint, atomically for readers."""
        trash = self._unique(_TRASH, path.name)
        os.rename(path, trash)
        failpoint("checkpoint.trash_renamed", trash)
        _remove(trash)

    def _sweep(self) -> None:
        """Remove what interrupted saves left. Part of the fence that the module's docstring describes."""
        if not self._owned():
            what = f"run '{self._name}' is not owned by this process."
            fix = "acquire its lock before writing checkpoints."
            raise Refusal(what, fix=fix, code=ExitCode.CANNOT_CREATE)
        try:
            for path in children(self._directory):
                if path.name.startswith(_TEMPORARY):
                    # If its writer has renamed it meanwhile, it is a checkpoint like any other.
                    with suppress(FileNotFoundError):
                        os.rename(path, self._unique(_TRASH, path.name))
        except OSError as error:
            what = f"{self._directory} cannot be cleared of interrupted saves ({reason(error)})."
            raise Refusal(what, fix="make it writable for this user.", code=ExitCode.CANNOT_CREATE) from error
        trash = [path for path in children(self._directory) if path.name.startswith(_TRASH)]
        try:
            for path in trash:
                _remove(path)
        except OSError as error:
            self._messages.append(f"leftovers of interrupted saves could not be removed: {reason(error)}.")
        else:
            if trash:
                self._messages.append(f"removed {len(trash)} leftovers of interrupted saves.")

    def _unique(self, prefix: str, name: str) -> Path:
        return self._directory / f"{prefix}{name.lstrip('.')}-{uuid4().hex[:12]}"


def _remove(path: Path) -> None:
    """Delete a file, a link or a checkpoint's directory; raise OSError for a directory with any other file in it."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    for entry in list(os.scandir(path)):
        if entry.name in checkpoint_format.FILES and not entry.is_dir(follow_symlinks=False):
            os.unlink(entry.path)
            failpoint("checkpoint.mid_rmtree", path)
    for root, _, files in os.walk(path):
        for name in files:
            if not Path(root, name).is_symlink():
                raise OSError(errno.ENOTEMPTY, "holds what is of no checkpoint", str(Path(root, name)))
    shutil.rmtree(path)
