"""The error of a failed collective quotes the line with the reason; a failure that would repeat is not restarted."""

from __future__ import annotations

import pytest
import tensorflow as tf

from tl_dist.launcher.classify_exits import RESTARTABLE
from tl_dist.parallel.horovod import Horovod
from tl_dist.refusal import Refusal

IN_A_GRAPH = """Graph execution error:

Detected at node HorovodGroupedAllreduce defined at (most recent call last):
  File "/home/x/tl_dist/parallel/horovod.py", line 90, in _all_reduce

{}
[[{{{{node HorovodGroupedAllreduce}}}}]] [Op:__inference_run_steps_41]"""


def fail(said: str) -> None:
    """Fail as a collective of rank 3 does."""
    parallel = Horovod.__new__(Horovod)
    parallel.rank = 3
    with parallel.naming_lost_peers():
        raise tf.errors.UnknownError(None, None, said)


DUPLICATE = "ncclCommInitRank failed: invalid usage (run with NCCL_DEBUG=WARN for details)"


@pytest.mark.parametrize(
    ("said", "quoted", "fate"),
    [
        (DUPLICATE, DUPLICATE, None),
        (IN_A_GRAPH.format(DUPLICATE), DUPLICATE, None),
        (
            IN_A_GRAPH.format("ncclGroupEnd failed: remote process exited or there was a network error"),
            "ncclGroupEnd failed: remote process exited or there was a network error",
            "died or stalled",
        ),
        (
            IN_A_GRAPH.format("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]:2311"),
            "[gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]:2311",
            "died",
        ),
        (IN_A_GRAPH.format("Horovod has been shut down."), "Horovod has been shut down.", "died or stalled"),
        ("MPI_Allreduce failed, see MPI output for details.", "MPI_Allreduce failed", "died or stalled"),
    ],
)
def test_the_line_with_the_reason_is_quoted(said: str, quoted: str, fate: str | None) -> None:
    with pytest.raises(Refusal) as refused:
        fail(said)
    found = refused.value
    assert found.what.startswith("rank 3: ") and f"({quoted}" in found.what
    if fate is not None:
        assert f"another worker {fate} (" in found.what
    assert (found.code in RESTARTABLE) == (fate is not None)


def test_an_error_of_something_else_is_not_a_lost_peer() -> None:
    """Though every step has passed through the file that calls Horovod."""
    other = IN_A_GRAPH.format("Incompatible shapes: [3] vs. [4]").replace("HorovodGroupedAllreduce", "Add")
    assert "horovod.py" in other
    with pytest.raises(tf.errors.UnknownError):
        fail(other)
