"""Horovod's settings follow from what it reduces on and how many workers there are, and buckets are the same on all."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tl_dist.parallel.horovod import MIB, settings
from tl_dist.parallel.replicas import buckets


@pytest.mark.parametrize(
    ("gpus", "workers", "cycle_ms"),
    [
        (False, 1, "5"),
        (False, 2, "5"),
        (False, 64, "5"),
        (True, 1, "0.5"),
        (True, 8, "0.5"),
        (True, 9, "1"),
        (True, 1024, "1"),
    ],
)
def test_settings(gpus: bool, workers: int, cycle_ms: str) -> None:
    only = {"HOROVOD_ENABLE_ASYNC_COMPLETION": "1"} if gpus else {"OMPI_MCA_mpi_yield_when_idle": "1"}
    assert settings(gpus=gpus, workers=workers, stall_s=1200.4) == {
        "HOROVOD_CYCLE_TIME": cycle_ms,
        "HOROVOD_DISABLE_GROUP_FUSION": "1",
        **only,
        "HOROVOD_GLOO_TIMEOUT_SECONDS": str(30 + workers // 16 * 4),
        "HOROVOD_STALL_CHECK_TIME_SECONDS": "30",
        "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": "1200",
    }


@pytest.mark.parametrize(
    ("sizes", "limit", "last", "expected"),
    [
        ([], 10, 3, []),
        ([1, 2, 3, 4], 5, 0, [[3, 2], [1, 0]]),
        ([20, 1, 1], 5, 0, [[2, 1, 0]]),  # filled to the limit or past it
        ([1, 1, 1, 9, 9], 10, 2, [[4, 3], [2], [1, 0]]),
        ([1, 1, 9, 9], 10, 2, [[3, 2], [1, 0]]),
        ([1, 1, 4, 4], 100, 2, [[3, 2], [1, 0]]),
        ([3, 9], 100, 2, [[1, 0]]),  # the first layer alone is too large to go last by itself
        ([1, 1], 100, 2, [[1, 0]]),
        ([0, 5, 0], 100, 0, [[2, 1, 0]]),  # an empty tensor is no bucket
    ],
)
def test_buckets(sizes: list[int], limit: int, last: int, expected: list[list[int]]) -> None:
    assert buckets(sizes, limit, last) == expected


@pytest.mark.parametrize("last", [0, 2 * MIB])
def test_each_tensor_is_in_one_bucket_in_the_order_of_the_backward_pass(last: int) -> None:
    sizes = [(k * 7919) % (3 * MIB) for k in range(161)]
    flat = [k for bucket in buckets(sizes, 32 * MIB, last) for k in bucket]
    assert flat == list(reversed(range(161)))
    assert all(a > b for a, b in pairwise(flat))
