"""Each example exactly once per epoch, for any partition of the batch into rows, from any step."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tl_dist.data.order import Order, batch_deviation
from tl_dist.parallel import rows_of


def seen(order: Order, rows: range, steps: range) -> np.ndarray:
    """Indices that a worker with these rows reads, in order."""
    positions = [order.positions(step, row) for step in steps for row in rows]
    return order.index(np.array(positions, np.int64)).numpy()


@given(
    num_examples=st.integers(1, 90),
    global_batch=st.integers(1, 40),
    world_size=st.integers(1, 7),
    seed=st.integers(0, 2**31 - 1),
    block=st.integers(0, 50),
    window=st.integers(1, 6),
)
@settings(max_examples=60, deadline=None)
def test_every_epoch_is_a_permutation_whatever_the_partition(
    num_examples: int, global_batch: int, world_size: int, seed: int, block: int, window: int
) -> None:
    order = Order(seed, num_examples, global_batch, block, window)
    epochs = 2
    steps = -(-epochs * num_examples // global_batch)
    stream = np.empty((steps, global_batch), np.int64)
    for rank in range(world_size):
        rows = rows_of(rank, world_size, global_batch)
        if len(rows):
            stream[:, rows.start : rows.stop] = seen(order, rows, range(steps)).reshape(steps, -1)
    for epoch in range(epochs):
        chunk = stream.ravel()[epoch * num_examples : (epoch + 1) * num_examples]
        assert sorted(chunk) == list(range(num_examples))


def test_epochs_and_seeds_give_different_orders() -> None:
    order = Order(seed=3, num_examples=500, global_batch=500)
    first, second = (seen(order, range(500), range(k, k + 1)) for k in (0, 1))
    other = seen(Order(seed=4, num_examples=500, global_batch=500), range(500), range(1))
    assert (first != second).mean() > 0.9
    assert (first != other).mean() > 0.9
    assert (first != np.arange(500)).mean() > 0.9


def test_blocks_keep_a_window_of_reads_to_few_places() -> None:
    """Each window of four blocks of 10 holds whole blocks, mixed; other epochs hold others."""
    order = Order(seed=1, num_examples=1000, global_batch=40, block=10, window=4)
    epochs = seen(order, range(40), range(50)).reshape(2, 25, 40)
    for window in epochs.reshape(-1, 40):
        assert len(set(window // 10)) == 4 and (np.diff(window) != 1).any()
    assert {*(epochs[0, 0] // 10)} != {*(epochs[1, 0] // 10)}
    assert len({tuple(sorted({*(window // 10)})) for window in epochs[0]}) == 25


def test_the_rest_behind_whole_blocks_is_not_always_last() -> None:
    order = Order(seed=1, num_examples=35, global_batch=35, block=10, window=1)
    places = {int(np.flatnonzero(seen(order, range(35), range(k, k + 1)) >= 30).min()) for k in range(30)}
    assert len(places) > 3


def test_deviation_shows_how_well_blocks_mix() -> None:
    """Sorted by class, as folders are: one block is one class, many blocks together are as good as all."""
    labels = np.repeat(np.arange(10, dtype=np.int32), 1000)
    poor, fair, good, full = (
        batch_deviation(Order(0, 10_000, 50, block, window), labels)
        for block, window in ((500, 1), (50, 4), (50, 100), (0, 1))
    )
    assert poor == pytest.approx(0.9, abs=0.01)  # of ten equal classes a batch holds one
    assert 0.3 < fair < 0.7
    assert good == pytest.approx(full, abs=0.02)


def test_order_is_pinned() -> None:
    """Whoever changes the order counts up its VERSION, so that no run is resumed in another one."""
    for order, epochs in PINNED.items():
        assert seen(order, range(order.global_batch), range(len(epochs))).tolist() == np.concatenate(epochs).tolist()


PINNED = {
    Order(0, 10, 10): [[9, 3, 7, 4, 0, 2, 6, 8, 5, 1], [7, 3, 5, 1, 2, 4, 8, 9, 6, 0]],
    Order(0, 11, 11, block=3, window=2): [
        [7, 5, 4, 3, 8, 6, 1, 0, 2, 9, 10],
        [10, 0, 3, 9, 1, 2, 7, 8, 4, 6, 5],
    ],
    Order(0, 50_000, 8): [[33374, 22497, 19835, 40671, 4052, 8691, 19384, 40337]],
    Order(0, 1_281_167, 8): [[1142684, 1245578, 1011432, 276201, 1140983, 426676, 722850, 1066856]],
}


@pytest.mark.parametrize(("epochs", "steps"), [(1.0, 4), (0.01, 1), (2.0, 7), (0.9, 3)])
def test_steps_cover_the_epochs(epochs: float, steps: int) -> None:
    assert Order(seed=0, num_examples=10, global_batch=3).steps(epochs) == steps


@given(world_size=st.integers(1, 50), global_batch=st.integers(1, 400))
def test_rows_are_disjoint_complete_and_even(world_size: int, global_batch: int) -> None:
    shares = [rows_of(rank, world_size, global_batch) for rank in range(world_size)]
    assert [row for share in shares for row in share] == list(range(global_batch))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_rows_of_refuses_a_rank_outside() -> None:
    with pytest.raises(ValueError, match="rank 2"):
        rows_of(2, 2, 8)
