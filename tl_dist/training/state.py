"""Hold what training changes, and what it reports."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class TrainState:
    """All that a run needs to resume: variables by path, and the number of steps done.

    `variables` holds what training changes (trainable weights, optimizer slots, counters, loss scale), each under a
    name that does not depend on the strategy. It does not hold frozen weights, which are pinned by digest.
    """

    variables: Mapping[str, Any]
    step: int = 0
    history: dict[str, Any] = field(default_factory=dict)
    """small JSON facts that must survive a restart, such as the best validation figure"""
    _host: dict[str, np.ndarray] = field(default_factory=dict, init=False, repr=False)

    def arrays(self) -> dict[str, np.ndarray]:
        """Copy every variable to the host; later updates do not reach the copy, but the next call overwrites it.

        Its memory is allocated once: faulting in fresh pages for each copy would take five times as long as filling it.
        """
        if not self._host:
            self._host = {path: np.empty(v.shape, v.dtype.as_numpy_dtype) for path, v in self.variables.items()}
        for path, variable in self.variables.items():
            # Read the tensor's own memory if it is on the host: Tensor.numpy() would first copy it to fresh pages.
            np.copyto(self._host[path], np.asarray(memoryview(variable.read_value())))
        return self._host

    @property
    def layout(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Type and shape of every variable: what a checkpoint must hold."""
        return {path: (v.dtype.name, tuple(v.shape)) for path, v in self.variables.items()}

    def resume(self, arrays: Mapping[str, np.ndarray], *, step: int, history: Mapping[str, Any]) -> None:
        """Set the state to what was saved; the caller has compared its layout."""
        for path, variable in self.variables.items():
            variable.assign(arrays[path])
        self.step, self.history = step, dict(history)

    def agree_on(self, step: int, history: Mapping[str, Any]) -> None:
        """Take step and history of rank 0, whose variables have been broadcast."""
        self.step, self.history = step, dict(history)

    def advance(self, steps: int) -> None:
        """Count this many more steps as done."""
        self.step += steps


@dataclass(frozen=True)
class Report:
    """The result of a chunk of steps, over all workers. Means are over the chunk's examples; times are in seconds."""

    step: int  # steps done, after the chunk
    steps: int  # in this chunk
    mean_loss: float
    accuracy: float
    learning_rate: float
    gradient_norm: float
    num_examples: int
    num_skipped: int  # steps skipped for a non-finite gradient
    loss_scale: float
    elapsed_s: float
    data_wait_s: Sequence[float]  # by rank: time spent waiting for input
    reduction_s: float  # mean over workers: reduction not hidden behind computation
    stop: bool = False
