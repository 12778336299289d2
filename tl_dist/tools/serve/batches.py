"""Batch images of several requests: one thread computes, and takes all that wait, up to a batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from threading import Condition, Thread

import numpy as np
from numpy.typing import NDArray

from tl_dist.files import limits
from tl_dist.models.export import Predict

BATCH = 32


class Full(Exception):
    """The server has no room for more images or requests."""


class Batches:
    """Computes waiting images in batches; a batch never waits for more images to fill it."""

    def __init__(self, predict: Predict, computed: Callable[[int], None] = lambda images: None) -> None:
        """Start the thread; `computed` is called with the size of each batch."""
        self._predict, self._computed = predict, computed
        self._waiting: deque[tuple[NDArray[np.uint8], Future[NDArray[np.float32]]]] = deque()
        self._arrived = Condition()
        Thread(target=self._work, name="batches", daemon=True).start()

    def put(self, images: Sequence[NDArray[np.uint8]]) -> list[Future[NDArray[np.float32]]]:
        """Queue all images and return a future of each one's probabilities, or raise Full and queue none."""
        entries = [(image, Future[NDArray[np.float32]]()) for image in images]
        with self._arrived:
            if len(self._waiting) + len(entries) > limits.SERVED_WAITING:
                raise Full
            self._waiting += entries
            self._arrived.notify()
        return [answer for _, answer in entries]

    def _work(self) -> None:
        while True:
            with self._arrived:
                self._arrived.wait_for(lambda: self._waiting)
                batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
            try:
                rows = self._predict(np.stack([image for image, _ in batch]))
                self._computed(len(batch))
                for (_, answer), row in zip(batch, rows, strict=True):
                    answer.set_result(row)
            except Exception as error:  # fails these requests alone: the thread must outlive it
                for _, answer in batch:
                    if not answer.done():
                        answer.set_exception(error)
