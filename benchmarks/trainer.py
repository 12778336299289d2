"""A run in this process; and tl_dist's loop on synthetic images, as a generator of reports that benchmarks can pull."""

import io
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

import tl_dist as tl
from tl_dist.config import Config, DataConfig, ModelConfig, OptimizerConfig, RuntimeConfig, registry
from tl_dist.data.order import Order
from tl_dist.data.pipeline import plain, train_batches
from tl_dist.datasets import Source
from tl_dist.datasets.arrays import array_source
from tl_dist.models import classifier
from tl_dist.parallel import DataParallel, rows_of
from tl_dist.parallel.replicas import gpu_of_process
from tl_dist.training import chunk, loop, losses, optim, step
from tl_dist.training.state import Report, TrainState

ENDLESS = 10**9


def config(
    strategy: str = "single",
    *,
    backbone: str = "vgg16",
    train_from: str = "all",
    batch: int = 32,
    image_size: int = 32,
    recompute: bool = False,
) -> Config:
    """A config of the benchmarks: synthetic images, random weights, SGD with momentum."""
    return Config(
        name="benchmark",
        strategy=strategy,
        steps=ENDLESS,
        global_batch=batch,
        data=DataConfig(name="synthetic", image_size=image_size, num_examples=1024),
        model=ModelConfig(backbone=backbone, weights="random", train_from=train_from, batch_norm="inference"),
        optimizer=OptimizerConfig(name="sgd", learning_rate=1e-4, momentum=0.9),
        runtime=RuntimeConfig(recompute=recompute),
    )


def trained(cfg: Config, runs: Path) -> tl.Run:
    """The run of a config, trained to its end without a word on the screen."""
    with redirect_stdout(io.StringIO()):
        return tl.train(cfg, runs=runs, here=True)


class Trainer:
    """The loop of one worker, without a run directory."""

    def __init__(
        self, cfg: Config, parallel: DataParallel, precision: str, *, wire: str = "auto", threads: int = 2
    ) -> None:
        keras.config.set_dtype_policy(precision)
        self.parallel = parallel
        source = _in_memory(cfg)
        size = cfg.data.image_size or 32
        with parallel.scope():
            self.model = classifier.Classifier(
                registry.backbone(cfg.model.backbone),
                cfg.model,
                image_size=size,
                num_classes=source.num_classes,
                seed=0,
                recomputes=cfg.runtime.recompute,
            )
            self.optimizer = optim.Optimizer(cfg.optimizer, self.model.trainable, scale_loss=False)
        self.state = TrainState({**self.model.trainable, **self.optimizer.variables})
        rate = partial(optim.learning_rate, cfg.optimizer, steps_per_epoch=32, total_steps=ENDLESS)
        objective = losses.Objective(source.num_classes, cfg.global_batch)
        on_gpu = gpu_of_process() is not None
        xla = cfg.runtime.compiles(on_gpu=on_gpu)
        self._run_steps = chunk.train_chunk(
            step.TrainStep(self.model, self.optimizer, objective, parallel, rate, wire=wire, xla=xla, gpu=on_gpu)
        )
        self._batches = train_batches(
            plain(source, size),
            Order(0, source.num_examples, cfg.global_batch),
            rows=rows_of(parallel.rank, parallel.world_size, cfg.global_batch),
            steps=range(ENDLESS),
            threads=threads,
        )

    def reports(self, every: int) -> Iterator[Report]:
        """One report each `every` steps, or sooner where steps are slow."""
        return loop.train(
            self.state,
            self.parallel.feed(self._batches),
            self._run_steps,
            self.parallel,
            cadence=loop.Cadence([every], ENDLESS),
            rate=lambda at: 0.0,
            stop_requested=lambda: False,
        )


def _in_memory(cfg: Config) -> Source:
    """Kept, as the other sides keep them: made again for each batch they take more time than a small network."""
    made: Source = registry.DATASETS[cfg.data.name].open(cfg.data)["train"]
    images, labels = synthetic_images(cfg)
    return array_source(images, labels, made.class_names, made.ids)


def advance(reports: Iterator[Report], steps: int) -> list[Report]:
    """Pull reports until at least `steps` steps are done."""
    pulled: list[Report] = []
    while sum(report.steps for report in pulled) < steps:
        pulled.append(next(reports))
    return pulled


def use_threads(threads: int) -> None:
    """The cores that this process computes on; before TensorFlow starts."""
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)


def synthetic_images(cfg: Config) -> tuple[Any, Any]:
    """The same images and labels as arrays, for the other side."""
    source: Source = registry.DATASETS[cfg.data.name].open(cfg.data)["train"]
    data = tf.data.Dataset.range(source.num_examples).map(source.read).batch(source.num_examples)
    images, labels = next(iter(data))
    return images.numpy(), labels.numpy()
