"""Run one worker process: train a run, or answer the REQUEST of a tool, and end with an exit code.

`tl-dist`, horovodrun, mpirun or srun starts it; all its settings come from RUN_DIR/config.yaml and the environment.
"""

import argparse
import contextlib
import gc
import json
import logging
import os
import re
import signal
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import TextIO

from tl_dist.files import consent, failpoint, limits
from tl_dist.files.atomic import of_the_machine, open_to_append
from tl_dist.files.foreign import read_file
from tl_dist.files.process import allow_many_open_files
from tl_dist.refusal import ExitCode, Refusal, printable
from tl_dist.rendezvous import rank_layout
from tl_dist.runs.directory import RunDir
from tl_dist.runs.exit_records import Exit, ExitRecords
from tl_dist.runs.lock.owner import OwningJob
from tl_dist.runs.request import Request

_OUT_OF_MEMORY = re.compile(
    r"OOM when allocating|out of memory|CUDA_ERROR_OUT_OF_MEMORY|CUDNN_STATUS_ALLOC_FAILED"
    r"|CUBLAS_STATUS_ALLOC_FAILED|failed to allocate .*bytes",
    re.IGNORECASE,
)
"""in messages of TensorFlow's allocator, of XLA, and of CUDA's libraries in an error of another type"""
_DEVICE = re.compile(r"\b(GPU|CPU)[:_](\d+)")
_EXIT_S = 15


def main(arguments: list[str] | None = None) -> int:
    """Run one worker and return its exit code; a refusal is one line on standard error: `refused: rank R: ...`."""
    parser = argparse.ArgumentParser(prog="python -m tl_dist.trainer", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("request", type=Path, nargs="?")
    options = parser.parse_args(arguments)
    os.umask(0o077)  # a run is private, however its workers are started
    allow_many_open_files()
    rank = rank_layout.rank_in(os.environ)
    shown = sys.stderr
    try:
        run = RunDir.open(options.run)
        request: Request | None = None
        if options.request:
            fields = json.loads(read_file(options.request, max_bytes=limits.RUN_JSON))
            tool = f"tl_dist.tools.{fields.pop('tool')}"
            request = import_module(tool).Request(**fields)
        supervised = "TL_DIST_SUPERVISED" in os.environ
        if not supervised and request is None:
            shown = _log_to_file(run.rank_log(rank), keep_output=rank == 0)
            logging.getLogger("tl_dist").addHandler(logging.StreamHandler(shown))
        _stop_on_signals(RunDir(request.into) if request and request.into else run)
        failpoint.set_rank(rank)
        consent.of_launcher(os.environ)
        # Under srun the launcher's variables become Horovod's, before anything looks at them.
        os.environ.update(rank_layout.slurm_task_environment(os.environ))
        import_keras()
        if request is not None:
            return int(import_module(f"{tool}.work").run(run, request, rank_layout.own_cores(os.environ)))
        return _train(run, show_progress=rank == 0 and not supervised)
    except Exception as error:
        return _leave(rank, *report_error(rank, error, shown))


def import_keras() -> None:
    """Import Keras and TensorFlow without the optional packages that Keras imports for wrappers that no worker uses.

    These are scikit-learn (with SciPy's statistics), SciPy's sparse matrices, matplotlib, pandas (with PyArrow) and
    IPython: 1,200 of 4,200 modules, and a third of the import time of each worker. Code that needs one of them imports
    it afterwards as usual.

    Modules live as long as the process, so garbage collection is off during the import and then skips all that was
    imported: it would take 1.5 of 4.4 CPU seconds of a worker with a hundred short steps.
    """
    optional = {"sklearn", "scipy.sparse", "matplotlib", "pandas", "IPython"} - sys.modules.keys()
    sys.modules.update(dict.fromkeys(optional))  # type: ignore[arg-type]  # None: the import fails
    gc.disable()
    try:
        import keras  # noqa: F401
    finally:
        gc.freeze()
        gc.enable()
        for name in optional:
            del sys.modules[name]


def _train(run: RunDir, *, show_progress: bool) -> int:
    from tl_dist.trainer import attempt
    from tl_dist.trainer.setup import setup

    with contextlib.ExitStack() as stack:
        listen = None
        if show_progress:
            from tl_dist.terminal.console import Console
            from tl_dist.terminal.progress import Progress

            listen = stack.enter_context(Progress(Console())).show
        job = None
        if "SLURM_JOB_ID" in os.environ:
            restarts = rank_layout.integer({"SLURM_RESTART_COUNT": "0", **os.environ}, "SLURM_RESTART_COUNT")
            job = OwningJob(os.environ["SLURM_JOB_ID"], restarts)
        return attempt.train(setup(run, cores=rank_layout.own_cores(os.environ)), job=job, listen=listen)


def report_error(rank: int, error: Exception, shown: TextIO) -> tuple[ExitCode, str, str]:
    """Write one line on the error for the user; return the exit code, what happened, and the fix.

    A stream that cannot be written, such as a log on a full disk, does not hide the error.
    """
    refusal = error if isinstance(error, Refusal) else out_of_memory(error) or of_the_machine(error)
    if refusal is not None:
        code, what, fix = refusal.code, refusal.what, refusal.fix
        line, streams = f"refused: rank {rank}: {refusal}\n", {shown, sys.stderr}
    else:
        code, fix = ExitCode.INTERNAL, ""
        what = f"{type(error).__name__}: {printable(' '.join(str(error).split())[:300])}"
        line, streams = f"failed: rank {rank}: {what}\n", {shown}
        with contextlib.suppress(OSError):
            traceback.print_exception(error)
    for stream in streams:
        with contextlib.suppress(OSError):
            stream.write(line)
    return code, what, fix


def out_of_memory(error: BaseException) -> Refusal | None:
    """Return the refusal for a device whose memory is full, which no restart mends; None for any other error."""
    lines = str(error).splitlines()
    at = next((k for k, line in enumerate(lines) if _OUT_OF_MEMORY.search(line)), None)
    if at is None or type(error).__module__.partition(".")[0] != "tensorflow":
        return None
    device = _DEVICE.search(" ".join(lines[at : at + 2]))
    where = "a device" if device is None else f"{device[1]}:{device[2]}"
    return Refusal(
        f"the memory of {where} is not enough ({lines[at].strip()[:200]}).",
        fix="double accumulate, which leaves every update as it is, or use more workers; for an evaluation lower "
        "evaluation.batch.",
        code=ExitCode.NO_REQUEUE,
    )


def _leave(rank: int, code: ExitCode, what: str, fix: str = "") -> int:
    """Exit at once: after a failure Horovod's own shutdown may wait for peers that are gone."""
    if (exit_records := ExitRecords.from_env(os.environ)) is not None:
        exit_records.write(Exit(rank, code, what, fix))
    for flush in (logging.shutdown, sys.stdout.flush, sys.stderr.flush):
        with contextlib.suppress(OSError):  # of a full disk
            flush()
    os._exit(code)


def _stop_on_signals(run: RunDir) -> None:
    """Let a signal only request a stop; the loop stops at a step boundary that all workers agree on."""

    def request_stop(*_: object) -> None:
        with contextlib.suppress(OSError):
            run.request_stop()

    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(name, request_stop)


def _log_to_file(path: Path, *, keep_output: bool) -> TextIO:
    """Append this process's output to its own log; return the stream that the user still sees."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shown = os.fdopen(os.dup(2), "w", buffering=1)
    log = open_to_append(path)
    os.dup2(log, 2)
    if not keep_output:
        os.dup2(log, 1)
    os.close(log)
    return shown


def bound_exit(code: int, within_s: int = _EXIT_S) -> int:
    """Let this process end within some seconds of a stop that was asked for, and return its exit code.

    All is saved by then, but at exit TensorFlow's collectives may wait for a worker that has already gone. The
    supervisor takes a worker that a signal ends after another has stopped for a stop.
    """
    if code == ExitCode.REQUEUE:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(within_s)
    return code


if __name__ == "__main__":
    sys.exit(bound_exit(main()))
