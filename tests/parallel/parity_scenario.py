"""Train a small network in several variants on one strategy and write the figures: what must not depend on it.

python parity_scenario.py STRATEGY WORKERS OUTPUT
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tl_dist import loop, model, optim, registry, step
from tl_dist.backbones import Backbone
from tl_dist.config import Config, DataConfig, ModelConfig, OptimizerConfig, ScheduleConfig
from tl_dist.data.order import Order
from tl_dist.data.pipeline import augmented, evaluation_batches, plain, train_batches
from tl_dist.parallel import rows_of
from tl_dist.state import Batch, TrainState

NUM_STEPS = 20
GLOBAL_BATCH = 10  # uneven over 3 and 4 workers
NUM_EXAMPLES = 53  # divided by no worker count and no batch
OVERFLOW_POSITION = 6 * GLOBAL_BATCH + GLOBAL_BATCH - 1  # last row of step 6: on the last replica


class Digits:
    """The first 53 of scikit-learn's digits, in memory."""

    reads_many = True

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        small = np.kron(digits.images[:NUM_EXAMPLES], np.ones((1, 3, 3))) * 15
        self._images = np.repeat(small.astype(np.uint8)[..., None], 3, axis=-1)
        self.labels = digits.target[:NUM_EXAMPLES].astype(np.int32)
        self.num_examples, self.num_classes = NUM_EXAMPLES, 10
        self.class_names = list("0123456789")
        self.ids = [str(k) for k in range(NUM_EXAMPLES)]
        self.fingerprint = "digits"

    def read(self, index: Any) -> tuple[Any, Any]:
        return tf.gather(tf.constant(self._images), index), tf.gather(tf.constant(self.labels), index)


VARIANTS: dict[str, dict[str, Any]] = {
    "sync_batch_norm": {
        "optimizer": OptimizerConfig(name="sgd", learning_rate=0.05),
        "model_settings": {"backbone": "normalised", "train_from": "all", "batch_norm": "sync"},
    },
    "plain": {"optimizer": OptimizerConfig(name="sgd", learning_rate=0.05)},
    "clipped": {
        "optimizer": OptimizerConfig(name="adamw", learning_rate=3e-3, weight_decay=0.05, clip_norm=0.3)
    },
    "accumulated": {"optimizer": OptimizerConfig(name="sgd", learning_rate=0.05), "accumulate": 2},
    "overflow": {"optimizer": OptimizerConfig(name="adam", learning_rate=3e-3), "overflow": True},
    "bfloat16": {
        "optimizer": OptimizerConfig(name="sgd", learning_rate=0.02),
        "precision": "mixed_bfloat16",
    },
    "float16": {
        "optimizer": OptimizerConfig(
            name="sgd", learning_rate=0.02, schedule=ScheduleConfig(name="cosine", warmup_epochs=1)
        ),
        "precision": "mixed_float16",
        "overflow": True,
    },
}


def normalised_network(input_shape: tuple[int, int, int]) -> Any:
    x = inputs = keras.Input(input_shape)
    for k in (1, 2):
        x = keras.layers.Conv2D(8, 3, strides=2, name=f"conv{k}")(x)
        x = keras.layers.BatchNormalization(name=f"norm{k}", momentum=0.9)(x)
        x = keras.layers.ReLU(name=f"relu{k}")(x)
    return keras.Model(inputs, x)


NORMALISED = Backbone("normalised", normalised_network, 24, 8, "tf", {"one": "conv1", "two": "conv2"})


def overflow_at_one_position(batch: Batch) -> Batch:
    """The batch with an infinite weight on one example: its loss and gradient overflow, on one replica alone."""
    return batch._replace(weights=tf.where(batch.positions == OVERFLOW_POSITION, np.inf, batch.weights))


def run_variant(
    parallel: Any,
    *,
    optimizer: OptimizerConfig,
    accumulate: int = 1,
    precision: str = "float32",
    overflow: bool = False,
    model_settings: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """20 steps from the same start; the losses, the final weights' checksums on each replica, an exact evaluation."""
    keras.config.set_dtype_policy(precision)
    settings = {"backbone": "tiny", "train_from": "block2"} | (model_settings or {})
    config = ModelConfig(weights="random", hidden=16, dropout=0.25, **settings)
    backbone = NORMALISED if config.backbone == "normalised" else registry.lookup(registry.BACKBONES, "tiny")
    source = Digits()
    with parallel.scope():
        net = model.build(backbone, config, image_size=24, num_classes=10, seed=1)
        opt = optim.Optimizer(optimizer, net.trainable, scale_loss=precision == "mixed_float16")
    state = TrainState({**net.moving, **opt.variables})
    order = Order(seed=7, num_examples=NUM_EXAMPLES, global_batch=GLOBAL_BATCH)
    rate = partial(optim.learning_rate, optimizer, steps_per_epoch=5.3, total_steps=NUM_STEPS)
    rows = rows_of(parallel.rank, parallel.world_size, GLOBAL_BATCH)
    batches = train_batches(
        augmented(source, ("flip", "pad_crop"), order.seed, 24),
        order,
        rows=rows,
        from_step=0,
        to_step=NUM_STEPS,
        mask_features=net.mask_features,
        dropout=0.25,
    )
    if overflow:
        batches = batches.map(overflow_at_one_position)
    objective = step.Objective(10, GLOBAL_BATCH)
    run_steps = step.train_chunk(net, opt, objective, parallel, rate, accumulate=accumulate)

    def drive() -> dict[str, Any]:
        reports = loop.train(
            state, parallel.feed(batches), run_steps, parallel,
            cadence=loop.Cadence([1], NUM_STEPS), rate=lambda k: 0.0, stop_requested=lambda: False,
        )  # fmt: skip
        reports = list(reports)
        checksums = parallel.total({"c": step.weight_checksums(net, parallel)().numpy()})["c"]
        held_out = evaluation_batches(
            plain(source, 24),
            NUM_EXAMPLES,
            rows=rows,
            global_batch=GLOBAL_BATCH,
            mask_features=net.mask_features,
        )
        result = loop.evaluate(
            "all", NUM_EXAMPLES, -(-NUM_EXAMPLES // GLOBAL_BATCH),
            parallel.feed(held_out),
            step.evaluation_step(net, objective, parallel, global_batch=GLOBAL_BATCH),
            parallel, stop_requested=lambda: False,
        )  # fmt: skip
        assert result is not None
        weights = {path: variable.numpy() for path, variable in net.trainable.items()}
        return {
            "losses": [report.mean_loss for report in reports],
            "skipped": [report.num_skipped for report in reports],
            "loss_scale": [report.loss_scale for report in reports],
            "replicas_equal": bool((checksums == checksums[0]).all()),
            "weights_finite": all(bool(np.isfinite(w).all()) for w in weights.values()),
            "statistics": {path: variable.numpy().tolist() for path, variable in net.statistics.items()},
            "num_examples": result.num_examples,
            "num_correct": result.num_correct,
            "evaluation_loss": result.mean_loss,
            "confusion": result.confusion,
            "logits": np.asarray(result.logits).tolist(),
        }

    parallel.broadcast(list(state.variables.values()))
    return parallel.supervise(drive)


def main() -> None:
    strategy, workers, output = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    config = Config(
        name="parity", strategy=strategy, workers=workers, steps=NUM_STEPS, data=DataConfig(name="digits"),
        model=ModelConfig(backbone="tiny"), optimizer=OptimizerConfig(learning_rate=0.1),
    )  # fmt: skip
    parallel = registry.lookup(registry.STRATEGIES, strategy)(config)
    assert parallel.num_replicas == workers
    results = {name: run_variant(parallel, **variant) for name, variant in VARIANTS.items()}
    if parallel.rank == 0:
        output.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
