"""Train one stage of a run: compile its step, and do what falls due between steps and at the end."""

from collections.abc import Callable
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import tensorflow as tf

from tl_dist.data import pipeline
from tl_dist.data.batch import Batch
from tl_dist.files.failpoint import failpoint
from tl_dist.parallel import rows_of
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.trainer import agreement
from tl_dist.trainer.evaluate import Evaluator
from tl_dist.trainer.model_selection import ModelSelection, average, go_back
from tl_dist.trainer.precise_statistics import audit
from tl_dist.trainer.run_writer import RunWriter
from tl_dist.trainer.setup import Setup, StageInput, StopRequested, from_images
from tl_dist.training import loop, optim
from tl_dist.training.chunk import train_chunk
from tl_dist.training.state import Report
from tl_dist.training.step import TrainStep, no_clock, weight_checksums

_iterators: list[object] = []
"""keeps iterators alive until the process ends: destroying one waits for its threads, and was seen to hang"""


class StageTraining:
    """Train one stage in one attempt: its compiled functions, and the events between their calls."""

    def __init__(self, setup: Setup, stage_input: StageInput, writer: RunWriter | None) -> None:
        self._setup, self._stage_input, self._writer = setup, stage_input, writer
        self._tell = writer.tell if writer else lambda record: None
        self._stage = stage = stage_input.stage
        cfg, parallel = setup.cfg, setup.parallel
        self._rate = lambda at: optim.learning_rate(
            stage.optimizer,
            at - stage.first_step,
            steps_per_epoch=setup.steps_per_epoch,
            total_steps=stage.end - stage.first_step,
        )
        self._selection = ModelSelection(cfg, stage, setup.state, setup.optimizer, parallel, self._tell)
        plateau = stage.optimizer.schedule.name == "plateau"
        step = TrainStep(
            stage_input.model,
            setup.optimizer,
            setup.objective(),
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
        self._evaluator = Evaluator(setup, stage_input, self._tell)
        self._precise = self._evaluator.precise
        first, last = cfg.report.profile or (0, -1)
        self._profiled = range(first, last + 1)
        self._profile = Profile(
            self._profiled if setup.is_first else range(0),
            setup.run.tensorboard,
            partial(setup.beat, "writing a profile", alone=True),
        )
        self._skipped_in_a_row = 0
        self._evaluate_every = max(1, round(cfg.evaluation.every_epochs * setup.steps_per_epoch))
        self._evaluated_at: dict[str, int] = {}

    def run(self) -> None:
        """Train and evaluate the stage; raise StopRequested where that is left to the next attempt."""
        setup = self._setup
        # The examples that this worker may read before the next report.
        next_epoch = partial(setup.upcoming, setup.order.steps(1.0))
        with closing(self._profile), setup.examples.naming_bad("train", next_epoch):
            self._profile.reached(setup.state.step)
            self._decide_on_current_step()  # a kill may have come between the save and the decision
            if not self._selection.monitor.stopped:
                self._train()
            self._decide_on_current_step()
        if self._writer:  # before figures, or the frozen part of the next stage, take time
            self._writer.save()
        if self._is_last:
            self._finish_run()
        else:
            self._go_back_to_best()
            setup.state.advance(self._stage.end - setup.state.step)

    @property
    def _is_last(self) -> bool:
        return self._stage is self._setup.stages[-1]

    def _decide_on_current_step(self) -> None:
        """Evaluate where model selection has yet to decide on this step."""
        due = loop.is_due(self._setup.state.step, self._evaluate_every)
        if self._selection.is_open(due=due):
            self.evaluate("validation")

    def _finish_run(self) -> None:
        if (record := audit(self._setup)) is not None:
            self._tell(record)
        if self._selection.monitor.best:
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
        if self._writer and setup.state.step == 0 and cfg.report.tensorboard:
            shown = range(min(16, cfg.global_batch))
            batch = next(iter(_train_batches(setup, from_images(setup, self._stage), shown)))
            self._writer.images(batch.images.numpy(), list(map(setup.splits["train"].in_words, batch.labels.numpy())))
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
                [cfg.report.every_steps, *every.values(), save_every], self._stage.end, self._profiled
            ),
            rate=lambda at: float(self._rate(tf.constant(at, tf.int64))) * self._selection.monitor.factor,
            stop_requested=partial(setup.stop_requested, "stepping"),
        ):
            if report.step == self._stage.end:
                self._settle_statistics()
            setup.beat("reporting", alone=True)  # rank 0 writes it, and may have to wait for a save
            self._profile.reached(report.step)
            failpoint("train.chunk_done")
            if self._writer:
                self._writer.report(report)
            self._count_skipped(report)
            if report.stop:
                raise StopRequested
            for event, period in every.items():
                if loop.is_due(report.step, period):
                    event()
            if self._selection.monitor.stopped:
                self._settle_statistics()
                break
            # After the evaluation, so that no checkpoint lacks the decision on its own step; `run` saves the last step.
            if self._writer and report.step < self._stage.end:
                self._writer.save_if(loop.is_due(report.step, save_every) or self._selection.keeps_step)
            setup.beat("stepping")

    def evaluate(self, split: str) -> None:
        """Record the figures of a whole split, once per step, and decide by them."""
        step = self._setup.state.step
        if self._evaluated_at.get(split) == step:
            return
        result = self._evaluator.evaluate(split)
        if self._writer:
            self._writer.evaluated(step, result)
        self._evaluated_at[split] = step
        self._selection.decide(result)

    def _go_back_to_best(self) -> None:
        """Set the state to the best step of the stage, where one is kept, with batch statistics that fit it."""
        if best := self._selection.monitor.best:
            step = best[0][0]
            self._setup.beat("saving", alone=True)
            if self._writer:
                self._writer.save(wait=True)
            if step != self._setup.state.step:
                go_back(self._setup, step)
                self._settle_statistics()

    def _end_with_best(self) -> None:
        """Give the model the weights that the run ends with, and record which these are."""
        setup, selection, last = self._setup, self._selection, self._setup.state.step
        self._go_back_to_best()
        if self._writer:
            self._writer.nothing_to_save()
        steps = [step for step, _ in selection.monitor.best]
        choice = {"step": setup.state.step, "value": selection.monitor.best[0][1], "average_of": []}
        changed = self._precise.needed and setup.state.step != last
        if setup.cfg.checkpoint.average is not None and len(steps) > 1:
            average(setup, steps)
            if self._stage_input.model.statistics:
                self._precise.compute()
            self._evaluated_at.pop("validation", None)  # the predictions on disk are now the average's
            value = selection.improved(self._evaluator.evaluate("validation"))
            if value is not None:
                choice |= {"value": value, "average_of": steps}
                changed = True
            else:
                go_back(setup, setup.state.step)
                self._settle_statistics()
        setup.beat("saving", alone=True)
        ending = selection.ending(choice)
        if self._writer:
            self._writer.ends_with(ending, save=changed)

    def _settle_statistics(self) -> None:
        """Recompute the batch statistics for the weights that the stage ends with, before a checkpoint of them.

        The last stage ends with the averaged weights, where there are any; the next stage continues with the others.
        """
        if self._precise.needed:
            with self._setup.optimizer.averaged(self._stage.number) if self._is_last else nullcontext():
                self._precise.compute()

    def _compare_weights(self) -> None:
        rows, names = self._checksums().numpy(), list(self._setup.model.moving)
        agreement.compare_weights(self._setup.parallel, rows, names, self._setup.state.step)

    def _count_skipped(self, report: Report) -> None:
        """Refuse to continue after many skipped steps in a row; under loss scaling a few are normal."""
        all_skipped = report.num_skipped == report.steps
        self._skipped_in_a_row = self._skipped_in_a_row + report.steps if all_skipped else 0
        if self._skipped_in_a_row >= self._setup.cfg.safety.max_skipped:
            raise Refusal(
                f"the last {self._skipped_in_a_row} steps up to step {report.step} had a gradient that is not finite, "
                "and were skipped.",
                fix="lower optimizer.learning_rate, set optimizer.clip_norm, or look at the data of these steps.",
                code=ExitCode.NO_REQUEUE,
            )


@dataclass
class Profile:
    """Trace `steps` for TensorBoard's profile page; a chunk must end at each of them, so that it is one step."""

    steps: range
    directory: Path
    before_writing: Callable[[], None]

    def __post_init__(self) -> None:
        self._running = False
        self._step = ExitStack()

    def reached(self, step: int) -> None:
        """Begin at the first of the steps, end at the last; a run that resumes between them traces nothing."""
        if step not in self.steps:
            return
        self._step.close()
        if step == self.steps[0]:
            options = tf.profiler.experimental.ProfilerOptions(python_tracer_level=0)
            tf.profiler.experimental.start(str(self.directory), options)
            self._running = True
        if step == self.steps[-1]:
            self.close()
        elif self._running:
            # TensorBoard recognizes a step by this name and argument.
            self._step.enter_context(tf.profiler.experimental.Trace("train", step_num=step + 1, _r=1))

    def close(self) -> None:
        """Write what was traced."""
        self._step.close()
        if self._running:
            self._running = False
            self.before_writing()
            tf.profiler.experimental.stop()


def _train_batches(setup: Setup, stage_input: StageInput, rows: range) -> tf.data.Dataset:
    order, annotations = setup.order, setup.splits["train"].annotations
    transforms = []
    if annotations.soft is not None:
        transforms.append(pipeline.soft_labels(order, annotations.soft))
    if rates := stage_input.model.mask_rates:
        transforms.append(pipeline.dropout_masks(order, rates))
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
