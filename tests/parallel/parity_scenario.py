"""Train a small network in several variants on one strategy and write the figures: what must not depend on it.

python parity_scenario.py STRATEGY WORKERS VARIANT,VARIANT OUTPUT
"""

import gc
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tests.normalised import NORMALISED
from tests.small_vit import SMALL_VIT
from tl_dist.config import (
    AugmentConfig,
    Config,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    RuntimeConfig,
    ScheduleConfig,
    registry,
)
from tl_dist.config.lora import LoraConfig
from tl_dist.config.training import FOR_VALUES
from tl_dist.data.batch import Batch
from tl_dist.data.order import ByClass, Order
from tl_dist.data.pipeline import augmented, dropout_masks, evaluation_batches, plain, train_batches
from tl_dist.data.pipeline import soft_labels as soft_labels_of
from tl_dist.datasets import Source
from tl_dist.datasets.annotations import Annotations, SoftLabels
from tl_dist.datasets.arrays import ArrayStore
from tl_dist.models import classifier, heads
from tl_dist.parallel import rows_of
from tl_dist.parallel.replicas import gpu_of_process
from tl_dist.trainer import load_model
from tl_dist.trainer.precise_statistics import averaging
from tl_dist.training import chunk, evaluation, loop, losses, optim, step, target_losses
from tl_dist.training.state import Report, TrainState

NUM_STEPS = 20
GLOBAL_BATCH = 10  # uneven over 3 and 4 workers
NUM_EXAMPLES = 53  # divided by no worker count and no batch
OVERFLOW_POSITION = 6 * GLOBAL_BATCH + GLOBAL_BATCH - 1  # last row of step 6: on the last replica


def digits() -> Source:
    """The first 53 of scikit-learn's digits, in memory."""
    from sklearn.datasets import load_digits

    found = load_digits()
    small = np.kron(found.images[:NUM_EXAMPLES], np.ones((1, 3, 3))) * 15
    labels = found.target[:NUM_EXAMPLES].astype(np.int32)
    # One in three is less sure, and might as well be the next digit.
    sure = np.where(np.arange(NUM_EXAMPLES) % 3, 1.0, 0.7).astype(np.float32)
    return Source(
        ArrayStore(np.repeat(small.astype(np.uint8)[..., None], 3, axis=-1)),
        labels,
        [str(k) for k in range(NUM_EXAMPLES)],
        list("0123456789"),
        Annotations(soft=SoftLabels((labels + 1) % 10, sure)),
    )


VARIANTS: dict[str, dict[str, Any]] = {
    "sync_batch_norm": {
        "optimizer": OptimizerConfig(name="sgd", learning_rate=0.05),
        "model_settings": {"backbone": "normalised", "train_from": "all", "batch_norm": "sync"},
    },
    "plain": {"optimizer": OptimizerConfig(name="sgd", learning_rate=0.05)},
    "clipped": {"optimizer": OptimizerConfig(name="adamw", learning_rate=3e-3, weight_decay=0.05, clip_norm=0.3)},
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

WIRES: dict[str, dict[str, Any]] = {
    "wire_bfloat16": VARIANTS["plain"] | {"wire": "bfloat16"},
    "wire_float16": VARIANTS["plain"] | {"wire": "float16", "overflow": True},
}
"""gradients that are rounded on their way between processes"""

METHODS: dict[str, dict[str, Any]] = {
    "averaged": {"optimizer": OptimizerConfig(name="sgd", learning_rate=0.05, ema=0.9)},
    "toward_start": {
        "optimizer": OptimizerConfig(name="sgd", learning_rate=0.05, momentum=0.9, l2_sp=0.5, head_weight_decay=0.1)
    },
    "by_depth": {"optimizer": OptimizerConfig(name="adam", learning_rate=0.01, layer_decay=0.3)},
    "staged": {
        "optimizer": OptimizerConfig(name="adam", learning_rate=0.01, ema=0.9),
        "stages": (("head", 4), ("block3", 7), ("all", 10)),
    },
    "mixed": {
        "optimizer": OptimizerConfig(name="sgd", learning_rate=0.05),
        "augmentation": AugmentConfig(mixup=0.4, cutmix=1.0),
    },
    "soft_labels": {"optimizer": OptimizerConfig(name="sgd", learning_rate=0.05), "soft_labels": True},
    "focal": {"optimizer": OptimizerConfig(name="sgd", learning_rate=0.05), "loss": {"gamma": 2.0}},
    "logit_adjusted": {
        "optimizer": OptimizerConfig(name="sgd", learning_rate=0.05),
        "loss": {"adjustment": [-0.2 * k for k in range(10)]},
    },
    "corn": {"optimizer": OptimizerConfig(name="sgd", learning_rate=0.05), "head": "corn"},
    "coral": {
        "optimizer": OptimizerConfig(name="sgd", learning_rate=0.05),
        "augmentation": AugmentConfig(mixup=0.4),
        "head": "coral",
        "loss": {"cumulative": True},
    },
    "labels": {
        "optimizer": OptimizerConfig(name="sgd", learning_rate=0.05),
        "augmentation": AugmentConfig(mixup=0.4),
        "accumulate": 2,
        "targets": LossConfig(name="binary_cross_entropy", pos_weight="balanced"),
    },
    "asymmetric": {
        "optimizer": OptimizerConfig(name="sgd", learning_rate=0.2),
        "targets": LossConfig(name="asymmetric"),
    },
    "numbers": {
        "optimizer": OptimizerConfig(name="sgd", learning_rate=0.05),
        "augmentation": AugmentConfig(mixup=0.4),
        "targets": LossConfig(name="huber", delta=0.5),
    },
    "transformer": {
        "optimizer": OptimizerConfig(name="adamw", learning_rate=3e-3, weight_decay=0.05, layer_decay=0.7),
        "model_settings": {"backbone": "small_vit", "train_from": "block1", "pooling": "both", "adapt": "norm"},
    },
    "adapters": {
        "optimizer": OptimizerConfig(name="adam", learning_rate=0.01, ema=0.9, l2_sp=0.1),
        "model_settings": {"backbone": "small_vit", "pooling": "both", "adapt": LoraConfig(lora=2, alpha=4)},
        "stages": (("head", 4), ("stem", 10)),
    },
    "deep": {
        "optimizer": OptimizerConfig(name="sgd", learning_rate=0.05),
        "model_settings": {"backbone": "small_vit", "train_from": "all", "drop_path": 0.5},
        "recomputes": True,
    },
    "deep_accumulated": {
        "optimizer": OptimizerConfig(name="sgd", learning_rate=0.05),
        "model_settings": {"backbone": "small_vit", "train_from": "all", "drop_path": 0.5},
        "accumulate": 2,
    },
    "deep_bfloat16": {
        "optimizer": OptimizerConfig(name="sgd", learning_rate=0.05),
        "model_settings": {"backbone": "small_vit", "train_from": "all", "drop_path": 0.5},
        "precision": "mixed_bfloat16",
    },
    "balanced": {"optimizer": OptimizerConfig(name="sgd", learning_rate=0.05), "balanced": True},
    "taught": {
        "optimizer": OptimizerConfig(name="sgd", learning_rate=0.05),
        "distillation": losses.Distillation(2.0, 0.8),
    },
}
"""what a run may add to plain training, one by one"""
WITHOUT: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": OptimizerConfig(name="sgd", learning_rate=0.05)},
    "adam": {"optimizer": OptimizerConfig(name="adam", learning_rate=0.01)},
    "adamw": {"optimizer": OptimizerConfig(name="adamw", learning_rate=3e-3, weight_decay=0.05)},
}
"""the same runs without any, on one device alone"""
NUM_METHOD_STEPS = 10


def targets_of(labels: Any, loss: LossConfig) -> Any:
    """Of digits: two labels each, or two numbers far apart in size."""
    if loss.name in FOR_VALUES:
        return np.stack([labels, 100 + 30.0 * labels**2], axis=1).astype(np.float32)
    return (np.eye(10)[labels] + np.eye(10)[(labels + 3) % 10]).astype(np.float32)


def overflow_at_one_position(batch: Batch) -> Batch:
    """The batch with an infinite weight on one example: its loss and gradient overflow, on one replica alone."""
    return batch._replace(weights=tf.where(batch.positions == OVERFLOW_POSITION, np.inf, batch.weights))


def teacher(images: Any) -> Any:
    """What a teacher of no training says of augmented images: ten of their pixels."""
    return tf.cast(images[:, 12, :20:2, 0], tf.float32) / 50


def batch_of(workers: int) -> int:
    """Of so many workers: uneven over them, and a row for each."""
    return max(GLOBAL_BATCH, workers + 1)


def run_variant(
    parallel: Any,
    *,
    optimizer: OptimizerConfig,
    accumulate: int = 1,
    precision: str = "float32",
    overflow: bool = False,
    model_settings: dict[str, Any] | None = None,
    augmentation: AugmentConfig = AugmentConfig(),  # noqa: B008  (frozen)
    soft_labels: bool = False,
    loss: dict[str, Any] | None = None,
    head: str = "cross_entropy",
    balanced: bool = False,
    distillation: losses.Distillation | None = None,
    targets: LossConfig | None = None,
    stages: Sequence[tuple[str, int]] = (),
    num_steps: int = NUM_STEPS,
    wire: str = "auto",
    evaluated: bool = True,
    recomputes: bool = False,
    global_batch: int = GLOBAL_BATCH,
) -> dict[str, Any]:
    """Steps from the same start; the losses, the final weights' checksums on each replica, an exact evaluation.

    `stages` are what is trained and up to which step.
    """
    keras.config.set_dtype_policy(precision)
    settings = {"backbone": "tiny", "train_from": stages[0][0] if stages else "block2"} | (model_settings or {})
    config = ModelConfig(weights="random", hidden=16, dropout=0.25, **settings)
    others = {"normalised": NORMALISED, "small_vit": SMALL_VIT}
    backbone = others.get(config.backbone) or registry.backbone("tiny")
    source, num_classes = digits(), 10
    if targets is not None:
        values = targets_of(source.labels, targets)
        source, num_classes = replace(source, annotations=Annotations(targets=values)), values.shape[1]
        head = targets.name
    parts = stages or [(config.train_from, num_steps)]
    with parallel.scope():
        built = classifier.Classifier(
            backbone,
            config,
            image_size=24,
            num_classes=num_classes,
            seed=1,
            loss=head,
            parts=[part for part, _ in parts],
            recomputes=recomputes,
        )
        heads.standardize(built.scale, source.truth)
        views = [built.trained_from(train_from) for train_from, _ in parts]
        net = classifier.widest(views)
        opt = optim.Optimizer(
            optimizer,
            net.trainable,
            scale_loss=precision == "mixed_float16" or wire == "float16",
            stages=[optim.rules(optimizer, view.trainable, built.depths, built.new) for view in views],
        )
    state = TrainState({**net.moving, **opt.variables})
    by_class = ByClass.of(source.labels) if balanced else None
    order = Order(seed=7, num_examples=NUM_EXAMPLES, global_batch=global_batch, by_class=by_class)
    rate = partial(optim.learning_rate, optimizer, steps_per_epoch=5.3, total_steps=num_steps)
    rows = rows_of(parallel.rank, parallel.world_size, global_batch)
    read = augmented(source, ("flip", "pad_crop"), order.seed, 24, augmentation)
    mixed = augmentation.mixes or soft_labels
    objective: Any = losses.Objective(10, global_batch, mixed=mixed, distillation=distillation, **(loss or {}))
    judge: Any = losses.Objective(10, global_batch)
    if targets is not None:
        weights = target_losses.pos_weights(targets, source.truth)
        sizes = num_classes, global_batch
        objective = target_losses.TargetObjective(targets, *sizes, mixed, weights, net.spread)
        judge = target_losses.TargetObjective(targets, *sizes, spread=net.spread)
    transforms = [dropout_masks(order, net.mask_rates)] if net.mask_rates else []
    if soft_labels and source.annotations.soft is not None:
        transforms.append(soft_labels_of(order, source.annotations.soft))

    def train_stage(number: int, end: int) -> list[Report]:
        batches = train_batches(
            read,
            order,
            rows=rows,
            steps=range(state.step, end),
            transforms=transforms,
        )
        if overflow:
            batches = batches.map(overflow_at_one_position)
        if number:
            opt.begin(number)
        on_gpu = gpu_of_process() is not None
        run_steps = chunk.train_chunk(
            step.TrainStep(
                views[number],
                opt,
                objective,
                parallel,
                rate,
                stage=number,
                accumulate=accumulate,
                wire=wire,
                xla=RuntimeConfig().compiles(on_gpu=on_gpu),
                gpu=on_gpu,
                teacher=distillation and teacher,
            )
        )
        reports = loop.train(
            state, parallel.feed(batches), run_steps, parallel,
            cadence=loop.Cadence([1], end), rate=lambda k: 0.0, stop_requested=lambda: False,
        )  # fmt: skip
        return list(reports)

    def evaluate() -> dict[str, Any]:
        held_out = evaluation_batches(
            plain(source, 24), NUM_EXAMPLES, rows=rows, global_batch=global_batch
        )  # fmt: skip
        with opt.averaged(len(parts) - 1):
            result = evaluation.evaluate(
                "all", NUM_EXAMPLES, -(-NUM_EXAMPLES // global_batch),
                parallel.feed(held_out),
                evaluation.evaluation_step(net, judge, parallel, global_batch=global_batch),
                parallel, stop_requested=lambda: False,
            )  # fmt: skip
        assert result is not None
        return {
            "num_examples": result.num_examples,
            "num_correct": result.num_correct,
            "evaluation_loss": result.mean_loss,
            "confusion": None if result.confusion is None else result.confusion.tolist(),
            "logits": np.asarray(result.logits).tolist(),
        }

    def drive() -> dict[str, Any]:
        reports = [report for number, (_, end) in enumerate(parts) for report in train_stage(number, end)]
        everyones = parallel.gather(step.weight_checksums(net, parallel)().numpy().tobytes())
        checksums = np.concatenate([np.frombuffer(text).reshape(-1, len(net.moving)) for text in everyones])
        result = evaluate() if evaluated else {}
        weights = {path: variable.numpy() for path, variable in net.trainable.items()}
        moved = {path: variable.numpy().tolist() for path, variable in net.statistics.items()}
        if moved:
            average = averaging(net, parallel, global_batch=global_batch)
            batches = parallel.feed(train_batches(read, order, rows=rows, steps=range(state.step, state.step + 3)))
            for k in (1, 2, 3):
                average(batches, tf.constant(k, tf.int64))
        return {
            "losses": [report.mean_loss for report in reports],
            "gradient_norms": [report.gradient_norm for report in reports],
            "skipped": [report.num_skipped for report in reports],
            "loss_scale": [report.loss_scale for report in reports],
            "reduced_bytes": getattr(parallel, "reduced_bytes", 0),
            "replicas_equal": bool((checksums == checksums[0]).all()),
            "weights_finite": all(bool(np.isfinite(w).all()) for w in weights.values()),
            "statistics": moved,
            "precise_statistics": {path: variable.numpy().tolist() for path, variable in net.statistics.items()},
            **result,
        }

    parallel.broadcast(list(state.variables.values()))
    with parallel.naming_lost_peers():
        return drive()


def main() -> None:
    gc.freeze()  # what imports have made stays
    tf.config.experimental.enable_tensor_float_32_execution(False)  # on a GPU, where it would round to 10 bits
    strategy, workers, names, output = (
        sys.argv[1],
        int(sys.argv[2]),
        sys.argv[3].split(","),
        Path(sys.argv[4]),
    )
    config = Config(
        name="parity", strategy=strategy, workers=workers, steps=NUM_STEPS, data=DataConfig(name="digits"),
        model=ModelConfig(backbone="tiny"), optimizer=OptimizerConfig(learning_rate=0.1),
    )  # fmt: skip
    ready = time.monotonic()
    with load_model.pipelines_as_traced():
        parallel = registry.strategy(strategy).start(config)
    assert parallel.num_replicas == workers
    clocks = np.array([json.loads(c) for c in parallel.gather(json.dumps([ready, time.monotonic()]).encode())])
    results: dict[str, Any] = {"meeting_s": clocks[:, 1].max() - clocks[:, 0].max()}
    # An evaluation knows nothing of how the weights were trained: one is enough.
    for name in (name for name in names if name in VARIANTS):
        variant = {"evaluated": name == "plain", "global_batch": batch_of(workers), **VARIANTS[name]}
        results[name] = run_variant(parallel, **variant)
    for name in (name for name in names if name in WIRES):
        parallel.wire = WIRES[name]["wire"]  # processes meet but once
        results[name] = run_variant(parallel, evaluated=False, global_batch=batch_of(workers), **WIRES[name])
        parallel.wire = "auto"
    for name, variant in {**METHODS, **WITHOUT}.items():
        if name in names:
            results[name] = run_variant(parallel, num_steps=NUM_METHOD_STEPS, **variant)
    if parallel.rank == 0:
        output.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
