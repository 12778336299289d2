"""One attempt at a run: from the newest commit through the stages that are left, and what rank 0 records of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

from tl_dist import agreement, transfer
from tl_dist.checkpoint import Checkpointer
from tl_dist.classifiers import nested
from tl_dist.config import batch_norm
from tl_dist.data.order import batch_deviation
from tl_dist.metrics import Metrics
from tl_dist.recorder import RankZero, Recorder, Silent
from tl_dist.refusal import ExitCode
from tl_dist.run.lock import Lock
from tl_dist.run.owner import SlurmJob
from tl_dist.session import Session
from tl_dist.stage_training import StageTraining
from tl_dist.stages import Stage

Listen = Callable[[Mapping[str, Any]], None]

REQUEUE_WAIT_S = 35.0  # longer than a lock's heartbeats are believed


def train(session: Session, *, job: SlurmJob | None = None, listen: Listen | None = None) -> ExitCode:
    """Train from the newest commit to the end, then evaluate every held-out split. Returns DONE or REQUEUE.

    `job` is the Slurm job that this is a part of; `listen` gets each record that rank 0 writes down.
    """
    first = session.parallel.rank == 0
    with ExitStack() as stack:
        checkpointer = stack.enter_context(_checkpointer(session, job, stack)) if first else None
        session.beat("starting")
        session.prove_agreement()
        notes = [_quarantined(session)] if session.bad else []
        if first and session.order.block:
            notes.append(_how_mixed(session))
        if session.whole.statistics and session.cfg.model.batch_norm == "auto":
            notes.append(f"batch norm: {batch_norm.explained(session.cfg)}")
        if checkpointer is not None:
            commit = session.restore(notes.append)
            checkpointer.last_commit = commit.step if commit else None
        return session.parallel.supervise(partial(_attempt, session, checkpointer, notes, listen))


def _how_mixed(session: Session) -> str:
    order, labels = session.order, session.splits["train"].labels
    ours, full = (batch_deviation(made, labels) for made in (order, replace(order, block=0)))
    return (
        f"shuffled in blocks of {order.block:,} and windows of {order.window:,}: the classes of a batch deviate by "
        f"{ours:.3f} from those of the set, {full:.3f} if fully shuffled"
    )


def _checkpointer(session: Session, job: SlurmJob | None, stack: ExitStack) -> Checkpointer:
    """The run's only writer of commits: takes the lock, and removes what an earlier owner left unfinished."""
    # A job that was requeued may start while the heartbeat of its first life, on another host, is still fresh.
    wait_s = REQUEUE_WAIT_S if job and job.restart_count else 0.0
    lock = stack.enter_context(Lock.acquire(session.run, job=job, wait_s=wait_s))
    session.run.probe_storage()
    cfg = session.cfg.checkpoint
    return Checkpointer(session.run, keep=cfg.keep, owned=lock.owned, max_failed=cfg.max_failed)


def _attempt(
    session: Session, checkpointer: Checkpointer | None, notes: list[str], listen: Listen | None
) -> ExitCode:
    """Make the state equal on all workers, then drive the run."""
    state, parallel = session.state, session.parallel
    parallel.broadcast(list(state.variables.values()))
    state.step = int(parallel.total({"step": state.step if parallel.rank == 0 else 0})["step"])
    with _recorder(session, checkpointer, notes, listen) as recorder:
        finished = all(_stage(session, stage, recorder) for stage in session.parts_left)
        session.beat("saving", alone=True)
        recorder.commit(wait=True)
        if finished:
            recorder.done()
    return ExitCode.DONE if finished else ExitCode.REQUEUE


def _stage(session: Session, stage: Stage, recorder: Recorder) -> bool:
    """Do what is left of a stage; whether its end was reached, rather than a stop."""
    cfg, step_now = session.cfg, session.state.step
    session.enter(stage)
    session.prepare_for(f"preparing stage {stage.number + 1}")
    if cfg.stages:
        text = f"stage {stage.number + 1} of {len(session.stages)}: train_from '{stage.train_from}' to step {stage.end}"
        recorder.tell({"event": "note", "text": text})
    if stage.optimizer.layer_decay < 1 and stage.train_from != "head":
        recorder.tell({"event": "note", "text": _rates(session, stage)})
    if stage.number and step_now == stage.first_step:
        session.optimizer.begin(stage.number)
    computed = cfg.classifier.computed
    wanted = cfg.runtime.prefix_cache == "on" and stage.train_from != "all"
    if cfg.runtime.prefix_cache == "auto" and not computed:
        wanted = transfer.prefix_cache_pays(session, recorder.tell)
    if computed or wanted:
        stop_requested = partial(session.stop_requested, "extracting features")
        if not transfer.cache_prefix(session, stop_requested, recorder.tell):
            return False
    if computed and step_now == 0:
        _fit_head(session, recorder)
    session.prepare_for(f"compiling stage {stage.number + 1}")
    return StageTraining(session, recorder).run()


def _rates(session: Session, stage: Stage) -> str:
    """What layer_decay makes of the learning rate: published values mean little without the number of blocks."""
    settings = stage.optimizer
    path, factor = session.optimizer.slowest(stage.number)
    blocks = {depth for path, depth in session.whole.depths.items() if path in session.model.trainable}
    return (
        f"layer_decay {settings.layer_decay:g} over {len(blocks)} block{'s' * (len(blocks) > 1)}: "
        f"{path.split('/')[1]} learns at {settings.learning_rate * factor:.2g}, "
        f"the head at {settings.head_learning_rate or settings.learning_rate:g}"
    )


def _fit_head(session: Session, recorder: Recorder) -> None:
    """Compute the last layer on rank 0; all workers go on with the same."""
    session.beat("fitting the classifier", alone=True)
    began = time.monotonic()
    fitted = transfer.fit_head(session)
    if fitted is not None:
        found, choice = fitted
        settings = session.cfg.classifier
        how = f" after {found.iterations} iterations" if found.iterations else ""
        text = f"{settings.name}: {'fitted' if found.converged else 'NOT converged'}{how}"
        facts: dict[str, Any] = {}
        if choice is not None:
            text += f", {nested.said_of(choice, settings)}"
            facts = {"l2": choice.l2, "layers": choice.layers, "edge": choice.edge}
            session.state.history["classifier"] = facts
        recorder.tell({"event": "note", "text": f"{text}, {time.monotonic() - began:.1f} s", **facts})


def _recorder(
    session: Session, checkpointer: Checkpointer | None, notes: list[str], listen: Listen | None
) -> Recorder:
    if checkpointer is None:
        return Silent()
    cfg = session.cfg
    metrics = Metrics(
        session.run,
        from_step=session.state.step,
        total_steps=session.total_steps,
        steps_per_epoch=session.steps_per_epoch,
        epochs=cfg.epochs or session.total_steps / session.steps_per_epoch,
        num_workers=session.parallel.num_replicas,
        class_names=session.splits["train"].class_names,
        tensorboard=cfg.report.tensorboard,
        listen=listen,
    )
    if session.state.step == 0:
        metrics.hyperparameters(_flat(cfg.model_dump(mode="json")))
    else:
        notes = [*notes, f"resumed from step {session.state.step}"]
    for note in notes:
        metrics.note(note)
    return RankZero(
        session.run,
        metrics,
        checkpointer,
        session.state,
        meta={"versions": agreement.versions(), "precision": session.precision},
        commit_every_s=cfg.checkpoint.every_s,
    )


def _quarantined(session: Session) -> str:
    first, num = session.bad[0], len(session.bad)
    several = "s" if num > 1 else ""
    file = session.run.quarantine_file.name
    return f"{num} bad example{several} in {file}, first {first.id}: {first.reason}"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
