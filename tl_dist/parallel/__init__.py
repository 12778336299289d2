"""Define the one interface to parallelism; its implementations are the modules here. Imports no framework."""

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
        """Enter the context in which variables are created."""
        ...

    def feed(self, batches: Any) -> Iterator[Any]:
        """Return an iterator over `batches`, this process's rows, that a compiled chunk may advance."""
        ...

    def run(self, fn: Callable[..., T], batch: Any, step: Any) -> T:
        """Run `fn(batch_share, step)` once per local replica, inside a graph; return the sums over these replicas."""
        ...

    def reduce_gradients(self, grads: Sequence[Any]) -> list[Any]:
        """Sum gradients over every replica of the run, inside `fn`; return float32, equal on every replica.

        A gradient may come as bfloat16 or float16, if it loses no precision or the config asks for it: then half the
        bytes may be sent.
        """
        ...

    def total_in_step(self, value: Any, name: str) -> Any:
        """Sum a float32 tensor over every replica of the run, inside `fn`; its gradient is summed as well.

        `name` is unique among the sums of one step, and the same on every replica.
        """
        ...

    def replica(self) -> Any:
        """Return the number of this replica among all of the run, inside `fn`."""
        ...

    def total(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Sum each number or array over processes in float64, outside `fn`; equal on every rank. Blocks."""
        ...

    def gather(self, text: bytes) -> list[bytes]:
        """Return every rank's bytes, in rank order, on every rank. Blocks. Never unpickles anything."""
        ...

    def broadcast(self, variables: Sequence[Any]) -> None:
        """Assign rank 0's values to `variables` on every replica, outside `fn`. Blocks."""
        ...

    def naming_lost_peers(self) -> AbstractContextManager[None]:
        """Turn every error by which the framework reports a lost peer into a `Refusal` with `ExitCode.PEER_LOST`."""
        ...


def started(parallel: Any, name: str) -> DataParallel:
    """Return `parallel`, which strategy `name` has built; refuse (64) a strategy that lacks a part of the protocol."""
    if not isinstance(parallel, DataParallel):
        parts = [*DataParallel.__annotations__, *(part for part in vars(DataParallel) if part[0] != "_")]
        missing = [part for part in parts if not hasattr(parallel, part)]
        what = f"strategy '{name}' has no {', '.join(missing)}."
        raise Refusal(what, fix="implement all of tl_dist.parallel.DataParallel.", code=ExitCode.USAGE)
    return parallel


def unresolved(config: Any) -> DataParallel:
    """Refuse (64) `strategy: auto` in a worker: the launcher resolves it before it starts workers."""
    del config
    fix = "start with 'tl-dist train' or 'tl-dist submit', or name the strategy."
    raise Refusal("strategy 'auto' has not become one of the others.", fix=fix, code=ExitCode.USAGE)


def rows_of(rank: int, world_size: int, global_batch: int) -> range:
    """Return the rows of each global batch that belong to `rank`: contiguous, disjoint, complete, sizes within one.

    The first `global_batch % world_size` ranks take one row more, so that any worker count fits any batch.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is not in 0..{world_size - 1}")
    size, extra = divmod(global_batch, world_size)
    start = rank * size + min(rank, extra)
    return range(start, start + size + (rank < extra))
