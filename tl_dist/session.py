"""What one worker needs for a run, built from the run directory in the order in which it must be built."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from tl_dist import agreement, checkpoint, config, features, model, optim, precision, registry
from tl_dist.backbones import Backbone, weights
from tl_dist.config import Config
from tl_dist.data import pipeline
from tl_dist.data.order import Order
from tl_dist.datasets import Splits, manifest
from tl_dist.durable import write_atomically
from tl_dist.parallel import DataParallel
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.run import RunDir
from tl_dist.state import TrainState


class Session:
    """The nouns of one attempt, the same on every worker but for `parallel.rank`."""

    def __init__(self, run: RunDir, *, local_workers: int) -> None:
        self.run = run
        self.cfg: Config = config.load(run.config_file)
        self.threads = _start_tensorflow(self.cfg, local_workers)
        self.parallel: DataParallel = registry.lookup(registry.STRATEGIES, self.cfg.strategy)(self.cfg)
        self.splits: Splits = registry.lookup(registry.DATASETS, self.cfg.data.name)(self.cfg.data)
        self.precision = precision.resolve(self.cfg.precision)
        self._build_model(registry.lookup(registry.BACKBONES, self.cfg.model.backbone))
        train = self.splits["train"]
        self.order = Order(self.cfg.seed, train.num_examples, self.cfg.global_batch)
        self.evaluation_batch = self.cfg.evaluation.batch or self.cfg.global_batch
        self.evaluation_batch = self.cfg.evaluation.batch or self.cfg.global_batch
        self.steps_per_epoch = train.num_examples / self.cfg.global_batch
        self.total_steps = self.cfg.steps or self.order.steps(self.cfg.epochs or 1.0)
        self.state = TrainState({**self.model.trainable, **self.optimizer.variables})
        self.read_train = self.read_images
        self.read = {name: pipeline.plain(source, self.image_size) for name, source in self.splits.items()}
        """how evaluation reads each split"""
        self.train_features: tuple[features.FeatureSet, np.ndarray | None]
        """once cached: the set with the training examples, and which of its examples they are (None: all)"""

    def _build_model(self, backbone: Backbone) -> None:
        cfg = self.cfg
        keras.config.set_dtype_policy(self.precision)
        self.image_size = cfg.data.image_size or backbone.input_size
        file = weights.resolve(cfg.model.weights, cfg.model.backbone, sha256=cfg.model.weights_sha256)
        with self.parallel.scope():
            self.model = model.build(
                backbone,
                cfg.model,
                image_size=self.image_size,
                num_classes=self.splits["train"].num_classes,
                seed=cfg.seed,
            )
            if file is not None:
                weights.load(self.model.network, file)
            self.optimizer = optim.Optimizer(
                cfg.optimizer, self.model.trainable, scale_loss=self.precision == "mixed_float16"
            )
        self.weights_sha256 = file.sha256 if file else None

    @property
    def read_images(self) -> pipeline.Read:
        """Training images, augmented."""
        return pipeline.augmented(self.splits["train"], self.cfg.data.augment, self.cfg.seed, self.image_size)

    def class_weights(self) -> list[float] | None:
        """The loss weight of each class, as the config asks."""
        wanted = self.cfg.loss.class_weights
        train = self.splits["train"]
        if wanted == "balanced":
            return model.balanced_class_weights(train.labels, train.num_classes)
        if wanted is not None and len(wanted) != train.num_classes:
            raise Refusal(
                f"loss.class_weights has {len(wanted)} numbers for {train.num_classes} classes.",
                fix=f"give one for each of {', '.join(train.class_names)}.",
                code=ExitCode.USAGE,
            )
        return list(wanted) if wanted else None

    def prove_agreement(self) -> None:
        """Refuses unless all workers have one code, config, data set and plan of collectives, and the run's own."""
        facts = {
            "trajectory": config.trajectory(self.cfg),
            "precision": self.precision,
            "data": {name: source.fingerprint for name, source in self.splits.items()},
            "class_names": list(self.splits["train"].class_names),
            "weights_sha256": self.weights_sha256,
            "frozen_sha256": self.model.frozen_digest(),
            "collectives": agreement.plan(self.model.trainable),
        }
        agreement.agree(self.parallel, {**facts, "versions": agreement.versions()})
        if self.parallel.rank == 0:
            # Newer libraries may go on with a run; other data, weights or settings may not.
            self.run.freeze_identity(facts)
            write_atomically(self.run.path / "split.json", json.dumps(manifest(self.splits)).encode())

    def restore(self, log: Callable[[str], None]) -> checkpoint.Commit | None:
        """Set the state to the newest valid commit, where there is one. Rank 0 does it; the others follow.

        `log` gets a line for each commit that had to be passed over.
        """
        expected = {path: (v.dtype.name, tuple(v.shape)) for path, v in self.state.variables.items()}
        commit = checkpoint.restore(self.run, expected=expected, log=log)
        if commit is not None:
            self.state.assign(commit.arrays)
            self.state.step, self.state.history = commit.step, dict(commit.meta["history"])
        return commit


def _start_tensorflow(cfg: Config, local_workers: int) -> int:
    """Threads and determinism, before TensorFlow touches a device; returns the threads of this worker."""
    threads = cfg.runtime.threads or max(1, len(os.sched_getaffinity(0)) // local_workers)
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    keras.utils.set_random_seed(cfg.seed)
    if cfg.runtime.deterministic:
        tf.config.experimental.enable_op_determinism()
    return threads
