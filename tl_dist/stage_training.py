"""One stage of a run: its compiled functions, and what falls due between its steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

from tl_dist import agreement, audit, evaluation, loop, optim, step
from tl_dist.data import pipeline
from tl_dist.failpoint import failpoint
from tl_dist.parallel import rows_of
from tl_dist.precise_statistics import PreciseStatistics
from tl_dist.recorder import Recorder
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.session import Session
from tl_dist.state import Batch, Report


class StageTraining:
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
        self._precise = PreciseStatistics(session, recorder.tell)
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
        with session.naming_bad_examples("train", self._next_epoch):
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
            if report.step == self._stage.end:
                self._settle_statistics()
            session.beat("reporting", alone=True)  # rank 0 writes it down, and may have to wait for a save
            failpoint("train.chunk_done")
            self._recorder.report(report)
            self._count_skipped(report)
            if report.stop:
                return False
            for event, period in every.items():
                if loop.is_due(report.step, period) and not event():
                    return False
            session.beat("stepping")
        return True

    def evaluate(self, split: str) -> bool:
        """Figures of a whole split, written down once per step; False when asked to stop before the end."""
        if self._evaluated_at.get(split) == self._session.state.step:
            return True
        result = evaluation.evaluate(self._session, split, self._evaluate_batch, self._precise)
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

    def _next_epoch(self) -> Iterator[int]:
        """What this worker reads after the last report."""
        return self._session.upcoming(self._session.order.steps(1.0))

    def _settle_statistics(self) -> None:
        """After the last step, before any commit of it: statistics that fit what the stage ends with.

        Of the last stage that are the averaged weights, where there are any; the next stage goes on with the others.
        """
        last = self._stage is self._session.stages[-1]
        if self._precise.needed:
            with self._session.optimizer.averaged(self._stage.number) if last else nullcontext():
                self._precise.compute()

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
