"""One attempt at a run: what falls due during training, on every worker, and what rank 0 records of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import tensorflow as tf

from tl_dist import agreement, loop, optim, step
from tl_dist.checkpoint import Checkpointer
from tl_dist.data import pipeline
from tl_dist.failpoint import failpoint
from tl_dist.lock import Lock, SlurmJob
from tl_dist.metrics import Metrics
from tl_dist.parallel import rows_of
from tl_dist.recorder import RankZero, Recorder, Silent
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.session import Session
from tl_dist.state import Evaluation, Report

Listen = Callable[[Mapping[str, Any]], None]

REQUEUE_WAIT_S = 35.0  # longer than a lock's heartbeats are believed


def train(session: Session, *, job: SlurmJob | None = None, listen: Listen | None = None) -> ExitCode:
    """Train from the newest commit to the end, then evaluate every held-out split. Returns DONE or REQUEUE.

    `job` is the Slurm job that this is a part of; `listen` gets each record that rank 0 writes down.
    """
    first = session.parallel.rank == 0
    with ExitStack() as stack:
        checkpointer = stack.enter_context(_checkpointer(session, job, stack)) if first else None
        session.run.beat(session.parallel.rank, "starting", 0)
        session.prove_agreement()
        notes: list[str] = []
        if checkpointer is not None:
            commit = session.restore(notes.append)
            checkpointer.last_commit = commit.step if commit else None
        return session.parallel.supervise(partial(_attempt, session, checkpointer, notes, listen))


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
        stop_requested = partial(_stop_requested, session, "extracting features")
        finished = session.cfg.runtime.prefix_cache == "off" or session.cache_prefix(
            stop_requested, recorder.tell
        )
        finished = finished and Attempt(session, recorder).run()
        recorder.commit(wait=True)
        if finished:
            recorder.done()
    return ExitCode.DONE if finished else ExitCode.REQUEUE


class Attempt:
    """The compiled functions of one attempt, and the events around them."""

    def __init__(self, session: Session, recorder: Recorder) -> None:
        self._session = session
        self._recorder = recorder
        cfg, parallel, train = session.cfg, session.parallel, session.splits["train"]
        self._rate = partial(
            optim.learning_rate,
            cfg.optimizer,
            steps_per_epoch=session.steps_per_epoch,
            total_steps=session.total_steps,
        )
        objective = step.Objective(
            train.num_classes, cfg.global_batch, cfg.loss.label_smoothing, session.class_weights()
        )
        self._run_steps = step.train_chunk(
            session.model,
            session.optimizer,
            objective,
            parallel,
            self._rate,
            accumulate=cfg.accumulate,
            xla=cfg.runtime.xla,
            timed=not cfg.runtime.deterministic,
        )
        self._checksums = step.weight_checksums(session.model, parallel)
        self._evaluate_batch = step.evaluation_step(
            session.model, step.Objective(train.num_classes, cfg.global_batch), parallel
        )
        self._skipped_in_a_row = 0
        self._evaluated_at: dict[str, int] = {}

    def run(self) -> bool:
        """Train to the end and evaluate; whether the end was reached, rather than a stop."""
        session, cfg = self._session, self._session.cfg
        evaluate_every = max(1, round(cfg.evaluation.every_epochs * session.steps_per_epoch))
        every: dict[Callable[[], bool], int] = {self._same_weights: cfg.safety.checksum_every_steps}
        if "validation" in session.splits:
            every[partial(self.evaluate, "validation")] = evaluate_every
        if cfg.checkpoint.every_steps:
            every[self._commit] = cfg.checkpoint.every_steps
        self._show_images()
        for report in self._reports([cfg.report.every_steps, *every.values()]):
            session.run.beat(session.parallel.rank, "reporting", report.step)
            failpoint("train.chunk_done")
            self._recorder.report(report)
            self._count_skipped(report)
            if report.stop:
                return False
            for event, period in every.items():
                if loop.is_due(report.step, period) and not event():
                    return False
            session.run.beat(session.parallel.rank, "stepping", report.step)
        # The weights are final: keep them before spending time on figures.
        self._commit()
        return all(self.evaluate(split) for split in ("validation", "test") if split in session.splits)

    def evaluate(self, split: str) -> bool:
        """Figures of a whole split, written down once per step; False when asked to stop before the end."""
        if self._evaluated_at.get(split) == self._session.state.step:
            return True
        result = evaluate(self._session, split, self._evaluate_batch)
        if result is not None:
            self._recorder.evaluated(result)
            self._evaluated_at[split] = self._session.state.step
        return result is not None

    def _reports(self, periods: list[int]) -> Any:
        session = self._session
        rows = rows_of(session.parallel.rank, session.parallel.world_size, session.cfg.global_batch)
        # Kept until the process ends: destroying an iterator waits for its threads, and was seen to hang.
        self._batches = session.parallel.feed(_train_batches(session, rows, session.read_train))
        return loop.train(
            session.state,
            self._batches,
            self._run_steps,
            session.parallel,
            cadence=loop.Cadence(periods, session.total_steps),
            rate=lambda at: float(self._rate(tf.constant(at, tf.int64))),
            stop_requested=partial(_stop_requested, session, "stepping"),
        )

    def _same_weights(self) -> bool:
        totals = self._session.parallel.total({"weights": self._checksums().numpy()})
        agreement.compare_weights(
            totals["weights"], list(self._session.model.trainable), self._session.state.step
        )
        return True

    def _commit(self) -> bool:
        self._recorder.commit()
        return True

    def _count_skipped(self, report: Report) -> None:
        """Under loss scaling a few skipped steps are normal; many in a row are a run that has diverged."""
        self._skipped_in_a_row = (
            self._skipped_in_a_row + report.steps if report.num_skipped == report.steps else 0
        )
        if self._skipped_in_a_row >= self._session.cfg.safety.max_skipped:
            raise Refusal(
                f"the last {self._skipped_in_a_row} steps up to step {report.step} had a gradient that is not finite, "
                "and were skipped.",
                fix="lower optimizer.learning_rate, set optimizer.clip_norm, or look at the data of these steps.",
                code=ExitCode.NO_REQUEUE,
            )

    def _show_images(self) -> None:
        """Put the first training images, augmented, where TensorBoard shows them."""
        session = self._session
        if session.parallel.rank == 0 and session.state.step == 0 and session.cfg.report.tensorboard:
            rows = range(min(16, session.cfg.global_batch))
            batch = next(iter(_train_batches(session, rows, session.read_images)))
            self._recorder.images(batch.images.numpy(), batch.labels.numpy())


def evaluate(
    session: Session, split: str, evaluate_batch: Callable[[Any], dict[str, Any]]
) -> Evaluation | None:
    """Figures over every example of a split, over all workers; None when asked to stop before the end."""
    source, parallel = session.splits[split], session.parallel
    batch = session.cfg.evaluation.batch or session.cfg.global_batch
    batches = pipeline.evaluation_batches(
        session.read[split],
        source.num_examples,
        rows=rows_of(parallel.rank, parallel.world_size, batch),
        global_batch=batch,
        mask_features=session.model.mask_features,
        threads=session.threads,
    )
    return loop.evaluate(
        split,
        source.num_examples,
        -(-source.num_examples // batch),
        parallel.feed(batches),
        evaluate_batch,
        parallel,
        stop_requested=partial(_stop_requested, session, f"evaluating {split}"),
    )


def evaluate_commit(session: Session, split: str) -> Evaluation:
    """Figures of the newest commit on a split. Trains and writes nothing."""
    if split not in session.splits:
        raise Refusal(
            f"'{session.cfg.data.name}' has no split '{split}' under this config.",
            fix=f"use one of {', '.join(session.splits)}.",
            code=ExitCode.USAGE,
        )
    if session.restore(lambda text: None) is None:
        raise Refusal(
            f"{session.run.path} has no checkpoint to evaluate.",
            fix="train it first: tl-dist train CONFIG.",
            code=ExitCode.USAGE,
        )
    source = session.splits[split]
    objective = step.Objective(source.num_classes, session.cfg.global_batch)
    result = evaluate(session, split, step.evaluation_step(session.model, objective, session.parallel))
    if result is None:
        raise Refusal("the evaluation was stopped.", fix="run the same command again.", code=ExitCode.REQUEUE)
    return result


def _train_batches(session: Session, rows: range, read: pipeline.Read) -> tf.data.Dataset:
    return pipeline.train_batches(
        read,
        session.order,
        rows=rows,
        from_step=session.state.step,
        to_step=session.total_steps,
        mask_features=session.model.mask_features,
        dropout=session.cfg.model.dropout,
        weights=getattr(session.splits["train"], "weights", None),
        threads=session.threads,
    )


def _stop_requested(session: Session, phase: str) -> bool:
    """Rank 0 looks for the stop file; what it finds reaches the others with the next total."""
    session.run.beat(session.parallel.rank, phase, session.state.step)
    return session.parallel.rank == 0 and session.run.stop_requested()


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


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
