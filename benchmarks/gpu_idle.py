"""How busy training keeps one GPU: the share of the time in which a kernel runs, by TensorFlow's profiler."""

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks.comparison import Comparison
from benchmarks.gpu_runs import require_gpus

BARS = {256: 0.95, 32: 0.85}
"""rows of a step"""
WARM, STEPS = 30, 50


def comparisons() -> Iterator[Comparison]:
    require_gpus()
    for rows, bar in BARS.items():
        spans, peak = traced(rows)
        yield Comparison(
            f"gpu_idle[{rows} rows]", "of the time", busy_share(spans), "limit", bar, bar=1.0,
            note=f"peak of the GPU's memory: {peak / 2**30:.1f} GiB",
        )  # fmt: skip


def traced(rows: int) -> tuple[list[tuple[int, int]], int]:
    """Begin and end of all that the first GPU did in some steps of ResNet-50, and its peak memory in bytes."""
    import tensorflow as tf

    from benchmarks.trainer import Trainer, advance, config
    from tl_dist.models.precision import resolve
    from tl_dist.parallel.single import SingleDevice

    cfg = config(backbone="resnet50", batch=rows, image_size=224)
    reports = Trainer(cfg, SingleDevice(cfg), resolve("auto")).reports(WARM)
    advance(reports, WARM)
    folder = Path(tempfile.mkdtemp(prefix="tl-dist-benchmark-"))
    try:
        tf.profiler.experimental.start(str(folder))
        advance(reports, STEPS)
        tf.profiler.experimental.stop()
        (file,) = folder.rglob("*.xplane.pb")
        spans = list(spans_of(file.read_bytes()))
    finally:
        shutil.rmtree(folder)
    return spans, tf.config.experimental.get_memory_info("GPU:0")["peak"]


def spans_of(trace: bytes) -> Iterator[tuple[int, int]]:
    """Begin and end, in picoseconds, of what the streams of the first GPU did."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    planes: Iterable[Any] = xplane_pb2.XSpace.FromString(trace).planes
    for line in chain.from_iterable(plane.lines for plane in planes if plane.name == "/device:GPU:0"):
        if "Stream" in line.name:  # others repeat the same by name of operation, module or step
            for event in line.events:
                begin = line.timestamp_ns * 1000 + event.offset_ps
                yield begin, begin + event.duration_ps


def busy_share(spans: Iterable[tuple[int, int]]) -> float:
    """The share of the time from the first begin to the last end that at least one span covers."""
    busy = 0
    begin = until = None
    for start, end in sorted(spans):
        if begin is None or until is None:
            begin, until = start, start
        busy += max(0, end - max(start, until))
        until = max(until, end)
    return busy / (until - begin) if begin is not None and until is not None and until > begin else 0.0
