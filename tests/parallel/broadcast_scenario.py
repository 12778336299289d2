"""Broadcast variables of every type from rank 0, and write what each rank then has.

python broadcast_scenario.py STRATEGY OUTPUT
"""

import gc
import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tl_dist.config import Config, DataConfig, ModelConfig, OptimizerConfig, registry

DTYPES = ("float32", "float16", "bfloat16", "float64", "int32", "int64", "uint8", "bool")
SHAPES = ((), (0,), (3, 0, 2), (1,), (257,), (3, 3, 16, 4))
NUM_MANY = 534  # as many as ResNet-50 has with its optimizer's slots


def values_of(rank: int) -> list[Any]:
    """Any bits at all, those of numbers that are none among them."""
    rng = np.random.default_rng(rank)
    made = []
    for dtype in map(tf.as_dtype, DTYPES):
        for shape in SHAPES:
            raw = rng.integers(0, 2 if dtype == tf.bool else 256, (*shape, dtype.size), np.uint8)
            made.append(raw.view(dtype.as_numpy_dtype).reshape(shape))
    return made


def digests(variables: list[tf.Variable]) -> list[str]:
    return [hashlib.sha256(variable.numpy().tobytes()).hexdigest() for variable in variables]


def main() -> None:
    gc.freeze()  # what imports have made stays
    config = Config(
        name="broadcast", strategy=sys.argv[1], workers=2, steps=1, data=DataConfig(name="digits"),
        model=ModelConfig(backbone="tiny"), optimizer=OptimizerConfig(learning_rate=0.1),
    )  # fmt: skip
    parallel = registry.strategy(sys.argv[1]).start(config)
    expected = [hashlib.sha256(value.tobytes()).hexdigest() for value in values_of(0)]
    variables = [tf.Variable(value) for value in values_of(parallel.rank)]
    before = digests(variables)
    parallel.broadcast(variables)
    found = {"before": before == expected, "after": digests(variables) == expected}
    many = [tf.Variable(tf.fill([1 + 40 * k], float(parallel.rank))) for k in range(NUM_MANY)]
    parallel.total({"ready": 1.0})
    began = time.monotonic()
    parallel.broadcast(many)
    found["seconds"] = time.monotonic() - began
    everyone = [json.loads(text) for text in parallel.gather(json.dumps(found).encode())]
    if parallel.rank == 0:
        Path(sys.argv[2]).write_text(json.dumps(everyone))


if __name__ == "__main__":
    main()
