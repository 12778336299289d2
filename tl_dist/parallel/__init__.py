"""The one interface to parallelism. Importing it imports no framework; the implementations are its modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar, runtime_checkable

from tl_dist.refusal import ExitCode, Refusal

T = TypeVar("T")


@runtime_checkable
class DataParallel(Protocol):
    """Copies of one model that share each global batch.

    Implementations differ in where the copies live and how sums travel; nothing else in the package knows.
    `rank` and `world_size` count processes, `num_replicas` counts model copies over all processes.
    """

    rank: int
    world_size: int
    num_replicas: int

    def scope(self) -> AbstractContextManager[Any]:
        """Variables are created inside."""
        ...

    def feed(self, batches: Any) -> Iterator[Any]:
        """An iterator that a compiled chunk may advance: this process's rows, as `batches` yields them."""
        ...

    def run(self, fn: Callable[..., T], batch: Any, step: Any) -> T:
        """Inside a graph: `fn(batch_share, step)` once per local replica; the sums over them, on this process."""
        ...

    def reduce_gradients(self, grads: Sequence[Any]) -> list[Any]:
        """Inside `fn`: the sum over every replica of the run, equal everywhere, in float32.

        A gradient may come as bfloat16 or float16, where nothing is lost by it or the config says so: then half the
        bytes can travel.
        """
        ...

    def total_in_step(self, value: Any, name: str) -> Any:
        """Inside `fn`: a float32 tensor summed over every replica of the run; its gradient is summed as well.

        `name` tells sums that one step makes apart, and is the same on every replica.
        """
        ...

    def replica(self) -> Any:
        """Inside `fn`: the number of this replica among all of the run."""
        ...

    def total(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Outside `fn`: each number or array summed over processes in float64, equal on every rank. Blocks."""
        ...

    def gather(self, text: bytes) -> list[bytes]:
        """Every rank's bytes, in rank order, on every rank. Blocks. Never unpickles anything."""
        ...

    def broadcast(self, variables: Sequence[Any]) -> None:
        """Outside `fn`: give `variables` the values of rank 0, on every replica. Blocks."""
        ...

    def naming_lost_peers(self) -> AbstractContextManager[None]:
        """Within it a lost peer, whatever the framework calls it, is a `Refusal` with `ExitCode.PEER_LOST`."""
        ...


def started(parallel: Any, name: str) -> DataParallel:
    """What a strategy has started; refuses one, of another package, that lacks a part of the protocol."""
    if not isinstance(parallel, DataParallel):
        parts = [*DataParallel.__annotations__, *(part for part in vars(DataParallel) if part[0] != "_")]
        missing = [part for part in parts if not hasattr(parallel, part)]
        raise Refusal(
            f"strategy '{name}' has no {', '.join(missing)}.",
            fix="implement all of tl_dist.parallel.DataParallel.",
            code=ExitCode.USAGE,
        )
    return parallel


def unresolved(config: Any) -> DataParallel:
    """What `strategy: auto` is to a worker: whoever starts workers has to say what it means there."""
    del config
    raise Refusal(
        "strategy 'auto' has not become one of the others.",
        fix="start with 'tl-dist train' or 'tl-dist submit', or name the strategy.",
        code=ExitCode.USAGE,
    )


def rows_of(rank: int, world_size: int, global_batch: int) -> range:
    """The rows of each global batch that belong to `rank`: contiguous, disjoint, complete, sizes within one.

    The first `global_batch % world_size` ranks take one row more, so that any worker count fits any batch.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is not in 0..{world_size - 1}")
    size, extra = divmod(global_batch, world_size)
    start = rank * size + min(rank, extra)
    return range(start, start + size + (rank < extra))
