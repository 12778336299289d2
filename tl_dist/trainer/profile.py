"""Trace the steps of `report.profile` on rank 0, for TensorBoard's profile page."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Self

import tensorflow as tf

from tl_dist.trainer.setup import Setup


class Profile:
    """Trace some steps, each marked as a step; trace nothing without `report.profile` and on other ranks."""

    def __init__(self, setup: Setup) -> None:
        self._first, self._last = setup.cfg.report.profile or (0, -1)
        self._setup = setup
        self._running = False
        self._step = ExitStack()

    @property
    def steps(self) -> range:
        """The steps at which a chunk must end, on every rank, so that each marked chunk is one step."""
        return range(self._first, self._last + 1)

    def __enter__(self) -> Self:
        self.reached(self._setup.state.step)
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def reached(self, step: int) -> None:
        """Begin at the first of the steps, end at the last; a run that resumes between them traces nothing."""
        if step not in self.steps or not self._setup.is_first:
            return
        self._step.close()
        if step == self._first:
            options = tf.profiler.experimental.ProfilerOptions(python_tracer_level=0)
            tf.profiler.experimental.start(str(self._setup.run.tensorboard), options)
            self._running = True
        if step == self._last:
            self._end()
        elif self._running:
            # TensorBoard recognizes a step by this name and argument.
            self._step.enter_context(tf.profiler.experimental.Trace("train", step_num=step + 1, _r=1))

    def _end(self) -> None:
        self._step.close()
        if self._running:
            self._running = False
            self._setup.beat("writing a profile", alone=True)
            tf.profiler.experimental.stop()
