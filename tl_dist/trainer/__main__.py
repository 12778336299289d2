"""One process's life: wire everything from the run directory, drive the loop, leave with an exit code.

    python -m tl_dist.trainer RUN_DIR [--evaluate SPLIT]

Started by `tl-dist`, horovodrun, mpirun or srun; all it knows comes from RUN_DIR/config.yaml and the environment.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tl_dist.files import failpoint
from tl_dist.files.atomic import open_to_append, write_atomically
from tl_dist.files.descriptors import allow_many_open_files
from tl_dist.parallel import cores
from tl_dist.refusal import ExitCode
from tl_dist.rendezvous import rank_layout
from tl_dist.runs.directory import RunDir
from tl_dist.runs.exit_records import Ending, Endings
from tl_dist.runs.lock.owner import OwningJob
from tl_dist.runs.records import append_to
from tl_dist.trainer.failing import told


def main(arguments: list[str] | None = None) -> int:
    """Run one worker and return its exit code; a refusal is one line on standard error, `refused: rank R: ...`."""
    options = _parser().parse_args(arguments)
    os.umask(0o077)  # a run is private, whoever starts its workers
    allow_many_open_files()
    rank = rank_layout.rank_in(os.environ)
    shown = sys.stderr
    try:
        run = RunDir.open(options.run)
        supervised = "TL_DIST_SUPERVISED" in os.environ
        o = options
        task = (o.evaluate, o.apart, o.extract, o.tune, o.rank, o.cross_validate, o.export)
        if not supervised and not any(task):
            shown = _log_to_file(run.rank_log(rank), keep_output=rank == 0)
            logging.getLogger("tl_dist").addHandler(logging.StreamHandler(shown))
        _stop_on_signals(RunDir(options.apart) if options.apart else run)
        failpoint.set_rank(rank)
        # Under srun the launcher's variables become Horovod's, before anything looks at them.
        os.environ.update(rank_layout.slurm_task_environment(os.environ))
        import_keras()
        if options.evaluate:
            return _evaluate(run, options)
        if options.apart:
            return _apart(run, options)
        if options.extract:
            return _extract(run)
        if options.tune:
            return _tune(run, options.tune)
        if options.rank:
            return _rank(run, options.rank)
        if options.cross_validate:
            return _cross_validate(run, *options.cross_validate, *options.by)
        if options.export:
            return _export(run, options.export)
        return _train(run, show_progress=rank == 0 and not supervised)
    except Exception as error:
        return _leave(rank, *told(rank, error, shown))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tl_dist.trainer", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--evaluate", metavar="SPLIT")
    parser.add_argument(
        "--corruptions", metavar=("NAMES", "SEVERITIES"), nargs=2, help="each parted by commas"
    )
    parser.add_argument("--at", metavar="best|last|STEP", default="")
    parser.add_argument("--override", metavar="KEY=VALUE", action="append", default=[])
    parser.add_argument(
        "--apart", metavar="DIR", type=Path, help="the run is only read; the answer goes there"
    )
    parser.add_argument("--predict", metavar="WANTED", type=json.loads)
    parser.add_argument("--explain", action="store_true", help="what DIR asks for; see tools/explain/work.py")
    parser.add_argument("--calibrate", choices=("probabilities", "unknown"))
    parser.add_argument("--data", metavar="PATH", type=Path)
    parser.add_argument("--split")
    parser.add_argument("--by", metavar="GROUP", action="append", default=[])
    parser.add_argument("--extract", action="store_true")
    parser.add_argument("--tune", metavar="FOLDS", type=int)
    parser.add_argument("--rank", metavar="REQUEST", type=json.loads, help="see tools/rank/command.py")
    parser.add_argument("--cross-validate", metavar=("FOLDS", "SEEDS"), nargs=2, type=int)
    parser.add_argument("--export", metavar="REQUEST", type=json.loads)
    return parser


def import_keras() -> None:
    """Keras and TensorFlow, without what Keras imports where it finds it, for wrappers that no worker uses.

    Those are scikit-learn, with SciPy's statistics, matplotlib, pandas, with PyArrow, and IPython: 1,100 of 4,200
    modules, and a third of the time that the import takes on each worker. Whoever needs one of them imports it
    afterwards, as always.

    What the modules hold lives as long as the process: the garbage collector waits, and then never looks at it again.
    That is 1.5 of 4.4 CPU seconds of a worker with a hundred short steps, in the import, while tracing and at the exit.
    """
    optional = {"sklearn", "matplotlib", "pandas", "IPython"} - sys.modules.keys()
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
        made = setup(run, cores=cores.own_share(os.environ))
        return attempt.train(made, job=_slurm_job(os.environ), listen=listen)


def _evaluate(run: RunDir, options: argparse.Namespace) -> int:
    from tl_dist.datasets.grouping import named
    from tl_dist.tools.evaluate import groups as grouped
    from tl_dist.trainer.evaluate import evaluate_checkpoint, split_of
    from tl_dist.trainer.metrics import class_records, evaluation_record
    from tl_dist.trainer.setup import setup

    split = options.evaluate
    made = setup(run, cores=cores.own_share(os.environ), overrides=options.override)
    if options.corruptions:
        return _evaluate_corrupted(made, options)
    named(split_of(made, split), options.by)  # refused before an hour is spent
    result = evaluate_checkpoint(made, split, options.at)
    if not made.is_first:  # which alone has the figures
        return ExitCode.DONE
    names = made.splits[split].class_names
    record = evaluation_record(made.state.step, result, names)
    record["classes"] = class_records(result, names)
    record |= grouped.record(run, split, made.splits[split], options.by)
    run.evaluations.mkdir(exist_ok=True)
    write_atomically(run.evaluations / f"{split}.json", json.dumps(record).encode())
    if "calibration" in result.figures:
        from tl_dist.scores.pictures import reliability_picture

        picture = reliability_picture(result.figures["calibration"])
        write_atomically(run.evaluations / f"{split}_reliability.png", picture)
    return ExitCode.DONE


def _evaluate_corrupted(made: Any, options: argparse.Namespace) -> int:
    from tl_dist.tools.evaluate.corruptions import evaluate_corrupted

    names, severities = (text.split(",") for text in options.corruptions)
    found = evaluate_corrupted(made, options.evaluate, names, [int(one) for one in severities], options.at)
    if made.is_first:
        made.run.evaluations.mkdir(exist_ok=True)
        file = made.run.evaluations / f"{options.evaluate}_corruptions.json"
        write_atomically(file, json.dumps(found).encode())
    return ExitCode.DONE


def _apart(run: RunDir, options: argparse.Namespace) -> int:
    """What only reads the run, which may be in use: predict, explain, calibrate, evaluate other images."""
    from tl_dist.tools.calibrate.work import calibrate
    from tl_dist.tools.evaluate.other_data import evaluate_data
    from tl_dist.tools.explain.work import explain
    from tl_dist.tools.predict.exchange import Wanted
    from tl_dist.trainer.loaded import loaded
    from tl_dist.trainer.predict import answer

    how: dict[str, Any] = {"cores": cores.own_share(os.environ), "overrides": options.override}
    how["precision"] = "float32" if options.explain else None  # a sum of gradients needs all its digits
    model = loaded(run, options.at, **how)
    if options.explain:
        explain(model, options.apart)
    elif options.predict:
        answer(model, options.apart, Wanted(**options.predict))
    elif options.calibrate:
        calibrate(model, options.apart, unknown=options.calibrate == "unknown")
    else:
        evaluate_data(model, options.data, options.split, options.apart, options.by)
    return ExitCode.DONE


@contextlib.contextmanager
def _on_features(run: RunDir, phase: str, *, alone: bool) -> Iterator[tuple[Any, Any, Any]]:
    """For a task on features alone: a setup, what asks for a stop, and what writes a record to the run's metrics."""
    from tl_dist.features.classifiers.regressions import Stopped
    from tl_dist.trainer.setup import setup

    made = setup(run, cores=cores.own_share(os.environ))
    with append_to(run.metrics_file) as lines, made.parallel.naming_lost_peers():
        stop_requested = partial(made.stop_requested, phase, alone=alone)
        with contextlib.suppress(Stopped):  # the body ends there
            yield made, stop_requested, lambda record: lines.write(json.dumps(record) + "\n")


def _extract(run: RunDir) -> int:
    # These workers meet every few seconds, and each look of Horovod at its queue takes a core from the backbone.
    os.environ.setdefault("HOROVOD_CYCLE_TIME", "25")
    from tl_dist.trainer import cached
    from tl_dist.trainer.stage_input import from_images

    with _on_features(run, "extracting features", alone=False) as (made, stop_requested, say):
        given = from_images(made, made.stages[0])
        finished = cached.from_features(made, given, stop_requested, say) is not None
    return ExitCode.DONE if finished else ExitCode.REQUEUE


def _tune(run: RunDir, folds: int) -> int:
    from tl_dist.tools.cross_validate.work import tune

    tried = None
    with _on_features(run, "trying settings", alone=True) as (made, stop_requested, say):
        tried = tune(made, folds, stop_requested, say)
    if tried:
        found = [
            {**one.setting.overrides, **{key: getattr(one, key) for key in ("folds", "accuracy", "log_loss")}}
            for one in tried
        ]
        write_atomically(run.path / "tuning.json", json.dumps(found, indent=1).encode())
    return ExitCode.REQUEUE if run.stop_requested() else ExitCode.DONE


def _rank(run: RunDir, request: Mapping[str, Any]) -> int:
    from tl_dist.tools.rank.work import rank

    with _on_features(run, "ranking", alone=True) as (made, stop_requested, say):
        rank(made, request, stop_requested, say)
    return ExitCode.REQUEUE if run.stop_requested() else ExitCode.DONE


def _cross_validate(run: RunDir, folds: int, seeds: int, by: str | None = None) -> int:
    from tl_dist.scores.cross_validation import OUT_OF_FOLD, summary
    from tl_dist.tools.cross_validate.work import cross_validate

    found = None
    with _on_features(run, "cross-validating", alone=True) as (made, stop_requested, say):
        found = cross_validate(made, folds, seeds, stop_requested, say, by=by)
    if found is not None:
        found.save(run.path / OUT_OF_FOLD)
        run.mark_done({"cross_validation": summary(found)})
    return ExitCode.REQUEUE if run.stop_requested() else ExitCode.DONE


def _export(run: RunDir, request: Mapping[str, Any]) -> int:
    from tl_dist.models.export import Request
    from tl_dist.tools.export.work import export

    export(run, Request(**request), cores=cores.own_share(os.environ))
    return ExitCode.DONE


def _slurm_job(env: Mapping[str, str]) -> OwningJob | None:
    if "SLURM_JOB_ID" not in env:
        return None
    restarts = rank_layout.integer(env, "SLURM_RESTART_COUNT") if "SLURM_RESTART_COUNT" in env else 0
    return OwningJob(env["SLURM_JOB_ID"], restarts)


def _leave(rank: int, code: ExitCode, what: str, fix: str = "") -> int:
    """End at once: after a failure Horovod's own shutdown may wait for peers that are gone."""
    if (endings := Endings.from_env(os.environ)) is not None:
        endings.write(Ending(rank, code, what, fix))
    for flush in (logging.shutdown, sys.stdout.flush, sys.stderr.flush):
        with contextlib.suppress(OSError):  # of a full disk
            flush()
    os._exit(code)


def _stop_on_signals(run: RunDir) -> None:
    """A signal only leaves a mark; the loop stops at a step boundary that all workers agree on."""

    def leave_mark(*_: object) -> None:
        with contextlib.suppress(OSError):
            run.request_stop()

    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(name, leave_mark)


def _log_to_file(path: Path, *, keep_output: bool) -> Any:
    """Send this process's noise to its own log, append mode; returns the stream that a person still sees."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shown = os.fdopen(os.dup(2), "w", buffering=1)
    log = open_to_append(path)
    os.dup2(log, 2)
    if not keep_output:
        os.dup2(log, 1)
    os.close(log)
    return shown


if __name__ == "__main__":
    sys.exit(main())
