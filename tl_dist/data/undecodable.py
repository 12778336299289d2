"""Find the example that made training fail, and tell it from a fault of the machine."""

import os
import re
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Any

import tensorflow as tf

from tl_dist.datasets import Source
from tl_dist.datasets.headers import Fault
from tl_dist.datasets.open_files import MACHINE_FAULTS, machine_refusal
from tl_dist.refusal import telling_line

READ_ERRORS = (
    tf.errors.InvalidArgumentError,
    tf.errors.NotFoundError,
    tf.errors.DataLossError,
    tf.errors.PermissionDeniedError,
    tf.errors.FailedPreconditionError,
    tf.errors.UnimplementedError,
)
"""errors of reading an example; others come from devices and lost peers"""

MACHINE_ERRORS = (
    OSError,
    tf.errors.UnknownError,
    tf.errors.ResourceExhaustedError,
    tf.errors.AbortedError,
    tf.errors.UnavailableError,
)
"""errors that a fault of the machine may raise when an example is read, in Python or by TensorFlow"""

LOOK_ON_S = 5.0  # search for more after the first, since each failure costs a restart


def undecodable(source: Source, indices: Iterable[int], threads: int) -> dict[int, Fault]:
    """Return the examples among `indices` that `source.read` cannot read, and why; read as in the pipeline.

    Searches until it finds one, and then for another LOOK_ON_S.
    """
    faults: dict[int, Fault] = {}
    until: float | None = None
    with ThreadPoolExecutor(threads) as pool:
        for block in _blocks(indices, 16 * threads):
            for index, reason in zip(block, pool.map(lambda k: _failure(source, k), block), strict=True):
                if reason is not None:
                    faults[index] = Fault(source.location(index).offset if source.is_encoded else 0, reason)
            if faults and until is None:
                until = time.monotonic() + LOOK_ON_S
            if until is not None and time.monotonic() >= until:
                break
    return faults


def machine_fault(error: BaseException) -> str | None:
    """Return the fault of the machine behind an error, such as "Too many open files", or None.

    TensorFlow passes on the system's message but not its number.
    """
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno in MACHINE_FAULTS else None
    reasons = [text for text in map(os.strerror, MACHINE_FAULTS) if text in str(error)]
    return max(reasons, key=len, default=None)  # "Too many open files in system" contains a shorter one


@contextmanager
def naming_machine_faults(what: str) -> Iterator[None]:
    """Turn a fault of the machine while reading `what` into a refusal of storage: no example is to blame."""
    try:
        yield
    except MACHINE_ERRORS as error:
        if (fault := machine_fault(error)) is None:
            raise
        raise machine_refusal(what, fault) from error


def _blocks(indices: Iterable[int], size: int) -> Iterator[list[int]]:
    left = iter(indices)
    while block := list(islice(left, size)):
        yield block


def _failure(source: Source, index: int) -> str | None:
    try:
        with tf.device("CPU:0"):
            image: Any = source.read(tf.constant(index, tf.int64))[0]
            image.numpy()
    except (*READ_ERRORS, ValueError) as error:  # Python code raises a ValueError outside a graph
        return f"cannot be decoded: {first_line(error)}"
    return None


def first_line(error: Exception) -> str:
    """Return TensorFlow's message without the name of the operation."""
    text = getattr(error, "message", str(error)) or type(error).__name__
    return re.sub(r" \[Op:\w+\].*$", "", telling_line(text))[:160].rstrip(".")
