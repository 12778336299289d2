"""What one worker needs for a run, built from the run directory in the order in which it must be built."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tl_dist import agreement, audit, checkpoint, model, optim, precision, registry, source_task, stages
from tl_dist.backbones import Backbone, weights
from tl_dist.config import Config
from tl_dist.config import file as config_file
from tl_dist.data import decoded, pipeline
from tl_dist.data import order as data_order
from tl_dist.data.order import Order
from tl_dist.data.undecodable import MACHINE_ERRORS, READ_ERRORS, machine_fault, undecodable
from tl_dist.datasets import Splits, manifest, quarantine
from tl_dist.datasets.division import open_splits
from tl_dist.datasets.handles import machine_refusal
from tl_dist.durable import write_atomically
from tl_dist.features import views as feature_views
from tl_dist.features.stored import FeatureSet
from tl_dist.parallel import DataParallel, rows_of
from tl_dist.refusal import ExitCode, Refusal
from tl_dist.run import RunDir
from tl_dist.state import TrainState


class Session:
    """The nouns of one attempt, the same on every worker but for `parallel.rank`."""

    def __init__(self, run: RunDir, *, cores: int, overrides: Sequence[str] = ()) -> None:
        self.run = run
        self.cfg: Config = config_file.load(run.config_file, overrides)
        self.threads = _start_tensorflow(self.cfg, cores)
        self.parallel: DataParallel = registry.lookup(registry.STRATEGIES, self.cfg.strategy)(self.cfg)
        self.opened, self._split_digest = open_splits(self.cfg.data)
        """the splits as the dataset has them; `splits` is what can be read of them"""
        self.bad, self.splits = self._screen()
        self.precision = precision.resolve(self.cfg.precision)
        train = self.splits["train"]
        data = self.cfg.data
        block = data.shuffle_block if data.shuffle == "blocks" else 0
        self.order = Order(
            self.cfg.seed, train.num_examples, self.cfg.global_batch, block, data.shuffle_window
        )
        self.evaluation_batch = self.cfg.evaluation.batch or self.cfg.global_batch
        self.steps_per_epoch = train.num_examples / self.cfg.global_batch
        self.stages = stages.plan(self.cfg, self.order.steps)
        self.total_steps = self.stages[-1].end
        self._build_model(registry.lookup(registry.BACKBONES, self.cfg.model.backbone))
        self.splits = self._decoded()
        self.state = TrainState({**self.whole.moving, **self.optimizer.variables})
        self.kept: list[object] = []
        """what must live until the process ends"""
        self.enter(self.stages[0])

    def enter(self, stage: stages.Stage) -> None:
        """Make `model` and the readers those of a stage: what is trained in it, on images."""
        self.stage = stage
        self.model = self.whole.trained_from(stage.train_from)
        self.read_train = self.read_images
        self.read = {
            name: feature_views.in_views(
                pipeline.plain(source, self.image_size, self.crop_fraction), self.cfg.evaluation.views
            )
            for name, source in self.splits.items()
        }
        """how evaluation reads each split"""
        self.train_features: tuple[FeatureSet, np.ndarray | None]
        """once cached: the set with the training examples, and which of its examples they are (None: all)"""

    @property
    def num_evaluation_views(self) -> int:
        """Over how many views of an example evaluation takes the mean."""
        return feature_views.views_of(self.cfg.evaluation.views)

    @property
    def parts_left(self) -> list[stages.Stage]:
        """The stages that have steps to do; the last, for its evaluation, where none has."""
        return [stage for stage in self.stages if stage.end > self.state.step] or [self.stages[-1]]

    def _screen(self) -> tuple[list[quarantine.Bad], Splits]:
        """What cannot be read, by its header or since an earlier attempt failed on it, and the splits without it."""
        (known, *_) = self.parallel.gather(json.dumps(quarantine.read(self.run.quarantine_file)).encode())
        found = quarantine.screen(
            self.opened,
            cache=self.run.path.parent / "header_checks",
            rank=self.parallel.rank,
            world_size=self.parallel.world_size,
            gather=self.parallel.gather,
        )
        found = [*quarantine.left_out(self.opened), *found]
        bad = quarantine.merged([quarantine.Bad(*entry) for entry in json.loads(known)], found)
        if bad and self.parallel.rank == 0:
            quarantine.write(self.run.quarantine_file, bad)
        quarantine.refuse_beyond(quarantine.budget(self.cfg.data.max_bad, self.opened), bad)
        return bad, quarantine.without(self.opened, bad)

    def beat(self, phase: str, *, alone: bool = False) -> None:
        """Show that this worker lives, and what it does. Every worker says every phase: their beats are compared.

        `alone`: rank 0 does it, for as long as `safety.alone_s`, while the others wait.
        """
        patience_s = self.cfg.safety.alone_s if alone and self.parallel.rank == 0 else 0.0
        self.run.beat(self.parallel.rank, phase, self.state.step, patience_s)

    def prepare_for(self, phase: str) -> None:
        """The same where all workers build and compile, or read back what is large: as before the first step."""
        self.run.beat(self.parallel.rank, phase, self.state.step, self.cfg.safety.first_step_s)

    def stop_requested(self, phase: str, *, alone: bool = False) -> bool:
        """Rank 0 looks for the stop file; what it finds reaches the others with the next total."""
        self.beat(phase, alone=alone)
        return self.parallel.rank == 0 and self.run.stop_requested()

    @contextmanager
    def naming_bad_examples(self, split: str, indices: Callable[[], Iterable[int]]) -> Iterator[None]:
        """A failure inside, of which an example of `split` is the cause, names it and puts it in quarantine.

        `indices` gives the examples that were being read. The refusal is restartable: the next attempt goes on from
        the last commit without them. A fault of the machine is no example's: it is refused as one of storage.
        """
        try:
            with self._naming_bad(split, indices):
                yield
        except MACHINE_ERRORS as error:
            if (fault := machine_fault(error)) is None:
                raise
            raise machine_refusal(f"split '{split}'", fault) from error

    @contextmanager
    def _naming_bad(self, split: str, indices: Callable[[], Iterable[int]]) -> Iterator[None]:
        try:
            yield
        except READ_ERRORS:
            source = self.splits[split]
            found = undecodable(source, indices(), self.threads)
            if not found:
                raise
            bad = [quarantine.bad_example(split, source, index, fault) for index, fault in found.items()]
            known = quarantine.merged(quarantine.read(self.run.quarantine_file), bad)
            quarantine.write(self.run.quarantine_file, known)
            quarantine.refuse_beyond(quarantine.budget(self.cfg.data.max_bad, self.opened), known)
            raise Refusal(
                f"{bad[0].id} {bad[0].reason}"
                + (f", and so do {len(bad) - 1} more" if len(bad) > 1 else "")
                + f": put in {self.run.quarantine_file.name}.",
                fix="the same command goes on from the last commit without it; restore the file for the next run.",
                code=ExitCode.INTERNAL,
            ) from None

    def _decoded(self) -> Splits:
        """The splits with their images decoded once, where the config asks for it."""
        where = self.cfg.runtime.decoded_images
        if where == "off":
            return self.splits

        def stop_requested() -> bool:
            self.run.beat(self.parallel.rank, "decoding images", 0)
            return self.parallel.rank == 0 and self.run.stop_requested()

        with self.naming_bad_examples("train", lambda: range(self.splits["train"].num_examples)):
            if where == "memory":
                return decoded.in_memory(
                    self.splits, self.image_size, self.threads, crop_fraction=self.crop_fraction
                )
            return self.parallel.supervise(
                lambda: decoded.on_disk(
                    self.splits,
                    self.image_size,
                    self.threads,
                    crop_fraction=self.crop_fraction,
                    directory=self.run.path.parent / "decoded",
                    parallel=self.parallel,
                    stop_requested=stop_requested,
                )
            )

    def _build_model(self, backbone: Backbone) -> None:
        cfg = self.cfg
        keras.config.set_dtype_policy(self.precision)
        self.image_size = cfg.data.image_size or backbone.input_size
        self.crop_fraction = cfg.data.kept_fraction
        file = None
        if cfg.source is None:
            file = weights.resolve(cfg.model.weights, cfg.model.backbone, sha256=cfg.model.weights_sha256)
        self.source_sha256: str | None = None
        """digest of the backbone that was carried over from another run"""
        with self.parallel.scope():
            built = model.build(
                backbone,
                cfg.model,
                image_size=self.image_size,
                num_classes=self.splits["train"].num_classes,
                seed=cfg.seed,
                carried=cfg.source is not None,
            )
            views = [built.trained_from(stage.train_from) for stage in self.stages]
            self.whole = model.widest(views)
            """the model that trains whatever any stage trains"""
            for view in views:
                view.refuse_frozen_random()
            if file is not None:
                with self.whole.keeping_new():
                    weights.load(built.network, file)
            if cfg.source is not None:
                every = {**self.whole.moving, **self.whole.frozen}
                carried = {path: v for path, v in every.items() if path.startswith("backbone/")}
                with self.whole.keeping_new():
                    self.source_sha256 = source_task.carry(built.network, carried, cfg)
            self.statistics_at_start = audit.statistics(self.whole)
            self.optimizer = optim.Optimizer(
                cfg.optimizer,
                self.whole.trainable,
                scale_loss=self.precision == "mixed_float16",
                stages=[
                    optim.rules(stage.optimizer, view.trainable, built.depths, built.new)
                    for stage, view in zip(self.stages, views, strict=True)
                ],
            )
        self.weights_sha256 = file.sha256 if file else None

    def upcoming(self, num_steps: int) -> Iterator[int]:
        """The training examples of this worker in so many steps from now on, in the order in which it reads them."""
        rows = np.array(rows_of(self.parallel.rank, self.parallel.world_size, self.order.global_batch))
        for step in range(self.state.step, self.state.step + num_steps):
            yield from self.order.index(self.order.positions(step, rows)).numpy().tolist()

    @property
    def read_images(self) -> pipeline.Read:
        """Training images, augmented."""
        data = self.cfg.data
        return pipeline.augmented(
            self.splits["train"],
            data.augment,
            self.cfg.seed,
            self.image_size,
            data.augmentation,
            self.crop_fraction,
        )

    def _batch_statistics(self) -> dict[str, Any]:
        """What a replica's own batch statistics depend on: the one setting by which the worker count is visible."""
        if self.cfg.model.batch_norm != "train":
            return {}
        return {"batch_statistics_of": [self.parallel.num_replicas, self.cfg.accumulate]}

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
        facts: dict[str, Any] = {
            "trajectory": config_file.trajectory(self.cfg),
            "precision": self.precision,
            "order": data_order.VERSION,
            "data": {name: source.fingerprint for name, source in self.opened.items()},
            "class_names": list(self.splits["train"].class_names),
            "weights_sha256": self.weights_sha256,
            "frozen_sha256": self.whole.frozen_digest(),
            "start_sha256": model.digest({path: v.numpy() for path, v in self.optimizer.start.items()}),
            "collectives": agreement.plan(self.whole.moving),
            **self._batch_statistics(),
        }
        if self.source_sha256 is not None:
            facts["source_sha256"] = self.source_sha256
        if self._split_digest is not None:
            facts["split"] = self._split_digest
        used = {name: source.fingerprint for name, source in self.splits.items()}
        agreement.agree(self.parallel, {**facts, "used": used, "versions": agreement.versions()})
        if self.parallel.rank == 0:
            # Newer libraries may go on with a run; other data, weights or settings may not.
            self.run.freeze_identity(facts)
            write_atomically(self.run.path / "split.json", json.dumps(manifest(self.opened)).encode())

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


def _start_tensorflow(cfg: Config, cores: int) -> int:
    """Threads and determinism, before TensorFlow touches a device; returns the threads of this worker."""
    threads = cfg.runtime.threads or cores
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    keras.utils.set_random_seed(cfg.seed)
    if cfg.runtime.deterministic:
        tf.config.experimental.enable_op_determinism()
    return threads
