"""What the offset index of 100,000 TFRecords costs, against reading the files once with TensorFlow's own reader.

Both sides check every checksum and use all cores; the files are in the page cache, so no disk hides the work. The
100,000 records are 20 files of 250 photographs, each under 20 names.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.comparison import Comparison, in_turn
from benchmarks.photographs import photographs, write_tfrecords

SHARDS, PER_SHARD, NAMES = 20, 250, 20


def comparisons() -> Iterator[Comparison]:
    import tensorflow as tf

    from tl_dist.datasets.shard_index import index_shards

    root = Path(tempfile.mkdtemp(prefix="tl-dist-benchmark-"))
    try:
        written = write_tfrecords(root / "data", photographs(SHARDS * PER_SHARD), SHARDS)
        files = []
        for k in range(NAMES):
            for path in written:
                files.append(path.with_name(f"part{k:02}-{path.name}"))
                os.link(path, files[-1])
        cores = len(os.sched_getaffinity(0))
        total = SHARDS * PER_SHARD * NAMES
        rounds = iter(range(1000))

        def index() -> float:
            cache = root / f"cache{next(rounds)}"
            start = time.perf_counter()
            found = index_shards(files, cache)
            elapsed = time.perf_counter() - start
            if sum(len(shard.labels) for shard in found) != total:
                raise RuntimeError("records are missing from the index")
            shutil.rmtree(cache)
            return elapsed

        def read() -> float:
            start = time.perf_counter()
            data = tf.data.TFRecordDataset(list(map(str, files)), num_parallel_reads=cores)
            number = int(data.reduce(tf.constant(0, tf.int64), lambda n, record: n + 1))
            if number != total:
                raise RuntimeError("records were not read")
            return time.perf_counter() - start

        found = in_turn({"index": index, "read": read}, rounds=5)
        size = sum(path.stat().st_size for path in files) / 1e9
        yield Comparison(
            "tfrecord_index[100,000 records]", "s", found["index"], "TFRecordDataset once", found["read"],
            bar=1.2, at_most=True,
            note=f"{size:.1f} GB: {size / found['index']:.2f} GB/s against {size / found['read']:.2f} GB/s",
        )  # fmt: skip
    finally:
        shutil.rmtree(root)
