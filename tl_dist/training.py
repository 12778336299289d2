"""One attempt at a run: what falls due during training, on every worker, and what rank 0 records of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

from tl_dist import agreement, audit, evaluation, loop, optim, step, transfer
from tl_dist.checkpoint import Checkpointer
from tl_dist.classifiers import nested
from tl_dist.data import pipeline
from tl_dist.data.order import batch_deviation
from tl_dist.failpoint import failpoint
from tl_dist.metrics import Metrics
from tl_dist.parallel import rows_of
from tl_dist.recorder import RankZero, Recorder, Silent
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.run.lock import Lock
from tl_dist.run.owner import SlurmJob
from tl_dist.session import Session
from tl_dist.stages import Stage
from tl_dist.state import Batch, Report

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
        notes = [_quarantined(session)] if session.bad else []
        if first and session.order.block:
            notes.append(_how_mixed(session))
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
        recorder.commit(wait=True)
        if finished:
            recorder.done()
    return ExitCode.DONE if finished else ExitCode.REQUEUE


def _stage(session: Session, stage: Stage, recorder: Recorder) -> bool:
    """Do what is left of a stage; whether its end was reached, rather than a stop."""
    cfg, step_now = session.cfg, session.state.step
    session.enter(stage)
    if cfg.stages:
        text = f"stage {stage.number + 1} of {len(session.stages)}: train_from '{stage.train_from}' to step {stage.end}"
        recorder.tell({"event": "note", "text": text})
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
    return Attempt(session, recorder).run()


def _fit_head(session: Session, recorder: Recorder) -> None:
    """Compute the last layer on rank 0; all workers go on with the same."""
    session.run.beat(session.parallel.rank, "fitting the classifier", 0)
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
            facts = {"l2": choice.l2, "layers": choice.layers}
            session.state.history["classifier"] = facts
        recorder.tell({"event": "note", "text": f"{text}, {time.monotonic() - began:.1f} s", **facts})


class Attempt:
    """The compiled functions of one stage in one attempt, and the events around them."""

    def __init__(self, session: Session, recorder: Recorder) -> None:
        self._session = session
        self._recorder = recorder
        cfg, parallel, train = session.cfg, session.parallel, session.splits["train"]
        self._stage = stage = session.stage
        self._rate = lambda at: optim.learning_rate(
            stage.optimizer,
            at - stage.first_step,
            steps_per_epoch=session.steps_per_epoch,
            total_steps=stage.end - stage.first_step,
        )
        objective = step.Objective(
            train.num_classes,
            cfg.global_batch,
            cfg.loss.label_smoothing,
            session.class_weights(),
            mixed=cfg.data.augmentation.mixes or cfg.data.soft_labels,
        )
        self._run_steps = step.train_chunk(
            session.model,
            session.optimizer,
            objective,
            parallel,
            self._rate,
            stage=stage.number,
            accumulate=cfg.accumulate,
            xla=cfg.runtime.xla,
            timed=not cfg.runtime.deterministic,
        )
        self._checksums = step.weight_checksums(session.whole, parallel)
        self._evaluate_batch = step.evaluation_step(
            session.model,
            step.Objective(train.num_classes, cfg.global_batch),
            parallel,
            global_batch=session.evaluation_batch,
            views=session.num_evaluation_views,
        )
        self._skipped_in_a_row = 0
        self._evaluated_at: dict[str, int] = {}

    def run(self) -> bool:
        """Train to the end of the stage; evaluate after the last. Whether the end was reached, rather than a stop."""
        session, cfg = self._session, self._session.cfg
        evaluate_every = max(1, round(cfg.evaluation.every_epochs * session.steps_per_epoch))
        every: dict[Callable[[], bool], int] = {self._same_weights: cfg.safety.checksum_every_steps}
        if "validation" in session.splits:
            every[partial(self.evaluate, "validation")] = evaluate_every
        if cfg.checkpoint.every_steps:
            every[self._commit] = cfg.checkpoint.every_steps
        with session.naming_bad_examples("train", partial(_upcoming, session)):
            if not self._train(every):
                return False
        # The weights of the stage are final: keep them before spending time on figures or on another prefix.
        self._commit()
        if self._stage is not session.stages[-1]:
            return True
        self._audit()
        return all(self.evaluate(split) for split in ("validation", "test") if split in session.splits)

    def _train(self, every: Mapping[Callable[[], bool], int]) -> bool:
        """All steps, and what falls due between them; False when asked to stop."""
        session = self._session
        self._show_images()
        for report in self._reports([session.cfg.report.every_steps, *every.values()]):
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
        return True

    def evaluate(self, split: str) -> bool:
        """Figures of a whole split, written down once per step; False when asked to stop before the end."""
        if self._evaluated_at.get(split) == self._session.state.step:
            return True
        result = evaluation.evaluate(self._session, split, self._evaluate_batch)
        if result is not None:
            self._recorder.evaluated(result)
            self._evaluated_at[split] = self._session.state.step
        return result is not None

    def _reports(self, periods: list[int]) -> Any:
        session = self._session
        rows = rows_of(session.parallel.rank, session.parallel.world_size, session.cfg.global_batch)
        agreement.prove_rows(session.parallel, rows, session.cfg.global_batch)
        # Kept until the process ends: destroying an iterator waits for its threads, and was seen to hang.
        batches = session.parallel.feed(_train_batches(session, rows, session.read_train))
        session.kept.append(batches)
        return loop.train(
            session.state,
            batches,
            self._run_steps,
            session.parallel,
            cadence=loop.Cadence(periods, self._stage.end),
            rate=lambda at: float(self._rate(tf.constant(at, tf.int64))),
            stop_requested=partial(session.stop_requested, "stepping"),
        )

    def _same_weights(self) -> bool:
        totals = self._session.parallel.total({"weights": self._checksums().numpy()})
        agreement.compare_weights(
            totals["weights"], list(self._session.whole.moving), self._session.state.step
        )
        return True

    def _audit(self) -> None:
        session = self._session
        policy = session.cfg.model.batch_norm
        record = audit.batch_norm(session.whole, policy, session.statistics_at_start, session.parallel)
        if record is not None:
            self._recorder.tell({**record, "step": session.state.step})

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


def _train_batches(session: Session, rows: range, read: pipeline.Read) -> tf.data.Dataset:
    batches = pipeline.train_batches(
        read,
        session.order,
        rows=rows,
        from_step=session.state.step,
        to_step=session.stage.end,
        mask_features=session.model.mask_features,
        dropout=session.cfg.model.dropout,
        weights=getattr(session.splits["train"], "weights", None),
        soft=getattr(session.splits["train"], "soft", None),
        threads=session.threads,
    )
    return batches.map(_through_failpoint) if failpoint.names("data.batch") else batches


def _through_failpoint(batch: Batch) -> Batch:
    def reach() -> np.int32:
        failpoint("data.batch")
        return np.int32(0)

    with tf.control_dependencies([tf.numpy_function(reach, [], tf.int32)]):
        return Batch(*[tf.identity(field) for field in batch])


def _upcoming(session: Session) -> Iterator[int]:
    """The examples of this worker from the last report on, in the order in which it reads them, for one epoch."""
    parallel, order = session.parallel, session.order
    rows = np.array(rows_of(parallel.rank, parallel.world_size, order.global_batch))
    for step_number in range(session.state.step, session.state.step + order.steps(1.0)):
        yield from order.index(order.positions(step_number, rows)).numpy().tolist()


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
