"""One stage of a run: what it reads, its compiled functions, and what falls due between its steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial

import numpy as np
import tensorflow as tf

from tl_dist.data import pipeline
from tl_dist.data.batch import Batch
from tl_dist.files.failpoint import failpoint
from tl_dist.parallel import rows_of
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.trainer import agreement, audit
from tl_dist.trainer.evaluate import Evaluator
from tl_dist.trainer.model_selection import ModelSelection
from tl_dist.trainer.profile import Profile
from tl_dist.trainer.rank_zero import Recorder
from tl_dist.trainer.setup import Setup, go_back
from tl_dist.trainer.stage_input import StageInput, from_images
from tl_dist.training import loop, optim
from tl_dist.training.chunk import train_chunk
from tl_dist.training.state import Report
from tl_dist.training.step import Distillation, Objective, TrainStep, no_clock, weight_checksums

_kept: list[object] = []
"""iterators, until the process ends: destroying one waits for its threads, and was seen to hang"""


class StageTraining:
    """The compiled functions of one stage in one attempt, and the events around them."""

    def __init__(self, setup: Setup, given: StageInput, recorder: Recorder) -> None:
        self._setup, self._given, self._recorder = setup, given, recorder
        self._stage = stage = given.stage
        cfg, parallel = setup.cfg, setup.parallel
        self._rate = lambda at: optim.learning_rate(
            stage.optimizer,
            at - stage.first_step,
            steps_per_epoch=setup.steps_per_epoch,
            total_steps=stage.end - stage.first_step,
        )
        objective = Objective(
            setup.splits["train"].num_classes,
            cfg.global_batch,
            cfg.loss.label_smoothing,
            setup.class_weights(),
            mixed=cfg.data.augmentation.mixes or cfg.data.soft_labels,
            distillation=None
            if cfg.distill is None
            else Distillation(cfg.distill.temperature, cfg.distill.weight),
        )
        self._selection = ModelSelection(setup, stage, recorder)
        plateau = stage.optimizer.schedule.name == "plateau"
        step = TrainStep(
            given.model,
            setup.optimizer,
            objective,
            parallel,
            (lambda at: setup.optimizer.lowered(self._rate(at))) if plateau else self._rate,
            stage=stage.number,
            accumulate=cfg.accumulate,
            xla=cfg.runtime.compiles(on_gpu=setup.on_gpu),
            gpu=setup.on_gpu,
            wire=cfg.runtime.wire,
            teacher=given.teacher,
            clock=no_clock if cfg.runtime.deterministic else tf.timestamp,
        )
        self._run_steps = train_chunk(step)
        self._checksums = weight_checksums(setup.model, parallel)
        self._evaluator = Evaluator(setup, given, recorder.tell)
        self._precise = self._evaluator.precise
        self._profile = Profile(setup)
        self._skipped_in_a_row = 0
        self._evaluate_every = max(1, round(cfg.evaluation.every_epochs * setup.steps_per_epoch))
        self._evaluated_at: dict[str, int] = {}

    def run(self) -> bool:
        """Train to the end of the stage; evaluate after the last. Whether the end was reached, rather than a stop."""
        setup, cfg = self._setup, self._setup.cfg
        every: dict[Callable[[], bool], int] = {self._same_weights: cfg.safety.checksum_every_steps}
        if "validation" in setup.splits:
            every[partial(self.evaluate, "validation")] = self._evaluate_every
        with self._profile, setup.examples.naming_bad("train", self._next_epoch):
            if not (self._decide() and (self._selection.stopped or self._train(every)) and self._decide()):
                return False
        # The weights of the stage are final: keep them before spending time on figures or on another prefix.
        self._recorder.save()
        if self._stage is not setup.stages[-1]:
            self._go_back_to_best()
            setup.state.advance(self._stage.end - setup.state.step)
            return True
        self._audit()
        if self._selection.best and not self._end_with_best():
            return False
        return all(self.evaluate(split) for split in ("validation", "test") if split in setup.splits)

    def _decide(self) -> bool:
        """Evaluate where this step is yet to be decided on, as after a kill before; False when asked to stop."""
        due = loop.is_due(self._setup.state.step, self._evaluate_every)
        return not self._selection.is_open(due=due) or self.evaluate("validation")

    def _train(self, every: Mapping[Callable[[], bool], int]) -> bool:
        """All steps, and what falls due between them; False when asked to stop."""
        setup, cfg = self._setup, self._setup.cfg
        self._show_images()
        save_every = cfg.checkpoint.every_steps or self._stage.end
        rows = rows_of(setup.parallel.rank, setup.parallel.world_size, cfg.global_batch)
        agreement.prove_rows(setup.parallel, rows, cfg.global_batch)
        batches = setup.parallel.feed(_train_batches(setup, self._given, rows))
        _kept.append(batches)
        for report in loop.train(
            setup.state,
            batches,
            self._run_steps,
            setup.parallel,
            cadence=loop.Cadence(
                [cfg.report.every_steps, *every.values(), save_every], self._stage.end, self._profile.steps
            ),
            rate=lambda at: float(self._rate(tf.constant(at, tf.int64))) * self._selection.factor,
            stop_requested=partial(setup.stop_requested, "stepping"),
        ):
            if report.step == self._stage.end:
                self._settle_statistics()
            setup.beat("reporting", alone=True)  # rank 0 writes it down, and may have to wait for a save
            self._profile.reached(report.step)
            failpoint("train.chunk_done")
            self._recorder.report(report)
            self._count_skipped(report)
            if report.stop:
                return False
            for event, period in every.items():
                if loop.is_due(report.step, period) and not event():
                    return False
            if self._selection.stopped:
                self._settle_statistics()
                break
            # After what decides, so that no checkpoint lacks a decision about its own step; `run` keeps the last one.
            if report.step < self._stage.end:
                due = loop.is_due(report.step, save_every) or self._selection.keeps_step
                self._recorder.save_if(due)
            setup.beat("stepping")
        return True

    def evaluate(self, split: str) -> bool:
        """Figures of a whole split, written down once per step; False when asked to stop before the end."""
        if self._evaluated_at.get(split) == self._setup.state.step:
            return True
        result = self._evaluator.evaluate(split)
        if result is None:
            return False
        self._recorder.evaluated(result)
        self._evaluated_at[split] = self._setup.state.step
        self._selection.decide(result)
        return True

    def _go_back_to_best(self) -> None:
        """Set the state to the best of the stage, where that is kept and not the last, with statistics that fit it."""
        if self._selection.best:
            (step, _), *_ = self._selection.best
            self._setup.beat("saving", alone=True)
            self._recorder.save(wait=True)
            if step != self._setup.state.step:
                go_back(self._setup, step)
                self._settle_statistics()

    def _end_with_best(self) -> bool:
        """Give the model the weights that the run ends with, and say which those are; False when asked to stop."""
        setup, selection, last = self._setup, self._selection, self._setup.state.step
        self._go_back_to_best()
        self._recorder.nothing_to_save()
        found = {"step": setup.state.step, "value": selection.best[0][1], "average_of": []}
        changed = self._precise.needed and setup.state.step != last
        if selection.averages():
            value = self._value_of_average()
            if value is None:
                return False
            if selection.is_better(value):
                found |= {"value": value, "average_of": [step for step, _ in selection.best]}
                changed = True
            else:
                go_back(setup, setup.state.step)
                self._settle_statistics()
        setup.beat("saving", alone=True)
        self._recorder.ends_with(selection.ending(found), save=changed)
        return True

    def _value_of_average(self) -> float | None:
        """The figure of the averaged weights, with statistics of their own; None when asked to stop."""
        if self._given.model.statistics:
            self._precise.compute()
        result = self._evaluator.evaluate("validation")
        self._evaluated_at.pop("validation", None)  # what was predicted is no longer what that step predicts
        return None if result is None else self._selection.value_of(result)

    def _next_epoch(self) -> Iterator[int]:
        """What this worker reads after the last report."""
        return self._setup.upcoming(self._setup.order.steps(1.0))

    def _settle_statistics(self) -> None:
        """After the last step, before any checkpoint of it: statistics that fit what the stage ends with.

        Of the last stage that are the averaged weights, where there are any; the next stage continues with the others.
        """
        last = self._stage is self._setup.stages[-1]
        if self._precise.needed:
            with self._setup.optimizer.averaged(self._stage.number) if last else nullcontext():
                self._precise.compute()

    def _same_weights(self) -> bool:
        setup = self._setup
        rows = self._checksums().numpy()
        agreement.compare_weights(setup.parallel, rows, list(setup.model.moving), setup.state.step)
        return True

    def _audit(self) -> None:
        setup = self._setup
        record = audit.batch_norm(
            setup.model, setup.cfg.model.batch_norm, setup.built.statistics, setup.parallel
        )
        if record is not None:
            self._recorder.tell({**record, "step": setup.state.step})

    def _count_skipped(self, report: Report) -> None:
        """Under loss scaling a few skipped steps are normal; many in a row are a run that has diverged."""
        self._skipped_in_a_row = (
            self._skipped_in_a_row + report.steps if report.num_skipped == report.steps else 0
        )
        if self._skipped_in_a_row >= self._setup.cfg.safety.max_skipped:
            raise Refusal(
                f"the last {self._skipped_in_a_row} steps up to step {report.step} had a gradient that is not finite, "
                "and were skipped.",
                fix="lower optimizer.learning_rate, set optimizer.clip_norm, or look at the data of these steps.",
                code=ExitCode.NO_REQUEUE,
            )

    def _show_images(self) -> None:
        """Put the first training images, augmented, where TensorBoard shows them."""
        setup = self._setup
        if setup.is_first and setup.state.step == 0 and setup.cfg.report.tensorboard:
            rows = range(min(16, setup.cfg.global_batch))
            batch = next(iter(_train_batches(setup, from_images(setup, self._stage), rows)))
            self._recorder.images(batch.images.numpy(), batch.labels.numpy())


def _train_batches(setup: Setup, given: StageInput, rows: range) -> tf.data.Dataset:
    annotations = setup.splits["train"].annotations
    batches = pipeline.train_batches(
        given.read_train,
        setup.order,
        rows=rows,
        from_step=setup.state.step,
        to_step=given.stage.end,
        mask_features=given.model.mask_features,
        dropout=setup.cfg.model.dropout,
        weights=annotations.weights,
        soft=annotations.soft,
        teacher=given.look_up,
        threads=setup.threads,
    )
    return batches.map(_through_failpoint) if failpoint.names("data.batch") else batches


def _through_failpoint(batch: Batch) -> Batch:
    def reach() -> np.int32:
        failpoint("data.batch")
        return np.int32(0)

    with tf.control_dependencies([tf.numpy_function(reach, [], tf.int32)]):
        return Batch(*[tf.identity(field) for field in batch])
