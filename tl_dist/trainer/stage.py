"""Train one stage of a run: compile its step, and do what falls due between steps and at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial

import numpy as np
import tensorflow as tf

from tl_dist.data import pipeline
from tl_dist.data.batch import Batch
from tl_dist.files.failpoint import failpoint
from tl_dist.parallel import rows_of
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.scores.evaluation import Evaluation
from tl_dist.trainer import agreement, audit
from tl_dist.trainer.evaluate import Evaluator
from tl_dist.trainer.model_selection import ModelSelection
from tl_dist.trainer.profile import Profile
from tl_dist.trainer.recorder import Recorder
from tl_dist.trainer.setup import Setup, StopRequested, go_back
from tl_dist.trainer.stage_input import StageInput, from_images
from tl_dist.training import loop, optim
from tl_dist.training.chunk import train_chunk
from tl_dist.training.state import Report
from tl_dist.training.step import Distillation, Objective, TrainStep, no_clock, weight_checksums

_iterators: list[object] = []
"""keeps iterators alive until the process ends: destroying one waits for its threads, and was seen to hang"""


class StageTraining:
    """Train one stage in one attempt: its compiled functions, and the events between their calls."""

    def __init__(self, setup: Setup, stage_input: StageInput, recorder: Recorder) -> None:
        self._setup, self._stage_input, self._recorder = setup, stage_input, recorder
        self._stage = stage = stage_input.stage
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
            stage_input.model,
            setup.optimizer,
            objective,
            parallel,
            (lambda at: setup.optimizer.lowered(self._rate(at))) if plateau else self._rate,
            stage=stage.number,
            accumulate=cfg.accumulate,
            xla=cfg.runtime.compiles(on_gpu=setup.on_gpu),
            gpu=setup.on_gpu,
            wire=cfg.runtime.wire,
            teacher=stage_input.teacher,
            clock=no_clock if cfg.runtime.deterministic else tf.timestamp,
        )
        self._run_steps = train_chunk(step)
        self._checksums = weight_checksums(setup.model, parallel)
        self._evaluator = Evaluator(setup, stage_input, recorder.tell)
        self._precise = self._evaluator.precise
        self._profile = Profile(setup)
        self._skipped_in_a_row = 0
        self._evaluate_every = max(1, round(cfg.evaluation.every_epochs * setup.steps_per_epoch))
        self._evaluated_at: dict[str, int] = {}

    def run(self) -> None:
        """Train and evaluate the stage; raise StopRequested where that is left to the next attempt."""
        with self._profile, self._setup.examples.naming_bad("train", self._next_epoch):
            self._decide_on_current_step()  # a kill may have come between the save and the decision
            if not self._selection.stopped:
                self._train()
            self._decide_on_current_step()
        self._recorder.save()  # before figures, or the frozen part of the next stage, take time
        if self._is_last:
            self._finish_run()
        else:
            self._hand_over_to_next_stage()

    @property
    def _is_last(self) -> bool:
        return self._stage is self._setup.stages[-1]

    def _decide_on_current_step(self) -> None:
        """Evaluate where model selection has yet to decide on this step."""
        due = loop.is_due(self._setup.state.step, self._evaluate_every)
        if self._selection.is_open(due=due):
            self.evaluate("validation")

    def _hand_over_to_next_stage(self) -> None:
        self._go_back_to_best()
        self._setup.state.advance(self._stage.end - self._setup.state.step)

    def _finish_run(self) -> None:
        self._audit()
        if self._selection.best:
            self._end_with_best()
        for split in ("validation", "test"):
            if split in self._setup.splits:
                self.evaluate(split)

    def _train(self) -> None:
        """Train to the end of the stage, or to an early stop; do what falls due between steps."""
        setup, cfg = self._setup, self._setup.cfg
        every: dict[Callable[[], None], int] = {self._compare_weights: cfg.safety.checksum_every_steps}
        if "validation" in setup.splits:
            every[partial(self.evaluate, "validation")] = self._evaluate_every
        self._show_images()
        save_every = cfg.checkpoint.every_steps or self._stage.end
        rows = rows_of(setup.parallel.rank, setup.parallel.world_size, cfg.global_batch)
        agreement.prove_rows(setup.parallel, rows, cfg.global_batch)
        batches = setup.parallel.feed(_train_batches(setup, self._stage_input, rows))
        _iterators.append(batches)
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
            setup.beat("reporting", alone=True)  # rank 0 writes it, and may have to wait for a save
            self._profile.reached(report.step)
            failpoint("train.chunk_done")
            self._recorder.report(report)
            self._count_skipped(report)
            if report.stop:
                raise StopRequested
            for event, period in every.items():
                if loop.is_due(report.step, period):
                    event()
            if self._selection.stopped:
                self._settle_statistics()
                break
            # After the evaluation, so that no checkpoint lacks the decision on its own step; `run` saves the last step.
            if report.step < self._stage.end:
                due = loop.is_due(report.step, save_every) or self._selection.keeps_step
                self._recorder.save_if(due)
            setup.beat("stepping")

    def evaluate(self, split: str) -> None:
        """Record the figures of a whole split, once per step, and decide by them."""
        if self._evaluated_at.get(split) == self._setup.state.step:
            return
        result = self._evaluate(split)
        self._recorder.evaluated(result)
        self._evaluated_at[split] = self._setup.state.step
        self._selection.decide(result)

    def _evaluate(self, split: str) -> Evaluation:
        result = self._evaluator.evaluate(split)
        if result is None:
            raise StopRequested
        return result

    def _go_back_to_best(self) -> None:
        """Set the state to the best step of the stage, where one is kept, with batch statistics that fit it."""
        if self._selection.best:
            (step, _), *_ = self._selection.best
            self._setup.beat("saving", alone=True)
            self._recorder.save(wait=True)
            if step != self._setup.state.step:
                go_back(self._setup, step)
                self._settle_statistics()

    def _end_with_best(self) -> None:
        """Give the model the weights that the run ends with, and record which these are."""
        setup, selection, last = self._setup, self._selection, self._setup.state.step
        self._go_back_to_best()
        self._recorder.nothing_to_save()
        choice = {"step": setup.state.step, "value": selection.best[0][1], "average_of": []}
        changed = self._precise.needed and setup.state.step != last
        if selection.averages():
            value = self._value_of_average()
            if selection.is_better(value):
                choice |= {"value": value, "average_of": [step for step, _ in selection.best]}
                changed = True
            else:
                go_back(setup, setup.state.step)
                self._settle_statistics()
        setup.beat("saving", alone=True)
        self._recorder.ends_with(selection.ending(choice), save=changed)

    def _value_of_average(self) -> float:
        """Return the figure of the averaged weights, with batch statistics of their own."""
        if self._stage_input.model.statistics:
            self._precise.compute()
        self._evaluated_at.pop("validation", None)  # the predictions on disk are now the average's
        return self._selection.value_of(self._evaluate("validation"))

    def _next_epoch(self) -> Iterator[int]:
        """Return the examples that this worker may read before the next report."""
        return self._setup.upcoming(self._setup.order.steps(1.0))

    def _settle_statistics(self) -> None:
        """Recompute the batch statistics for the weights that the stage ends with, before a checkpoint of them.

        The last stage ends with the averaged weights, where there are any; the next stage continues with the others.
        """
        if self._precise.needed:
            with self._setup.optimizer.averaged(self._stage.number) if self._is_last else nullcontext():
                self._precise.compute()

    def _compare_weights(self) -> None:
        setup = self._setup
        rows = self._checksums().numpy()
        agreement.compare_weights(setup.parallel, rows, list(setup.model.moving), setup.state.step)

    def _audit(self) -> None:
        setup = self._setup
        record = audit.batch_norm(
            setup.model, setup.cfg.model.batch_norm, setup.built.statistics, setup.parallel
        )
        if record is not None:
            self._recorder.tell({**record, "step": setup.state.step})

    def _count_skipped(self, report: Report) -> None:
        """Refuse to continue after many skipped steps in a row; under loss scaling a few are normal."""
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
        """Show the first training images, augmented, in TensorBoard."""
        setup = self._setup
        if setup.is_first and setup.state.step == 0 and setup.cfg.report.tensorboard:
            rows = range(min(16, setup.cfg.global_batch))
            batch = next(iter(_train_batches(setup, from_images(setup, self._stage), rows)))
            self._recorder.images(batch.images.numpy(), batch.labels.numpy())


def _train_batches(setup: Setup, stage_input: StageInput, rows: range) -> tf.data.Dataset:
    order, annotations = setup.order, setup.splits["train"].annotations
    transforms = []
    if annotations.soft is not None:
        transforms.append(pipeline.soft_labels(order, annotations.soft))
    if features := stage_input.model.mask_features:
        transforms.append(pipeline.dropout_masks(order, features, setup.cfg.model.dropout))
    if annotations.weights is not None:
        transforms.append(pipeline.example_weights(order, annotations.weights))
    if stage_input.look_up is not None:
        transforms.append(pipeline.teacher_logits(order, stage_input.look_up))
    batches = pipeline.train_batches(
        stage_input.read_train,
        order,
        rows=rows,
        steps=range(setup.state.step, stage_input.stage.end),
        transforms=transforms,
        threads=setup.threads,
    )
    return batches.map(_through_failpoint) if failpoint.names("data.batch") else batches


def _through_failpoint(batch: Batch) -> Batch:
    def reach() -> np.int32:
        failpoint("data.batch")
        return np.int32(0)

    with tf.control_dependencies([tf.numpy_function(reach, [], tf.int32)]):
        return Batch(*[tf.identity(field) for field in batch])
