"""Features that 150 workers have computed lie in no more than 64 files: every reader maps all of them."""

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from tl_dist.features import stored
from tl_dist.features.stored import FeatureSet
from tl_dist.parallel import rows_of


class Ranks:
    """`gather` among threads, one for each rank."""

    def __init__(self, world_size: int) -> None:
        self.parts = [b""] * world_size
        self.barrier = threading.Barrier(world_size)


class Rank:
    def __init__(self, ranks: Ranks, rank: int) -> None:
        self._ranks, self.rank = ranks, rank

    def gather(self, text: bytes) -> list[bytes]:
        self._ranks.parts[self.rank] = text
        self._ranks.barrier.wait(60)
        everyone = list(self._ranks.parts)
        self._ranks.barrier.wait(60)
        return everyone


@pytest.mark.parametrize(("workers", "num", "files"), [(150, 1000, 50), (150, 100, 50), (65, 1000, 33), (64, 1000, 64)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_neighbours_share_a_file(workers: int, num: int, files: int, dtype: str, tmp_path: Path) -> None:
    """Of 150 with 100 rows each third has none, and makes no file."""
    values = (
        np.random.default_rng(0)
        .normal(size=(num, 2, 3))
        .astype(np.float32 if dtype == "float32" else ml_dtypes.bfloat16)
    )
    temporary, directory, ranks = tmp_path / "temporary", tmp_path / "set", Ranks(workers)
    temporary.mkdir()
    (temporary / "owner.json").touch()

    def work(rank: int) -> list[dict[str, object]]:
        share = rows_of(rank, workers, num)
        rows = values[share.start : share.stop]
        pieces = iter([rows[:4], rows[4:]] if len(rows) else [])
        mine = stored.write_shard(temporary / f"shard-{rank:04d}.npy", pieces, len(rows))
        return stored.gather_shards(temporary, mine, Rank(ranks, rank))  # type: ignore[arg-type]

    with ThreadPoolExecutor(workers) as pool:
        (shards, *others) = pool.map(work, range(workers))
    assert all(other == shards for other in others)
    stored.commit(temporary, directory, shards, {})
    assert len(shards) == files == len(list(directory.glob("*.npy")))
    for shard in shards:
        assert hashlib.sha256((directory / str(shard["file"])).read_bytes()).hexdigest() == shard["sha256"]
    found = FeatureSet.open(directory, 1)
    np.testing.assert_array_equal(found.array()[:, 0], values.astype(np.float32))
    order = np.random.default_rng(1).permutation(num)[:50]
    read = found.rows(tf.constant(order), tf.zeros([50], tf.int64))
    np.testing.assert_array_equal(read, values[order])
