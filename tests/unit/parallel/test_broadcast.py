"""A broadcast needs few exchanges, not one per variable, and assigns every value to its variable."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tl_dist.parallel import replicas
from tl_dist.parallel.horovod import Horovod


class FakeHvd:
    """Horovod as rank 0 sees it or, given what rank 0 sent, as another rank does."""

    def __init__(self, of_rank_0: dict[str, Any] | None = None) -> None:
        self.sent: dict[str, Any] = {}
        self._of_rank_0 = of_rank_0

    Sum = "sum"

    def grouped_allreduce(self, tensors: list[Any], op: str, name: str) -> list[Any]:
        (tensor,) = tensors
        assert name not in self.sent
        self.sent[name] = tensor
        return [tensor if self._of_rank_0 is None else self._of_rank_0[name] + tensor]


def worker(hvd: FakeHvd, rank: int = 0) -> Horovod:
    made = Horovod.__new__(Horovod)
    made._hvd, made.rank, made.world_size = hvd, rank, 2
    return made


def variables(seed: int, each: int) -> list[tf.Variable]:
    """Of shapes that differ, scalars and empty ones among them; types take turns."""
    rng = np.random.default_rng(seed)
    shapes = [(), (0, 3), (5,), (2, 3, 4)]
    dtypes = ["float32", "bfloat16", "int64", "bool", "uint8", "float64"]
    return [
        tf.Variable(tf.cast(tf.constant(rng.integers(0, 100, shapes[k % 4])), dtype))
        for k in range(each)
        for dtype in dtypes
    ]


def test_534_variables_take_one_exchange() -> None:
    hvd = FakeHvd()
    worker(hvd).broadcast([tf.Variable(tf.fill([k % 7], 1.0)) for k in range(534)])
    assert len(hvd.sent) == 1


@pytest.mark.parametrize("in_parts", [False, True])
def test_every_variable_gets_the_bits_that_rank_0_has(in_parts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if in_parts:
        monkeypatch.setattr(replicas, "BROADCAST_BYTES", 64)
    first, second = variables(0, 8), variables(1, 8)
    hvd = FakeHvd()
    worker(hvd).broadcast(first)
    other = FakeHvd(hvd.sent)
    worker(other, 1).broadcast(second)
    assert list(other.sent) == list(hvd.sent)
    assert len(hvd.sent) > 6 if in_parts else len(hvd.sent) == 1
    for ours, theirs in zip(first, second, strict=True):
        assert theirs.dtype == ours.dtype and theirs.shape == ours.shape
        assert theirs.numpy().tobytes() == ours.numpy().tobytes()
