"""Images of 32 x 32 in memory, padded, cropped and mirrored: images a second of processor time, against 50,000.

The time is that of all threads together, so the figure is that of one core. It does not depend on the pixels, which
are random.
"""

import time
from collections.abc import Iterator
from typing import Any

from benchmarks.comparison import Comparison, in_turn

NUMBER, BATCH, WANTED = 50_000, 256, 50_000.0


def comparisons() -> Iterator[Comparison]:
    import numpy as np

    from tl_dist.datasets.arrays import array_source

    random = np.random.default_rng(0)
    source = array_source(
        random.integers(0, 256, (NUMBER, 32, 32, 3), np.uint8),
        random.integers(0, 10, NUMBER).astype(np.int32),
        tuple(map(str, range(10))),
        tuple(map(str, range(NUMBER))),
    )
    found = in_turn(
        {
            "augmented": lambda: per_core(source, ("pad_crop", "flip")),
            "plain": lambda: per_core(source, ()),
        },
        rounds=5,
    )
    yield Comparison(
        "input_cifar[pad, crop, flip]",
        "images/s per core",
        found["augmented"],
        "what is asked",
        WANTED,
        bar=1,
        note=f"without augmentation {found['plain']:,.0f}",
    )


def per_core(source: Any, augmentations: tuple[str, ...]) -> float:
    from tl_dist.data.order import Order
    from tl_dist.data.pipeline import augmented, train_batches

    read = augmented(source, augmentations, 0, 32)
    batches = train_batches(read, Order(0, NUMBER, BATCH), rows=range(BATCH), steps=range(NUMBER // BATCH), threads=1)
    start = time.process_time()
    for _ in batches:
        pass
    return NUMBER // BATCH * BATCH / (time.process_time() - start)
