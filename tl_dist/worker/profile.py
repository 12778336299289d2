"""The steps that `report.profile` names, traced on rank 0: what TensorBoard's profile page shows."""

from __future__ import annotations

from typing import Self

import tensorflow as tf

from tl_dist.worker.setup import Setup


class Profile:
    """A trace of some steps, begun and ended between chunks; without `report.profile`, and on other ranks, nothing."""

    def __init__(self, setup: Setup) -> None:
        self.steps: tuple[int, ...] = setup.cfg.report.profile or ()
        """at which a chunk must end, on every rank"""
        self._setup = setup
        self._running = False

    def __enter__(self) -> Self:
        self.reached(self._setup.state.step)
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def reached(self, step: int) -> None:
        """Begin after the first of the steps, end after the last; a run that resumes between them traces nothing."""
        if not self.steps or not self._setup.is_first:
            return
        if step == self.steps[0]:
            options = tf.profiler.experimental.ProfilerOptions(python_tracer_level=0)
            tf.profiler.experimental.start(str(self._setup.run.tensorboard), options)
            self._running = True
        elif step >= self.steps[1]:
            self._end()

    def _end(self) -> None:
        if self._running:
            self._running = False
            self._setup.beat("writing a profile", alone=True)
            tf.profiler.experimental.stop()
